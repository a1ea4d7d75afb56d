"""The process that talks to sources: `python -m clockwork.sources.reader`.

A command is a line of JSON on the standard input. Its answer is one line or several on the standard output,
of which the last has "end" or "error". The process ends when its input does. It executes commands in turn.

    {"do": "list", "url"}                                {"files": [row, ...]}, ..., {"end": null}
    {"do": "describe", "url"}                            {"end": row}, or {"end": null} for a folder
    {"do": "read", "files": [[url, row], ...], "bytes_max"}
        {"read": [path, base64 or null if larger]}, ..., {"end": null}
    {"do": "fetch", "url", "row", "to", "bytes_max"}     {"done": bytes}, ..., {"end": sha256}

A row is [path below the URL, bytes (-1: unknown), mark, checksum]. The mark changes whenever the file does:
an ETag, a hash, or a time if a source has neither. The checksum is "md5:...", "sha256:...", "git:..." or "".
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import logging
import os
import queue
import resource
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TextIO
from urllib.parse import unquote, urlsplit

from clockwork.config import sources as bounds
from clockwork.sources.guard import Guard, guard_for

Row = list[Any]  # [path, bytes, mark, checksum]


class Changed(Exception):
    """A file has changed since it was listed."""


class BoundExceeded(Exception):
    """A file or listing exceeds a bound."""


class SourceReader:
    """Executes commands.

    is_guarded: whether all connections of this process are checked from the first command on. The check
    cannot be removed, so the process must be the reader's own.
    """

    def __init__(self, answer: TextIO, *, is_guarded: bool = False) -> None:
        self._answer = answer
        self._is_guarded = is_guarded
        self._has_guard = False
        self._guard: Guard | None = None  # guard of the first command's scheme; a process has one location

    def carry_out(self, command: Mapping[str, Any]) -> None:
        try:
            self._open_to(command["url"])
            match command["do"]:
                case "list":
                    self._list(command["url"])
                case "describe":
                    self._say(end=self._describe(command["url"]))
                case "read":
                    self._read(command["files"], command["bytes_max"])
                case "fetch":
                    self._fetch(command["url"], command["row"], command["to"], command["bytes_max"])
        except Changed as error:
            self._say(error=str(error), kind="changed")
        except BoundExceeded as error:
            self._say(error=str(error), kind="refused")
        except FileNotFoundError as error:
            # fsspec raises this error also if an HTTP server cannot be reached.
            cause = error.__cause__ if _is_http(command["url"]) else None
            is_missing = cause is None or getattr(cause, "status", 0) in (404, 410)
            self._say(error=_said(error if is_missing else cause), kind="missing" if is_missing else "failed")
        except Exception as error:  # libraries raise errors of any kind
            self._say(error=_said(error), kind="failed")

    def _open_to(self, url: str) -> None:
        """Allow connections to the server of a URL. All others must be public."""
        if not self._is_guarded:
            return
        if not self._has_guard:
            self._has_guard, self._guard = True, guard_for(urlsplit(url).scheme)
            if self._guard is not None:
                self._guard.install()
        if self._guard is not None and _is_http(url):
            self._guard.allow(url)

    def _say(self, **answer: Any) -> None:
        self._answer.write(json.dumps(answer) + "\n")
        self._answer.flush()

    def _list(self, url: str) -> None:
        fs, root = _open(url)
        rows = _http_rows(fs, url) if _is_http(url) else _rows(fs, root)
        line: list[Row] = []
        for count, row in enumerate(rows, 1):
            if count > bounds.SOURCE_FILES_MAX:
                raise BoundExceeded(f"it has more than {bounds.SOURCE_FILES_MAX} files")
            line.append(row)
            if len(line) == bounds.ROWS_PER_LINE:
                self._say(files=line)
                line = []
        self._say(files=line)
        self._say(end=None)

    def _describe(self, url: str) -> Row | None:
        fs, path = _open(url)
        if _is_http(url) and url.endswith("/"):
            return None
        info = fs.info(path)
        return None if info["type"] == "directory" else _row("", info)

    def _read(self, files: list[tuple[str, Row]], bytes_max: int) -> None:
        def content(file: tuple[str, Row]) -> bytes | None:
            url, (path, size, _, _) = file
            if size > bytes_max:
                return None
            fs, place = _open(url)
            with fs.open(place, "rb", block_size=0) if size < 0 else contextlib.nullcontext() as source:
                data: bytes = fs.cat_file(place) if source is None else source.read(bytes_max + 1)
            if 0 <= size != len(data):
                raise Changed(f"{path}: {len(data)} bytes came, and {size} were listed")
            return data if len(data) <= bytes_max else None

        with ThreadPoolExecutor(bounds.READ_AT_ONCE) as pool:
            for (_, row), data in zip(files, pool.map(content, files), strict=True):
                self._say(read=[row[0], None if data is None else base64.b64encode(data).decode()])
        self._say(end=None)

    def _fetch(self, url: str, row: Row, to: str, bytes_max: int) -> None:
        """Copy a file. Raises Changed if it differs from its listing before or after the copy."""
        fs, path = _open(url)
        _, size, _, checksum = row
        # A server without range requests sends a file as a single stream.
        with fs.open(
            path, "rb", block_size=0 if _is_http(url) else bounds.PIECE_BYTES, cache_type="none"
        ) as source:
            digest, check, done, told = hashlib.sha256(), _hash_of(checksum, size), 0, 0.0
            with open(to, "wb") as target:
                while piece := source.read(bounds.PIECE_BYTES):
                    done += len(piece)
                    if done > bytes_max:
                        raise BoundExceeded(f"it has more than the {bytes_max} bytes that are left for it")
                    if 0 <= size < done:
                        raise Changed(f"it has more than the {size} bytes that were listed")
                    target.write(piece)
                    digest.update(piece)
                    if check is not None:
                        check.update(piece)
                    if time.monotonic() - told > bounds.TELL_S:
                        self._say(done=done)
                        told = time.monotonic()
        if 0 <= size != done:
            raise Changed(f"{done} bytes came, and {size} were listed")
        fs.invalidate_cache()
        now = _row("", fs.info(path))
        if now[1:] != row[1:]:
            raise Changed("it changed while it was fetched")
        if (
            check is not None
            and check.hexdigest() != checksum.partition(":")[2]
            and not _is_encrypted(fs, path)
        ):
            raise Changed(f"the bytes that came do not have its checksum {checksum}")
        self._say(end=digest.hexdigest())


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _open(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    # For an HTTP server, proxies and passwords come from the environment and ~/.netrc.
    options = {"client_kwargs": {"trust_env": True}} if _is_http(url) else {}
    fs, path = url_to_fs(url, **options)
    fs.invalidate_cache()
    return fs, path


def _rows(fs: Any, root: str) -> Iterator[Row]:
    root = root.rstrip("/")
    for name, info in fs.find(root, detail=True).items():
        # An object whose name ends in a slash stands for a folder.
        if info["type"] == "file" and name.startswith(f"{root}/") and not name.endswith("/"):
            yield _row(name[len(root) + 1 :], info)


def _http_rows(fs: Any, url: str) -> Iterator[Row]:
    """Yield the files to which the pages of an HTTP server link, below the URL."""
    root = url.rstrip("/") + "/"
    folders, seen, files = [root], {root}, []
    with ThreadPoolExecutor(bounds.HTTP_REQUESTS_AT_ONCE) as pool:
        for _ in range(bounds.LINK_DEPTH_MAX):
            links = [entry["name"] for entries in pool.map(fs.ls, folders) for entry in entries]
            # Links with a query are left out, because they only sort a page. Links to parent folders are left
            # out too.
            links = [
                link for link in dict.fromkeys(links) if link.startswith(root) and not set("?#") & set(link)
            ]
            folders = [link for link in links if link.endswith("/") and link not in seen]
            seen.update(folders)
            files += [link for link in links if not link.endswith("/")]
            if len(seen) > bounds.LINK_FOLDERS_MAX or len(files) > bounds.SOURCE_FILES_MAX:
                raise BoundExceeded(
                    f"it has more than {bounds.SOURCE_FILES_MAX} files, or more than {bounds.LINK_FOLDERS_MAX} folders"
                )
            if not folders:
                break
        for name, info in zip(files, pool.map(fs.info, files), strict=True):
            yield _row(unquote(name[len(root) :]), info)


def _row(path: str, info: Mapping[str, Any]) -> Row:
    size = info.get("size")
    lfs = info.get("lfs") or {}
    marks = (
        lfs.get("sha256"), info.get("blob_id"), info.get("generation"), info.get("ETag"), info.get("etag"),
        info.get("Last-Modified"), info.get("LastModified"), info.get("last_modified"), info.get("mtime"),
    )  # fmt: skip
    mark = next((str(found) for found in marks if found), "")
    return [path, -1 if size is None else int(size), mark.strip('"'), _checksum(info)]


def _checksum(info: Mapping[str, Any]) -> str:
    """Return the checksum in a source's own record of a file; "" if there is none."""
    lfs = info.get("lfs") or {}
    if sha256 := lfs.get("sha256"):
        return f"sha256:{sha256}"
    if blob := info.get("blob_id"):
        return f"git:{blob}"
    coded = info.get("md5Hash") or info.get("Content-MD5")
    raw = getattr(info.get("content_settings"), "content_md5", None)  # Azure's record has the checksum here
    with contextlib.suppress(binascii.Error):
        raw = base64.b64decode(coded, validate=True) if coded else raw
        if raw and len(raw) == 16:
            return f"md5:{bytes(raw).hex()}"
    tag = str(info.get("ETag", "")).strip('"')
    # An object in S3 that was uploaded in one part. Only S3's records have "StorageClass".
    if "StorageClass" in info and len(tag) == 32 and set(tag) <= set("0123456789abcdef"):
        return f"md5:{tag}"
    return ""


