"""Packages in an object store, of which a folder takes the place here, with every fault a store may have."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clockwork.controller.catalog.objects import ObjectPackages, StoreFailed
from clockwork.controller.catalog.packages import DirectoryPackages
from clockwork.errors import ConfigError, InvalidModel
from clockwork.formats.package import DamagedPackage, PackageFile, digest_of, rows_of
from clockwork.sources import location as location_module
from clockwork.sources.objects import store_location
from clockwork.sources.reading import SourceFailed
from tests.folder_store import URL, FolderStore
from tests.patience import PATIENCE_S


def opened(root: Path, store: FolderStore, cache_bytes: int = 1 << 20, cluster: str = "") -> ObjectPackages:
    root.mkdir(exist_ok=True)
    packages = ObjectPackages(store.location, root, cache_bytes, cluster)
    packages._objects = store  # type: ignore[assignment]
    packages.open()
    return packages


class Place:
    def __init__(self, root: Path) -> None:
        self.root = root / "data"
        self.store = FolderStore(root / "bucket")
        self.packages = opened(self.root, self.store)

    def restart(self, cache_bytes: int = 1 << 20, *, empty: bool = True) -> None:
        """Begin anew with the same data directory; empty: its cache was lost."""
        self.packages.close()
        if empty:
            shutil.rmtree(self.root / "cache")
        self.packages = opened(self.root, self.store, cache_bytes)

    def mend(self) -> None:
        """Have the store work again, and the controller find that out."""
        self.store.fault = lambda what, path: None
        self.packages.try_again()

    def add(self, *contents: bytes) -> str:
        return add(self.packages, *contents)

    def object(self, digest: str, name: str = "model.onnx") -> Path:
        return self.store.root / "packages" / digest / name

    def read(self, digest: str, name: str = "model.onnx") -> bytes:
        with self.packages.held(digest) as package:
            return (package / name).read_bytes()


def files_of(contents: Sequence[bytes]) -> list[PackageFile]:
    names = ["model.onnx", *(f"deep/part{number}.bin" for number in range(1, len(contents)))]
    return [
        PackageFile(name, len(data), hashlib.sha256(data).hexdigest())
        for name, data in zip(names, contents, strict=True)
    ]


def add(packages: ObjectPackages, *contents: bytes) -> str:
    writer = packages.writer(files_of(contents))
    for number, data in enumerate(contents):
        writer.write(number, 0, data)
    writer.commit()
    return writer.digest


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def failing(text: str, *whats: str) -> Callable[[str, str], None]:
    def fault(what: str, path: str) -> None:
        if not whats or what in whats:
            raise SourceFailed(f"{URL}/{path} cannot be reached: {text}")

    return fault


# ----- storing ---------------------------------------------------------------------------------------


def test_a_package_is_stored_list_last_and_read_again_without_any_copy(place: Place) -> None:
    digest = place.add(b"model", b"weights")
    assert place.store.kept[-3:] == ["model.onnx", "deep/part1.bin", "package.json"]
    assert place.packages.is_whole(digest)
    place.restart()
    assert place.read(digest, "deep/part1.bin") == b"weights"
    calls = len(place.store.calls)
    assert place.read(digest) == b"model"
    assert len(place.store.calls) == calls, "the copy in the cache was not used"


def test_a_package_counts_only_once_its_list_is_stored_and_can_be_sent_anew(place: Place) -> None:
    def fault(what: str, path: str) -> None:
        if what == "keep" and path.endswith("package.json"):
            raise SourceFailed(f"{URL}/{path} cannot be written: AccessDenied")

    place.store.fault = fault
    with pytest.raises(
        StoreFailed, match=rf"{URL}/packages/\w+/package.json cannot be written: AccessDenied"
    ):
        place.add(b"model")
    digest = digest_of(files_of([b"model"]))
    assert place.object(digest).exists()
    place.mend()
    assert not place.packages.is_whole(digest)
    assert place.add(b"model") == digest
    assert place.packages.is_whole(digest)


def test_what_arrives_damaged_is_not_stored(place: Place) -> None:
    writer = place.packages.writer(files_of([b"model"]))
    writer.write(0, 0, b"moddl")
    with pytest.raises(InvalidModel, match="arrived damaged"):
        writer.commit()
    assert not (place.store.root / "packages").exists()
    assert place.packages._cache.held_bytes == 0


@pytest.mark.parametrize("is_new", [True, False])
def test_a_store_that_fails_is_named_with_its_cause_and_keeps_no_room(place: Place, is_new: bool) -> None:
    if not is_new:
        place.add(b"before")
    held = place.packages._cache.held_bytes
    place.store.fault = failing("No space left")
    for call in (
        lambda: place.packages.is_whole("0" * 64),
        lambda: place.read("0" * 64),
        lambda: place.packages.listed(),
        lambda: place.packages.remove("0" * 64),
        lambda: place.packages.inspect("0" * 64),
    ):
        with pytest.raises(OSError, match=rf"{URL}/.* cannot be reached: No space left") as raised:
            call()  # type: ignore[no-untyped-call]
        assert isinstance(raised.value, StoreFailed)
    assert place.packages._cache.held_bytes == held


# ----- a store that lies or forgets ------------------------------------------------------------------


def rot(place: Place, digest: str) -> None:
    place.object(digest).write_bytes(b"m0del")


def lose(place: Place, digest: str) -> None:
    place.object(digest).unlink()


def grow(place: Place, digest: str) -> None:
    place.object(digest).write_bytes(b"model and more")


def swap_list(place: Place, digest: str) -> None:
    """The list of another package, with other bytes: content that was not registered under this name."""
    evil = files_of([b"evil!"])
    place.object(digest, "package.json").write_text(json.dumps(rows_of(evil)))
    place.object(digest).write_bytes(b"evil!")


def escape(place: Place, digest: str) -> None:
    place.object(digest, "package.json").write_text('[["../../../etc/passwd", 1, "%s"]]' % ("0" * 64))


def scramble(place: Place, digest: str) -> None:
    place.object(digest, "package.json").write_bytes(b"[" * 100_000)


def lose_list(place: Place, digest: str) -> None:
    place.object(digest, "package.json").unlink()


FAULTS = [rot, lose, grow, swap_list, escape, scramble, lose_list]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_differs_from_its_digest_is_given_to_nobody_and_an_upload_mends_it(
    place: Place, fault: Callable[[Place, str], None]
) -> None:
    digest = place.add(b"model")
    place.restart()
    fault(place, digest)
    with pytest.raises(DamagedPackage, match=rf"package {digest} in {URL} is damaged"):
        place.read(digest)
    assert not place.packages.is_whole(digest), "an upload would not be asked for"
    with pytest.raises(DamagedPackage):
        place.packages.inspect(digest)
    place.restart()
    assert not place.packages.is_whole(digest), "after a restart an upload would not be asked for"
    assert place.add(b"model") == digest
    place.restart()
    assert place.read(digest) == b"model"


def test_damage_is_remembered_where_the_list_cannot_be_removed(place: Place) -> None:
    digest = place.add(b"model")
    place.restart()
    rot(place, digest)
    place.store.fault = failing("AccessDenied", "remove")
    with pytest.raises(DamagedPackage):
        place.read(digest)
    place.mend()
    assert place.object(digest, "package.json").exists()
    with pytest.raises(DamagedPackage):
        place.packages.inspect(digest)
    assert not place.packages.is_whole(digest)


@pytest.mark.parametrize("fault", [lose, grow, swap_list, scramble, lose_list])
def test_a_package_that_the_store_lost_is_written_again_from_the_cache(
    place: Place, fault: Callable[[Place, str], None]
) -> None:
    digest = place.add(b"model")
    fault(place, digest)
    place.packages.inspect(digest)
    place.restart()
    assert place.read(digest) == b"model"


def test_a_copy_that_the_disk_damaged_is_fetched_again(place: Place) -> None:
    digest = place.add(b"model")
    with place.packages.held(digest) as copy:
        (copy / "model.onnx").write_bytes(b"m0del")
    place.packages.inspect(digest)
    assert place.read(digest) == b"model"
    # a copy that is damaged must not mend a store that lost the package
    with place.packages.held(digest) as copy:
        (copy / "model.onnx").write_bytes(b"m0del")
    lose(place, digest)
    with pytest.raises(DamagedPackage):
        place.packages.inspect(digest)
    assert not place.object(digest).exists()


def test_pieces_that_wait_for_a_package_which_cannot_be_fetched_fail_together(place: Place) -> None:
    digest = place.add(b"model")
    place.restart()
    place.store.fault = failing("timeout", "copy")
    for _ in range(8):
        with pytest.raises(StoreFailed, match="timeout"):
            place.read(digest)
    assert [what for what, _ in place.store.calls].count("copy") == 1


def test_while_a_store_is_known_to_fail_calls_fail_at_once(place: Place) -> None:
    digest, cached = place.add(b"model"), place.add(b"cached")
    place.restart()
    place.read(cached)
    place.store.fault = failing("timeout")
    with pytest.raises(StoreFailed, match="timeout"):
        place.packages.listed()
    calls = len(place.store.calls)
    for _ in range(3):
        with pytest.raises(StoreFailed, match="timeout"):
            place.read(digest)
        with pytest.raises(StoreFailed, match="timeout"):
            place.packages.is_whole(digest)
    assert len(place.store.calls) == calls
    assert place.read(cached) == b"cached"
    with pytest.raises(StoreFailed, match="timeout"):
        place.packages.try_again()
    assert len(place.store.calls) > calls
    place.mend()
    assert place.packages.is_whole(digest)


def test_threads_that_want_a_package_at_once_fetch_it_once(place: Place) -> None:
    digest = place.add(b"model")
    place.restart()
    before = len(place.store.calls)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: place.read(digest), range(8))) == {b"model"}
    assert [what for what, _ in place.store.calls[before:]].count("copy") == 2, "its list, and its file"


# ----- owners and strangers ----------------------------------------------------------------------------


def test_a_second_controller_below_the_same_url_changes_nothing(place: Place, tmp_path: Path) -> None:
    digest = place.add(b"model")
    other = opened(tmp_path / "other", place.store)
    for call in (lambda: add(other, b"other"), lambda: other.remove(digest), lambda: other.listed()):
        with pytest.raises(
            StoreFailed, match=rf"{URL} belongs to another controller: {URL}/owner-\w+ says so"
        ):
            call()  # type: ignore[no-untyped-call]
    assert "belongs to another" in other.failure
    assert place.packages.is_whole(digest)
    (mark,) = place.store.root.glob("owner-*")
    place.restart(empty=False)
    assert place.add(b"more"), "its own mark kept a controller out"
    mark.unlink()
    other.try_again()
    assert other.failure == ""
    assert add(other, b"other")


def test_controllers_that_share_a_catalogue_own_a_url_together(place: Place, tmp_path: Path) -> None:
    """Also where one of them has owned it by itself before."""
    cluster = "c" * 32
    digest = place.add(b"model")
    first = opened(place.root, place.store, cluster=cluster)
    add(first, b"more")
    second = opened(tmp_path / "other", place.store, cluster=cluster)
    add(second, b"others")
    second.remove(digest)
    assert len(first.listed()) == 2
    assert [mark.name for mark in place.store.root.glob("owner-*")] == [f"owner-{cluster}"]
    with pytest.raises(StoreFailed, match="belongs to another"):
        add(opened(tmp_path / "third", place.store, cluster="d" * 32), b"x")


def test_of_two_controllers_that_take_a_url_at_once_at_most_one_has_it(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "bucket")
    both = threading.Barrier(2)

    def fault(what: str, path: str) -> None:
        if what == "keep":
            both.wait(PATIENCE_S)  # both have seen no mark

    store.fault = fault
    packages = [opened(tmp_path / name, store) for name in ("a", "b")]

    def take(which: ObjectPackages) -> bool:
        try:
            which.try_again()
        except StoreFailed:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        taken = list(pool.map(take, packages))
    assert sum(taken) <= 1
    marks = list(store.root.glob("owner-*"))
    assert len(marks) == sum(taken), "a mark was left that keeps everybody out"


def test_only_names_of_packages_are_listed_and_removed(place: Place) -> None:
    digest = place.add(b"model")
    for name in ("packages/somebody.txt", f"packages/{digest.upper()}/model.onnx", "packages/abc/x", "mine"):
        path = place.store.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"of others")
    assert place.packages.listed() == [digest]
    for name in ("", "abc", "../packages", digest.upper()):
        with pytest.raises(StoreFailed):
            place.packages.remove(name)
    place.packages.remove(digest)
    assert place.packages.listed() == []
    left = sorted(path.name for path in place.store.root.rglob("*") if path.is_file())
    (mark,) = place.store.root.glob("owner-*")
    assert left == ["mine", "model.onnx", mark.name, "somebody.txt", "x"]


def test_a_damaged_id_is_an_error_at_the_start(place: Place) -> None:
    (place.root / "packages.id").write_bytes(b"x" * 32)
    with pytest.raises(ConfigError, match=r"packages\.id is damaged"):
        place.restart()


# ----- the cache -----------------------------------------------------------------------------------------


def copies(place: Place) -> set[str]:
    return set(os.listdir(place.root / "cache" / "packages"))


def test_copies_stay_within_their_bound_and_the_least_recently_used_go(place: Place) -> None:
    place.restart(cache_bytes=25)
    a, b = place.add(b"a" * 10), place.add(b"b" * 10)
    place.read(a)
    c = place.add(b"c" * 10)
    assert copies(place) == {a, c}
    assert place.read(b) == b"b" * 10
    assert copies(place) == {b, c}
    place.restart(cache_bytes=10, empty=False)
    assert len(copies(place)) == 1
    for digest, data in ((a, b"a"), (b, b"b"), (c, b"c")):
        assert place.read(digest) == data * 10


def test_a_copy_that_is_held_stays_and_what_does_not_fit_beside_it_is_refused(place: Place) -> None:
    place.restart(cache_bytes=15)
    a = place.add(b"a" * 10)
    with place.packages.held(a) as copy:
        with pytest.raises(OSError, match="leave no room for 10 bytes in the 15 of --package-cache"):
            place.add(b"b" * 10)
        assert (copy / "model.onnx").read_bytes() == b"a" * 10
    assert place.add(b"b" * 10)
    with pytest.raises(OSError, match="16 bytes is larger than the 15 of --package-cache"):
        place.add(b"c" * 16)


def test_uploads_on_their_way_take_room(place: Place) -> None:
    place.restart(cache_bytes=25)
    first, second = (place.packages.writer(files_of([data * 10])) for data in (b"a", b"b"))
    with pytest.raises(OSError, match="leave no room"):
        place.packages.writer(files_of([b"c" * 10]))
    first.abort()
    first.abort()
    assert place.add(b"c" * 10)
    second.write(0, 0, b"b" * 10)
    second.commit()
    assert place.packages._cache.held_bytes == 20


def test_what_a_crash_left_in_the_cache_is_swept(place: Place) -> None:
    digest = place.add(b"model")
    folder = place.root / "cache" / "packages"
    (folder / ".incoming-x").mkdir()
    (folder / ".incoming-x" / "model.onnx").write_bytes(b"half")
    (folder / ("1" * 64)).mkdir()  # without a list
    (folder / "file").write_bytes(b"")
    place.restart(empty=False)
    assert copies(place) == {digest, "file"}


# ----- places ---------------------------------------------------------------------------------------------


@pytest.fixture
def with_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location_module.importlib.util, "find_spec", lambda name: name)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("with_libraries")
def test_a_place_is_a_path_or_the_url_of_an_object_store() -> None:
    assert store_location("/srv/packages") is None
    assert str(store_location("s3://bucket/a/b/")) == "s3://bucket/a/b"
    assert str(store_location("s3://bucket")) == "s3://bucket"
    for text, why in (
        ("https://server/x", "cannot be written to"),
        ("hf://owner/name", "cannot be written to"),
        ("ftp://server/x", "no source"),
        ("s3://key:secret@bucket/x", "credentials come from the environment"),
        ("s3://bucket/x?versionId=1", "credentials come from the environment"),
        ("s3://bucket/../other", "is no place for packages"),
        ("s3://bucket//x", "is no place for packages"),
        ("s3://", "is no URL"),
    ):
        with pytest.raises(ConfigError, match=why) as raised:
            store_location(text)
        assert "secret" not in str(raised.value)


def test_a_directory_elsewhere_is_for_one_controller_alone(tmp_path: Path) -> None:
    first, second = (DirectoryPackages(tmp_path / "packages", is_own=True) for _ in range(2))
    first.open()
    with pytest.raises(ConfigError, match="in use by another controller"):
        second.open()
    second.close()
    first.close()
    second = DirectoryPackages(tmp_path / "packages", is_own=True)
    second.open()
    second.close()
