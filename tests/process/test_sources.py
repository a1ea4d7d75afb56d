"""Sources of models, read by a process of their own: an HTTP server and an S3 store of this machine, with
faults."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import importlib.util
import io
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clockwork.errors import ConfigError, InvalidModel
from clockwork.sources import cache as cache_module
from clockwork.sources import location as location_module
from clockwork.sources import reader as child
from clockwork.sources import reading
from clockwork.sources.cache import Cache
from clockwork.sources.location import Location, location_of, require_library
from clockwork.sources.reading import ReaderProcess, RemoteFile, SourceChanged, SourceFailed, SourceMissing
from tests.patience import PATIENCE_S
from tests.process.fake_hub import running_hub
from tests.process.file_server import FileServer, running_file_server
from tests.process.s3_front import running_s3

pytestmark = pytest.mark.slow  # `make test` runs without the libraries that they need
pytest.importorskip("fsspec", reason="fsspec is not installed ([http])")
pytest.importorskip("aiohttp", reason="aiohttp is not installed ([http])")

ROOM = 1 << 20


@pytest.fixture
def server() -> Iterator[FileServer]:
    with running_file_server() as one:
        yield one


@pytest.fixture
def reader(server: FileServer) -> Iterator[ReaderProcess]:
    with reading_at(f"{server.url}/models") as one:
        yield one


@contextlib.contextmanager
def reading_at(url: str) -> Iterator[ReaderProcess]:
    location = location_of(url)
    assert location is not None
    reader = ReaderProcess(location)
    try:
        yield reader
    finally:
        reader.stop()


def process_of(reader: ReaderProcess) -> subprocess.Popen[bytes]:
    assert reader._child is not None
    return reader._child


def stalled_file(server: FileServer, reader: ReaderProcess) -> RemoteFile:
    """A download that is sent to its middle, and no further before ``server.go_on``."""
    path = "/models/a/1/model.onnx"
    server.files[path] = b"x" * 10_000
    (file,) = reader.files()
    server.stalled.add(path)
    return file


def fetch(reader: ReaderProcess, file: RemoteFile, to: Path, room: int = ROOM) -> str:
    return reader.fetch(reader.location.file(file.path), file, to, room)


# ----- URLs ----------------------------------------------------------------------------------------


def test_a_path_is_no_url_and_a_url_of_another_kind_is_refused_with_those_there_are() -> None:
    assert location_of("/srv/models") is None
    assert location_of("models/s3") is None
    for text in ("s3://bucket/models", "gs://b/m", "az://c/m", "hf://o/r", "https://h/m", "HTTP://h/m"):
        assert isinstance(location_of(text), Location)
    with pytest.raises(ConfigError, match=r"ftp:// is no source of models; there are s3://.* and paths"):
        location_of("ftp://server/models")
    with pytest.raises(ConfigError, match="such as s3://bucket"):
        location_of("s3:///models")


@pytest.mark.parametrize(
    ("url", "extra"), [("s3://b/m", "s3"), ("gs://b/m", "gs"), ("az://c/m", "az"), ("hf://o/r", "hf"), ("https://h/m", "http")]
)  # fmt: skip
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    url: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(location_module.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    location = location_of(url)
    assert location is not None
    with pytest.raises(ConfigError, match=rf"needs fsspec and .*pip install 'clockwork-serving\[{extra}\]'"):
        require_library(location)


def test_what_people_are_told_of_a_url_gives_no_access() -> None:
    location = location_of("https://me:secret@server/models/a.onnx?X-Amz-Signature=abc#x")
    assert location is not None
    assert str(location) == "https://server/models/a.onnx"
    assert location.name == "a.onnx"
    hidden = location.hide("GET https://me:secret@server/models/a.onnx?X-Amz-Signature=abc failed")
    assert "secret" not in hidden
    assert "abc" not in hidden


def test_a_file_beside_another_keeps_what_gives_access() -> None:
    for url, beside in (
        ("https://me:pw@server/m/a.onnx?sig=1", "https://me:pw@server/m/a%20b.data?sig=1"),
        ("s3://bucket/m/a.onnx", "s3://bucket/m/a b.data"),
    ):
        location = location_of(url)
        assert location is not None
        assert location.beside("a b.data") == beside


# ----- an HTTP server --------------------------------------------------------------------------------


def test_files_are_listed_and_fetched_as_they_are(
    server: FileServer, reader: ReaderProcess, tmp_path: Path
) -> None:
    big = os.urandom(3 << 20)
    server.files = {
        "/models/a/1/model.onnx": big,
        "/models/a/1/more data.bin": b"weights",
        "/models/b/config.pbtxt": b"name: 'b'",
        "/other/c/1/model.onnx": b"of somebody else",
    }
    files = {file.path: file for file in reader.files()}
    assert set(files) == {"a/1/model.onnx", "a/1/more data.bin", "b/config.pbtxt"}
    assert files["a/1/model.onnx"].bytes == len(big)
    told: list[int] = []
    sha256 = reader.fetch(
        reader.location.file("a/1/model.onnx"), files["a/1/model.onnx"], tmp_path / "m", 4 << 20, told.append
    )
    assert sha256 == hashlib.sha256(big).hexdigest()
    assert (tmp_path / "m").read_bytes() == big
    assert told[0] > 0
    assert fetch(reader, files["a/1/more data.bin"], tmp_path / "w") == hashlib.sha256(b"weights").hexdigest()
    assert reader.read([files["b/config.pbtxt"]], 100) == {"b/config.pbtxt": b"name: 'b'"}
    assert reader.read([files["b/config.pbtxt"]], 3) == {"b/config.pbtxt": None}


def test_links_that_lead_elsewhere_are_not_followed(server: FileServer, reader: ReaderProcess) -> None:
    server.files = {"/models/a/1/model.onnx": b"onnx", "/secret/1/model.onnx": b"not yours"}
    server.links["/models/"] = (
        '<a href="?C=N;O=D">sort</a> <a href="/secret/">s</a> <a href="https://elsewhere/x">x</a>'
        '<a href="%2e%2e%2f%2e%2e%2fescape">e</a> <a href="/models/">self</a>'
    )
    server.files["/models/../../escape"] = b"?"
    assert [file.path for file in reader.files()] == ["a/1/model.onnx"]


ELSEWHERE = {"address": "127.0.0.1", "name": "localhost"}


@pytest.mark.parametrize("host", ELSEWHERE.values(), ids=ELSEWHERE)
@pytest.mark.parametrize("is_allowed", [False, True])
def test_a_redirect_to_an_address_that_is_not_public_is_followed_only_where_that_is_allowed(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, is_allowed: bool
) -> None:
    if is_allowed:
        monkeypatch.setenv("CLOCKWORK_SOURCE_NETWORKS", "127.0.0.0/8,::1")
    with running_file_server() as inner:
        inner.files["/secret.onnx"] = b"not yours"
        target = f"http://{host}:{inner.server_port}/secret.onnx"
        server.redirects["/models/a.onnx"] = server.redirects["/models/"] = target
        url = f"{server.url}/models/a.onnx"
        with reading_at(url) as reader:
            if is_allowed:
                file = reader.describe(url)
                assert file is not None
                reader.fetch(url, file, tmp_path / "m", ROOM)
                assert (tmp_path / "m").read_bytes() == b"not yours"
            else:
                with pytest.raises(SourceFailed, match=r"is not public and not the server that was named"):
                    reader.describe(url)
        if not is_allowed:
            with (
                reading_at(f"{server.url}/models") as reader,
                pytest.raises(SourceFailed, match="not public"),
            ):
                reader.files()
            assert inner.asked == []


def test_a_redirect_within_the_server_that_was_named_is_followed(server: FileServer, tmp_path: Path) -> None:
    server.files["/other/a.onnx"] = b"onnx"
    server.redirects["/models/a.onnx"] = f"{server.url}/other/a.onnx"
    url = f"http://localhost:{server.server_port}/models/a.onnx"
    with reading_at(url) as reader:
        file = reader.describe(url)
        assert file is not None
        reader.fetch(url, file, tmp_path / "m", ROOM)
    assert (tmp_path / "m").read_bytes() == b"onnx"


def test_a_file_that_changes_while_it_is_fetched_is_not_taken(
    server: FileServer, reader: ReaderProcess, tmp_path: Path
) -> None:
    path = "/models/a/1/model.onnx"
    server.files[path] = b"a half-written mod"
    (file,) = reader.files()
    server.changing[path] = b"a whole model, now"
    with pytest.raises(SourceChanged, match="changed while it was fetched"):
        fetch(reader, file, tmp_path / "m")
    with pytest.raises(SourceChanged):  # the file differs from the listed one
        fetch(reader, file, tmp_path / "m")
    (file,) = reader.files()
    assert fetch(reader, file, tmp_path / "m") == hashlib.sha256(b"a whole model, now").hexdigest()
    server.files[path] += b", and more"
    with pytest.raises(SourceChanged, match="bytes"):
        fetch(reader, file, tmp_path / "m")


def test_bytes_that_do_not_have_the_checksum_of_the_source_are_not_taken(
    server: FileServer, reader: ReaderProcess, tmp_path: Path
) -> None:
    path = "/models/a/1/model.onnx"
    server.files[path] = b"what was sent"
    server.md5[path] = base64.b64encode(hashlib.md5(b"what is kept").digest()).decode()
    (file,) = reader.files()
    with pytest.raises(SourceChanged, match=f"do not have its checksum {file.checksum}"):
        fetch(reader, file, tmp_path / "m")
    server.md5[path] = base64.b64encode(hashlib.md5(b"what was sent").digest()).decode()
    (file,) = reader.files()
    assert fetch(reader, file, tmp_path / "m") == hashlib.sha256(b"what was sent").hexdigest()


def test_half_a_file_is_a_failure(server: FileServer, reader: ReaderProcess, tmp_path: Path) -> None:
    server.files["/models/a/1/model.onnx"] = b"x" * 10_000
    (file,) = reader.files()
    server.cut.add("/models/a/1/model.onnx")
    with pytest.raises(SourceFailed, match="cannot be fetched"):
        fetch(reader, file, tmp_path / "m")
    server.cut.clear()
    assert fetch(reader, file, tmp_path / "m") == hashlib.sha256(b"x" * 10_000).hexdigest()


def test_a_source_that_stops_in_the_middle_is_given_up(
    server: FileServer, reader: ReaderProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = stalled_file(server, reader)
    process = process_of(reader)
    monkeypatch.setattr(reading.bounds, "STALL_S", 0.3)
    with pytest.raises(SourceFailed, match="no answer in time"):
        fetch(reader, file, tmp_path / "m")
    assert process.poll() is not None, "its process is gone"
    monkeypatch.undo()
    server.go_on.set()
    assert fetch(reader, file, tmp_path / "m") == hashlib.sha256(b"x" * 10_000).hexdigest()


def test_a_file_larger_than_there_is_room_for_is_refused_also_where_nobody_says_its_size(
    server: FileServer, reader: ReaderProcess, tmp_path: Path
) -> None:
    path = "/models/a/1/model.onnx"
    server.files[path] = b"x" * 1_000_000
    (file,) = reader.files()
    with pytest.raises(InvalidModel, match="has 1000000 bytes; there is room for 5000 more"):
        fetch(reader, file, tmp_path / "m", 5_000)
    server.unsized.add(path)
    (file,) = reader.files()
    assert file.bytes == -1
    with pytest.raises(InvalidModel, match="more than the 5000 bytes"):
        fetch(reader, file, tmp_path / "m", 5_000)
    assert (tmp_path / "m").stat().st_size <= 5_000
    assert fetch(reader, file, tmp_path / "m", 1_000_000) == hashlib.sha256(b"x" * 1_000_000).hexdigest()


def test_what_is_away_or_not_there_is_said(server: FileServer, reader: ReaderProcess) -> None:
    with pytest.raises(SourceMissing, match=r"^http://\S+/models is not there$"):
        reader.files()
    server.away = True
    with pytest.raises(SourceFailed, match=r"cannot be listed: .*503"):
        reader.files()
    with reading_at("http://127.0.0.1:9/models/a.onnx") as nobody:
        with pytest.raises(SourceFailed, match=r"cannot be read: .*[Cc]onnect") as caught:
            nobody.describe(nobody.location.url)
        assert not isinstance(caught.value, SourceMissing)


def test_close_ends_the_call_that_is_under_way(
    server: FileServer, reader: ReaderProcess, tmp_path: Path
) -> None:
    file = stalled_file(server, reader)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            fetch(reader, file, tmp_path / "m")
        except SourceFailed as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert server.sending.wait(PATIENCE_S)
    reader.close()
    thread.join(PATIENCE_S)
    assert [str(error) for error in failures] == ["the reader was closed"]


def test_stop_waits_for_the_call_that_is_under_way(
    server: FileServer, reader: ReaderProcess, tmp_path: Path
) -> None:
    """Otherwise that call would go on with pipes that are closed, or are another file's by then."""
    file = stalled_file(server, reader)
    held, go_on = threading.Event(), threading.Event()

    def hold(done: int) -> None:
        held.set()
        assert go_on.wait(PATIENCE_S)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        url = reader.location.file(file.path)
        fetching = pool.submit(reader.fetch, url, file, tmp_path / "m", ROOM, hold)
        assert held.wait(PATIENCE_S)
        reader.close()
        stopping = pool.submit(reader.stop)
        concurrent.futures.wait([stopping], 0.2)  # a pipe closed too early is closed by then
        go_on.set()
        with pytest.raises(SourceFailed, match="the reader was closed"):
            fetching.result(PATIENCE_S)
        stopping.result(PATIENCE_S)


