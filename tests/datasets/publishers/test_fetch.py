"""Tests of downloads from a faulty local server, never from the network."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from domainbed.datasets.publishers import fetch as fetching
from domainbed.datasets.publishers.fetch import MAX_ATTEMPTS, FetchError, fetch
from domainbed.errors import UsageError

DATA = os.urandom(1_000_003)
SHA256 = hashlib.sha256(DATA).hexdigest()


def fetch_partially(server, path: Path, **kwargs) -> None:
    """Fetch the first 300,000 bytes of x."""
    file = server.offer("x", DATA, cuts=[300_000] + [0] * MAX_ATTEMPTS, **kwargs)
    with pytest.raises(FetchError, match="connection lost at 300,000 of 1,000,003 bytes; run again to resume"):
        fetch(server.url("x"), path)
    assert not path.exists()
    assert (path.parent / "x.part").read_bytes() == DATA[:300_000]
    file.cuts.clear()
    file.requests.clear()


def test_complete_download(server, tmp_path: Path):
    file = server.offer("x", DATA)
    assert fetch(server.url("x"), tmp_path / "x", SHA256) == SHA256
    assert (tmp_path / "x").read_bytes() == DATA
    assert os.listdir(tmp_path) == ["x"]
    assert fetch(server.url("x"), tmp_path / "x", SHA256) == SHA256
    assert file.requests == [""], "existing files are not downloaded again"


def test_empty_file(server, tmp_path: Path):
    server.offer("x", b"")
    fetch(server.url("x"), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b""


def test_lost_connection_is_resumed(server, tmp_path: Path):
    file = server.offer("x", DATA, cuts=[300_000, 0, 300_000, 1])
    fetch(server.url("x"), tmp_path / "x", SHA256)
    assert file.requests == ["", "bytes=300000-", "bytes=300000-", "bytes=600000-", "bytes=600001-"]


@pytest.mark.parametrize("partial", ["full", "few"])
@pytest.mark.parametrize(
    "version", [{}, {"etag": None}, {"etag": 'W/"1"', "modified": "Thu, 01 Jan 2026 00:00:00 GMT"}], ids=str
)
def test_second_call_resumes(server, tmp_path: Path, version: dict, partial: str):
    fetch_partially(server, tmp_path / "x", partial=partial, **version)
    fetch(server.url("x"), tmp_path / "x", SHA256)
    assert server.files["/x"].requests == ["bytes=300000-"]
    assert os.listdir(tmp_path) == ["x"]


def test_server_without_range_support(server, tmp_path: Path):
    fetch_partially(server, tmp_path / "x")
    server.files["/x"].partial = None
    fetch(server.url("x"), tmp_path / "x", SHA256)
    assert server.files["/x"].requests == ["bytes=300000-"]


@pytest.mark.parametrize("honors_if_range", [True, False])
@pytest.mark.parametrize("size", [2_000_000, 1_000_003, 200_000, 300_000])
def test_file_that_changed_between_calls(server, tmp_path: Path, size: int, honors_if_range: bool):
    fetch_partially(server, tmp_path / "x")
    data = os.urandom(size)
    server.offer("x", data, etag='"2"', honors_if_range=honors_if_range)
    fetch(server.url("x"), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == data


def test_other_url_with_same_file_name(server, tmp_path: Path):
    fetch_partially(server, tmp_path / "x")
    data = os.urandom(1_000_003)
    server.offer("elsewhere/x", data)
    fetch(server.url("elsewhere/x"), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == data


def test_complete_part_is_not_downloaded_again(server, tmp_path: Path):
    """A process killed between the last byte and the renaming leaves this state."""
    fetch_partially(server, tmp_path / "x")
    (tmp_path / "x.part").write_bytes(DATA)
    fetch(server.url("x"), tmp_path / "x", SHA256)
    assert server.files["/x"].requests == []


def test_wrong_checksum_deletes_the_file(server, tmp_path: Path):
    server.offer("x", DATA)
    with pytest.raises(FetchError, match=f"has SHA-256 {SHA256}, expected {'0' * 64}; deleted the download"):
        fetch(server.url("x"), tmp_path / "x", "0" * 64)
    assert os.listdir(tmp_path) == []


def test_web_page_instead_of_the_file_is_an_error(server, tmp_path: Path):
    page = b"<html><head><title>Google Drive -\n Quota exceeded</title></head></html>"
    server.offer("x", page, kind="text/html; charset=utf-8")
    with pytest.raises(FetchError, match=r"returned a web page \(Google Drive - Quota exceeded\) instead of the file"):
        fetch(server.url("x"), tmp_path / "x")
    assert os.listdir(tmp_path) == []


def test_web_page_does_not_overwrite_partial_download(server, tmp_path: Path):
    fetch_partially(server, tmp_path / "x")
    server.offer("x", b"<html>", kind="text/html", partial=None)
    with pytest.raises(FetchError, match="returned a web page instead"):
        fetch(server.url("x"), tmp_path / "x")
    assert (tmp_path / "x.part").read_bytes() == DATA[:300_000]


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, MAX_ATTEMPTS)])
def test_http_errors(server, tmp_path: Path, status: int, requests: int):
    file = server.offer("x", b"no", status=status)
    with pytest.raises(FetchError, match=f"HTTP {status}"):
        fetch(server.url("x"), tmp_path / "x")
    assert len(file.requests) == requests
    assert os.listdir(tmp_path) == []


def test_refused_connection(server, tmp_path: Path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/x"
        with pytest.raises(FetchError, match=r"no connection \(.*refused"):
            fetch(url, tmp_path / "x")
    assert os.listdir(tmp_path) == []


def test_insufficient_disk_space(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    server.offer("x", DATA)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1_000_000))
    with pytest.raises(UsageError, match=r"needs 1,000,003 more bytes in .* which has 1,000,000 free"):
        fetch(server.url("x"), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_resume_after_sigkill(server, tmp_path: Path):
    """The next call downloads only the rest."""
    data = os.urandom(8 << 20)
    file = server.offer("x", data, slow=0.05)
    command = "import sys; from pathlib import Path; from domainbed.datasets.publishers.fetch import fetch; "
    command += "fetch(sys.argv[1], Path(sys.argv[2]))"
    process = subprocess.Popen([sys.executable, "-c", command, server.url("x"), str(tmp_path / "x")])
    try:
        deadline = time.monotonic() + 60
        part = tmp_path / "x.part"
        while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    size = part.stat().st_size
    assert 0 < size < len(data)
    file.slow = 0
    fetch(server.url("x"), tmp_path / "x", hashlib.sha256(data).hexdigest())
    assert file.requests == ["", f"bytes={size}-"]


def test_redirect_to_plain_http_is_an_error(server, tmp_path: Path, monkeypatch):
    file = server.offer("x", DATA)
    urlopen = fetching.urlopen
    monkeypatch.setattr(fetching, "urlopen", lambda request, timeout: urlopen(server.url("x"), timeout=timeout))
    with pytest.raises(
        FetchError, match=r"https://host/x redirects to http://127\.0\.0\.1:\d+/x, which is not encrypted"
    ):
        fetch("https://host/x", tmp_path / "x")
    assert os.listdir(tmp_path) == []
    assert file.requests == [""]


def test_wrong_md5_is_an_error(server, tmp_path: Path):
    server.offer("x", DATA)
    actual = hashlib.md5(DATA).hexdigest()
    with pytest.raises(FetchError, match=rf"/x has MD5 {actual}, expected 0; deleted the download"):
        fetch(server.url("x"), tmp_path / "x", md5="0")
    assert os.listdir(tmp_path) == []
    assert fetch(server.url("x"), tmp_path / "x", md5=actual) == SHA256
