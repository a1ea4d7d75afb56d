"""The client's large tensors in memory that workers share with it, on a whole cluster."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import secrets
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bench.attacks.memory import ELEMENTS, Memory, ask, changing, leased
from clockwork.client.aio import AsyncClient
from clockwork.client.blocking import Client
from clockwork.client.calls import INFER_FRAMES
from clockwork.config.client import CLIENT_MEMORY_PART_BYTES, CLIENT_SHARED_TENSOR_BYTES
from clockwork.errors import InvalidInput, RequestTimeout
from clockwork.scheduler.recording import Step, Stream
from clockwork.scheduler.types import Arrived
from clockwork.system.clock import SECOND
from clockwork.wire.shared import FIRST_OFFSET, MACHINE, SHARED, Reference, machine_id
from clockwork.wire.tensors import BOOL, FLOAT, INT64
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import ROOT, Cluster, clean_environment, running_cluster
from tests.process.peers import FakeWorker

if machine_id() == 0 or not hasattr(os, "memfd_create"):
    pytest.skip("this system has no memory to share", allow_module_level=True)

WIDTH = 40_000
"""Values of a row: 160 KB, so that it is shared."""


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
        lambda: worker_stats(sharing)["copied_inputs_bytes"] == 0, "the worker has let go of its copies"
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


def test_the_scheduler_knows_how_many_bytes_are_sent_and_how_many_copied(sharing: Client) -> None:
    """The prediction holds for both ways."""
    x, stream = rows(3, 1), Stream("#0")
    sharing.infer("double", x)
    steps: list[Step] = []
    while not stream.is_at_end:
        steps += stream.take(sharing.recorder(stream.argument))
    arrived = [event.request for step in steps for event in step.events if isinstance(event, Arrived)]
    assert (arrived[-1].bytes, arrived[-1].copied_bytes) == (80, x.nbytes)


def test_who_names_memory_that_is_none_of_his_harms_only_himself(cluster: Cluster, sharing: Client) -> None:
    """In batches with other requests, which get their answers."""
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

    def held() -> int:
        entries = Path(f"/proc/{cluster.workers[0].pid}/fd").iterdir()
        return sum("memfd:clockwork-client" in os.readlink(entry) for entry in entries)

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=clean_environment(), capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    eventually(lambda: held() == 0, "the worker has let go of the memory")
    assert "memfd:clockwork-client" not in Path(f"/proc/{cluster.workers[0].pid}/maps").read_text()


def test_with_a_worker_elsewhere_tensors_are_sent_and_a_warning_says_so(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clockwork.client import memory

    monkeypatch.setattr(memory, "CLIENT_MEMORY_PAUSE_NS", 0)
    x = rows(1, 1)
    with cluster.client(shared_memory=True) as client, caplog.at_level("WARNING", "clockwork.client"):
        worker = FakeWorker(cluster, 99)
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
    assert wrong.nbytes >= CLIENT_SHARED_TENSOR_BYTES


# ----- memory that its owner changes, locks or makes huge -------------------------------------------


def test_an_array_for_a_model_of_several_outputs_is_sent_once(cluster: Cluster, sharing: Client) -> None:
    """The answer says that there are several outputs, regardless of shared memory."""
    model = doubling()
    model.graph.node.append(helper.make_node("Neg", ["x"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", WIDTH]))
    sharing.register("several", model)

    async def infer(x: np.ndarray) -> None:
        async with AsyncClient(cluster.endpoint, shared_memory=True) as client:
            await client.infer("several", x)

    asks: list[Callable[[np.ndarray], Any]] = [
        lambda x: sharing.infer("several", x),
        lambda x: sharing.submit("several", x).result(),
        lambda x: asyncio.run(infer(x)),
    ]
    for sent, infer_one in enumerate(asks, 1):
        with pytest.raises(InvalidInput, match="2 outputs"):
            infer_one(rows(1, sent))
        assert sharing.model("several").counts["answered"] == sent
    assert sharing._memory is not None
    assert not sharing._memory.is_paused
    sharing.unregister("several")


def selecting(operator: str, dtype: int) -> onnx.ModelProto:
    """`x` and a mask, both of ELEMENTS, to `y`, the selected elements."""
    value = helper.make_tensor_value_info
    inputs = [value("x", TensorProto.FLOAT, [ELEMENTS]), value("by", dtype, [ELEMENTS])]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "by"], ["y"])],
        operator,
        inputs,
        [value("y", TensorProto.FLOAT, ["n"])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("operator", "dtype", "values"),
    [
        ("Compress", BOOL, (np.zeros(ELEMENTS, np.bool_), np.ones(ELEMENTS, np.bool_))),
        ("Gather", INT64, (np.zeros(ELEMENTS, np.int64), np.full(ELEMENTS, 1 << 40, np.int64))),
    ],
)
def test_a_tensor_that_its_owner_changes_meanwhile_is_computed_on_as_it_was(
    cluster: Cluster, operator: str, dtype: int, values: tuple[np.ndarray, np.ndarray]
) -> None:
    """An operator that counts or checks first and copies then would write, or read, behind the end of its
    memory."""
    x = np.ones(ELEMENTS, np.float32).tobytes()
    memory = Memory(FIRST_OFFSET + values[0].nbytes)
    with cluster.client() as client:
        client.register(operator, selecting(operator, dtype), batching="off")
        with changing(memory, values):
            inputs = [("x", FLOAT, [ELEMENTS], x), ("by", dtype | SHARED, [ELEMENTS], memory.reference())]
            fates = Counter(ask(client, operator, inputs) for _ in range(60))
        assert cluster.workers[0].process.poll() is None
        assert fates.keys() <= {"answered", "ExecutionFailed"}
        client.unregister(operator)
    memory.close()


def test_a_mask_of_other_bytes_than_bools_have_is_an_error(cluster: Cluster) -> None:
    """Compress takes the sum of its mask's bytes for the size of its output, and then fills less: the rest is
    memory of former requests."""
    x, mask = ("x", FLOAT, [ELEMENTS], bytes(4 * ELEMENTS)), b"\x02" * ELEMENTS
    memory = Memory(FIRST_OFFSET + ELEMENTS)
    os.pwrite(memory.descriptor, mask, FIRST_OFFSET)
    with cluster.client() as client:
        client.register("masked", selecting("Compress", BOOL), batching="off")
        for by in (("by", BOOL, [ELEMENTS], mask), ("by", BOOL | SHARED, [ELEMENTS], memory.reference())):
            assert ask(client, "masked", [x, by]) == "InvalidInput"
        assert ask(client, "masked", [x, ("by", BOOL, [ELEMENTS], bytes(ELEMENTS))]) == "answered"
        client.unregister("masked")
    memory.close()


def test_memory_with_a_lease_costs_its_sender_an_error_and_nobody_else_anything(
    cluster: Cluster, sharing: Client
) -> None:
    """An open() that waits for the lease takes 45 s, in which the worker would be missed, and its model
    suspected."""
    memory = Memory(FIRST_OFFSET + 4 * WIDTH)
    inputs = [("x", FLOAT | SHARED, [1, WIDTH], memory.reference())]
    with cluster.client() as client:
        with leased(memory):
            fates = [ask(client, "double", inputs) for _ in range(5)]
            x = rows(1, 1)
            assert np.array_equal(sharing.infer("double", x), x + x)
        assert fates == ["InvalidInput"] * 5
        assert [model.state for model in client.models() if model.name == "double"] == ["ready"]
        assert len(client.status()["workers"]) == 1
        assert ask(client, "double", inputs) == "answered"
    memory.close()


def test_huge_files_take_no_address_space_of_a_worker(cluster: Cluster) -> None:
    def mapped_kb() -> int:
        status = Path(f"/proc/{cluster.workers[0].pid}/status").read_text()
        return int(status.partition("VmSize:")[2].split()[0])

    with cluster.client() as client:
        small = Memory(FIRST_OFFSET + 4 * WIDTH)
        assert ask(client, "double", [("x", FLOAT | SHARED, [1, WIDTH], small.reference())]) == "answered"
        before = mapped_kb()
        memories = [Memory(2 << 40) for _ in range(20)]
        for memory in memories:
            reference = memory.reference(memory.size - 4 * WIDTH)
            assert ask(client, "double", [("x", FLOAT | SHARED, [1, WIDTH], reference)]) == "answered"
        assert mapped_kb() - before < 1 << 20, "KiB: not one of the files"
    for memory in (small, *memories):
        memory.close()


def test_memory_that_a_request_used_which_was_given_up_is_used_again_without_harm(cluster: Cluster) -> None:
    """The worker may read the memory at any time after that, and then computes on another request's data, for
    no one. Every answer that comes is right for its request."""
    x, masks = np.ones(ELEMENTS, np.float32), (np.zeros(ELEMENTS, np.bool_), np.ones(ELEMENTS, np.bool_))
    given_up = answered = 0
    with cluster.client(shared_memory=True) as client:
        client.register("chosen", selecting("Compress", BOOL), batching="off")
        client.infer("chosen", {"x": x, "by": masks[0]})
        for number in range(200):
            by = masks[number % 2]
            limit_s = PATIENCE_S if number % 8 > 5 else 0.001 + 0.0005 * (number % 8)
            try:
                answer = client.infer("chosen", {"x": x, "by": by}, timeout=limit_s)
            except RequestTimeout:
                given_up += 1
                continue
            answered += 1
            assert np.array_equal(answer["y"], x[by])
        print(f"given up: {given_up}, answered: {answered}")
        assert answered >= 50
        assert given_up > 0
        assert client._memory is not None
        assert sum(part.size for part in client._memory._parts) == CLIENT_MEMORY_PART_BYTES
        client.unregister("chosen")
    assert cluster.workers[0].process.poll() is None
