"""The cores and NUMA nodes that a worker may use, on made-up trees of /sys, and where its executors run."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from clockwork import config
from clockwork.device import machine
from clockwork.device.machine import (
    UNKNOWN,
    ArenaPlace,
    Node,
    UsableMachine,
    default_executors,
    format_list,
    parse_list,
    read_machine,
    read_quota,
    split,
    spread,
)
from clockwork.errors import ConfigError
from clockwork.system.limits import open_descriptors


def write(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else f"{text}\n".encode())


def make_tree(
    root: Path,
    nodes: Mapping[int, str],
    siblings: Callable[[int], str] | None = None,
    has_memory: str = "",
    distances: Mapping[int, str] | None = None,
) -> Path:
    """Write what the kernel says of a machine. siblings: those of a processor."""
    for number, processors in nodes.items():
        write(root / f"devices/system/node/node{number}/cpulist", processors)
        for processor in parse_list(processors) if siblings else ():
            place = root / f"devices/system/cpu/cpu{processor}/topology/thread_siblings_list"
            write(place, siblings(processor) if siblings else "")
    if has_memory:
        write(root / "devices/system/node/has_memory", has_memory)
    for number, row in (distances or {}).items():
        write(root / f"devices/system/node/node{number}/distance", row)
    return root


def two_sockets(root: Path) -> Path:
    """Two nodes of 16 cores of two processors, numbered as usual: 0-31 are the first of each core."""
    return make_tree(
        root, {0: "0-15,32-47", 1: "16-31,48-63"}, lambda cpu: f"{cpu % 32},{cpu % 32 + 32}", "0-1"
    )


# ----- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("", []),
        ("\n", []),
        ("0", [0]),
        ("0-3,8-11\n", [0, 1, 2, 3, 8, 9, 10, 11]),
        ("5,7,9-9", [5, 7, 9]),
        ("9999", [9999]),
    ],
)
def test_a_list_of_the_kernel(text: str, numbers: list[int]) -> None:
    assert parse_list(text) == set(numbers)
    assert parse_list(format_list(numbers)) == set(numbers)


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "1,",
        ",",
        "-1",
        "3-1",
        "1--2",
        "0-3:1/2",
        "10000",
        "0-99999999999",
        "1,1",
        "4,0-3",
        "0-3,3",
        "1 2",
        "٣",
        "0x1",
    ],
)
def test_a_list_that_no_kernel_writes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no span of an ascending list"):
        parse_list(text)


def test_lists_are_short(tmp_path: Path) -> None:
    assert format_list([]) == ""
    assert format_list([3, 1, 2, 9, 7, 8, 5]) == "1-3,5,7-9"


def test_one_node_of_two_cores(tmp_path: Path) -> None:
    found = read_machine(make_tree(tmp_path, {0: "0-1"}, str, "0"), {0, 1})
    assert found == UsableMachine((Node(0, ((0,), (1,))),))
    assert (found.core_count, found.processor_count, found.is_throttled) == (2, 2, False)
    assert str(found) == "2 cores (2 processors)"


def test_siblings_share_a_core(tmp_path: Path) -> None:
    found = read_machine(two_sockets(tmp_path), range(64))
    assert [node.number for node in found.nodes] == [0, 1]
    assert found.nodes[0].cores == tuple((cpu, cpu + 32) for cpu in range(16))
    assert found.nodes[1].cores == tuple((cpu, cpu + 32) for cpu in range(16, 32))
    assert str(found) == "32 cores (64 processors) of 2 NUMA nodes"


def test_a_mask_leaves_parts_of_nodes_and_of_cores(tmp_path: Path) -> None:
    found = read_machine(two_sockets(tmp_path), {0, 32, 33, 16})
    assert found.nodes == (Node(0, ((0, 32), (33,))), Node(1, ((16,),)))
    assert read_machine(tmp_path, {20, 52}).nodes == (Node(1, ((20, 52),)),)


def test_a_process_without_a_processor_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="may use no processor"):
        read_machine(two_sockets(tmp_path), ())


def test_an_asymmetrical_machine(tmp_path: Path) -> None:
    """A node of four cores of two processors each, one of twelve of one, and one that has memory alone."""
    tree = make_tree(
        tmp_path,
        {0: "0-7", 3: "8-19", 7: ""},
        lambda cpu: f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}" if cpu < 8 else str(cpu),
        "0,3,7",
    )
    found = read_machine(tree, range(20))
    assert [(node.number, len(node.cores), len(node.processors)) for node in found.nodes] == [
        (0, 4, 8),
        (3, 12, 12),
    ]


def test_processors_without_memory_belong_to_the_nearest_node_with_memory(tmp_path: Path) -> None:
    nodes = {0: "0-1", 1: "2-3", 2: "4-5"}
    distances = {1: "40 10 20", 0: "10 40 40", 2: "40 20 10"}
    tree = make_tree(tmp_path / "a", nodes, str, "0,2", distances)
    assert read_machine(tree, range(6)).nodes == (Node(0, ((0,), (1,))), Node(2, ((2,), (3,), (4,), (5,))))
    # without distances: the first
    tree = make_tree(tmp_path / "b", nodes, str, "0,2", {1: "40 10"})
    assert [len(node.cores) for node in read_machine(tree, range(6)).nodes] == [4, 2]
    # a container that may use the memory of node 0 alone
    tree = make_tree(tmp_path / "c", nodes, str, "0-2", distances)
    assert [node.number for node in read_machine(tree, range(6), memories={0}).nodes] == [0]
    assert [node.number for node in read_machine(tree, range(6), memories={9}).nodes] == [UNKNOWN]


@pytest.mark.parametrize(
    "nodes",
    [
        {},  # no description
        {0: "0-1"},  # processors 2 and 3 are nowhere
        {0: "0-2", 1: "2-3"},  # processor 2 is in both
        {0: "0-1", 1: "x"},
        {0: "0-1", 1: "2-99999999999999"},
        {0: "0-1", 1: "2-3," * 40_000},
    ],
)
def test_nodes_that_do_not_divide_the_processors_are_one_unknown_node(
    tmp_path: Path, nodes: dict[int, str]
) -> None:
    for number, text in nodes.items():
        write(tmp_path / f"devices/system/node/node{number}/cpulist", text)
    assert read_machine(tmp_path, range(4)) == UsableMachine((Node(UNKNOWN, ((0,), (1,), (2,), (3,))),))


@pytest.mark.parametrize(
    ("texts", "cores"),
    [
        (["", "", "", ""], [(0,), (1,), (2,), (3,)]),
        (["0-3", "1", "2", "3"], [(0,), (1,), (2,), (3,)]),  # the others say that they are alone
        (["0-1", "0-1", "0-1", "2-3"], [(0, 1), (2,), (3,)]),
        (["7-9", "9-7", "\xff", "0-3-5"], [(0,), (1,), (2,), (3,)]),
    ],
)
def test_processors_share_a_core_if_each_names_the_other(
    tmp_path: Path, texts: Sequence[str], cores: list[tuple[int, ...]]
) -> None:
    tree = make_tree(tmp_path, {0: "0-3"}, lambda cpu: texts[cpu])
    assert read_machine(tree, range(4)).nodes == (Node(0, tuple(cores)),)


def test_a_pipe_and_a_folder_in_place_of_files_neither_block_nor_stay_open(tmp_path: Path) -> None:
    nodes = tmp_path / "devices/system/node"
    (nodes / "node0/cpulist").mkdir(parents=True)
    (nodes / "node1").mkdir()
    os.mkfifo(nodes / "node1/cpulist")
    before = open_descriptors()
    assert read_machine(tmp_path, {0, 1}).nodes == (Node(UNKNOWN, ((0,), (1,))),)
    assert open_descriptors() == before


def test_any_bytes_in_any_file_leave_every_processor_in_one_core(tmp_path: Path) -> None:
    words = [
        b"0-3",
        b"4-7",
        b"0",
        b"",
        b"\x00",
        b"\xff\xfe",
        b"0-",
        b"-",
        b"9" * 70_000,
        b"0,2-3,7",
        b"10 20",
        b"max",
    ]
    for seed in range(200):
        draw = random.Random(seed)
        root = tmp_path / str(seed)
        for number in draw.sample(range(5), draw.randrange(4)):
            write(root / f"devices/system/node/node{number}/cpulist", draw.choice(words))
            write(root / f"devices/system/node/node{number}/distance", draw.choice(words))
        write(root / "devices/system/node/has_memory", draw.choice(words))
        for processor in range(8):
            place = root / f"devices/system/cpu/cpu{processor}/topology/thread_siblings_list"
            if draw.random() < 0.1:
                place.mkdir(parents=True)  # not even a file
            else:
                write(place, draw.choice(words))
        usable = set(draw.sample(range(8), draw.randrange(1, 9)))
        found = read_machine(root, usable)
        cores = [core for node in found.nodes for core in node.cores]
        assert sorted(cpu for core in cores for cpu in core) == sorted(usable), f"seed {seed}"
        places = spread(found, default_executors(found))
        assert sum(place.executors for place in places) == default_executors(found), f"seed {seed}"


# ----- quotas --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("150000 100000", 1.5),
        ("max 100000", math.inf),
        ("1000 100000", 0.01),
        ("", math.inf),
        ("0 100000", math.inf),
        ("100000 0", math.inf),
        ("-1 100000", math.inf),
        ("nan 1", math.inf),
        ("1e9 1", math.inf),
        ("100000", math.inf),
        ("9" * 400 + " 1", math.inf),
    ],
)
def test_the_quota_of_a_container(tmp_path: Path, text: str, quota: float) -> None:
    write(tmp_path / "cpu.max", text)
    assert read_quota(tmp_path, "0::/\n") == quota


def test_every_group_above_counts(tmp_path: Path) -> None:
    write(tmp_path / "system.slice/cpu.max", "800000 100000")
    write(tmp_path / "system.slice/clockwork.service/cpu.max", "max 100000")
    assert read_quota(tmp_path, "0::/system.slice/clockwork.service\n") == 8
    write(tmp_path / "system.slice/clockwork.service/cpu.max", "200000 100000")
    assert read_quota(tmp_path, "0::/system.slice/clockwork.service\n") == 2
    assert read_quota(tmp_path, "0::/other\n") == math.inf
    # names that lead elsewhere are not followed
    assert read_quota(tmp_path / "system.slice/deep", "0::/../clockwork.service\n") == math.inf
    assert read_quota(tmp_path, "") == read_quota(tmp_path, "nonsense") == math.inf


def test_control_groups_of_version_1(tmp_path: Path) -> None:
    write(tmp_path / "cpu,cpuacct/cpu.cfs_quota_us", "250000")
    write(tmp_path / "cpu,cpuacct/cpu.cfs_period_us", "100000")
    membership = "5:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n0::/system.slice/docker.service\n"
    assert read_quota(tmp_path, membership) == 2.5
    write(tmp_path / "cpu,cpuacct/cpu.cfs_quota_us", "-1")
    assert read_quota(tmp_path, membership) == math.inf
    write(tmp_path / "cpu/docker/1/cpu.cfs_quota_us", "300000")
    write(tmp_path / "cpu/docker/1/cpu.cfs_period_us", "100000")
    assert read_quota(tmp_path, membership) == 3


# ----- executors -----------------------------------------------------------------------------------


def of_cores(*counts: int, threads: int = 1, quota: float = math.inf) -> UsableMachine:
    """A machine whose nodes have so many cores of so many processors."""
    nodes, first = [], 0
    for number, count in enumerate(counts):
        total = count * threads
        cores = tuple(
            tuple(range(first + core * threads, first + (core + 1) * threads)) for core in range(count)
        )
        nodes.append(Node(number, cores))
        first += total
    return UsableMachine(tuple(nodes), quota)


@pytest.mark.parametrize(
    ("given", "executors"),
    [
        (of_cores(1), 1),
        (of_cores(2), 2),
        (of_cores(2, threads=2), 2),
        (of_cores(3), 2),
        (of_cores(4), 3),
        (of_cores(8), 7),
        (of_cores(16, threads=2), 14),
        (of_cores(16, 16, threads=2), 28),
        (of_cores(64), 56),
        (of_cores(32, 32, quota=1.5), 1),
        (of_cores(64, quota=2), 1),
        (of_cores(64, quota=4.9), 3),
        (of_cores(64, quota=32), 28),
        (of_cores(8, quota=64), 7),
        (of_cores(2, quota=0.01), 1),
        (of_cores(2, quota=1.9), 1),
        (of_cores(2, quota=2), 2),
        (of_cores(2000), config.EXECUTORS_MAX),
    ],
)
def test_how_many_executors_a_machine_has_room_for(given: UsableMachine, executors: int) -> None:
    assert default_executors(given) == executors


def test_a_machine_of_one_node_binds_nothing() -> None:
    assert spread(of_cores(2), 1) == [ArenaPlace(1)]
    assert spread(of_cores(2), 2) == [ArenaPlace(2)], "no processor would be left for other threads"
    assert spread(of_cores(4), 3) == [ArenaPlace(3, pins=(0, 1, 2))]
    assert spread(of_cores(4), 9) == [ArenaPlace(9)]


def test_processors_of_different_cores_come_first(tmp_path: Path) -> None:
    siblings = {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3", 5: "4-5", 9: "9"}
    found = read_machine(make_tree(tmp_path, {0: "0-3,5,9"}, siblings.__getitem__), siblings)
    assert spread(found, 4)[0].pins == (0, 2, 5, 9)
    assert spread(found, 5)[0].pins == (0, 2, 5, 9, 1)
    assert spread(found, 6)[0].pins == ()


def test_executors_of_two_nodes_stay_at_their_memory() -> None:
    given = of_cores(16, 16, threads=2)
    first, second = spread(given, 28)
    assert (first.executors, first.node, first.processors) == (14, 0, frozenset(range(32)))
    assert (second.executors, second.node, second.processors) == (14, 1, frozenset(range(32, 64)))
    assert first.pins == tuple(range(0, 28, 2))
    assert second.pins == tuple(range(32, 60, 2))
    # as few nodes as have a core for each
    assert [(place.node, place.executors) for place in spread(given, 16)] == [(0, 16)]
    assert [(place.node, place.executors) for place in spread(given, 17)] == [(0, 8), (1, 9)]
    assert [(place.node, place.executors) for place in spread(given, 40)] == [(0, 20), (1, 20)]
    # a single one runs wherever a core is free
    assert spread(given, 1) == [ArenaPlace(1)]


def test_reserved_cores_are_those_of_the_largest_node() -> None:
    given = of_cores(4, 12)
    assert default_executors(given) == 14
    assert [(place.node, place.executors) for place in spread(given, 14)] == [(0, 4), (1, 10)]
    assert [(place.node, place.executors) for place in spread(given, 12)] == [(1, 12)]
    assert [(place.node, place.executors) for place in spread(given, 64)] == [(0, 16), (1, 48)]


def test_under_a_quota_nothing_is_bound() -> None:
    assert spread(of_cores(32, 32, quota=16), 14) == [ArenaPlace(14)]


@pytest.mark.parametrize("executors", [2, 3, 7, 8, 9, 24, 32, 33, 100])
def test_every_executor_has_a_place_and_a_processor_of_its_own(executors: int) -> None:
    for given in (
        of_cores(8, 8, 8, 8, threads=2),
        of_cores(1, 5, 2),
        of_cores(3, threads=4),
        of_cores(24, 1),
    ):
        places = spread(given, executors)
        assert sum(place.executors for place in places) == executors
        pins = [pin for place in places for pin in place.pins]
        assert len(set(pins)) == len(pins)
        for place in places:
            assert len(place.pins) in (0, place.executors)
            assert not place.processors or set(place.pins) <= place.processors
        if executors <= given.core_count and executors < given.processor_count:
            of_core = {cpu: core for node in given.nodes for core in node.cores for cpu in core}
            assert len({of_core[pin] for pin in pins}) == executors


def test_workers_of_one_machine_share_its_cores() -> None:
    given = of_cores(4, 4, threads=2)
    assert split(given, 2) == [frozenset(range(8)), frozenset(range(8, 16))]
    assert [len(part) for part in split(given, 3)] == [4, 6, 6]
    assert split(given, 5) == [], "some would have one core"
    assert split(of_cores(2), 2) == []
    assert split(of_cores(32, quota=8), 2) == []


def test_this_machine_has_what_this_process_may_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLOCKWORK_SYSFS", str(two_sockets(tmp_path)))
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(0, 64, 2)))
    monkeypatch.setattr(machine, "allowed_memories", lambda: {0, 1})
    write(tmp_path / "fs/cgroup/cpu.max", "1200000 100000")
    found = machine.this_machine()
    assert found.quota == 12
    assert found.core_count == 16
