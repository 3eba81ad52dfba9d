"""Analyze the predictions of a sweep; see `domainbed.analysis.command`."""

from domainbed import cli
from domainbed.analysis.command import main, parser

__all__ = ["main", "parser"]

if __name__ == "__main__":
    cli.run(main)
