"""Inspect a dataset; see `domainbed.inspection.command`."""

from domainbed import cli
from domainbed.inspection.command import main, parser

__all__ = ["main", "parser"]

if __name__ == "__main__":
    cli.run(main)