def test_a_reader_ends_when_whoever_asked_is_gone(server: FileServer, reader: ReaderProcess) -> None:
    server.files["/models/a/1/model.onnx"] = b"onnx"
    reader.files()
    process = process_of(reader)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(PATIENCE_S) == 0


def test_a_reader_that_dies_is_an_error_and_the_next_call_has_another(
    server: FileServer, reader: ReaderProcess
) -> None:
    server.files["/models/a/1/model.onnx"] = b"onnx"
    reader.files()
    process_of(reader).kill()
    with pytest.raises(SourceFailed, match="its reader ended"):
        reader.files()
    assert len(reader.files()) == 1


# ----- the cache --------------------------------------------------------------------------------------


@dataclasses.dataclass
class Copying:
    """A cache, and the means to fill it."""

    cache: Cache
    reader: ReaderProcess
    server: FileServer
    told: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    @contextlib.contextmanager
    def of(self, *files: RemoteFile) -> Iterator[Path]:
        lend = lambda: contextlib.nullcontext(self.reader)  # noqa: E731
        with self.cache.copy(
            self.reader.location, files, lend, lambda done, total: self.told.append((done, total))
        ) as one:
            yield one

    def fetches(self) -> int:
        return sum(method == "GET" and path in self.server.files for method, path in self.server.asked)


