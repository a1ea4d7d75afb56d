"""Data directories and workers' stores of earlier versions, kept as files in tests/data/stores, are opened by
the present code.

Each was made by tests/data/make_stores.py at the version that it is named after, and is never made anew.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clockwork import Client
from clockwork.controller.catalog.routes import TrafficSplit
from clockwork.device.cpu import fingerprint
from clockwork.errors import ModelNotFound
from clockwork.formats.package import PackageStore, digest_of, hash_file, parse_files
from clockwork.formats.prepared import PREPARED_FILE, prepared_directory
from clockwork.wire.packages import LIST_FILE
from tests.catalogues import open_catalog
from tests.process.cluster import ROOT, Cluster, running_cluster, same

STORES = sorted((ROOT / "tests" / "data" / "stores").iterdir())
REBUILT: Sequence[str] = ("0.1.0",)
"""Versions whose prepared models the present workers prepare again, although processor and runtime are the
same: until 0.1.0 no checksums were taken."""

VERSIONS = {"away": [1], "packed": [1], "profile": [1], "split": [1, 2]}
QUARTER = TrafficSplit(((1, 7500), (2, 2500)))
EARLIER = [TrafficSplit(((2, 10_000),)), TrafficSplit(((1, 10_000),))]
PAGE = ("--page-size", "4096")


@pytest.fixture(params=STORES, ids=lambda path: path.name)
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, dict[str, Any]]:
    """(version, a copy that may be written to, make_stores.py's expectations)."""
    data = tmp_path / "data"
    shutil.copytree(request.param, data)
    return request.param.name, data, json.loads((data / "expected.json").read_text())


def test_there_are_stores_of_an_earlier_version() -> None:
    assert [path.name for path in STORES]


def test_a_catalog_is_read_whole(stores: tuple[str, Path, dict[str, Any]]) -> None:
    _, data, _ = stores
    with open_catalog(data / "controller") as catalog:
        records, complaints = catalog.records()
        assert complaints == []
        found: dict[str, list[int]] = {}
        for record in records:
            found.setdefault(record.name, []).append(record.version)
            assert record.offered is (record.name != "away")
            assert record.options["slo_ns"] == (0 if record.name == "profile" else 5_000_000_000)
        assert found == VERSIONS
        routes, complaints = catalog.routes()
        assert complaints == []
        assert [(route.name, route.split, route.earlier) for route in routes] == [("split", QUARTER, EARLIER)]
        for record in records:
            assert catalog.store.is_whole(record.digest)
            assert digest_of(record.files) == record.digest


def test_packages_are_what_their_names_say(stores: tuple[str, Path, dict[str, Any]]) -> None:
    _, data, about = stores
    for root, count in (("controller", 5), ("worker", 4), ("emulated", 1)):
        store = PackageStore(data / root)
        digests = [path.name for path in (data / root / "packages").iterdir()]
        assert len(digests) == count
        for digest in digests:
            assert store.has(digest)
            files = parse_files(json.loads((store.directory(digest) / LIST_FILE).read_text()))
            assert digest_of(files) == digest
            for file in files:
                assert hash_file(store.directory(digest) / file.path) == (file.bytes, file.sha256)
    assert set(about["digests"].values()) <= {path.name for path in (data / "worker" / "packages").iterdir()}


def prepared(data: Path, digest: str, of: str) -> Path:
    return prepared_directory(data / "worker", digest, of, {}) / PREPARED_FILE


def check_answers(client: Client, about: dict[str, Any], away: bool) -> None:
    for request in about["requests"]:
        inputs = np.array(request["inputs"], np.float32)
        if request["model"].startswith("away") and not away:
            with pytest.raises(ModelNotFound, match="is unloaded"):
                client.infer(request["model"], inputs)
            continue
        answer = client.infer(request["model"], inputs)
        assert same(answer, np.array(request["answer"], np.float32)), request["model"]


def start_workers(cluster: Cluster, client: Client) -> None:
    cluster.start_worker(*PAGE, arena="1MiB", name="worker", store="worker")
    cluster.start_worker("--device", "emulated", *PAGE, arena="1MiB", name="emulated", store="emulated")
    for name in ("packed", "profile", "split@1", "split@2"):
        client.load(name)  # returns once the model is ready


def test_a_cluster_serves_from_them(stores: tuple[str, Path, dict[str, Any]]) -> None:
    version, data, about = stores
    here = fingerprint(1)
    before = {
        label: prepared(data, digest, about["fingerprint"]).stat()
        for label, digest in about["digests"].items()
    }
    with running_cluster(data, workers=0) as cluster, cluster.client() as client:
        start_workers(cluster, client)
        assert {model.name for model in client.models()} == set(VERSIONS)
        check_answers(client, about, away=False)
        assert client.infer("profile", np.zeros((1, 16), np.uint8)).shape == (1, 8)
        route = client.model("split").raw["route"]
        assert (route["shares"], len(route["earlier"])) == ([[1, 7500], [2, 2500]], 2)
        assert client.rollback("split").raw["shares"] == [[1, 10_000]]
        client.load("away")
        check_answers(client, about, away=True)
    for label, digest in about["digests"].items():
        # A model prepared for another processor or runtime is useless here, and was prepared again beside the
        # old files.
        after = prepared(data, digest, here).stat()
        used = (after.st_ino, after.st_mtime_ns) == (before[label].st_ino, before[label].st_mtime_ns)
        assert used is (here == about["fingerprint"] and version not in REBUILT), (
            f"{label} of {version} was {'used as it was' if used else 'prepared again'}; it was made for "
            f"{about['fingerprint']}, here is {here}"
        )
    if here != about["fingerprint"]:
        print(f"{version} was prepared for {about['fingerprint']}, here is {here}: all was prepared again")
