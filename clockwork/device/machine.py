"""The processors that a worker may use, by core and NUMA node, and the executors for which they have room.

read_machine() takes the kernel's description below /sys. A file that is missing, or says what no kernel would
say, counts as missing: without siblings each processor is a core, and where the nodes do not divide the
processors the machine is one node of unknown number, to which nothing is bound. spread() decides.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from clockwork import config
from clockwork.config import device as bounds
from clockwork.errors import ConfigError
from clockwork.system.words import say_count

UNKNOWN = -1
"""The node of a device or of processors without one, as on a machine that does not report nodes."""

_SPAN = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")
_NODE = re.compile(r"node([0-9]{1,4})")


# ----- what the kernel says ------------------------------------------------------------------------


def parse_list(text: str) -> set[int]:
    """Return the numbers of a list as the kernel writes it: "0-3,8-11" and "". Raises ValueError.

    Spans must ascend, as the kernel's do, so that a list has at most 10,000 numbers.
    """
    found: set[int] = set()
    last = -1
    for part in text.strip().split(",") if text.strip() else ():
        span = _SPAN.fullmatch(part)
        if span is None or int(span[1]) <= last or int(span[2] or span[1]) < int(span[1]):
            raise ValueError(f"{part[:40]!r} is no span of an ascending list like 0-3,8-11")
        last = int(span[2] or span[1])
        found.update(range(int(span[1]), last + 1))
    return found


def format_list(numbers: Collection[int]) -> str:
    """Return numbers as parse_list() reads them."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in spans)


def read_list(path: Path) -> set[int] | None:
    """Return the numbers of a file that holds a list; None if there is no such list."""
    text = _read(path)
    try:
        return None if text is None else parse_list(text)
    except ValueError:
        return None


def _read(path: Path) -> str | None:
    """Return the text of a file of the kernel; None: there is none, or it is no text of a sensible size."""
    try:
        # A pipe in place of a file must not block, and open() closes its descriptor of a directory.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            content = file.read(bounds.SYSFS_BYTES_MAX + 1) or b""
        return None if len(content) > bounds.SYSFS_BYTES_MAX else content.decode("ascii")
    except (OSError, ValueError):
        return None


def read_quota(cgroups: Path, membership: str) -> float:
    """Return the processors' worth of time that a process's control groups allow it; infinite: no limit.

    cgroups: where they are mounted, /sys/fs/cgroup. membership: the text of /proc/self/cgroup. The limits of
    all groups above the process's count, in version 2 and version 1. Inside a container the mount often
    begins at the container's own group, which the membership does not name, so the mount's root counts, too.
    """
    quota = math.inf
    files: tuple[str, ...]
    for line in membership.splitlines()[: bounds.CGROUP_LINES_MAX]:
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if not controllers:
            mounts, files = [cgroups], ("cpu.max",)
        elif "cpu" in controllers.split(","):
            mounts, files = (
                [cgroups / controllers, cgroups / "cpu"],
                ("cpu.cfs_quota_us", "cpu.cfs_period_us"),
            )
        else:
            continue
        for mount in mounts:
            for group in _groups(mount, name):
                quota = min(quota, _quota_of([_read(group / file) for file in files]))
    return quota


def _groups(mount: Path, name: str) -> Iterator[Path]:
    """Return the folders of a group and of those above it, up to the mount's root."""
    parts = PurePosixPath(name).parts[1:]
    if ".." in parts or len(parts) > bounds.CGROUP_DEPTH_MAX:
        parts = ()
    for depth in range(len(parts) + 1):
        yield mount.joinpath(*parts[:depth])


def _quota_of(texts: Sequence[str | None]) -> float:
    """Return the quota that a group's files say: "150000 100000" is 1.5; infinite: none."""
    words = [word for text in texts for word in (text or "").split()]
    if len(words) != 2 or not all(re.fullmatch(r"[0-9]{1,15}", word) for word in words):
        return math.inf  # "max", -1, or no such file
    time, period = map(int, words)
    return time / period if time > 0 and period > 0 else math.inf


# ----- the machine -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """Processors with memory of their own."""

    number: int  # node whose memory is nearest to the processors; UNKNOWN: not known
    cores: tuple[tuple[int, ...], ...]  # the processors of each core, in order

    @property
    def processors(self) -> frozenset[int]:
        return frozenset(processor for core in self.cores for processor in core)