@pytest.fixture
def copying(server: FileServer, reader: ReaderProcess, tmp_path: Path) -> Copying:
    return Copying(Cache(tmp_path / "cache", 25_000), reader, server)


def test_what_has_been_fetched_is_kept_and_checked_before_it_is_used_again(copying: Copying) -> None:
    copying.server.files["/models/a/1/model.onnx"] = b"m" * 9_000
    copying.server.files["/models/a/1/data/weights"] = b"w" * 9_000
    files = copying.reader.files()
    with copying.of(*files) as folder:
        assert (folder / "a/1/data/weights").read_bytes() == b"w" * 9_000
    assert copying.fetches() == 2
    assert copying.told[0] == (0, 18_000)
    # a new cache, as after a restart
    again = Copying(Cache(copying.cache._root, 25_000), copying.reader, copying.server)
    with again.of(*files) as folder:
        assert copying.fetches() == 2
    (folder / "a/1/model.onnx").write_bytes(b"d" * 9_000)  # the disk has damaged it
    with again.of(*files) as folder:
        assert (folder / "a/1/model.onnx").read_bytes() == b"m" * 9_000
    assert copying.fetches() == 4


def test_what_was_not_used_for_longest_makes_room(copying: Copying) -> None:
    for name in "abc":
        copying.server.files[f"/models/{name}"] = name.encode() * 10_000
    a, b, c = sorted(copying.reader.files(), key=lambda file: file.path)
    for file in (a, b, a, c):
        with copying.of(file):
            pass
    assert copying.fetches() == 3
    other = Copying(
        Cache(copying.cache._root, 25_000), copying.reader, copying.server
    )  # a reader as in another process
    with copying.of(a), copying.of(c):
        assert copying.fetches() == 3, "b was not used for longest"
        for one in (copying, other):
            with pytest.raises(SourceFailed, match="copies in use leave"), one.of(b):
                pass
    with other.of(b):
        assert copying.fetches() == 4


