"""Repositories by URL: the use of their listings, and a keeper's behaviour while they are unreachable or
slow."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip(
    "google.protobuf", reason="the gateway's packages are not installed (clockwork-serving[gateway])"
)

from clockwork.client.blocking import Client
from clockwork.config.repository import REGISTERING_MAX
from clockwork.repository import keeper as keeper_module
from clockwork.repository import remote as remote_module
from clockwork.repository.folders import Contents, scan
from clockwork.repository.keeper import RepositoryKeeper
from clockwork.repository.remote import Listing, Remote, agreed
from clockwork.sources.cache import Cache
from clockwork.sources.location import Location
from clockwork.sources.reading import RemoteFile, SourceFailed
from tests.patience import PATIENCE_S
from tests.unit.test_repository_keeper import FakeClient

LOCATION = Location("s3://bucket/models", "s3")
POLL_S = 0.02


class FakeSource:
    """Files by path, and failures to inject; shared by the readers of a test."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.away = False
        self.broken: set[str] = set()  # files that cannot be fetched
        self.stalled: set[str] = set()  # files that come when `go_on` is set
        self.go_on = threading.Event()
        self.listings = 0
        self.failures = 0  # number of failing fetches
        self.growing = ""  # name of a file that every listing finds larger
        self.changed = threading.Condition()

    def wait(self, until: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(until, PATIENCE_S)

    def listed(self, times: int = 1) -> None:
        """Wait until it has been listed that often from now on, without or with success."""
        target = self.listings + times
        self.wait(lambda: self.listings >= target)


class FakeReader:
    source = FakeSource()

    def __init__(self, location: Location) -> None:
        self.closed = threading.Event()

    def files(self) -> list[RemoteFile]:
        with self.source.changed:
            self.source.listings += 1
            self.source.changed.notify_all()
        if self.source.growing:
            self.source.files[self.source.growing] += b"+"
        if self.source.away:
            raise SourceFailed("s3://bucket/models cannot be listed: 503")
        return [
            RemoteFile(path, len(data), hashlib.md5(data).hexdigest(), "")
            for path, data in self.source.files.items()
        ]

    def read(self, files: Sequence[RemoteFile], bytes_max: int) -> dict[str, bytes | None]:
        return {file.path: self.source.files[file.path] for file in files}

    def fetch(
        self, url: str, file: RemoteFile, to: Path, bytes_max: int, progress: Callable[[int], None]
    ) -> str:
        if file.path in self.source.stalled:
            assert self.source.go_on.wait(PATIENCE_S)
        if file.path in self.source.broken:
            with self.source.changed:
                self.source.failures += 1
                self.source.changed.notify_all()
            raise SourceFailed(f"{url} cannot be fetched: 503")
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(self.source.files[file.path])
        return hashlib.sha256(self.source.files[file.path]).hexdigest()

    def close(self) -> None:
        self.closed.set()

    def stop(self) -> None:
        pass


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSource]:
    source = FakeSource()
    monkeypatch.setattr(FakeReader, "source", source)
    monkeypatch.setattr(remote_module, "ReaderProcess", FakeReader)
    monkeypatch.setattr(remote_module.bounds, "FIRST_PAUSE_S", POLL_S)
    monkeypatch.setattr(remote_module.bounds, "RETRY_MAX_S", POLL_S)
    monkeypatch.setattr(keeper_module.bounds, "RETRY_MAX_S", POLL_S)
    monkeypatch.setattr(keeper_module, "require_library", lambda location: None)
    yield source
    source.go_on.set()


def keeper_of(
    client: FakeClient, cache: Path, *more: Path, mode: str = "poll", first: Any = ()
) -> RepositoryKeeper:
    roots = [LOCATION, *more]
    return RepositoryKeeper(roots, mode, POLL_S, lambda: cast(Client, client), first, Cache(cache, 1 << 20))


# ----- what counts ----------------------------------------------------------------------------------


