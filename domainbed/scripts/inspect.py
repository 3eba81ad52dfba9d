"""Inspect a dataset; see `domainbed.inspection.command`."""

if __name__ == "inspect":
    # A script in this folder was started by its path, so Python's own modules find this file instead of theirs.
    import importlib
    import sys

    folder = sys.path.pop(0)
    del sys.modules["inspect"]
    importlib.import_module("inspect")  # the import system returns what sys.modules contains at the end
    sys.path.insert(0, folder)
else:
    from domainbed import cli
    from domainbed.inspection.command import main, parser

    __all__ = ["main", "parser"]

    if __name__ == "__main__":
        cli.run(main)