@dataclasses.dataclass(frozen=True, slots=True)
class UsableMachine:
    """The part of a machine that a process may use."""

    nodes: tuple[Node, ...]  # in order of their numbers
    quota: float = math.inf  # processors' worth of time, if its container is limited

    @property
    def core_count(self) -> int:
        return sum(len(node.cores) for node in self.nodes)

    @property
    def processor_count(self) -> int:
        return sum(len(node.processors) for node in self.nodes)

    @property
    def is_throttled(self) -> bool:
        """Whether the container's quota, not the number of processors, is the limit."""
        return self.quota < self.processor_count

    def as_one(self) -> UsableMachine:
        """Return the machine as a single node, to which nothing is bound."""
        return UsableMachine(
            (Node(UNKNOWN, tuple(core for node in self.nodes for core in node.cores)),), self.quota
        )

    def __str__(self) -> str:
        nodes = f" of {len(self.nodes)} NUMA nodes" if len(self.nodes) > 1 else ""
        quota = f" with a quota of {self.quota:g}" if self.is_throttled else ""
        processors = say_count(self.processor_count, "processor")
        return f"{say_count(self.core_count, 'core')} ({processors}){nodes}{quota}"


def read_machine(
    sysfs: Path, processors: Collection[int], quota: float = math.inf, memories: Collection[int] | None = None
) -> UsableMachine:
    """Return the machine as a process may use it. Raises ConfigError if it may use no processor.

    sysfs: where the kernel describes the machine, /sys. processors: those that the process may run on.
    memories: the nodes whose memory it may use; None: all. Processors of a node without memory belong to the
    node with memory that is nearest to them.
    """
    if not processors:
        raise ConfigError("this process may use no processor")
    by_node = _nodes(sysfs / "devices/system/node", frozenset(processors), memories)
    return UsableMachine(
        tuple(Node(number, tuple(_cores(sysfs, members))) for number, members in sorted(by_node.items())),
        quota,
    )


def this_machine() -> UsableMachine:
    """Return this machine as this process may use it."""
    sysfs = bounds.sysfs()
    quota = read_quota(sysfs / "fs/cgroup", _read(Path("/proc/self/cgroup")) or "")
    return read_machine(sysfs, os.sched_getaffinity(0), quota, allowed_memories())


def allowed_memories() -> set[int] | None:
    """Return the nodes whose memory this process may use; None if the kernel does not say."""
    allowed = re.search(r"^Mems_allowed_list:(.*)$", _read(Path("/proc/self/status")) or "", re.MULTILINE)
    try:
        return parse_list(allowed[1]) if allowed is not None else None
    except ValueError:
        return None


def _nodes(folder: Path, usable: frozenset[int], memories: Collection[int] | None) -> dict[int, set[int]]:
    """Return the usable processors by the node of their memory."""
    try:
        found = [_NODE.fullmatch(entry) for entry in os.listdir(folder)]
    except OSError:
        found = []
    numbers = sorted(int(match[1]) for match in found if match is not None)
    listed = {number: (read_list(folder / f"node{number}/cpulist") or set()) & usable for number in numbers}
    if sum(map(len, listed.values())) != len(usable) or set().union(*listed.values()) != usable:
        return {UNKNOWN: set(usable)}
    with_memory = set(numbers) & (read_list(folder / "has_memory") or set(numbers))
    with_memory &= set(numbers if memories is None else memories)
    if not with_memory:
        return {UNKNOWN: set(usable)}
    by_node: dict[int, set[int]] = {}
    for number, members in listed.items():
        if members:
            home = _nearest(folder, number, numbers, with_memory)
            by_node.setdefault(home, set()).update(members)
    return by_node


def _nearest(folder: Path, number: int, numbers: Sequence[int], with_memory: Collection[int]) -> int:
    """Return the node with memory that is nearest to a node, which is the node itself if it has memory."""
    if number in with_memory:
        return number
    words = (_read(folder / f"node{number}/distance") or "").split()
    if len(words) != len(numbers) or not all(re.fullmatch(r"[0-9]{1,5}", word) for word in words):
        return min(with_memory)
    distances = dict(zip(numbers, map(int, words)))
    return min(with_memory, key=lambda other: (distances[other], other))


def _cores(sysfs: Path, processors: Iterable[int]) -> Iterator[tuple[int, ...]]:
    """Return the cores of a node's processors. Processors share a core if each names the other."""
    places = {
        processor: sysfs / f"devices/system/cpu/cpu{processor}/topology" for processor in sorted(processors)
    }
    siblings = {
        processor: read_list(place / "thread_siblings_list") or {processor}
        for processor, place in places.items()
    }
    taken: set[int] = set()
    for processor in places:
        if processor in taken:
            continue
        core = {processor} | {
            other for other in siblings[processor] & siblings.keys() - taken if processor in siblings[other]
        }
        taken |= core
        yield tuple(sorted(core))


# ----- executors -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class ArenaPlace:
    """An arena with its executors on a machine."""

    executors: int
    node: int = UNKNOWN  # node of its memory; UNKNOWN: anywhere
    processors: frozenset[int] = frozenset()  # where its threads run; empty: anywhere
    pins: tuple[int, ...] = ()  # the only processor of each executor; empty: they run on `processors`

    def __str__(self) -> str:
        node = f" at NUMA node {self.node}" if self.node != UNKNOWN else ""
        pins = f" on processors {format_list(self.pins)}" if self.pins else ""
        return f"{say_count(self.executors, 'executor')}{node}{pins}"


