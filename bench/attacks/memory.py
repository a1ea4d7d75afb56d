"""Shared memory of a client on the worker's machine whose pages change, block or are huge."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import http.client
import itertools
import json
import mmap
import os
import random
import secrets
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from typing import Any, NamedTuple

import numpy as np
import onnx

from bench.attacks.messages import listed
from bench.attacks.site import ATTACK_S_MAX, SEED, Attack, Site
from clockwork.client.blocking import Client
from clockwork.client.calls import INFER_FRAMES
from clockwork.errors import ClockworkError
from clockwork.models import zoo
from clockwork.system.clock import SECOND
from clockwork.wire.shared import FIRST_OFFSET, KEY_BYTES, MAGIC, SHARED, Reference, machine_id
from clockwork.wire.tensors import BOOL, FLOAT, INT64

ELEMENTS = 1 << 20
"""Elements of the masks and indices that change while a worker reads them."""

PUNCH_HOLE, KEEP_SIZE = 2, 1
"""Flags of fallocate(2)."""

KEPT_BYTES = 4096
"""Bytes of the first page, which holds the memory's key and is not emptied."""

CHANGE_S_MAX = 0.003
"""Longest time between two changes: about one execution, so that many changes fall within an execution."""

ROW = 1 << 14
"""float32 values of a small request: 64 KiB."""


class Size(NamedTuple):
    """Sizes of the attacks."""

    requests: int = 200
    locked_bytes: int = 512 << 20


QUICK, WHOLE = Size(40, 64 << 20), Size()

HUGE_BYTES = [2 << 40] * 64 + [1 << power for power in range(40, 20, -1) for _ in range(2)]
"""Sizes of files that together fill the free part of the 128 TiB that a process can address."""


class Memory:
    """Anonymous memory that is laid out as a client's is."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.key = secrets.token_bytes(KEY_BYTES)
        self.descriptor = os.memfd_create("clockwork-client", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.descriptor, size)
        os.pwrite(self.descriptor, MAGIC + self.key, 0)
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)

    def reference(self, offset: int = FIRST_OFFSET, room: Memory | None = None) -> bytes:
        """The frame of an input at an offset. room: the memory for the outputs."""
        lent = (room.descriptor, room.key, room.size - FIRST_OFFSET) if room else (-1, bytes(KEY_BYTES), 0)
        return Reference(machine_id(), os.getpid(), self.descriptor, self.key, offset, *lent).pack()

    def close(self) -> None:
        os.close(self.descriptor)


def ask(client: Client, model: str, inputs: list[tuple[str, int, list[int], bytes]]) -> str:
    """The outcome of one request. inputs: name, dtype, shape and frame of each."""
    references = [[name, dtype, shape, index] for index, (name, dtype, shape, _) in enumerate(inputs)]
    frames = [frame for _, _, _, frame in inputs]
    try:
        client._channel.call(INFER_FRAMES, 20 * SECOND, model, references, frames, 0, 0)
    except ClockworkError as error:
        return type(error).__name__
    return "answered"


@contextlib.contextmanager
def changing(memory: Memory, values: tuple[np.ndarray, np.ndarray]) -> Iterator[None]:
    """Alternate the bytes from FIRST_OFFSET on between the two arrays."""
    seen = np.frombuffer(mmap.mmap(memory.descriptor, memory.size), np.uint8)
    place = seen[FIRST_OFFSET : FIRST_OFFSET + values[0].nbytes]
    pair = [value.view(np.uint8) for value in values]
    over, rng = threading.Event(), random.Random(SEED)

    def change() -> None:
        turns = itertools.cycle(pair)
        while not over.wait(rng.random() * CHANGE_S_MAX):
            np.copyto(place, next(turns))

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def changing_mask(site: Site, quick: bool) -> str:
    """A mask that selects more elements when they are copied than when they were counted."""
    few, many = np.zeros(ELEMENTS, np.bool_), np.ones(ELEMENTS, np.bool_)
    return _changing(site, quick, "compress", ("mask", BOOL | SHARED), (few, many))


def changing_indices(site: Site, quick: bool) -> str:
    """Indices that point outside the tensor after they were checked."""
    inside, outside = np.zeros(ELEMENTS, np.int64), np.full(ELEMENTS, 1 << 40, np.int64)
    return _changing(site, quick, "gather", ("index", INT64 | SHARED), (inside, outside))


def _changing(
    site: Site, quick: bool, model: str, tensor: tuple[str, int], values: tuple[np.ndarray, np.ndarray]
) -> str:
    size = QUICK if quick else WHOLE
    memory = Memory(FIRST_OFFSET + values[0].nbytes)
    row = np.ones(ELEMENTS, np.float32).tobytes()
    with site.client() as client, changing(memory, values):
        inputs = [("x", FLOAT, [ELEMENTS], row), (*tensor, [ELEMENTS], memory.reference())]
        fates = Counter(ask(client, model, inputs) for _ in range(size.requests))
    memory.close()
    return listed(fates)


def wrong_bools(site: Site, quick: bool) -> str:
    """A mask of bytes 255, in the message and in shared memory, whose sum is 255 times the selection."""
    size = QUICK if quick else WHOLE
    mask = b"\xff" * ELEMENTS
    memory = Memory(FIRST_OFFSET + ELEMENTS)
    os.pwrite(memory.descriptor, mask, FIRST_OFFSET)
    x = ("x", FLOAT, [ELEMENTS], np.ones(ELEMENTS, np.float32).tobytes())
    masks = [("mask", BOOL, [ELEMENTS], mask), ("mask", BOOL | SHARED, [ELEMENTS], memory.reference())]
    with site.client() as client:
        fates = Counter(ask(client, "compress", [x, masks[number % 2]]) for number in range(size.requests))
    memory.close()
    return listed(fates)


@contextlib.contextmanager
def leased(memory: Memory) -> Iterator[None]:
    """Hold a write lease on memory, which blocks an ordinary open() for up to 45 s."""
    # The descriptor of memfd_create() takes no lease, but another descriptor of the same file does.
    holder = os.open(f"/proc/self/fd/{memory.descriptor}", os.O_RDWR | os.O_CLOEXEC)
    try:
        # SIGURG in place of SIGIO, which would end the process
        fcntl.fcntl(holder, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield
    finally:
        os.close(holder)


def leased_memory(site: Site, quick: bool) -> str:
    """Memory that cannot be opened."""
    size = QUICK if quick else WHOLE
    memory = Memory(FIRST_OFFSET + 4 * ROW)
    with site.client() as client, leased(memory):
        inputs = [("x", FLOAT | SHARED, [1, ROW], memory.reference())]
        fates = Counter(ask(client, "double", inputs) for _ in range(size.requests))
    memory.close()
    return listed(fates)


def huge_memory(site: Site, quick: bool) -> str:
    """Sparse files that together fill the address space of a process that maps them."""
    memories = [Memory(size) for size in HUGE_BYTES]
    with site.client() as client:
        fates = Counter(
            ask(client, "double", [("x", FLOAT | SHARED, [1, ROW], memory.reference(memory.size - 4 * ROW))])
            for memory in memories
        )
    for memory in memories:
        memory.close()
    return listed(fates)


@contextlib.contextmanager
def filling(descriptor: int, size: int) -> Iterator[None]:
    """Fill a file in memory with pages and empty it, in turn. Meanwhile the kernel blocks writers."""
    over = threading.Event()
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]

    def fill() -> None:
        while not over.is_set():
            os.posix_fallocate(descriptor, 0, size)
            fallocate(descriptor, PUNCH_HOLE | KEEP_SIZE, KEPT_BYTES, size - KEPT_BYTES)

    threads = [threading.Thread(target=fill) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def locked_room(site: Site, quick: bool) -> str:
    """Memory for outputs that blocks the worker's writes."""
    size = QUICK if quick else WHOLE
    memory, room = Memory(FIRST_OFFSET + 4 * ROW), Memory(size.locked_bytes)
    with site.client() as client, filling(room.descriptor, room.size):
        inputs = [("x", FLOAT | SHARED, [1, ROW], memory.reference(room=room))]
        fates = Counter(ask(client, "double", inputs) for _ in range(size.requests))
    memory.close()
    room.close()
    return listed(fates)


