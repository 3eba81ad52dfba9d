"""What the tests of downloads share."""

from collections.abc import Iterator

import pytest

from domainbed.datasets.publishers import fetch
from tests.web_server import Server, running


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A web server on this machine, reached without a proxy; tries follow one another at once."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch, "PAUSE", 0)
    with running() as server:
        yield server