def _hash_of(checksum: str, size: int) -> Any:
    match checksum.partition(":")[0]:
        case "md5":
            return hashlib.md5(usedforsecurity=False)
        case "sha256":
            return hashlib.sha256()
        case "git":
            return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    return None


def _is_encrypted(fs: Any, path: str) -> bool:
    """Return whether an object in S3 is encrypted with a key, so that its ETag is not its MD5."""
    if not hasattr(fs, "call_s3"):
        return False
    bucket, key, _ = fs.split_path(path)
    head = fs.call_s3("head_object", Bucket=bucket, Key=key)
    return "SSECustomerAlgorithm" in head or str(head.get("ServerSideEncryption", "")).startswith("aws:kms")


def _said(error: BaseException | None) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, OSError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


def main() -> None:
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_DATA, (bounds.READER_MEMORY_BYTES, bounds.READER_MEMORY_BYTES))
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of libraries must not mix with answers
    logging.disable()
    warnings.simplefilter("ignore")
    commands: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            commands.put(line)
        os._exit(0)  # the caller has ended, or needs no more answers

    threading.Thread(target=read, daemon=True).start()
    reader = SourceReader(answer, is_guarded=True)
    while True:
        reader.carry_out(json.loads(commands.get()))


if __name__ == "__main__":
    main()
