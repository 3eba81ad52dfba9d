"""See `domainbed.colored_mnist.command`: `python -m domainbed.scripts.colored_mnist --help`."""

from domainbed import cli
from domainbed.colored_mnist.command import main, parser

__all__ = ["main", "parser"]

if __name__ == "__main__":
    cli.run(main)