def test_a_cache_that_cannot_be_written_is_no_fault_of_the_model(
    copying: Copying, monkeypatch: pytest.MonkeyPatch
) -> None:
    copying.server.files["/models/a"] = b"a"
    files = copying.reader.files()

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache_module, "put_in_place", full)
    with pytest.raises(SourceFailed, match="cache cannot be written: No space left"), copying.of(*files):
        pass
    monkeypatch.undo()
    with copying.of(*files) as folder:
        assert (folder / "a").read_bytes() == b"a"


def test_what_is_larger_than_the_cache_is_refused_and_what_fails_leaves_nothing(copying: Copying) -> None:
    copying.server.files["/models/a"] = b"a" * 30_000
    copying.server.files["/models/b"] = b"b" * 10_000
    a, b = sorted(copying.reader.files(), key=lambda file: file.path)
    said = r"30000 bytes .* the cache holds 25000 \(--repository-cache-size\)"
    with pytest.raises(InvalidModel, match=said), copying.of(a):
        pass
    copying.server.cut.add("/models/b")
    with pytest.raises(SourceFailed), copying.of(b):
        pass
    assert list(copying.cache._root.iterdir()) == []


# ----- S3 --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A client of an S3 store on this machine, set up by the usual variables."""
    if importlib.util.find_spec("s3fs") is None:
        pytest.skip("s3fs is not installed ([s3])")
    with running_s3() as client:
        yield client