def default_executors(machine: UsableMachine) -> int:
    """Return how many executors a machine has room for: one for each core, except those that the worker's
    other threads, the controller and gateways need.

    These have a core at least, but none of two cores: a second executor there was worth 1.4 to 2 times the
    goodput, with the controller and the load generator on the same cores (docs/machines.md). Of a container's
    quota they have a core in any case: a process that exceeds it stands still for the rest of the period,
    with all of its threads.
    """
    cores = machine.core_count
    if machine.is_throttled:
        cores = min(cores, math.floor(machine.quota))
    elif cores == bounds.CORES_ALL_EXECUTE:
        return cores
    reserved = max(1, cores // bounds.CORES_EACH_RESERVED)
    return max(1, min(cores - reserved, config.EXECUTORS_MAX))


def spread(machine: UsableMachine, executors: int) -> list[ArenaPlace]:
    """Return an arena for each node that has executors.

    They take the fewest nodes that have a core for each of them, and as much of each. A single executor is
    bound to nothing: whichever core is free is the best for it.

    Executors are pinned, to processors of different cores first, if some processors are left. Without a
    processor to spare, executors could not make room for the worker's road and for other processes: with two
    pinned executors on two processors an INFER of the null model took 9 to 19 us of processor time, and 5.3
    us without pinning. Under a quota they are neither pinned nor bound to a node: other containers use the
    same processors, and the kernel knows which are free.
    """
    if executors == 1:
        return [ArenaPlace(1)]
    if machine.is_throttled:
        machine = machine.as_one()
    pinned = executors < machine.processor_count and not machine.is_throttled
    nodes = _fewest(machine.nodes, executors)
    counts = [len(node.cores) for node in nodes]
    while sum(counts) > executors:
        counts[counts.index(max(counts))] -= 1
    while sum(counts) < executors:
        fullest = [count / len(node.cores) for count, node in zip(counts, nodes)]
        counts[fullest.index(min(fullest))] += 1
    is_bound = len(machine.nodes) > 1
    return [
        ArenaPlace(
            count,
            node.number if is_bound else UNKNOWN,
            node.processors if is_bound else frozenset(),
            _pins(node, count) if pinned else (),
        )
        for count, node in zip(counts, nodes)
    ]


def _fewest(nodes: Sequence[Node], executors: int) -> list[Node]:
    """Return the largest nodes, as many as have a core for each executor, in order of their numbers."""
    chosen: list[Node] = []
    for node in sorted(nodes, key=lambda node: -len(node.cores)):
        if sum(len(other.cores) for other in chosen) >= executors:
            break
        chosen.append(node)
    return [node for node in nodes if node in chosen]


def _pins(node: Node, count: int) -> tuple[int, ...]:
    """Return a processor for each executor; none if the node has too few."""
    ranked = sorted((place, processor) for core in node.cores for place, processor in enumerate(core))
    return tuple(processor for _, processor in ranked[:count]) if count <= len(ranked) else ()


def take_cores(machine: UsableMachine, count: int) -> tuple[frozenset[int], UsableMachine]:
    """Return the processors of so many cores, and the machine without them. Raises ConfigError.

    They are of one node if the machine has one with more cores than that.
    """
    if machine.is_throttled or machine.core_count <= count:
        raise ConfigError(f"there are no {say_count(count, 'core')} to spare: this process may use {machine}")
    larger = [node for node in machine.nodes if len(node.cores) > count]
    givers = larger[-1:] or reversed(machine.nodes)
    taken = [core for node in givers for core in reversed(node.cores)][:count]
    left = [(node.number, tuple(core for core in node.cores if core not in taken)) for node in machine.nodes]
    rest = tuple(Node(number, cores) for number, cores in left if cores)
    return frozenset(itertools.chain(*taken)), UsableMachine(rest, machine.quota)


def split(machine: UsableMachine, parts: int) -> list[frozenset[int]]:
    """Return the processors of each of so many workers on a machine; an empty list if they have to share.

    They share under a quota, and where a part would have less than two cores.
    """
    cores = [core for node in machine.nodes for core in node.cores]
    if machine.is_throttled or len(cores) < 2 * parts:
        return []
    begins = [len(cores) * part // parts for part in range(parts + 1)]
    return [
        frozenset(processor for core in cores[begin:end] for processor in core)
        for begin, end in itertools.pairwise(begins)
    ]


__all__ = [
    "UNKNOWN",
    "ArenaPlace",
    "Node",
    "UsableMachine",
    "allowed_memories",
    "default_executors",
    "format_list",
    "parse_list",
    "read_list",
    "read_machine",
    "read_quota",
    "split",
    "spread",
    "take_cores",
    "this_machine",
]
