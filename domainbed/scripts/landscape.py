"""Measure the loss landscapes of trained models; see `domainbed.landscape.command`."""

from domainbed import cli
from domainbed.landscape.command import main, parser

__all__ = ["main", "parser"]

if __name__ == "__main__":
    cli.run(main)
