"""More models than memory: right answers from the right weights, within the available pages."""

from __future__ import annotations

import concurrent.futures
import random
from pathlib import Path

import numpy as np
import onnx
import pytest

from clockwork import Client
from clockwork.models import zoo
from tests.patience import eventually
from tests.process.cluster import (
    Cluster,
    Reference,
    running_cluster,
    same,
    total_results,
    total_sent,
)

PAGE_BYTES = 256 << 10


def restart_worker(cluster: Cluster, arena_bytes: int) -> None:
    assert cluster.workers[-1].stop() == 0
    worker = cluster.start_worker(arena=str(arena_bytes))
    name = f"worker-{cluster.workers.index(worker)}"
    with cluster.client() as client:
        for info in client.models():

            def ready(model: str = info.name) -> bool:
                return client.model(model).raw["workers"].get(name) == "ready"

            eventually(ready, f"{info.name} is ready on {name}")


def ask_in_random_order(
    client: Client, models: dict[str, Reference], shape: tuple[int, ...], count: int, seed: int
) -> None:
    """Check that every answer is the asked model's own, and that it would not be accepted for another
    model."""
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    names = list(models)
    for _ in range(count):
        name = rng.choice(names)
        x = numbers.standard_normal(shape).astype(np.float32)
        answer = client.infer(name, x)
        assert same(answer, models[name](x)), f"seed {seed}: {name} answers with other weights"
        other = rng.choice([one for one in names if one != name])
        assert not same(answer, models[other](x))


def resident_bytes(client: Client) -> int:
    """Return a number of the worker's last heartbeat: zero until a heartbeat was sent after a load."""
    (memory,) = client.status()["workers"][0]["stats"]["devices"]
    return int(memory["resident_bytes"])


@pytest.mark.parametrize("architecture", [pytest.param("cnn", marks=pytest.mark.slow), "mlp"])
def test_twelve_fine_tunes_on_an_arena_for_three(tmp_path: Path, architecture: str) -> None:
    options = {"cnn": {"widths": (64, 256)}, "mlp": {"width": 384}}[architecture]
    shape = {"cnn": (1, 1, 16, 16), "mlp": (1, 64)}[architecture]
    base = zoo.build(architecture, **options)
    protos: dict[str, onnx.ModelProto] = {f"tune-{seed}": zoo.fine_tune(base, seed) for seed in range(12)}
    models = {name: Reference(proto) for name, proto in protos.items()}
    with running_cluster(tmp_path) as cluster, cluster.client() as client:
        pages = client.register("tune-0", protos["tune-0"]).raw["pages"]
        # The memory of a packed model is measured, so it may vary by a page.
        varies = pages > 9
        arena_bytes = (3 * pages + (3 if varies else pages > 1)) * PAGE_BYTES
        restart_worker(cluster, arena_bytes)
        for name, proto in protos.items():
            assert abs(client.register(name, proto).raw["pages"] - pages) <= varies
        status = client.status()
        assert status["programs"] == 1
        sent = {kind: total_sent(status, kind) for kind in ("load", "unload", "infer")}

        ask_in_random_order(client, models, shape, 120, seed=1)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            tasks = [
                pool.submit(ask_in_random_order, client, models, shape, 40, seed) for seed in range(2, 6)
            ]
            for task in tasks:
                task.result()

        status = client.status()
        loads, unloads, infers = (
            total_sent(status, kind) - sent[kind] for kind in ("load", "unload", "infer")
        )
        # Three of twelve are resident: about three in four requests need a load; never more than one each.
        assert 100 < loads <= 280
        assert loads - 4 <= unloads <= loads + 3
        assert infers <= 280
        assert total_results(status, "too_late") == 0
        assert set(status["workers"][0]["results"]) == {"ok"}
        assert 0 < eventually(lambda: resident_bytes(client), "a heartbeat tells of it") <= arena_bytes
        (device,) = status["workers"][0]["devices"]
        assert device["page_count"] * PAGE_BYTES == arena_bytes
        assert device["plan"]["resident"] <= 3
        for name in models:
            client.unregister(name)
        (device,) = client.status()["workers"][0]["devices"]
        assert device["plan"]["pages_free"] == device["page_count"]


@pytest.mark.long
def test_forty_resnet50s_on_an_arena_for_eight(tmp_path: Path) -> None:
    base = zoo.build("resnet50", image=32)
    shape = (1, 3, 32, 32)
    with running_cluster(tmp_path) as cluster, cluster.client(timeout=300.0) as client:
        cluster.workers[-1].stop()
        cluster.start_worker(arena=str(9 * (1 << 27)))
        models: dict[str, Reference] = {}
        for seed in range(40):
            proto = zoo.fine_tune(base, seed)
            models[f"resnet-{seed}"] = Reference(proto)
            info = client.register(f"resnet-{seed}", proto)
            del proto
        arena_bytes = (8 * info.raw["pages"] + info.raw["pages"] // 2) * PAGE_BYTES
        restart_worker(cluster, arena_bytes)
        ask_in_random_order(client, models, shape, 200, seed=7)
        status = client.status()
        assert status["programs"] == 1
        assert 120 < total_sent(status, "load") <= 200
        assert 0 < eventually(lambda: resident_bytes(client), "a heartbeat tells of it") <= arena_bytes
        (device,) = status["workers"][0]["devices"]
        assert device["page_count"] * PAGE_BYTES == arena_bytes
        # during minutes, in which the machine may stand still for a moment
        assert total_results(status, "too_late") <= 2