def test_objects_are_listed_and_fetched_and_their_md5_is_checked(s3: Any, tmp_path: Path) -> None:
    s3.create_bucket(Bucket="models")
    data = os.urandom(9 << 20)  # data of several pieces
    s3.put_object(Bucket="models", Key="deep/a/1/model.onnx", Body=data)
    s3.put_object(Bucket="models", Key="deep/a/", Body=b"")  # the object that consoles make for a folder
    s3.put_object(Bucket="models", Key="deep/../escape", Body=b"?")
    s3.put_object(Bucket="models", Key="deeper/b/1/model.onnx", Body=b"not below")
    with reading_at("s3://models/deep/") as reader:
        (file,) = reader.files()
        assert (file.path, file.bytes) == ("a/1/model.onnx", len(data))
        assert file.checksum == f"md5:{hashlib.md5(data).hexdigest()}"
        assert fetch(reader, file, tmp_path / "m", 16 << 20) == hashlib.sha256(data).hexdigest()
        s3.put_object(Bucket="models", Key="deep/a/1/model.onnx", Body=bytes(reversed(data)))
        with pytest.raises(SourceChanged):
            fetch(reader, file, tmp_path / "m", 16 << 20)


def test_objects_that_are_uploaded_in_parts_or_encrypted_have_no_md5(s3: Any, tmp_path: Path) -> None:
    s3.create_bucket(Bucket="parts")
    upload = s3.create_multipart_upload(Bucket="parts", Key="m/a/1/model.onnx")["UploadId"]
    parts = []
    for number in (1, 2):
        done = s3.upload_part(
            Bucket="parts", Key="m/a/1/model.onnx", UploadId=upload, PartNumber=number, Body=b"p" * (5 << 20)
        )
        parts.append({"PartNumber": number, "ETag": done["ETag"]})
    with reading_at("s3://parts/m") as reader:
        s3.put_object(Bucket="parts", Key="m/b/1/model.onnx", Body=b"b", ServerSideEncryption="aws:kms")
        (other,) = reader.files()  # an incomplete upload is no object
        assert fetch(reader, other, tmp_path / "o") == hashlib.sha256(b"b").hexdigest()
        s3.complete_multipart_upload(
            Bucket="parts", Key="m/a/1/model.onnx", UploadId=upload, MultipartUpload={"Parts": parts}
        )
        file = next(one for one in reader.files() if one.path == "a/1/model.onnx")
        assert file.checksum == ""
        assert fetch(reader, file, tmp_path / "m", 16 << 20) == hashlib.sha256(b"p" * (10 << 20)).hexdigest()


