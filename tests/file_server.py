"""A web server on this machine that serves bytes, in whole or from an offset, and can be told to fail."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Fault(NamedTuple):
    """What goes wrong with a request for a file."""

    status: int = 200
    """answered instead of the file, unless 200"""
    cut: int | None = None
    """bytes after which the connection is closed"""
    times: int | None = None
    """number of requests that go wrong; None: all"""
    headers: tuple[tuple[str, str | None], ...] = ()
    """further headers, other values of these, or None: without this one"""
    methods: tuple[str, ...] = ("GET", "HEAD")


class FileServer(ThreadingHTTPServer):
    """Serves `files` by path; `faults` by path; `requests` lists (method, path, first byte) of what was asked.

    Without `ranges` it sends whole files only.
    """

    daemon_threads = True

    def __init__(self, handler=None):
        super().__init__(("127.0.0.1", 0), handler or Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, Fault] = {}
        self.requests: list[tuple[str, str, int]] = []
        self.ranges = True
        self.lock = threading.Lock()

    @property
    def address(self):
        """The URL of the root."""
        return f"http://127.0.0.1:{self.server_port}"

    def reset(self):
        """Forget faults and requests."""
        self.ranges = True
        self.faults.clear()
        self.requests.clear()

    def starts(self, path):
        """First bytes of all that was read of a file."""
        return [start for method, asked, start in self.requests if method == "GET" and asked == path]

    def fault(self, method, path):
        """Return what goes wrong with this request, which counts."""
        with self.lock:
            found = self.faults.get(path)
            if found is None or method not in found.methods or found.times == 0:
                return Fault()
            if found.times is not None:
                self.faults[path] = found._replace(times=found.times - 1)
            return found


@contextmanager
def serving(kind=FileServer):
    """Run the server that `kind()` makes in a thread."""
    with kind() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD, with ranges."""

    protocol_version = "HTTP/1.1"
    server: FileServer

    def log_message(self, *arguments):
        """Print nothing."""

    def headers_of(self, path, content):
        """Return the headers of a file; content None: of a missing one."""
        return {"ETag": f'"{len(content)}"'} if content is not None else {}

    def find(self, path):
        """Return the content of a file, or None."""
        return self.server.files.get(path)

    def answer(self):
        path = self.path.partition("?")[0]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked.group(1)) if asked else 0
        self.server.requests.append((self.command, path, start))
        start = start if self.server.ranges else 0
        content, fault = self.find(path), self.server.fault(self.command, path)
        headers = self.headers_of(path, content) | dict(fault.headers)
        status = fault.status if fault.status != 200 else 404 if content is None else 206 if start else 200
        if status < 300 and start >= len(content) > 0:
            status, headers["Content-Range"] = 416, f"bytes */{len(content)}"
        body = content[start:] if status < 300 else b""
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: fault.cut])
        if fault.cut is not None:
            self.close_connection = True

    do_GET = do_HEAD = answer
