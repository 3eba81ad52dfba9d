"""A web server on this machine, with the faults that real ones have."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class File:
    """What is to be had under a path.

    cuts: after how many bytes of each answer, in turn, the connection is cut. slow: seconds between pieces of 64 KiB.
    partial: "full" headers with a part of the file, "few" (as little as is allowed) or None, where it can't be had.
    """

    data: bytes = b""
    status: int = 200
    kind: str = "application/octet-stream"
    etag: str | None = '"1"'
    modified: str | None = None
    partial: str | None = "full"
    honours_if_range: bool = True
    cuts: list[int] = field(default_factory=list)
    slow: float = 0
    requests: list[str] = field(default_factory=list)  # the Range of each, "" where there was none


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        file: File = self.server.files.get(self.path, File(b"no such file", status=404))
        asked = self.headers["Range"] or ""
        file.requests.append(asked)
        validator = self.headers["If-Range"]
        changed = file.honours_if_range and validator is not None and validator not in (file.etag, file.modified)
        start = int(asked[6:-1]) if asked and file.partial and not changed else 0
        if start and start >= len(file.data):
            self.send_response(416)
            self.end_headers()
            return
        self.send_response(206 if start else file.status)
        self.send_header("Content-Type", file.kind)
        self.send_header("Content-Length", str(len(file.data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(file.data) - 1}/{len(file.data)}")
        if file.etag and not (start and file.partial == "few"):
            self.send_header("ETag", file.etag)
        if file.modified and not (start and file.partial == "few"):
            self.send_header("Last-Modified", file.modified)
        self.end_headers()
        end = start + file.cuts.pop(0) if file.cuts else len(file.data)
        with contextlib.suppress(ConnectionError):
            for i in range(start, min(end, len(file.data)), 1 << 16):
                self.wfile.write(file.data[i : min(i + (1 << 16), end)])
                self.server.stopped.wait(file.slow)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, File] = {}
        self.stopped = threading.Event()

    def offer(self, name: str, *args: object, **kwargs: object) -> File:
        """Offer a file under its name; arguments as File's."""
        self.files[f"/{name}"] = File(*args, **kwargs)
        return self.files[f"/{name}"]

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


@contextlib.contextmanager
def running() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()
