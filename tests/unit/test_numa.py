"""Memory near a device: the kernel's description of nodes, and how a thread is bound to a node."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from clockwork.device import numa

BUS = "0000:3b:00.0"


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose GPU is at node 1, which has the first of the processors that this process may use."""
    monkeypatch.setenv("CLOCKWORK_SYSFS", str(tmp_path))
    device, node = tmp_path / "bus/pci/devices" / BUS, tmp_path / "devices/system/node/node1"
    device.mkdir(parents=True)
    node.mkdir(parents=True)
    (device / "numa_node").write_text("1\n")
    (node / "cpulist").write_text(f"{min(os.sched_getaffinity(0))},9000-9002\n")
    return tmp_path


def test_the_node_of_a_device_is_read_of_the_kernel(sysfs: Path) -> None:
    assert numa.node_of(BUS) == 1
    assert numa.node_of("0000:99:00.0") == numa.UNKNOWN
    (sysfs / "bus/pci/devices" / BUS / "numa_node").write_text("-1\n")
    assert numa.node_of(BUS) == numa.UNKNOWN
    assert numa.processors_of(1) == {min(os.sched_getaffinity(0)), 9000, 9001, 9002}
    assert numa.processors_of(2) == set()


def test_a_thread_prefers_the_node_meanwhile_and_then_no_more() -> None:
    if not numa.set_policy(0):
        pytest.skip("the kernel does not let this process choose memory's node")
    numa.set_policy(numa.UNKNOWN)
    with contextlib.suppress(MemoryError), numa.near(0):
        assert numa.has_policy()
        raise MemoryError
    assert not numa.has_policy()
    with numa.near(numa.UNKNOWN):
        assert not numa.has_policy()


def test_a_policy_that_the_process_was_started_with_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[int] = []
    monkeypatch.setattr(numa, "has_policy", lambda: True)
    monkeypatch.setattr(numa, "set_policy", set_to.append)
    with numa.near(0):
        assert set_to == []


def test_where_the_kernel_refuses_a_policy_the_thread_runs_on_the_nodes_processors(
    sysfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numa, "set_policy", lambda node: False)
    before = os.sched_getaffinity(0)
    with numa.near(1):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before
    with numa.near(2):  # a node about which nothing is known
        assert os.sched_getaffinity(0) == before