def locked_region(site: Site, quick: bool) -> str:
    """System shared memory of the gateway that blocks its writes."""
    size = QUICK if quick else WHOLE
    memory = SharedMemory(f"clockwork-attack-{secrets.token_hex(8)}", create=True, size=size.locked_bytes)
    connection = http.client.HTTPConnection("127.0.0.1", site.http_port, timeout=ATTACK_S_MAX)

    def post(path: str, fields: Any) -> int:
        connection.request("POST", path, json.dumps(fields), {"Authorization": f"Bearer {site.token}"})
        with connection.getresponse() as response:
            response.read()
            return response.status

    where = {"key": memory.name, "offset": 0, "byte_size": memory.size}
    assert post("/v2/systemsharedmemory/region/attack/register", where) == 200
    lies = {"shared_memory_region": "attack", "shared_memory_byte_size": 4 * ROW}
    body = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, ROW], "parameters": lies}],
        "outputs": [{"name": "y", "parameters": lies | {"shared_memory_offset": KEPT_BYTES}}],
    }
    path = os.open(f"/dev/shm/{memory.name}", os.O_RDWR | os.O_CLOEXEC)
    with contextlib.closing(connection), filling(path, memory.size):
        fates = Counter(str(post("/v2/models/double/infer", body)) for _ in range(size.requests))
    os.close(path)
    memory.close()
    memory.unlink()
    return listed(fates)


def _compress(quick: bool) -> dict[str, onnx.ModelProto]:
    return _selecting("compress", "Compress", ["x", "mask"], onnx.TensorProto.BOOL)


def _gather(quick: bool) -> dict[str, onnx.ModelProto]:
    return _selecting("gather", "Gather", ["x", "index"], onnx.TensorProto.INT64)


def _selecting(name: str, operator: str, inputs: list[str], dtype: int) -> dict[str, onnx.ModelProto]:
    """A model whose second input selects elements of its first one."""
    graph = zoo.GraphBuilder(SEED)
    graph.node(operator, inputs, "y")
    value = onnx.helper.make_tensor_value_info
    taken = [value(inputs[0], onnx.TensorProto.FLOAT, [ELEMENTS]), value(inputs[1], dtype, [ELEMENTS])]
    return {name: graph.model(name, taken, value("y", onnx.TensorProto.FLOAT, ["n"]))}


def _double(quick: bool) -> dict[str, onnx.ModelProto]:
    graph = zoo.GraphBuilder(SEED)
    graph.node("Add", ["x", "x"], "y")
    return {"double": graph.model("double", [zoo.tensor("x", [ROW])], zoo.tensor("y", [ROW]))}


ATTACKS = {
    "changing mask": Attack("worker", changing_mask, _compress),
    "changing indices": Attack("worker", changing_indices, _gather),
    "wrong bools": Attack("worker", wrong_bools, _compress),
    "leased memory": Attack("worker", leased_memory, _double),
    "huge memory": Attack("worker", huge_memory, _double),
    "locked room": Attack("worker", locked_room, _double),
    "locked region": Attack("gateway", locked_region, _double),
}
