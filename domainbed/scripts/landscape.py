"""See `domainbed.landscape.command`: `python -m domainbed.scripts.landscape --help`."""

from domainbed import cli
from domainbed.landscape.command import main, parser

__all__ = ["main", "parser"]

if __name__ == "__main__":
    cli.run(main)