def test_a_bucket_that_is_not_there_and_one_that_does_not_let_us_in(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reading_at("s3://nowhere/models") as reader:
        with pytest.raises(SourceMissing, match="s3://nowhere/models is not there"):
            reader.files()
        with pytest.raises(SourceMissing):
            reader.describe("s3://nowhere/models/a.onnx")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with reading_at("s3://models/deep") as reader, pytest.raises(SourceFailed, match="credentials"):
        reader.files()


# ----- the Hugging Face Hub ---------------------------------------------------------------------------


def test_files_of_the_hub_are_listed_and_fetched_and_their_hashes_are_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed ([hf])")
    weights = os.urandom(5 << 20)
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
        hub.files = {"m/a/1/model.onnx": weights, "m/a/config.pbtxt": b"max_batch_size: 4", "README.md": b"#"}
        hub.large = {"m/a/1/model.onnx"}
        for url in ("hf://o/r/m", "hf://o/r@main/m"):
            with reading_at(url) as reader:
                files = {file.path: file for file in reader.files()}
                assert set(files) == {"a/1/model.onnx", "a/config.pbtxt"}
                model, config = files["a/1/model.onnx"], files["a/config.pbtxt"]
                assert model.checksum == f"sha256:{hashlib.sha256(weights).hexdigest()}"
                assert config.checksum.startswith("git:")
                assert fetch(reader, model, tmp_path / "m", 8 << 20) == hashlib.sha256(weights).hexdigest()
                assert reader.read([config], 100) == {"a/config.pbtxt": b"max_batch_size: 4"}
                assert reader.describe(f"{url}/a/config.pbtxt") == dataclasses.replace(config, path="")
                fetch(reader, config, tmp_path / "c")
        with reading_at("hf://o/r/m") as reader:
            (model,) = (file for file in reader.files() if file.path == "a/1/model.onnx")
            hub.files["m/a/1/model.onnx"] = bytes(reversed(weights))
            with pytest.raises(SourceChanged):
                fetch(reader, model, tmp_path / "m", 8 << 20)
            with pytest.raises(SourceMissing):
                reader.describe("hf://o/r/m/a/2/model.onnx")


# ----- what libraries say -----------------------------------------------------------------------------

MD5 = hashlib.md5(b"onnx")


@pytest.mark.parametrize(
    ("info", "mark", "checksum"),
    [
        (
            {"ETag": f'"{MD5.hexdigest()}"', "StorageClass": "STANDARD"},
            MD5.hexdigest(),
            f"md5:{MD5.hexdigest()}",
        ),
        ({"ETag": f'"{MD5.hexdigest()}-2"', "StorageClass": "STANDARD"}, f"{MD5.hexdigest()}-2", ""),
        ({"ETag": f'"{MD5.hexdigest()}"'}, MD5.hexdigest(), ""),  # a web server's ETag may be anything
        (
            {"generation": "17", "etag": "CJ=", "md5Hash": base64.b64encode(MD5.digest()).decode()},
            "17",
            f"md5:{MD5.hexdigest()}",
        ),
        (
            {"etag": '"0x25"', "content_settings": SimpleNamespace(content_md5=bytearray(MD5.digest()))},
            "0x25",
            f"md5:{MD5.hexdigest()}",
        ),
        ({"blob_id": "f" * 40, "lfs": {"sha256": "a" * 64, "size": 4}}, "a" * 64, "sha256:" + "a" * 64),
        ({"blob_id": "f" * 40, "lfs": None}, "f" * 40, "git:" + "f" * 40),
        ({"Last-Modified": "Fri"}, "Fri", ""),
        ({"ETag": '"x"', "Content-MD5": "not base64"}, "x", ""),
    ],
)
def test_every_library_says_its_own_way_what_a_file_is(
    info: dict[str, Any], mark: str, checksum: str
) -> None:
    assert child._row("a", info | {"size": 4}) == ["a", 4, mark, checksum]
    if checksum.startswith("md5:"):
        assert child._hash_of(checksum, 4).hexdigest() == hashlib.md5(b"").hexdigest()


class FakeStore:
    """fsspec's view of a store with the content, and the claims, that a test sets."""

    def __init__(self, infos: dict[str, dict[str, Any]], content: bytes = b"") -> None:
        self.infos = {f"bucket/m/{path}": {"type": "file", "size": 4} | info for path, info in infos.items()}
        self.content = content

    def find(self, root: str, detail: bool) -> dict[str, dict[str, Any]]:
        return self.infos

    def info(self, path: str) -> dict[str, Any]:
        return self.infos[path]

    def open(self, path: str, mode: str, **how: Any) -> io.BytesIO:
        return io.BytesIO(self.content)

    def invalidate_cache(self) -> None:
        pass


def answers_to(
    command: dict[str, Any], store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Any]]:
    """Return the reader's answer; in this process."""
    monkeypatch.setattr(child, "_open", lambda url: (store, url.removeprefix("s3://")))
    answer = io.StringIO()
    child.SourceReader(answer).carry_out(command)
    return [json.loads(line) for line in answer.getvalue().splitlines()]


