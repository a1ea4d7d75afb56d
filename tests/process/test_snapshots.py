"""Snapshots: made while a controller serves and models come and go, checked, and restored elsewhere."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clockwork.config.controller import PACKAGE_CACHE_BYTES
from clockwork.controller.catalog import snapshots
from clockwork.controller.catalog.database import Rows
from clockwork.controller.catalog.options import check_options
from clockwork.controller.catalog.records import Change, ModelRecord
from clockwork.controller.catalog.routes import NameRoute, whole
from clockwork.controller.catalog.snapshots import CatalogPlace, SavedCatalog, make_snapshot, restore_snapshot
from clockwork.errors import ConfigError
from clockwork.formats.package import PackageFile, digest_of
from clockwork.models import zoo
from tests.catalogues import apply, open_catalog, sql
from tests.postgres import PostgresServer, running_postgres
from tests.process.cluster import ROOT, Reference, running_cluster, same

ROUTE = NameRoute("a", whole(1), [whole(2)])


def record(name: str, content: bytes) -> ModelRecord:
    files = [
        PackageFile(path, len(data), hashlib.sha256(data).hexdigest())
        for path, data in (("model.onnx", content), ("inner/weights", content * 100))
    ]
    return ModelRecord(name, 1, digest_of(files), files, check_options({"slo_ns": 7, "origin": "here"}))


A, B = record("a", b"first"), record("b", b"second")


def at(data: Path, catalog: str = "", packages: str = "") -> CatalogPlace:
    return CatalogPlace(data, catalog, packages, PACKAGE_CACHE_BYTES)


def fill(place: CatalogPlace) -> None:
    """Write two models, a route, and a third model that is removed again."""
    store = snapshots.packages_at(place.data, place.packages, place.cache_bytes)
    with open_catalog(place.data, store, place.catalog) as catalog:
        for made, content in ((A, b"first"), (B, b"second")):
            writer = catalog.store.writer(made.files)
            for index, data in enumerate((content, content * 100)):
                writer.write(index, 0, data)
            writer.commit()
        apply(catalog, Change(save=[A, B], by="somebody"))
        apply(catalog, Change(route=ROUTE))
        apply(catalog, Change(save=[record("c", b"third")]))
        apply(catalog, Change(remove=[record("c", b"third")], packages=["0" * 64]))


def check(place: CatalogPlace) -> None:
    """Check that a place has what fill() has written."""
    store = snapshots.packages_at(place.data, place.packages, place.cache_bytes)
    with open_catalog(place.data, store, place.catalog) as catalog:
        assert catalog.records() == ([A, B], [])
        assert catalog.routes() == ([ROUTE], [])
        for made, content in ((A, b"first"), (B, b"second")):
            assert catalog.store.is_whole(made.digest)
            with catalog.store.held(made.digest) as directory:
                assert (directory / "model.onnx").read_bytes() == content
                assert (directory / "inner" / "weights").read_bytes() == content * 100


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot of what fill() writes."""
    folder = tmp_path_factory.mktemp("made")
    fill(at(folder / "data"))
    size = sum(file.bytes for one in (A, B) for file in one.files)
    assert make_snapshot(at(folder / "data"), folder / "models.tar") == SavedCatalog(2, 2, size, 4)
    return folder / "models.tar"


