"""An HTTP server of files for tests, which lists its folders, and fails in the ways that a test sets."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from tests.patience import PATIENCE_S


class FileServer(http.server.ThreadingHTTPServer):
    """Files by path, "/models/a/1/model.onnx". Each has an ETag, which changes with its content."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.links: dict[str, str] = {}  # additional HTML of a folder's page
        self.away = False  # every request gets a 503
        self.cut: set[str] = set()  # files that are sent by half
        self.stalled: set[str] = set()  # files that are sent by half, and the rest once `go_on` is set
        self.changing: dict[str, bytes] = {}  # the content of a file once it has been asked for
        self.unsized: set[str] = set()  # files without a Content-Length
        self.redirects: dict[str, str] = {}  # target URLs of redirected paths
        self.md5: dict[str, str] = {}  # a file's header Content-MD5
        self.go_on = threading.Event()
        self.sending = threading.Event()  # half of a stalled file has been sent
        self.asked: list[tuple[str, str]] = []  # requests received, as (method, path)
        self.sent: list[str] = []  # files of which bytes were sent

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect in the middle of an answer: that is under test."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FileServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _answer(self, with_body: bool) -> None:
        server = self.server
        path = unquote(urlsplit(self.path).path)
        server.asked.append((self.command, path))
        if server.away:
            self.send_error(503)
            return
        if path in server.redirects:
            self.send_response(302)
            self.send_header("Location", server.redirects[path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = server.files.get(path)
        if data is None:
            self._list(path, with_body)
            return
        if with_body and path in server.changing:
            server.files[path] = server.changing.pop(path)
        self.send_response(200)
        self.send_header("ETag", f'"{hash(data):x}"')
        if path in server.md5:
            self.send_header("Content-MD5", server.md5[path])
        if path in server.unsized:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not with_body:
            return
        server.sent.append(path)
        if path in server.unsized:
            for begin in range(0, len(data), 1 << 16):
                piece = data[begin : begin + (1 << 16)]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
        elif path in server.cut:
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif path in server.stalled:
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            server.sending.set()
            assert server.go_on.wait(2 * PATIENCE_S)
            self.wfile.write(data[len(data) // 2 :])
        else:
            self.wfile.write(data)

    def _list(self, path: str, with_body: bool) -> None:
        folder = path.rstrip("/") + "/"
        below = [file.removeprefix(folder) for file in self.server.files if file.startswith(folder)]
        if not below:
            self.send_error(404)
            return
        names = sorted({name.partition("/")[0] + ("/" if "/" in name else "") for name in below})
        links = "".join(f'<li><a href="{quote(name)}">{name}</a>' for name in names)
        page = (
            f"<html><a href='../'>up</a><ul>{links}</ul>{self.server.links.get(folder, '')}</html>".encode()
        )
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        if with_body:
            self.wfile.write(page)


@contextlib.contextmanager
def running(server: http.server.ThreadingHTTPServer) -> Iterator[None]:
    """Run the server on a thread of its own for the duration of the context."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="server")
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(PATIENCE_S)


@contextlib.contextmanager
def running_file_server() -> Iterator[FileServer]:
    server = FileServer()
    with running(server):
        try:
            yield server
        finally:
            server.go_on.set()
