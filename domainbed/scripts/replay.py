"""Replay cheaper policies on a finished sweep; see `domainbed.replay.command`."""

from domainbed import cli
from domainbed.replay.command import main, parser

__all__ = ["main", "parser"]

if __name__ == "__main__":
    cli.run(main)
