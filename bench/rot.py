"""Costs of checking stored bytes after a start: the start, the first answer, and the time until all are
checked.

A data directory with many models that were prepared before (fine-tunes of one network, whose files are
written here) is started with checksums and, in turn, with records that hold none, so that nothing is checked.
Beside that stand the rates of the hashes that could have been chosen, by processor time.

    python -m bench.rot [--quick] [--json] [--models N] [--directory DIR] [--cold]

--cold: before each start every file is written back and evicted from the page cache (POSIX_FADV_DONTNEED), so
that it is read from the disk, as after a boot of the machine. Under a virtual machine the host may still hold
it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.cluster import Cluster
from bench.report import command_line, show
from clockwork.controller.catalog.records import Change
from clockwork.formats.checksums import seal, unseal
from clockwork.formats.package import PackageFile, digest_of, rows_of
from clockwork.formats.prepared import PREPARED_FILE
from clockwork.models import zoo
from clockwork.wire.packages import LIST_FILE
from tests.catalogues import apply, open_catalog

MODELS = 200
WIDTH = 1100  # width of 15 MB of weights
SLO_S = 30.0
INPUTS = 256
HASHED_BYTES = 64 << 20
POLL_S = 0.01


def hash_rates(size: int) -> dict[str, float]:
    """GB for each second of processor time, the best of three runs."""
    data = os.urandom(size)
    hashes: dict[str, Callable[[bytes], Any]] = {
        "crc32": zlib.crc32, "sha256": hashlib.sha256, "blake2b": hashlib.blake2b,
    }  # fmt: skip
    rates = {}
    for name, function in hashes.items():
        took = []
        for _ in range(3):
            begun = time.thread_time()
            function(data)
            took.append(time.thread_time() - begun)
        rates[name] = size / min(took) / 1e9
    return rates


def fill(data: Path, count: int, width: int) -> int:
    """Register and prepare so many models in a data directory; returns the bytes of weights of a model."""
    with Cluster(data=data) as cluster, cluster.client() as client:
        info = client.register("m0", zoo.wide_mlp(width=width), slo=SLO_S, batching="off")
    with open_catalog(data) as catalog:
        ((first,), _) = catalog.records()
    package = data / "packages" / first.digest
    (place,) = (data / "prepared").glob(f"{first.digest}-*")
    body, _ = unseal((place / PREPARED_FILE).read_bytes())
    records = []
    for number in range(1, count):
        tag = f"{number}".encode()
        files = [*first.files, PackageFile("tag", len(tag), hashlib.sha256(tag).hexdigest())]
        digest = digest_of(files)
        copy = data / "packages" / digest
        copy.mkdir()
        os.link(package / "model.onnx", copy / "model.onnx")
        (copy / "tag").write_bytes(tag)
        (copy / LIST_FILE).write_bytes(list_of(files))
        twin = place.with_name(place.name.replace(first.digest, digest))
        shutil.copytree(place, twin)
        (twin / PREPARED_FILE).write_bytes(seal(body | {"digest": digest}))
        records.append(dataclasses.replace(first, name=f"m{number}", digest=digest, files=files))
    with open_catalog(data) as catalog:
        apply(catalog, Change(save=records))
    return info.weights_bytes


def list_of(files: list[PackageFile]) -> bytes:

    return json.dumps(rows_of(files)).encode()


def take_checksums(data: Path, kept: bool) -> None:
    """Remove the checksums from the records of all prepared models. kept: restore them."""
    for path in (data / "prepared").glob(f"*/{PREPARED_FILE}"):
        body, _ = unseal(path.read_bytes())
        hidden = path.with_name("checksums.kept")
        if kept and hidden.exists():
            path.write_bytes(hidden.read_bytes())
            hidden.unlink()
        elif not kept and body["checksums"]:
            hidden.write_bytes(path.read_bytes())
            path.write_bytes(seal(body | {"checksums": {}}))


def evict(data: Path) -> float:
    """Evict the files from the OS's page cache. Returns the MB/s of a read of the largest file after that."""
    os.sync()
    largest = max((path for path in data.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    for path in data.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    begun = time.monotonic()
    with open(largest, "rb", buffering=0) as file:
        size = len(file.read())
        took = time.monotonic() - begun
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return size / took / 1e6


def start(data: Path, count: int, arena: str) -> dict[str, float]:
    """Times of one start, in seconds."""
    cluster = Cluster(data=data, worker_arguments=("--arena", arena))
    try:
        ready_s = cluster.start() / 1e9
        with cluster.client() as client:
            x = np.zeros((1, INPUTS), np.float32)
            firsts = []
            for number in range(0, count, max(1, count // 10)):  # models without requests
                begun = time.monotonic()
                client.infer(f"m{number}", x)
                firsts.append(time.monotonic() - begun)
            begun = time.monotonic()
            left = first_left = int(client.status()["workers"][0]["stats"].get("models_unchecked", 0))
            while left:
                time.sleep(POLL_S)
                left = int(client.status()["workers"][0]["stats"]["models_unchecked"])
            return {
                "ready_s": ready_s,
                "first answer_s": firsts[0],
                "first answer of others_s": statistics.median(firsts[1:] or firsts),
                "checked in idle time": first_left,
                "checking_s": time.monotonic() - begun,
            }
    finally:
        cluster.close()


def main(arguments: list[str]) -> int:
    parser = command_line(__doc__)
    parser.add_argument("--models", type=int, default=MODELS)
    parser.add_argument("--directory", type=Path, help="place of the data directory")
    parser.add_argument(
        "--cold", action="store_true", help="start once from the disk, instead of three times from memory"
    )
    options = parser.parse_args(arguments)
    count, width, runs = (3, 64, 1) if options.quick else (options.models, WIDTH, 1 if options.cold else 3)
    rates = []
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.directory) as place:
        data = Path(place)
        weights_bytes = fill(data, count, width)
        for _ in range(runs):
            for kept in (True, False):
                take_checksums(data, kept)
                if options.cold:
                    rates.append(evict(data))
                rows.append({"checks": "yes" if kept else "no", **start(data, count, "256M")})
    medians = []
    for checks in ("yes", "no"):
        chosen = [row for row in rows if row["checks"] == checks]
        keys = [key for key in chosen[0] if key != "checks"]
        medians.append(
            {"checks": checks} | {key: statistics.median(row[key] for row in chosen) for key in keys}
        )
    facts: dict[str, Any] = {"models": count, "weights_bytes": weights_bytes, "runs": runs}
    facts |= {f"{name} GB/s": round(rate, 2) for name, rate in hash_rates(HASHED_BYTES).items()}
    if rates:
        facts["cold disk MB/s"] = round(statistics.median(rates))
    idle = medians[0]
    if idle["checking_s"]:
        facts["idle checks MB/s"] = round(
            idle["checked in idle time"] * weights_bytes / idle["checking_s"] / 1e6
        )
    show("Checks of stored bytes after a start", 0, medians, facts, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
