"""An S3 store for tests: moto's server, behind a proxy that fails in the ways that a test sets."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.patience import PATIENCE_S

HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}
DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
FULL = b"<Error><Code>XMinioStorageFull</Code><Message>Storage backend has no room</Message></Error>"


class Front(http.server.ThreadingHTTPServer):
    """fault: gets a request's method and path, and returns what happens to it:

    "": it is answered. "cut": the connection ends. "deny", "full": it is refused. "swallow": it is answered
    as if it were done. "hold": nothing happens before ``go_on`` is set, and then it is answered; "hold cut":
    then the connection ends.
    """

    daemon_threads = True

    def __init__(self, upstream: tuple[str, int], s3: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.s3 = s3  # a client of the store, without the faults
        self.fault: Callable[[str, str], str] = lambda method, path: ""
        self.go_on = threading.Event()
        self.holding = threading.Event()  # a request is held
        self.asked: list[tuple[str, str]] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that are gone: a test kills them."""

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """The objects' keys, without the prefix."""
        found = self.s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", ())
        return [row["Key"][len(prefix) :] for row in found]

    def content(self, bucket: str, key: str) -> bytes:
        return bytes(self.s3.get_object(Bucket=bucket, Key=key)["Body"].read())


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Front
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _any(self) -> None:
        server, body = self.server, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        server.asked.append((self.command, path))
        fault = server.fault(self.command, path)
        if fault.startswith("hold"):
            server.holding.set()
            assert server.go_on.wait(PATIENCE_S)
        if fault.endswith("cut"):
            self.close_connection = True
            return
        if fault in ("deny", "full"):
            self._send(403 if fault == "deny" else 507, [], DENIED if fault == "deny" else FULL)
            return
        if fault == "swallow":
            self._send(200, [("ETag", '"00000000000000000000000000000000"')], b"")
            return
        upstream = http.client.HTTPConnection(*server.upstream, timeout=PATIENCE_S)
        try:
            upstream.request(self.command, self.path, body, dict(self.headers))
            answer = upstream.getresponse()
            data = answer.read()
        finally:
            upstream.close()
        self._send(answer.status, answer.getheaders(), data)

    def _send(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        self.send_response(status)
        sizes = [value for name, value in headers if name.lower() == "content-length"]
        for name, value in headers:
            if name.lower() not in HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", sizes[0] if self.command == "HEAD" and sizes else str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _any


@contextlib.contextmanager
def running_s3() -> Iterator[Any]:
    """A client of the store, to which the usual variables of the environment lead."""
    pytest.importorskip("flask_cors", reason="moto's server is not installed")
    server_of = pytest.importorskip("moto.server", reason="moto's server is not installed")
    import boto3

    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
            ("AWS_ACCESS_KEY_ID", "test-key"),
            ("AWS_SECRET_ACCESS_KEY", "test-secret"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ):
            patch.setenv(name, value)
        try:
            yield boto3.client("s3")
        finally:
            server.stop()


@contextlib.contextmanager
def running_front() -> Iterator[Front]:
    """The proxy before the store, to which these variables lead instead."""
    with running_s3() as s3, pytest.MonkeyPatch.context() as patch:
        store = urlsplit(s3.meta.endpoint_url)
        front = Front((store.hostname or "", store.port or 0), s3)
        thread = threading.Thread(target=front.serve_forever)
        thread.start()
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{front.server_port}")
        try:
            yield front
        finally:
            front.go_on.set()
            front.shutdown()
            thread.join()
            front.server_close()
