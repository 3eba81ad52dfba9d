"""A local web server that simulates the faults of real servers."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class File:
    """A file on the server, and how it is served.

    Attributes:
        data, status, kind, etag, modified: the response.
        partial: headers of a response to a Range request: "full", "few" (only the required ones), or None for a server
            that does not support ranges.
        honors_if_range: whether If-Range is supported.
        cuts: for each response in turn, the number of bytes after which the connection is closed.
        slow: seconds between chunks of 64 KiB.
        requests: the Range header of each request, "" if it had none.
    """

    data: bytes = b""
    status: int = 200
    kind: str = "application/octet-stream"
    etag: str | None = '"1"'
    modified: str | None = None
    partial: str | None = "full"
    honors_if_range: bool = True
    cuts: list[int] = field(default_factory=list)
    slow: float = 0
    requests: list[str] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        file: File = self.server.files.get(self.path, File(b"no such file", status=404))
        requested = self.headers["Range"] or ""
        file.requests.append(requested)
        validator = self.headers["If-Range"]
        changed = file.honors_if_range and validator is not None and validator not in (file.etag, file.modified)
        start = int(requested[6:-1]) if requested and file.partial and not changed else 0
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
        """Serve a file; the arguments are those of `File`."""
        self.files[f"/{name}"] = File(*args, **kwargs)
        return self.files[f"/{name}"]

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """Run a server during a `with` block."""
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
