"""The fake driver refuses graphs that a card's driver refuses, and fails where a card would silently do the
wrong thing."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import byref, c_uint, c_uint64, c_ulonglong, c_void_p
from pathlib import Path
from typing import Any

import pytest

from clockwork.device.cuda_memory import TableMemory, find_card, open_driver
from clockwork.system.clock import MS
from tests.device.cuda_rig import compiled_kernels
from tests.device.fake import DRIVER, LIBRARY, FakeDriver, environment
from tests.patience import eventually

SUCCESS, INVALID_VALUE, NOT_READY = 0, 1, 600
BYTES = 16


class Params(ctypes.Structure):
    """The struct CUDA_KERNEL_NODE_PARAMS_v1."""

    _fields_ = [("function", c_void_p), ("grid", c_uint * 3), ("block", c_uint * 3), ("shared", c_uint),
                ("arguments", c_void_p), ("extra", c_void_p)]  # fmt: skip


class Site:
    """A stream, a graph, and memory of which each kernel copies the beginning of a buffer to another."""

    def __init__(self, memory: TableMemory, module: Path) -> None:
        self.memory = memory
        self.lib = ctypes.CDLL(str(LIBRARY))
        self.modules = [memory.load_module(module)]
        self.copy = memory.function(self.modules[0], "copy")
        self.buffers = [memory.allocate(BYTES) for _ in range(3)]
        for number, buffer in enumerate(self.buffers):
            ctypes.memset(buffer.address, number, BYTES)
        self.stream, self.graph, self.event = c_void_p(), c_void_p(), c_void_p()
        self.execs: list[c_void_p] = []
        self.call("cuStreamCreate", byref(self.stream), 1)
        self.call("cuGraphCreate", byref(self.graph), 0)
        self.call("cuEventCreate", byref(self.event), 0)

    def ask(self, function: str, *arguments: Any) -> int:
        return int(getattr(self.lib, function)(*arguments))

    def call(self, function: str, *arguments: Any) -> None:
        assert self.ask(function, *arguments) == SUCCESS, function

    def add(self, source: int, target: int, *before: c_void_p, function: int | None = None) -> c_void_p:
        values = [c_uint64(self.buffers[one].address) for one in (source, target)] + [c_uint64(BYTES)]
        pointers = (c_void_p * 4)(*(ctypes.addressof(value) for value in values), None)
        address = self.copy.address if function is None else function
        params = Params(address, (1, 1, 1), (BYTES, 1, 1), 0, ctypes.addressof(pointers), None)
        made = c_void_p()
        after = (c_void_p * len(before))(*before)
        self.call("cuGraphAddKernelNode", byref(made), self.graph, after, len(before), byref(params))
        values[0].value = values[1].value = 0  # the node has a copy of its arguments
        return made

    def instantiate(self) -> c_void_p:
        made = c_void_p()
        self.call("cuGraphInstantiateWithFlags", byref(made), self.graph, c_ulonglong(0))
        self.execs.append(made)
        return made

    def close(self) -> None:
        self.ask("cuStreamSynchronize", self.stream)
        for one in self.execs:
            self.ask("cuGraphExecDestroy", one)
        self.call("cuGraphDestroy", self.graph)
        self.call("cuEventDestroy_v2", self.event)
        self.call("cuStreamDestroy_v2", self.stream)
        for buffer in self.buffers:
            self.memory.release(buffer)
        for module in self.modules:
            self.memory.unload_module(module)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    fake = FakeDriver()
    fake.setup()
    (tmp_path / "kernels.so").write_bytes(compiled_kernels())
    with environment(**DRIVER):
        memory = TableMemory(table := open_driver(), find_card(table, "0"))
    memory.make_current()
    one = Site(memory, tmp_path / "kernels.so")
    yield one
    fake.speed()
    one.close()
    memory.close()
    assert set(fake.live().values()) == {0}


@pytest.mark.parametrize("depends", [True, False])
def test_nodes_run_in_the_order_of_their_dependencies_alone(site: Site, depends: bool) -> None:
    """Copy buffers 0 and 1 over buffer 2. Where neither node depends on the other, the second runs first."""
    first = site.add(0, 2)
    site.add(1, 2, *([first] if depends else []))
    site.call("cuGraphLaunch", site.instantiate(), site.stream)
    site.call("cuStreamSynchronize", site.stream)
    assert ctypes.string_at(site.buffers[2].address, BYTES) == bytes([depends]) * BYTES


def test_a_graph_is_not_destroyed_while_it_runs(site: Site) -> None:
    site.add(0, 2)
    made = site.instantiate()
    fake = FakeDriver()
    fake.keep_kernels()
    site.call("cuGraphLaunch", made, site.stream)
    assert site.ask("cuGraphExecDestroy", made) == INVALID_VALUE
    fake.keep_kernels(False)
    site.call("cuStreamSynchronize", site.stream)
    site.call("cuGraphExecDestroy", made)
    assert site.ask("cuGraphLaunch", made, site.stream) == INVALID_VALUE


def test_one_graph_runs_once_at_a_time_on_any_streams(site: Site) -> None:
    site.add(0, 2)
    made, other, fake = site.instantiate(), c_void_p(), FakeDriver()
    site.call("cuStreamCreate", byref(other), 1)
    fake.speed(kernel_ns=20 * MS)
    fake.steps()
    for stream in (site.stream, other):
        site.call("cuGraphLaunch", made, stream)
    for stream in (other, site.stream):
        site.call("cuStreamSynchronize", stream)
    first, second = fake.steps()
    assert first.end_ns <= second.begin_ns
    site.call("cuStreamDestroy_v2", other)


def test_an_event_in_a_graph_is_recorded_when_it_happens(site: Site) -> None:
    """A query between the launch and the event's mark reports the time before."""
    node, kernel = c_void_p(), site.add(0, 2)
    before = (c_void_p * 1)(kernel)
    site.call("cuGraphAddEventRecordNode", byref(node), site.graph, before, 1, site.event)
    made, fake = site.instantiate(), FakeDriver()
    took = ctypes.c_float()
    fake.speed(kernel_ns=50 * MS)
    fake.keep_kernels()
    kernels = fake.calls("kernel")
    site.call("cuGraphLaunch", made, site.stream)
    eventually(lambda: fake.calls("kernel") > kernels, "the graph runs")
    assert site.ask("cuEventQuery", site.event) == SUCCESS
    assert site.ask("cuEventElapsedTime", byref(took), site.event, site.event) != SUCCESS
    fake.keep_kernels(False)
    site.call("cuStreamSynchronize", site.stream)
    site.call("cuEventElapsedTime", byref(took), site.event, site.event)


def test_nodes_and_kernels_that_do_not_exist_are_refused(site: Site) -> None:
    node, stranger = c_void_p(), site.add(0, 2)
    for before in ([c_void_p(1)], [stranger, stranger]):
        given = (c_void_p * len(before))(*before)
        added = site.ask("cuGraphAddEventRecordNode", byref(node), site.graph, given, len(before), site.event)
        assert added == INVALID_VALUE
    with pytest.raises(AssertionError, match="cuGraphAddKernelNode"):
        site.add(0, 2, function=site.stream.value)
    made = site.instantiate()
    site.memory.unload_module(site.modules.pop())
    assert site.ask("cuGraphLaunch", made, site.stream) == INVALID_VALUE
    assert site.ask("cuGraphInstantiateWithFlags", byref(node), site.graph, c_ulonglong(0)) == INVALID_VALUE
