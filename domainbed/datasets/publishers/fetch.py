"""One file from a web server: fetched where it was cut off, checked, and under its name only when it is whole."""

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

from tqdm import tqdm

from domainbed.errors import UsageError
from domainbed.files import atomic_write

CHUNK = 1 << 18  # bytes
TIMEOUT = 30  # seconds without a byte
TRIES = 5  # in a row that bring nothing more
PAUSE = 1.0  # seconds before the next try, doubled with each try that brought nothing


class FetchError(UsageError):
    """What a publisher offers could not be had, or is not what it should be."""


class CutError(Exception):
    """The server, or the way to it, failed; another try may do better."""


@dataclass(frozen=True)
class Version:
    """Which file a server has under a URL, as far as it tells; `size` in bytes."""

    url: str
    size: int | None
    etag: str | None
    modified: str | None

    def agrees(self, other: "Version | None") -> bool:
        """Whether this may be the other; of a part of a file, a server need not tell all that it tells of the whole."""
        return other is not None and all(
            mine in (None, its) for mine, its in zip(astuple(self), astuple(other), strict=True)
        )


def fetch(url: str, path: Path, sha256: str | None = None) -> str:
    """Fetch a file, with a progress bar; a path that is there already is only checked.

    What came before a cut lies in `path`.part; from there the next try, or the next call, goes on.

    Args:
        url: http or https.
        path: the file to make; its folder is there.
        sha256: of the whole file, where it is known.

    Returns:
        The file's sha256.

    Raises:
        FetchError: it can't be had, or has another sha256 (then it is deleted).
        UsageError: there is no room for it.
    """
    part = path.with_name(f"{path.name}.part")
    most = fruitless = 0
    while not path.exists():
        most = max(most, bytes_in(part))
        try:
            go_on(url, part)
            os.replace(part, path)
            version_file(part).unlink()
        except CutError as error:
            fruitless = 0 if bytes_in(part) > most else fruitless + 1
            if fruitless == TRIES:
                raise FetchError(f"{url}: {error}; run again to go on from there") from error
            time.sleep(PAUSE * 2**fruitless)
    came = sha256_of(path)
    if sha256 and came != sha256:
        path.unlink()
        raise FetchError(f"{url} came with the sha256 {came}, not {sha256}; it is deleted")
    return came


def go_on(url: str, part: Path) -> None:
    """Fetch what `part` lacks of the file; all of it if that is another version's, or the server can't begin midway.

    Raises:
        CutError: the file is not whole yet.
        FetchError, UsageError: as `fetch`.
    """
    known, have = read_version(part), bytes_in(part)
    if known is None or known.url != url:
        have = 0
    elif have and known.size == have:
        return
    request = Request(url, headers={"User-Agent": "domainbed"})
    if known and have:
        request.add_header("Range", f"bytes={have}-")
        # Then a file that has changed comes from its beginning. A weak ETag can't tell bytes apart.
        if validator := known.modified if not known.etag or known.etag.startswith("W/") else known.etag:
            request.add_header("If-Range", validator)
    with open_url(request, part) as response:
        refuse_page(url, response)
        version, start = version_of(url, response)
        if start and (start != have or not version.agrees(known)):
            part.unlink()
            raise CutError("the file changed on the server")
        if not start:
            part.unlink(missing_ok=True)
            write_version(part, version)
        size = known.size if known and start else version.size
        if size and size - start > (free := shutil.disk_usage(part.parent).free):
            raise UsageError(f"{url} needs {size - start:,} bytes more in {part.parent}, which has {free:,} free")
        with (
            open(part, "ab") as file,
            tqdm(total=size, initial=start, desc=part.stem, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while data := read(response):
                file.write(data)
                bar.update(len(data))
    if size is not None and bytes_in(part) != size:
        raise CutError(f"the connection was cut at {bytes_in(part):,} of {size:,} bytes")


def open_url(request: Request, part: Path) -> HTTPResponse:
    """The server's answer. Raises CutError or FetchError where it has none to give."""
    try:
        response: HTTPResponse = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416:  # there is nothing behind what we have
            part.unlink()
            raise CutError("the file changed on the server") from error
        if error.code in (408, 429) or error.code >= 500:
            raise CutError(f"the server answers {error.code} {error.reason}") from error
        raise FetchError(f"{request.full_url}: the server answers {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise CutError(f"no connection ({getattr(error, 'reason', error)})") from error
    return response


def read(response: HTTPResponse) -> bytes:
    """The next bytes, none at the end or where the connection was closed early."""
    try:
        return response.read(CHUNK)
    except (OSError, HTTPException) as error:
        raise CutError(f"the connection was cut ({error})") from error


def refuse_page(url: str, response: HTTPResponse) -> None:
    """Google Drive and others answer with a page, and with success, where they don't give the file."""
    if response.headers.get_content_type() == "text/html":
        title = re.search(rb"<title[^>]*>(.*?)</title>", read(response), re.DOTALL | re.IGNORECASE)
        said = f" ({' '.join(title[1].decode(errors='replace').split())})" if title else ""
        raise FetchError(f"{url} gives a web page{said} in place of the file")


def version_of(url: str, response: HTTPResponse) -> tuple[Version, int]:
    """Which file it is, and from which byte on it comes."""
    start, size = 0, response.length
    if response.status == 206:
        parts = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers["Content-Range"] or "")
        if parts is None:
            raise CutError("the server does not tell which part of the file it sends")
        start, size = int(parts[1]), None if parts[2] == "*" else int(parts[2])
    version = Version(url, size, response.headers["ETag"], response.headers["Last-Modified"])
    return version, start


def version_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def write_version(part: Path, version: Version) -> None:
    with atomic_write(version_file(part)) as file:
        file.write(json.dumps(asdict(version)).encode())


def read_version(part: Path) -> Version | None:
    """Which file `part` is of; None where that is not known."""
    try:
        return Version(**json.loads(version_file(part).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def bytes_in(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def sha256_of(path: Path) -> str:
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(CHUNK):
            sha256.update(data)
    return sha256.hexdigest()
