"""Reproduce the Colored MNIST proof of concept; see `domainbed.colored_mnist.command`."""

from domainbed import cli
from domainbed.colored_mnist.command import main, parser

__all__ = ["main", "parser"]

if __name__ == "__main__":
    cli.run(main)
