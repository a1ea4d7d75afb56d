"""A LOAD that does not end, on a real worker: the file that it opens is a pipe without a writer."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from clockwork.errors import ClockworkError
from clockwork.formats.checksums import seal, unseal
from clockwork.models import zoo
from clockwork.system.clock import SECOND, now_ns
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import Reference, running_cluster, same

X = np.zeros((1, 64), np.float32)
LIMIT_S = 1.0


def hold_packed(store: Path) -> None:
    """Have every model prepared anew, with a session of its own that its LOAD opens."""
    for path in store.glob("programs/*/finding-*.json"):
        body, _ = unseal(path.read_bytes())
        path.write_bytes(seal(body | {"holding": "packed"}))
    shutil.rmtree(store / "prepared")
    (store / "prepared").mkdir()


@pytest.mark.slow
def test_a_worker_whose_load_does_not_end_begins_anew_and_is_noted(tmp_path: Path) -> None:
    models = {"one": zoo.build("mlp", width=512), "other": zoo.build("mlp", width=576)}
    with running_cluster(tmp_path, workers=0) as cluster, cluster.client() as client:
        first = cluster.start_worker(arena="8MiB", store="worker", name="w")
        for name, model in models.items():
            client.register(name, model)
        assert first.stop() == 0
        cluster.kill(first)
        hold_packed(tmp_path / "worker")
        worker = cluster.start_worker(
            arena="7MiB", store="worker", name="w", environment={"CLOCKWORK_LOAD_LIMIT": f"{LIMIT_S:g}"}
        )
        for name, model in models.items():  # the arena has room for one of the models at a time
            eventually(lambda name=name: client.model(name).state == "ready", "it is ready")
            assert client.model(name).raw["holding"] == "packed"
            assert same(client.infer(name, X, slo=PATIENCE_S), Reference(model)(X))
        (files,) = {client.model("one").raw["digest"]}
        (packed,) = (tmp_path / "worker" / "prepared").glob(f"{files}-*/packed.onnx")
        kept = packed.rename(tmp_path / "packed.onnx")
        os.mkfifo(packed)
        pid, mark, began = worker.pid, len(worker.lines), now_ns()
        with pytest.raises(ClockworkError):
            client.infer("one", X, slo=PATIENCE_S)
        worker.wait_for("does not come back", after=mark)
        kept.rename(packed)
        took_s = (now_ns() - began) / SECOND
        assert took_s > LIMIT_S, "not before its limit"

        def answered() -> bool:
            try:
                return same(client.infer("one", X, slo=PATIENCE_S), Reference(models["one"])(X))
            except ClockworkError:
                return False

        eventually(answered, "the worker is back and serves it")
        print(f"given up after {took_s:.2f} s, served again after {(now_ns() - began) / SECOND:.2f} s")
        assert worker.pid == pid, "the same process, begun anew"
        (trouble,) = client.status()["troubles"]["open"]
        assert (trouble["kind"], trouble["subject"]) == ("worker_stuck", "w")
        assert client.model("one").raw["faults"] == {"stuck": 1}
        assert client.model("one").state == "ready"