def test_what_stands_for_a_folder_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    store = FakeStore({"a/1/model.onnx": {}, "a/": {"size": 0}, "b": {"type": "directory"}})
    (files, end) = answers_to({"do": "list", "url": "s3://bucket/m"}, store, monkeypatch)
    assert [row[0] for row in files["files"]] == ["a/1/model.onnx"]
    assert end == {"end": None}


def test_a_file_that_comes_shorter_than_it_is_said_to_be_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Libraries may end a file early without an error."""
    store = FakeStore({"a": {"size": 10}}, b"half")
    command = {"do": "fetch", "url": "s3://bucket/m/a", "row": ["a", 10, "", ""], "bytes_max": 100}
    (*_, answer) = answers_to(command | {"to": str(tmp_path / "a")}, store, monkeypatch)
    assert (answer["kind"], answer["error"]) == ("changed", "4 bytes came, and 10 were listed")


def test_a_bound_of_files_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child.bounds, "SOURCE_FILES_MAX", 10)
    for count, kind in ((10, None), (11, "refused")):
        store = FakeStore({f"a/1/{number}": {} for number in range(count)})
        (*_, answer) = answers_to({"do": "list", "url": "s3://bucket/m"}, store, monkeypatch)
        assert answer.get("kind") == kind


def test_a_bound_of_files_is_held_of_an_http_server(
    monkeypatch: pytest.MonkeyPatch, server: FileServer
) -> None:
    monkeypatch.setattr(child.bounds, "SOURCE_FILES_MAX", 10)
    server.files = {f"/models/{number}": b"x" for number in range(11)}
    answers: list[dict[str, Any]] = []
    one = child.SourceReader(None)  # type: ignore[arg-type]
    monkeypatch.setattr(one, "_say", lambda **answer: answers.append(answer))
    one.carry_out({"do": "list", "url": f"{server.url}/models"})
    assert answers[-1]["kind"] == "refused"
    assert "more than 10 files" in answers[-1]["error"]
