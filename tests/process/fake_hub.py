"""The part of the Hugging Face Hub's API that reads a repository, o/r."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.process.file_server import running

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.large: set[str] = set()  # files that the Hub keeps in LFS

    def tree(self, folder: str, recursive: bool) -> list[dict[str, Any]]:
        """List a folder ("" for all), with its folders."""
        folders: dict[str, None] = {}
        found = []
        for path, data in self.files.items():
            if folder and not path.startswith(f"{folder}/"):
                continue
            parents = path.removeprefix(f"{folder}/" if folder else "").split("/")[:-1]
            for depth in range(1, len(parents) + 1 if recursive else min(2, len(parents) + 1)):
                folders["/".join([*([folder] if folder else []), *parents[:depth]])] = None
            if recursive or not parents:
                blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": blob}
                if path in self.large:
                    sha256 = hashlib.sha256(data).hexdigest()
                    entry |= {"oid": "f" * 40, "lfs": {"oid": sha256, "size": len(data), "pointerSize": 130}}
                found.append(entry)
        return found + [{"type": "directory", "path": one, "size": 0, "oid": "e" * 40} for one in folders]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        if path.startswith("/api/models/o/r/tree/"):
            found = self.server.tree("/".join(path.split("/")[7:]), "recursive=true" in url.query.lower())
            self._json(found) if found else self._json({"error": "not there"}, 404)
        elif path == "/api/models/o/r" or path.startswith("/api/models/o/r/revision/"):
            self._json({"_id": "1", "id": "o/r", "sha": COMMIT, "siblings": [], "private": False, "tags": [],
                        "downloads": 0, "likes": 0})  # fmt: skip
        elif (
            path.startswith("/o/r/resolve/") and (name := "/".join(path.split("/")[5:])) in self.server.files
        ):
            self._file(self.server.files[name])
        else:
            self._json({"error": "not there"}, 404)

    do_HEAD = do_GET

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _json(self, body: Any, status: int = 200) -> None:
        self._send(status, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _file(self, data: bytes) -> None:
        headers = {"ETag": '"x"', "X-Repo-Commit": COMMIT}
        if wanted := self.headers.get("Range"):
            first, last = wanted.removeprefix("bytes=").split("-")
            end = min(int(last or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{end}/{len(data)}"
            self._send(206, data[int(first) : end + 1], headers)
        else:
            self._send(200, data, headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextlib.contextmanager
def running_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    with running(hub):
        yield hub
