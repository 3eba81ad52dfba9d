"""Downloads from a server on this machine that cuts, changes, lies and refuses; never from the network."""

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
from domainbed.datasets.publishers.fetch import TRIES, FetchError, fetch
from domainbed.errors import UsageError

DATA = os.urandom(1_000_003)
SHA256 = hashlib.sha256(DATA).hexdigest()


def cut_off(server, path: Path, **kwargs) -> None:
    """Fetch x so far that 300,000 bytes of it are there."""
    file = server.offer("x", DATA, cuts=[300_000] + [0] * TRIES, **kwargs)
    with pytest.raises(FetchError, match="cut at 300,000 of 1,000,003 bytes; run again to go on from there"):
        fetch(server.url("x"), path)
    assert not path.exists()
    assert (path.parent / "x.part").read_bytes() == DATA[:300_000]
    file.cuts.clear()
    file.requests.clear()


def test_whole(server, tmp_path: Path):
    file = server.offer("x", DATA)
    assert fetch(server.url("x"), tmp_path / "x", SHA256) == SHA256
    assert (tmp_path / "x").read_bytes() == DATA
    assert os.listdir(tmp_path) == ["x"]
    assert fetch(server.url("x"), tmp_path / "x", SHA256) == SHA256
    assert file.requests == [""], "what is there is not fetched again"


def test_nothing_in_it(server, tmp_path: Path):
    server.offer("x", b"")
    fetch(server.url("x"), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b""


def test_cut_connections_are_mended(server, tmp_path: Path):
    file = server.offer("x", DATA, cuts=[300_000, 0, 300_000, 1])
    fetch(server.url("x"), tmp_path / "x", SHA256)
    assert file.requests == ["", "bytes=300000-", "bytes=300000-", "bytes=600000-", "bytes=600001-"]


@pytest.mark.parametrize("partial", ["full", "few"])
@pytest.mark.parametrize(
    "version", [{}, {"etag": None}, {"etag": 'W/"1"', "modified": "Thu, 01 Jan 2026 00:00:00 GMT"}], ids=str
)
def test_a_second_run_goes_on(server, tmp_path: Path, version: dict, partial: str):
    cut_off(server, tmp_path / "x", partial=partial, **version)
    fetch(server.url("x"), tmp_path / "x", SHA256)
    assert server.files["/x"].requests == ["bytes=300000-"]
    assert os.listdir(tmp_path) == ["x"]


def test_server_that_only_begins_at_the_beginning(server, tmp_path: Path):
    cut_off(server, tmp_path / "x")
    server.files["/x"].partial = None
    fetch(server.url("x"), tmp_path / "x", SHA256)
    assert server.files["/x"].requests == ["bytes=300000-"]


@pytest.mark.parametrize("honours_if_range", [True, False])
@pytest.mark.parametrize("size", [2_000_000, 1_000_003, 200_000, 300_000])
def test_file_that_changed_between_runs(server, tmp_path: Path, size: int, honours_if_range: bool):
    cut_off(server, tmp_path / "x")
    data = os.urandom(size)
    server.offer("x", data, etag='"2"', honours_if_range=honours_if_range)
    fetch(server.url("x"), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == data


def test_another_address_of_the_same_name(server, tmp_path: Path):
    cut_off(server, tmp_path / "x")
    data = os.urandom(1_000_003)
    server.offer("elsewhere/x", data)
    fetch(server.url("elsewhere/x"), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == data


def test_whole_but_not_renamed(server, tmp_path: Path):
    """As a process leaves it that is killed between the last byte and the renaming."""
    cut_off(server, tmp_path / "x")
    (tmp_path / "x.part").write_bytes(DATA)
    fetch(server.url("x"), tmp_path / "x", SHA256)
    assert server.files["/x"].requests == []


def test_wrong_checksum(server, tmp_path: Path):
    server.offer("x", DATA)
    with pytest.raises(FetchError, match=f"came with the sha256 {SHA256}, not {'0' * 64}; it is deleted"):
        fetch(server.url("x"), tmp_path / "x", "0" * 64)
    assert os.listdir(tmp_path) == []


def test_page_in_place_of_the_file(server, tmp_path: Path):
    page = b"<html><head><title>Google Drive -\n Quota exceeded</title></head></html>"
    server.offer("x", page, kind="text/html; charset=utf-8")
    with pytest.raises(FetchError, match=r"gives a web page \(Google Drive - Quota exceeded\) in place of the file"):
        fetch(server.url("x"), tmp_path / "x")
    assert os.listdir(tmp_path) == []


def test_page_does_not_harm_what_is_there(server, tmp_path: Path):
    cut_off(server, tmp_path / "x")
    server.offer("x", b"<html>", kind="text/html", partial=None)
    with pytest.raises(FetchError, match="gives a web page in place"):
        fetch(server.url("x"), tmp_path / "x")
    assert (tmp_path / "x.part").read_bytes() == DATA[:300_000]


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, TRIES)])
def test_server_that_refuses(server, tmp_path: Path, status: int, requests: int):
    file = server.offer("x", b"no", status=status)
    with pytest.raises(FetchError, match=f"the server answers {status}"):
        fetch(server.url("x"), tmp_path / "x")
    assert len(file.requests) == requests
    assert os.listdir(tmp_path) == []


def test_server_that_is_not_there(server, tmp_path: Path):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/x"
        with pytest.raises(FetchError, match=r"no connection \(.*refused"):
            fetch(url, tmp_path / "x")
    assert os.listdir(tmp_path) == []


def test_no_room(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    server.offer("x", DATA)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1_000_000))
    with pytest.raises(UsageError, match=r"needs 1,000,003 bytes more in .* which has 1,000,000 free"):
        fetch(server.url("x"), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_killed_and_run_again(server, tmp_path: Path):
    """kill -9 in the middle: the next run fetches the rest only."""
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
    there = part.stat().st_size
    assert 0 < there < len(data)
    file.slow = 0
    fetch(server.url("x"), tmp_path / "x", hashlib.sha256(data).hexdigest())
    assert file.requests == ["", f"bytes={there}-"]
