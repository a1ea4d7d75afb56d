"""A worker's store with a bound: what counts, what is claimed, and what a crash or another bound has left."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clockwork.errors import ConfigError
from clockwork.formats.checksums import seal
from clockwork.formats.prepared import PREPARED_FILE, PROGRAM_FILE, WEIGHTS_FILE
from clockwork.worker.stores import BoundedStore, Removed
from tests.catalogues import open_catalog
from tests.patience import PATIENCE_S

PROGRAM_BYTES = 100


def prepare(root: Path, name: str, size: int, program: str = "") -> Path:
    """Write a prepared model of so many bytes in all, and its program if that is not there."""
    place = root / "prepared" / name
    place.mkdir(parents=True)
    described = seal({"program": program})
    (place / PREPARED_FILE).write_bytes(described)
    (place / WEIGHTS_FILE).write_bytes(bytes(size - len(described)))
    if program:
        (root / "programs" / program).mkdir(parents=True, exist_ok=True)
        (root / "programs" / program / PROGRAM_FILE).write_bytes(bytes(PROGRAM_BYTES))
    return place


class Opener:
    """Opens stores, and waits for their threads."""

    def __init__(self) -> None:
        self.stores: list[BoundedStore] = []
        self._woken = threading.Event()

    def __call__(self, root: Path, bytes_max: int) -> BoundedStore:
        self.stores.append(BoundedStore(root, bytes_max, self._woken.set))
        return self.stores[-1]

    def ends(self, store: BoundedStore) -> list[Removed]:
        """Return the removals of a store, once nothing is being removed."""
        found = store.poll()
        while store.is_removing:
            assert self._woken.wait(PATIENCE_S)
            self._woken.clear()
            found += store.poll()
        return found


@pytest.fixture
def opened() -> Iterator[Opener]:
    opener = Opener()
    yield opener
    for store in opener.stores:
        store.close()


def test_models_and_the_programs_that_they_share_count_until_they_are_gone(
    tmp_path: Path, opened: Opener
) -> None:
    a, b = (prepare(tmp_path, name, 1000, "shared") for name in "ab")
    store = opened(tmp_path, 3000)
    assert (store.used, store.count) == (2000 + PROGRAM_BYTES, 0)
    assert store.claim(a)
    assert store.claim(b)
    assert store.claim(b)
    assert store.count == 2
    store.remove(a)
    assert store.count == 1
    assert opened.ends(store) == [Removed(a, "")]
    assert not a.exists()
    store.sweep()
    assert opened.ends(store) == []  # the other model uses the program
    assert store.used == 1000 + PROGRAM_BYTES
    store.remove(b)
    opened.ends(store)
    store.sweep()
    opened.ends(store)
    assert (store.used, store.count) == (0, 0)
    assert list((tmp_path / "programs").iterdir()) == list((tmp_path / "prepared").iterdir()) == []


def test_no_more_is_claimed_than_fits_and_the_rest_is_named(tmp_path: Path, opened: Opener) -> None:
    models = [prepare(tmp_path, name, 1000) for name in "abcd"]
    store = opened(tmp_path, 2500)  # less than lies there
    assert store.used == 4000
    assert [store.claim(model) for model in models[::-1]] == [True, True, False, False]
    assert sorted(store.unclaimed()) == models[:2]
    store.disclaim_all()
    assert sorted(store.unclaimed()) == models
    assert store.claim(models[0])


def test_room_is_kept_for_what_comes(tmp_path: Path, opened: Opener) -> None:
    prepare(tmp_path, "a", 1000)
    store = opened(tmp_path, 3000)
    assert store.reserve(1, 1500) == ""
    assert "takes 501 bytes, and the store of 3000 bytes has 500 left" in store.reserve(2, 501)
    assert store.reserve(2, 500) == ""
    store.release(1)
    store.release(7)
    assert store.reserve(3, 1500) == ""
    store.disclaim_all()
    assert store.reserve(4, 2000) == ""


def test_a_model_that_came_is_measured_when_it_is_claimed(tmp_path: Path, opened: Opener) -> None:
    store = opened(tmp_path, 3000)
    assert store.reserve(1, 1000) == ""
    came = prepare(tmp_path, "came", 1400, "p")
    assert store.claim(came)
    store.release(1)
    assert store.used == 1400 + PROGRAM_BYTES
    assert not store.claim(prepare(tmp_path, "too-large", 1501, "p"))
    assert store.claim(prepare(tmp_path, "just-fits", 1500, "p"))


def test_what_is_being_removed_cannot_be_claimed(tmp_path: Path, opened: Opener) -> None:
    model = prepare(tmp_path, "a", 1000)
    store = opened(tmp_path, 3000)
    assert store.claim(model)
    store.remove(model)
    store.remove(model)
    assert not store.claim(model)
    assert store.unclaimed() == []
    assert opened.ends(store) == [Removed(model, "")]


def leave_halves(root: Path) -> list[Path]:
    """Write the leftovers of crashes: of a FETCH, a DROP and a preparation, and a package fetched for it."""
    halves = [
        root / "prepared" / ".incoming-bundles-x1/packages/.incoming-x2",
        root / "prepared" / ".preparing-x3",
        root / "prepared" / ".dropped-old",
        root / "prepared" / ".damaged-1-old",
        root / "programs" / ".incoming-x4",
        root / "packages" / ("ab" * 32),
    ]
    for half in halves:
        half.mkdir(parents=True)
        (half / "file").write_bytes(bytes(500))
    return halves


def test_a_start_removes_what_a_crash_has_left(tmp_path: Path, opened: Opener) -> None:
    whole = prepare(tmp_path, "whole", 1000, "p")
    halves = leave_halves(tmp_path)
    store = opened(tmp_path, 3000)
    assert not any(half.exists() for half in halves)
    assert store.used == 1000 + PROGRAM_BYTES
    assert whole.is_dir()


def test_strays_are_removed_and_nothing_else(tmp_path: Path, opened: Opener) -> None:
    known = prepare(tmp_path, "known", 1000)
    store = opened(tmp_path, 3000)
    stray = prepare(tmp_path, "stray", 1000)
    (tmp_path / "prepared" / ".damaged-1-x").mkdir()
    landing = tmp_path / "prepared" / ".incoming-bundles-x"
    landing.mkdir()
    (tmp_path / "prepared" / ".lock").touch()
    store.remove_strays()
    assert {removed.path for removed in opened.ends(store)} == {stray, stray.with_name(".damaged-1-x")}
    assert sorted(path.name for path in (tmp_path / "prepared").iterdir()) == [landing.name, ".lock", "known"]
    assert known.is_dir()
    assert store.used == 1000


def test_a_damaged_description_counts_and_is_unclaimed(tmp_path: Path, opened: Opener) -> None:
    (prepare(tmp_path, "a", 1000, "p") / PREPARED_FILE).write_bytes(b"{")
    store = opened(tmp_path, 3000)
    assert store.used > PROGRAM_BYTES
    assert [path.name for path in store.unclaimed()] == ["a"]


@pytest.mark.parametrize("name", ["..", "../prepared", "/etc", "missing", ""])
def test_a_program_is_one_of_the_store(name: str, tmp_path: Path, opened: Opener) -> None:
    """A description that names something else makes nothing else be counted, or removed."""
    place = prepare(tmp_path, "a", 1000)
    described = seal({"program": name})
    (place / PREPARED_FILE).write_bytes(described)
    store = opened(tmp_path, 30_000)
    assert store.claim(place)
    store.remove(place)
    opened.ends(store)
    store.sweep()
    opened.ends(store)
    assert store.used == 0
    assert (tmp_path / "programs").is_dir()


def test_a_store_is_one_workers_alone(tmp_path: Path, opened: Opener) -> None:
    first = opened(tmp_path, 3000)
    with pytest.raises(ConfigError, match="another worker uses"):
        BoundedStore(tmp_path, 3000, lambda: None)
    first.close()
    opened.stores.remove(first)
    opened(tmp_path, 3000)


def test_a_store_is_no_controllers(tmp_path: Path) -> None:
    with open_catalog(tmp_path):
        (tmp_path / "packages" / "kept").mkdir()
    with pytest.raises(ConfigError, match="is a controller's directory"):
        BoundedStore(tmp_path, 3000, lambda: None)
    assert (tmp_path / "packages" / "kept").is_dir()


def test_what_cannot_be_removed_counts_and_is_tried_once(
    tmp_path: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = prepare(tmp_path, "a", 1000, "p")
    store = opened(tmp_path, 3000)
    tried: list[Path] = []

    def refuse(path: Path) -> None:
        tried.append(path)
        raise OSError(30, "Read-only file system")

    remove: Callable[[Path], None] = refuse
    monkeypatch.setattr("clockwork.worker.stores.remove_tree", remove)
    store.remove(model)
    (ended,) = opened.ends(store)
    assert "cannot be removed: Read-only file system" in ended.failure
    assert store.used == 1000 + PROGRAM_BYTES
    store._users["p"].clear()  # as if the model were gone
    for _ in range(3):
        store.sweep()
        opened.ends(store)
    assert tried == [model, tmp_path / "programs" / "p"]
