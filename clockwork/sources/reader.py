"""The process that talks to sources: `python -m clockwork.sources.reader`.

A command is a line of JSON on the standard input. Its answer is one line or several on the standard output,
of which the last has "end" or "error". The process ends when its input does. It executes commands in turn.

    {"do": "list", "url"}                                {"files": [row, ...]}, ..., {"end": null}
    {"do": "describe", "url"}                            {"end": row}, or {"end": null} for a folder
    {"do": "read", "files": [[url, row], ...], "bytes_max"}
        {"read": [path, base64 or null if larger]}, ..., {"end": null}
    {"do": "fetch", "url", "row", "to", "bytes_max"}     {"done": bytes}, ..., {"end": sha256}

Commands for an object store that keeps packages (objects.py):

    {"do": "names", "url"}                               {"names": [name, ...]}, ..., {"end": null}
    {"do": "copy", "url", "to", "bytes_max"}             {"done": bytes}, ..., {"end": sha256}
    {"do": "keep", "url", "from", "files": [[path, bytes, sha256], ...]}
        {"done": bytes}, ..., {"end": null}
    {"do": "remove", "url", "first"}                     {"done": objects}, ..., {"end": null}

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
from collections.abc import Callable, Iterator, Mapping
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
        self._told = 0.0  # time at which progress was last reported
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
                case "names":
                    self._names(command["url"])
                case "copy":
                    self._copy(command["url"], command["to"], command["bytes_max"])
                case "keep":
                    self._keep(command["url"], command["from"], command["files"])
                case "remove":
                    self._remove(command["url"], command["first"])
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

    def _tell(self, done: int) -> None:
        """Report progress, now and then."""
        if time.monotonic() - self._told > bounds.TELL_S:
            self._say(done=done)
            self._told = time.monotonic()

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
            digest, check, done = hashlib.sha256(), _hash_of(checksum, size), 0
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
                    self._tell(done)
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

    # ----- an object store that keeps packages -----------------------------------------------------

    def _names(self, url: str) -> None:
        """Say the names directly below a folder."""
        fs, root = _open(url)
        try:
            found = fs.ls(root, detail=False)
        except FileNotFoundError:
            found = []
        if len(found) > bounds.NAMES_MAX:
            raise BoundExceeded(f"it has more than {bounds.NAMES_MAX} names")
        names = [name.rstrip("/").rpartition("/")[2] for name in found]
        for begin in range(0, len(names), bounds.ROWS_PER_LINE):
            self._say(names=names[begin : begin + bounds.ROWS_PER_LINE])
        self._say(end=None)

    def _copy(self, url: str, to: str, bytes_max: int) -> None:
        """Copy an object as it is; the caller knows its hash."""
        fs, place = _open(url)
        digest, done = hashlib.sha256(), 0
        with open(to, "wb") as target:
            for piece in _pieces(fs, place):
                done += len(piece)
                if done > bytes_max:
                    raise BoundExceeded(f"it has more than {bytes_max} bytes")
                target.write(piece)
                digest.update(piece)
                self._tell(done)
        self._say(end=digest.hexdigest())

    def _keep(self, url: str, folder: str, files: list[tuple[str, int, str]]) -> None:
        """Write files of a local folder as objects, in this order. Each is compared with its hash, and with
        what the store has of it, before the next is written. Raises Changed where these differ."""
        fs, root = _open(url)
        done = 0
        for path, size, sha256 in files:
            place = f"{root.rstrip('/')}/{path}"
            check, digest, written = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
            with open(os.path.join(folder, path), "rb") as source, _writing(fs, place, size) as write:
                while piece := source.read(bounds.PIECE_BYTES):
                    write(piece)
                    check.update(piece)
                    digest.update(piece)
                    written += len(piece)
                    self._tell(done + written)
            fs.invalidate_cache()
            info = fs.info(place)
            # The store has made an MD5 from the bytes that came. Where it has none, they are read again.
            stored = _checksum(info)
            is_same = info["size"] == written == size and digest.hexdigest() == sha256
            if is_same and stored.startswith("md5:") and not _is_encrypted(fs, place):
                is_same = stored == f"md5:{check.hexdigest()}"
            elif is_same:
                again = hashlib.sha256()
                for piece in _pieces(fs, place):
                    again.update(piece)
                    self._tell(done + written)
                is_same = again.digest() == digest.digest()
            if not is_same:
                raise Changed(f"{path} is not stored as it was written")
            done += written
        self._say(end=None)

    def _remove(self, url: str, first: str) -> None:
        """Remove an object, or all objects below a folder, the named one before all others."""
        fs, root = _open(url)
        try:
            found = [name for name in fs.find(root) if name == root or name.startswith(f"{root}/")]
        except FileNotFoundError:
            found = []
        for count, name in enumerate(sorted(found, key=lambda name: name != f"{root}/{first}"), 1):
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(name)
            self._tell(count)
        self._say(end=None)


def _pieces(fs: Any, place: str) -> Iterator[bytes]:
    """The bytes of an object, piece by piece."""
    with fs.open(place, "rb", block_size=bounds.PIECE_BYTES, cache_type="none") as source:
        while piece := source.read(bounds.PIECE_BYTES):
            yield piece


@contextlib.contextmanager
def _writing(fs: Any, place: str, size: int) -> Iterator[Callable[[bytes], object]]:
    """Write an object of a known size, which is there when the context has ended, and not if it raised."""
    if size <= bounds.PART_BYTES:
        pieces: list[bytes] = []
        yield pieces.append
        fs.pipe_file(place, b"".join(pieces))
        return
    target = fs.open(place, "wb", block_size=bounds.PART_BYTES)
    try:
        yield target.write
    except BaseException:
        try:
            target.discard()
        finally:
            target.closed = True  # otherwise the end of this Python object would complete the stored one
        raise
    target.close()


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