def contents(**marks: str) -> Contents:
    """A scan of models of one version each, by the mark of its file."""
    files = [RemoteFile(f"{name}/1/model.onnx", 4, mark, "") for name, mark in marks.items()]
    remote = Remote(LOCATION, 1, True, cast(Cache, None))
    return scan(Listing(remote, files))


def marks(found: Contents) -> dict[str, str]:
    return {name: one.fingerprint[0][2] for (name, _), one in found.versions.items()}


@pytest.mark.parametrize(
    ("before", "found", "holds"),
    [
        ({"a": "1"}, {"a": "1"}, {"a": "1"}),
        ({"a": "1"}, {"a": "2"}, {"a": "1"}),  # the file is changing
        ({"a": "2"}, {"a": "3"}, {"a": "1"}),  # the file is still changing
        ({"a": "2"}, {"a": "2"}, {"a": "2"}),  # the file has settled
        ({"a": "1"}, {"a": "1", "b": "1"}, {"a": "1"}),  # file b appears
        ({"a": "1", "b": "1"}, {"a": "1", "b": "1"}, {"a": "1", "b": "1"}),
        ({"a": "1"}, {}, {"a": "1"}),  # file a disappears
        ({}, {}, {}),
        ({}, {"a": "1"}, {"a": "1"}),  # the file was missing in one listing
    ],
)
def test_what_two_listings_agree_about_holds(
    before: dict[str, str], found: dict[str, str], holds: dict[str, str]
) -> None:
    assert marks(agreed(contents(a="1"), contents(**before), contents(**found))) == holds


def test_a_listing_is_a_repository_like_a_folder() -> None:
    remote = Remote(LOCATION, 1, True, cast(Cache, None))
    paths = [
        "a/1/model.onnx", "a/1/more/weights", "a/2/model.onnx", "a/config.pbtxt", "b/3/other.onnx", "README.md",
        ".git/1/model.onnx", "_x/1/model.onnx", "c/notes.txt", "d/1/program.json", "a/names.txt", "a/more.txt",
    ]  # fmt: skip
    listing = Listing(remote, [RemoteFile(path, 4, path, "") for path in paths])
    (config,) = listing.configs()
    text = b'version_policy { all { } } output { name: "y" label_filename: "names.txt" }'
    listing.texts = {config: text}
    assert "label_filename 'names.txt', which is not there" in scan(listing).broken["a"]
    (labels,) = listing.labels()
    listing.texts = {config: text, labels: "cat\n Gr\u00fcn \n".encode()}
    found = scan(listing)
    assert set(found.versions) == {("a", 1), ("a", 2), ("d", 1)}
    assert [path for path, _, _ in found.versions["a", 1].fingerprint] == [
        "config.pbtxt", "names.txt", "model.onnx", "more/weights",
    ]  # fmt: skip
    assert found.versions["d", 1].file == ""
    assert found.versions["a", 2].labels == {"y": ("cat", "Gr\u00fcn")}
    assert found.broken == {
        "b": "version 3 has no file model.onnx",
        "c": "c has no version: a folder whose name is a number",
    }
    listing.texts = {config: None}
    assert "is larger than" in scan(listing).broken["a"]


# ----- what a keeper does ------------------------------------------------------------------------------


def test_what_an_earlier_run_registered_stays_until_its_source_says_that_it_is_gone(
    source: FakeSource, tmp_path: Path
) -> None:
    source.files = {"a/1/model.onnx": b"a", "b/1/model.onnx": b"b"}
    client = FakeClient()
    keeper = keeper_of(client, tmp_path)
    keeper.start()
    client.wait(lambda: set(client.served) == {"a@1", "b@1"})
    keeper.close()
    source.away = True
    again = keeper_of(client, tmp_path)
    again.start()
    source.listed(3)
    assert set(client.served) == {"a@1", "b@1"}
    assert [row["name"] for row in again.missing()] == [str(LOCATION)]
    del source.files["b/1/model.onnx"]
    source.away = False
    client.wait(lambda: set(client.served) == {"a@1"})
    again.close()


