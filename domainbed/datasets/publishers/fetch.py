"""Resumable download of one file over HTTP. The file gets its name only when it is complete and verified."""

import hashlib
import json
import os
import re
import shutil
import time
from dataclasses import asdict, astuple, dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from domainbed.errors import UsageError
from domainbed.files import atomic_write
from domainbed.terminal import ProgressBar

CHUNK_BYTES = 1 << 18
TIMEOUT = 30  # seconds without data
MAX_ATTEMPTS = 5  # consecutive ones that transfer nothing
RETRY_DELAY = 1.0  # seconds, doubled after each attempt that transfers nothing


class FetchError(UsageError):
    """A publisher's file that cannot be downloaded or is not what it should be."""


class ChecksumError(FetchError):
    """A file that was downloaded completely, but is not the expected one."""


class TransferError(Exception):
    """A failure of the server or the connection. Another attempt may succeed."""


@dataclass(frozen=True)
class RemoteFile:
    """The identity of a file on a server, as far as the headers report it; `size` in bytes."""

    url: str
    size: int | None
    etag: str | None
    modified: str | None

    def matches(self, other: "RemoteFile | None") -> bool:
        """Return whether all reported values are equal in `other`. A partial response may report fewer values."""
        return other is not None and all(
            value in (None, expected) for value, expected in zip(astuple(self), astuple(other), strict=True)
        )


def fetch(url: str, path: Path, sha256: str | None = None, md5: str | None = None) -> str:
    """Download a file with a progress bar; if `path` exists already, only verify its checksum.

    Incomplete data is kept in `path`.part, and the next attempt or call resumes there.

    Args:
        url: http or https.
        path: the file to create in an existing folder.
        sha256, md5: the expected checksums, if known.

    Returns:
        The file's SHA-256.

    Raises:
        ChecksumError: a checksum is wrong; the file is deleted.
        FetchError: the file cannot be downloaded.
        UsageError: not enough disk space.
    """
    part = path.with_name(f"{path.name}.part")
    largest = failures = 0
    while not path.exists():
        largest = max(largest, size_of(part))
        try:
            resume_download(url, part)
            os.replace(part, path)
            metadata_path(part).unlink()
        except TransferError as error:
            failures = 0 if size_of(part) > largest else failures + 1
            if failures == MAX_ATTEMPTS:
                raise FetchError(f"{url}: {error}; run again to resume") from error
            time.sleep(RETRY_DELAY * 2**failures)
    actual_sha256, actual_md5 = checksums_of(path)
    for kind, actual, expected in (("SHA-256", actual_sha256, sha256), ("MD5", actual_md5, md5)):
        if expected and actual != expected:
            path.unlink()
            raise ChecksumError(f"{url} has {kind} {actual}, expected {expected}; deleted the download")
    return actual_sha256


def resume_download(url: str, part: Path) -> None:
    """Download the rest of `part`, or the complete file if the file changed or the server does not support ranges.

    Raises:
        TransferError: the file is not complete yet.
        FetchError, UsageError: as in `fetch`.
    """
    known, offset = read_metadata(part), size_of(part)
    if known is None or known.url != url:
        offset = 0
    elif offset and known.size == offset:
        return
    request = Request(url, headers={"User-Agent": "domainbed"})
    if known and offset:
        request.add_header("Range", f"bytes={offset}-")
        # With If-Range, a file that changed is sent from the start. A weak ETag does not guarantee identical bytes.
        if validator := known.modified if not known.etag or known.etag.startswith("W/") else known.etag:
            request.add_header("If-Range", validator)
    with open_url(request, part) as response:
        check_not_downgraded(url, response)
        check_not_web_page(url, response)
        remote, start = parse_headers(url, response)
        if start and (start != offset or not remote.matches(known)):
            part.unlink()
            raise TransferError("the file changed on the server")
        if not start:
            part.unlink(missing_ok=True)
            with atomic_write(metadata_path(part)) as file:
                file.write(json.dumps(asdict(remote)).encode())
        size = known.size if known and start else remote.size
        if size and size - start > (free := shutil.disk_usage(part.parent).free):
            raise UsageError(f"{url} needs {size - start:,} more bytes in {part.parent}, which has {free:,} free")
        with (
            open(part, "ab") as file,
            ProgressBar(total=size, initial=start, desc=part.stem, unit="B", unit_scale=True) as bar,
        ):
            while data := read_chunk(response):
                file.write(data)
                bar.update(len(data))
    if size is not None and size_of(part) != size:
        raise TransferError(f"connection lost at {size_of(part):,} of {size:,} bytes")


def open_url(request: Request, part: Path) -> HTTPResponse:
    """Return the server's response. Raises TransferError or FetchError if it is an error."""
    try:
        response: HTTPResponse = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416:  # the requested range starts after the end of the file
            part.unlink()
            raise TransferError("the file changed on the server") from error
        if error.code in (408, 429) or error.code >= 500:
            raise TransferError(f"HTTP {error.code} {error.reason}") from error
        raise FetchError(f"{request.full_url}: HTTP {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise TransferError(f"no connection ({getattr(error, 'reason', error)})") from error
    return response


def read_chunk(response: HTTPResponse) -> bytes:
    """Return the next bytes; none at the end or if the connection was closed early."""
    try:
        return response.read(CHUNK_BYTES)
    except (OSError, HTTPException) as error:
        raise TransferError(f"connection lost ({error})") from error


def check_not_downgraded(url: str, response: HTTPResponse) -> None:
    """Raise FetchError if an HTTPS address was redirected to plain HTTP, over which anyone can change the file."""
    if url.startswith("https:") and not response.url.startswith("https:"):
        raise FetchError(f"{url} redirects to {response.url}, which is not encrypted")


def check_not_web_page(url: str, response: HTTPResponse) -> None:
    """Raise FetchError if the response is a web page: Google Drive and others send one, with status 200, on failure."""
    if response.headers.get_content_type() == "text/html":
        match = re.search(rb"<title[^>]*>(.*?)</title>", read_chunk(response), re.DOTALL | re.IGNORECASE)
        title = f" ({' '.join(match[1].decode(errors='replace').split())})" if match else ""
        raise FetchError(f"{url} returned a web page{title} instead of the file")


def parse_headers(url: str, response: HTTPResponse) -> tuple[RemoteFile, int]:
    """Return the identity of the file and the offset of the response's first byte in it."""
    start, size = 0, response.length
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers["Content-Range"] or "")
        if match is None:
            raise TransferError("the server sent part of the file without a valid Content-Range")
        start, size = int(match[1]), None if match[2] == "*" else int(match[2])
    remote = RemoteFile(url, size, response.headers["ETag"], response.headers["Last-Modified"])
    return remote, start


def metadata_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def read_metadata(part: Path) -> RemoteFile | None:
    """Return the identity of the file that `part` belongs to, or None if it is unknown."""
    try:
        return RemoteFile(**json.loads(metadata_path(part).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def size_of(path: Path) -> int:
    """Return the size of a file in bytes, 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


def checksums_of(path: Path) -> tuple[str, str]:
    """Return the SHA-256 and the MD5 of a file, with a progress bar."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with (
        open(path, "rb") as file,
        ProgressBar(total=size_of(path), desc=f"verifying {path.name}", unit="B", unit_scale=True) as bar,
    ):
        while data := file.read(CHUNK_BYTES):
            sha256.update(data)
            md5.update(data)
            bar.update(len(data))
    return sha256.hexdigest(), md5.hexdigest()
