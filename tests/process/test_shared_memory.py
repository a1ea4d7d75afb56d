"""The client's large tensors in memory that workers share with it, on a whole cluster."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from clockwork import config
from clockwork.client.aio import AsyncClient
from clockwork.client.blocking import Client
from clockwork.client.calls import INFER_FRAMES
from clockwork.errors import InvalidInput
from clockwork.system.clock import SECOND
from clockwork.wire.shared import MACHINE, SHARED, Reference, machine_id
from clockwork.wire.tensors import FLOAT
from tests.process.cluster import ROOT, Cluster, clean_environment, eventually, running_cluster
from tests.process.peers import FakeWorker

if machine_id() == 0 or not hasattr(os, "memfd_create"):
    pytest.skip("this system has no memory to share", allow_module_level=True)

WIDTH = 40_000
"""Of a row: 160 KB, so that it is shared."""


def doubling() -> onnx.ModelProto:
    """`x` (N, WIDTH) to `y`, its double."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster"), arena="16MiB") as cluster:
        with cluster.client() as client:
            client.register("double", doubling(), batching="on")
        yield cluster


@pytest.fixture
def sharing(cluster: Cluster) -> Iterator[Client]:
    with cluster.client(shared_memory=True) as client:
        yield client


def rows(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((count, WIDTH), dtype=np.float32)


def worker_stats(client: Client) -> dict[str, Any]:
    return dict(client.status()["workers"][0]["stats"])


def test_answers_are_those_of_tensors_that_are_sent(cluster: Cluster, sharing: Client) -> None:
    assert worker_stats(sharing)[MACHINE] == machine_id()
    with cluster.client() as sending:
        for seed in range(6):
            x = rows(1 + seed % 3, seed)
            by_reference = sharing.infer("double", {"x": x} if seed % 2 else x)
            by_value = sending.infer("double", x)
            found = by_reference["y"] if isinstance(by_reference, dict) else by_reference
            assert np.array_equal(found, by_value)
            assert not found.flags.writeable
    assert sharing._memory is not None
    assert not sharing._memory.is_paused
    eventually(
        lambda: worker_stats(sharing)["client_memories"] == 1, "the worker has the memory of one client"
    )


def test_futures_and_coroutines_share_as_well(cluster: Cluster, sharing: Client) -> None:
    futures = [(x, sharing.submit("double", x)) for x in (rows(1, seed) for seed in range(20))]
    assert all(np.array_equal(future.result(), x + x) for x, future in futures)

    async def infer() -> bool:
        async with AsyncClient(cluster.endpoint, shared_memory=True) as client:
            asked = [rows(1, seed) for seed in range(20)]
            answers = await asyncio.gather(*(client.infer("double", x) for x in asked))
            assert client._client._memory is not None
            assert client._client._memory._parts, "it has lent memory"
            assert not client._client._memory.is_paused
            return all(np.array_equal(answer, x + x) for x, answer in zip(asked, answers))

    assert asyncio.run(infer())
    assert sharing._memory is not None
    assert not sharing._memory.is_paused


def test_many_threads_share_and_every_one_gets_its_own(sharing: Client) -> None:
    def infer(seed: int) -> bool:
        x = rows(1, seed)
        return bool(np.array_equal(sharing.infer("double", x), x + x))

    with concurrent.futures.ThreadPoolExecutor(12) as threads:
        assert all(threads.map(infer, range(120)))
    assert sharing._memory is not None
    assert not sharing._memory.is_paused


def test_who_names_memory_that_is_none_of_his_harms_only_himself(cluster: Cluster, sharing: Client) -> None:
    """In batches with others, who get their answers."""
    forged = Reference(machine_id(), os.getpid(), 3, secrets.token_bytes(16), 64, -1, bytes(16), 0).pack()

    def forge(_: int) -> str:
        references = [["x", FLOAT | SHARED, [1, WIDTH], 0]]
        with pytest.raises(InvalidInput) as caught:
            sharing._channel.call(INFER_FRAMES, 20 * SECOND, "double", references, [forged], 0, 0)
        return str(caught.value)

    def infer(seed: int) -> bool:
        x = rows(1, seed)
        return bool(np.array_equal(sharing.infer("double", x), x + x))

    with concurrent.futures.ThreadPoolExecutor(12) as threads:
        said = [threads.submit(forge, number) for number in range(20)]
        good = [threads.submit(infer, seed) for seed in range(40)]
        assert all("cannot use the memory" in one.result() for one in said)
        assert all(one.result() for one in good)


def test_what_a_killed_client_shared_is_let_go_of(cluster: Cluster) -> None:
    code = f"""
import os, signal, numpy as np
from clockwork import Client
client = Client({cluster.endpoint!r}, shared_memory=True)
client.infer("double", np.zeros((1, {WIDTH}), np.float32))
client.infer("double", np.zeros((1, {WIDTH}), np.float32))
assert not client._memory.is_paused
assert "/dev/shm/" not in open("/proc/self/maps").read(), "the memory has no name, which would stay"
os.kill(os.getpid(), {int(signal.SIGKILL)})
"""

    def mapped() -> int:
        return Path(f"/proc/{cluster.workers[0].pid}/maps").read_text().count("memfd:clockwork-client")

    with cluster.client() as client:
        eventually(lambda: mapped() == 0, "clients of other tests are gone")
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=clean_environment(), capture_output=True, text=True
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        eventually(lambda: mapped() == 0, "the worker lets go of the memory")
        eventually(lambda: worker_stats(client)["client_memories"] == 0, "and says so")


def test_with_a_worker_elsewhere_tensors_are_sent_and_a_warning_says_so(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clockwork.client import memory

    monkeypatch.setattr(memory, "CLIENT_MEMORY_PAUSE_NS", 0)
    x = rows(1, 1)
    with cluster.client(shared_memory=True) as client, caplog.at_level("WARNING", "clockwork.client"):
        worker = FakeWorker(SimpleNamespace(worker_endpoint=cluster.worker_endpoint), 99)  # type: ignore[arg-type]
        try:
            assert np.array_equal(client.infer("double", x), x + x)
            assert "not every worker runs on this client's machine" in caplog.text
        finally:
            worker.close()
        eventually(lambda: len(client.status()["workers"]) == 1, "it has left")
        caplog.clear()
        assert np.array_equal(client.infer("double", x), x + x)
        assert caplog.text == ""


def test_what_is_wrong_with_a_request_is_said_as_ever(sharing: Client) -> None:
    wrong = np.zeros((1, WIDTH + 1), np.float32)
    with pytest.raises(InvalidInput, match=rf"has shape \[N, {WIDTH}\]"):
        sharing.infer("double", wrong)
    assert sharing._memory is not None
    assert not sharing._memory.is_paused
    assert wrong.nbytes >= config.CLIENT_SHARED_TENSOR_BYTES