def test_a_file_that_grows_is_taken_when_it_has_come_to_rest(source: FakeSource, tmp_path: Path) -> None:
    source.files = {"a/1/model.onnx": b"a"}
    source.growing = "a/1/model.onnx"
    client = FakeClient()
    keeper = keeper_of(client, tmp_path)
    keeper.start()
    source.listed(4)
    assert client.served == {}
    source.growing = ""
    client.wait(lambda: set(client.served) == {"a@1"})
    keeper.close()


def test_fetches_that_do_not_end_hold_up_no_folder(source: FakeSource, tmp_path: Path) -> None:
    for number in range(2 * REGISTERING_MAX):
        source.files[f"slow{number}/1/model.onnx"] = b"slow"
    source.stalled = set(source.files)
    folder = tmp_path / "folder"
    (folder / "a/1").mkdir(parents=True)
    (folder / "a/1/model.onnx").write_bytes(b"onnx")
    client = FakeClient()
    keeper = keeper_of(client, tmp_path / "cache", folder)
    keeper.start()
    client.wait(lambda: set(client.served) == {"a@1"})
    source.listed(3)
    (folder / "b/1").mkdir(parents=True)
    (folder / "b/1/model.onnx").write_bytes(b"onnx")
    client.wait(lambda: "b@1" in client.served)
    assert set(client.served) == {"a@1", "b@1"}
    source.go_on.set()
    client.wait(lambda: len(client.served) == 2 + 2 * REGISTERING_MAX)
    keeper.close()


def test_what_cannot_be_fetched_is_tried_again_and_said_once(
    source: FakeSource, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source.files = {"a/1/model.onnx": b"a", "b/1/model.onnx": b"b"}
    source.broken = {"a/1/model.onnx"}
    client = FakeClient()
    keeper = keeper_of(client, tmp_path)
    keeper.start()
    client.wait(lambda: "b@1" in client.served)
    source.listed(5)
    rows = [(row["name"], row["version"]) for row in keeper.missing()]
    assert rows == [("a", "1")], "it is tried again, or has failed"
    client.wait(lambda: bool(client.reports))
    assert "a version 1: " in client.reports[-1][1]
    source.broken = set()
    client.wait(lambda: "a@1" in client.served)
    client.wait(lambda: client.reports[-1][1] == "")
    keeper.close()
    assert sum("cannot be fetched" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("first", [("a", "b"), ("*",)])
def test_in_explicit_mode_what_is_to_be_loaded_first_waits_for_its_source(
    source: FakeSource, tmp_path: Path, first: tuple[str, ...]
) -> None:
    source.files = {"a/1/model.onnx": b"a", "b/1/model.onnx": b"b"}
    source.away = True
    source.broken = {"b/1/model.onnx"}
    client = FakeClient()
    keeper = keeper_of(client, tmp_path, mode="explicit", first=first)
    keeper.start()
    source.listed(2)
    assert client.served == {}
    source.away = False
    client.wait(lambda: set(client.served) == {"a@1"})
    source.wait(lambda: source.failures >= 2)
    source.broken = set()
    client.wait(lambda: set(client.served) == {"a@1", "b@1"})
    keeper._thread.join(PATIENCE_S)
    assert not keeper._thread.is_alive(), "there is nothing left to wait for"
    keeper.close()


def test_in_mode_none_what_is_there_at_start_is_registered_once(source: FakeSource, tmp_path: Path) -> None:
    source.files = {"a/1/model.onnx": b"a"}
    client = FakeClient()
    keeper = keeper_of(client, tmp_path, mode="none")
    keeper.start()
    keeper._thread.join(PATIENCE_S)
    assert not keeper._thread.is_alive()
    assert set(client.served) == {"a@1"}
    listings = source.listings
    source.files["b/1/model.onnx"] = b"b"
    keeper.close()
    assert (source.listings, set(client.served)) == (listings, {"a@1"})