@pytest.mark.parametrize("target", ["sqlite", "postgresql"])
@pytest.mark.parametrize("source", ["sqlite", "postgresql", "other packages"])
def test_what_is_restored_is_what_was_there(
    source: str, target: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    def place(kind: str, name: str) -> CatalogPlace:
        url = request.getfixturevalue("server").new_database() if kind == "postgresql" else ""
        return at(tmp_path / name, url, str(tmp_path / f"{name} packages") if "other" in kind else "")

    old, new = place(source, "old"), place(target, "new")
    fill(old)
    found = make_snapshot(old, tmp_path / "models.tar")
    assert restore_snapshot(tmp_path / "models.tar", new) == found
    check(new)
    check(old)
    with open_catalog(new.data, url=new.catalog) as catalog:
        assert catalog.unused() == []  # a package that is to be removed there has not come along
    if not new.catalog:
        who = sql(new.data, "SELECT made_by FROM changes ORDER BY number")
        assert who == [("somebody",), *[("controller",)] * 3, ("clockwork restore",)]


def test_a_place_with_models_is_left_alone(made: Path, tmp_path: Path) -> None:
    fill(at(tmp_path))
    with open_catalog(tmp_path) as catalog:
        apply(catalog, Change(unroute="a"))
    with pytest.raises(ConfigError, match="there are models in"):
        restore_snapshot(made, at(tmp_path))
    with open_catalog(tmp_path) as catalog:
        assert catalog.routes() == ([], [])


@pytest.mark.parametrize("seed", range(25))
def test_a_damaged_snapshot_is_refused_or_restored_as_it_was(made: Path, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(made.read_bytes())
    if seed % 5:
        bit = rng.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
    else:
        del data[rng.randrange(len(data) - 2 * tarfile.RECORDSIZE) :]
    (tmp_path / "rotten.tar").write_bytes(data)
    try:
        restore_snapshot(tmp_path / "rotten.tar", at(tmp_path / "new"))
    except ConfigError:
        if (tmp_path / "new").exists():
            with open_catalog(tmp_path / "new") as catalog:
                assert catalog.is_empty
        restore_snapshot(made, at(tmp_path / "new"))  # which can be begun again
    check(at(tmp_path / "new"))


def test_a_later_format_is_refused(made: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "later.tar", "w") as archive:
        (tmp_path / "snapshot.json").write_text(json.dumps({"format": 2}))
        archive.add(tmp_path / "snapshot.json", "snapshot.json")
    with pytest.raises(ConfigError, match="format 2"):
        restore_snapshot(tmp_path / "later.tar", at(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_damaged_package_is_named_and_leaves_the_last_snapshot(made: Path, tmp_path: Path) -> None:
    fill(at(tmp_path / "data"))
    (tmp_path / "data" / "packages" / B.digest / "model.onnx").write_bytes(b"secund")
    shutil.copy(made, tmp_path / "models.tar")
    with pytest.raises(ConfigError, match=rf"model.onnx of package {B.digest} is damaged"):
        make_snapshot(at(tmp_path / "data"), tmp_path / "models.tar")
    assert (tmp_path / "models.tar").read_bytes() == made.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "models.tar"]


def test_a_package_that_is_removed_meanwhile_begins_the_snapshot_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(at(tmp_path / "data"))
    write, tries = snapshots._write, []

    def removing(place: CatalogPlace, rows: Rows, catalog: Path, target: Path) -> SavedCatalog:
        tries.append(len(rows.good["versions"]))
        if len(tries) == 1:
            with open_catalog(place.data) as live:
                apply(live, Change(remove=[B], packages=[B.digest]))
                live.store.remove(B.digest)
        return write(place, rows, catalog, target)

    monkeypatch.setattr(snapshots, "_write", removing)
    assert make_snapshot(at(tmp_path / "data"), tmp_path / "models.tar").packages == 1
    assert tries == [2, 1]


def command(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "clockwork", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_cluster_is_saved_while_it_serves_and_goes_on_elsewhere(tmp_path: Path) -> None:
    nets = {name: zoo.build("mlp", seed=number, width=64) for number, name in enumerate(("kept", "also"))}
    churned = zoo.build("mlp", seed=9, width=64)
    x = np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)
    stop = threading.Event()
    with running_cluster(tmp_path / "old", workers=1) as cluster, cluster.client() as client:
        for name, net in nets.items():
            client.register(name, net)

        def churn() -> None:
            """Have a model come and go, and requests answered."""
            while not stop.is_set():
                client.register("churned", churned)
                assert same(client.infer("kept", x), Reference(nets["kept"])(x))
                client.unregister("churned")

        thread = threading.Thread(target=churn)
        thread.start()
        try:
            for number in range(3):
                text = command("snapshot", tmp_path / f"{number}.tar", "--data", cluster.data / "controller")
                assert "packages" in text
        finally:
            stop.set()
            thread.join()
    for number in range(3):
        data = tmp_path / f"new {number}"
        command("restore", tmp_path / f"{number}.tar", "--data", data / "controller")
        with open_catalog(data / "controller") as catalog:
            names = {one.name for one in catalog.records()[0]}
            assert set(nets) <= names <= {*nets, "churned"}
    with running_cluster(tmp_path / "new 2", workers=1) as cluster, cluster.client() as client:
        for name, net in nets.items():
            client.load(name)
            assert same(client.infer(name, x), Reference(net)(x))
