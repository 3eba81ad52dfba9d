"""Packages that only some users install."""

import importlib
import os
from types import ModuleType

import pytest


def optional(name: str) -> ModuleType:
    """Return a package. Without it the test is skipped, or fails with DOMAINBED_TEST_EXTRAS=1."""
    if os.environ.get("DOMAINBED_TEST_EXTRAS") == "1":
        return importlib.import_module(name)
    return pytest.importorskip(name)
