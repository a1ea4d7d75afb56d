"""Make a data directory and two workers' stores of the version that is checked out, for
tests/process/test_old_stores.py.

    python tests/data/make_stores.py NAME

writes tests/data/stores/NAME/ with a controller's data directory, the store of a CPU worker with its prepared
cache, the store of a worker of emulated devices, and expected.json: requests with the answers that plain ONNX
Runtime gives. An existing directory is never written again: a released version does not change.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "process"), str(ROOT / "tests" / "unit")]

from models_onnx import normal, small_net  # noqa: E402

from clockwork import __version__  # noqa: E402
from clockwork.device.cpu import fingerprint  # noqa: E402
from clockwork.formats.prepared import prepared_directory  # noqa: E402
from clockwork.formats.profiles import linear  # noqa: E402
from clockwork.models.prepare import prepare  # noqa: E402
from clockwork.system.clock import MS  # noqa: E402
from tests.catalogues import records_of  # noqa: E402
from tests.process.cluster import Cluster, Reference, running_cluster  # noqa: E402

STORES = Path(__file__).resolve().parent / "stores"
PAGE_BYTES = 4096
WORKERS = {
    "worker": ("--page-size", str(PAGE_BYTES)),
    "emulated": ("--device", "emulated", "--page-size", str(PAGE_BYTES)),
}
"""Directories of the stores, and how the worker of each is started."""

LEFT_OUT = ("lock", ".lock", "tmp")
"""Directories that are empty, or made at start, and not stored."""

NETS = {
    "split@1": small_net(1),
    "split@2": small_net(2),
    "away@1": small_net(3, width=16),
    "packed@1": small_net(4, width=256),
}


def start_workers(cluster: Cluster) -> None:
    for store, options in WORKERS.items():
        cluster.start_worker(*options, arena="1MiB", name=store, store=store)


def fill(cluster: Cluster) -> None:
    """Register the content that the test looks for: versions, a route with a history, an unloaded model, a
    profile."""
    start_workers(cluster)
    with cluster.client() as client:
        for label, net in NETS.items():
            client.register(label.partition("@")[0], net, slo=5.0)
        client.register(
            "profile", linear("profile", MS, MS, 4, weights_bytes=9000, input_bytes=16, output_bytes=8)
        )
        client.promote("split", 1)
        client.route("split", {2: 0.25}, shadow={})
        client.unload("away")


def hold(store: Path, digest: str, holding: str) -> None:
    """Have the prepared cache hold a model in the given way; a measurement of a small model could choose
    either."""
    auto = prepared_directory(store, digest, fingerprint(1), {})
    forced = {"holding": holding}
    prepare(store / "packages" / digest, store, fingerprint(1), PAGE_BYTES, forced)
    shutil.rmtree(auto)
    prepared_directory(store, digest, fingerprint(1), forced).rename(auto)


def expected() -> list[dict[str, object]]:
    rows = []
    for label, net in NETS.items():
        inputs = normal(2, 8, seed=len(rows))
        answer = Reference(net)(inputs)
        rows.append({"model": label, "inputs": inputs.tolist(), "answer": np.asarray(answer).tolist()})
    return rows


def main(name: str) -> int:
    target = STORES / name
    if target.exists():
        raise SystemExit(f"{target} is there already")
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary)
        with running_cluster(data, workers=0) as cluster:
            fill(cluster)
        digests = {
            record.label: record.digest for record in records_of(data / "controller") if record.label in NETS
        }
        for label, digest in digests.items():
            hold(data / "worker", digest, "packed" if label == "packed@1" else "bound")
        shutil.copytree(data, target, ignore=shutil.ignore_patterns(*LEFT_OUT))
    about = {
        "version": __version__,
        "fingerprint": fingerprint(1),
        "digests": digests,
        "requests": expected(),
    }
    (target / "expected.json").write_text(json.dumps(about, indent=1) + "\n")
    print(f"{target}: {sum(path.stat().st_size for path in target.rglob('*') if path.is_file())} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
