"""Fixtures for tests of downloads."""

from collections.abc import Iterator

import pytest

from domainbed.datasets.publishers import fetch
from tests.web_server import Server, running


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Run a local web server that is reached without a proxy; retry without delay."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch, "RETRY_DELAY", 0)
    with running() as server:
        yield server
