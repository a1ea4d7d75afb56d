"""Stalls of the machine, seen by processes that have no part in what is measured.

On every core a process of the highest real-time class sleeps for a millisecond at a time: nothing that this
machine runs can delay it, so where it wakes late the core itself stood still (another guest of the host, or
the kernel). A process of the ordinary class beside it wakes late also where other processes had the core. A
third kind of process reads how long each thread of the measured processes was ready and waited for a core.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from clockwork.system.clock import MS, SECOND, now_ns

PERIOD_NS = MS
LATE_NS = MS
"""Lateness from which a wake-up counts as a stall."""
WAITS_PERIOD_NS = 10 * MS
WAITED_NS = MS
"""Time for which a thread waited for a core within a period, from which the period is kept."""
STALLS_MAX = 200_000
REALTIME, ORDINARY = "real-time", "ordinary"


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """A time in which a core, or a thread on it, did not run. lost_ns: how much of it was lost."""

    begin_ns: int
    end_ns: int
    lost_ns: int
    where: str


class Spans:
    """Spans by the time of their begin, of which an interval meets few."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = ordered = sorted(spans, key=lambda span: span.begin_ns)
        places = sorted({span.where for span in ordered})
        self._place_count = len(places)
        self._where = np.array([places.index(span.where) for span in ordered], np.int64)
        self._begin, self._end, self._lost = (
            np.array([getattr(span, name) for span in ordered], np.int64)
            for name in ("begin_ns", "end_ns", "lost_ns")
        )
        self._longest_ns = int((self._end - self._begin).max(initial=0))

    def overlap_ns(self, begin_ns: int, end_ns: int) -> int:
        """The time lost within an interval at the place that lost most. Spans of a place hardly overlap."""
        first, last = self._begin.searchsorted((begin_ns - self._longest_ns, end_ns))
        if first == last:
            return 0
        near = slice(int(first), int(last))
        shared = np.minimum(self._end[near], end_ns) - np.maximum(self._begin[near], begin_ns)
        lost = np.minimum(self._lost[near], np.maximum(shared, 0))
        return int(np.bincount(self._where[near], lost, self._place_count).max())


def _watch_core(ends: Connection, core: int, is_realtime: bool) -> None:
    """Sleep for PERIOD_NS at a time on a core, until something is received; then send the stalls."""
    gc.disable()
    os.sched_setaffinity(0, {core})
    kind = ORDINARY
    if is_realtime:
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(os.sched_get_priority_max(os.SCHED_FIFO)))
            kind = REALTIME
    ends.send(kind)
    stalls: list[tuple[int, int]] = []
    due_ns = now_ns() + PERIOD_NS
    checked = 0
    while True:
        time.sleep(max(0, due_ns - now_ns()) / SECOND)
        woke_ns = now_ns()
        if woke_ns - due_ns >= LATE_NS and len(stalls) < STALLS_MAX:
            stalls.append((due_ns, woke_ns))
        due_ns = max(due_ns + PERIOD_NS, woke_ns)
        checked += 1
        if checked % 100 == 0 and ends.poll():
            break
    ends.send([Span(begin, end, end - begin, f"core {core}") for begin, end in stalls])


def _watch_threads(ends: Connection, pids: Sequence[int]) -> None:
    """Read every WAITS_PERIOD_NS how long the threads of some processes waited for a core."""
    gc.disable()
    ends.send(ORDINARY)
    files = [
        (
            f"{pid} {(task / 'comm').read_text().strip()} {task.name}",
            (task / "schedstat").open("rb", buffering=0),
        )
        for pid in pids
        for task in Path(f"/proc/{pid}/task").iterdir()
    ]
    spans: list[Span] = []
    before = [0] * len(files)
    read_ns = 0
    while not ends.poll():
        begin_ns, read_ns = read_ns, now_ns()
        for place, (where, file) in enumerate(files):
            try:
                file.seek(0)
                waited_ns = int(file.read().split()[1])
            except (OSError, IndexError):  # the thread has ended
                continue
            lost_ns, before[place] = waited_ns - before[place], waited_ns
            if begin_ns and lost_ns >= WAITED_NS and len(spans) < STALLS_MAX:
                # the kernel counts a wait when it has ended, which may have begun before the last reading
                spans.append(Span(min(begin_ns, read_ns - lost_ns), read_ns, lost_ns, where))
        time.sleep(max(0, read_ns + WAITS_PERIOD_NS - now_ns()) / SECOND)
    for _, file in files:
        file.close()
    ends.send(spans)


def processor_s() -> dict[str, float]:
    """Seconds that the cores of this machine spent so far, by use."""
    ticks = os.sysconf("SC_CLK_TCK")
    line = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, idle, iowait, irq, softirq, steal = (int(field) / ticks for field in line[:8])
    return {"busy": user + nice + system + irq + softirq, "idle": idle + iowait, "stolen": steal}


def pressure_s() -> float | None:
    """Seconds so far in which some process waited for a core; None: the kernel does not say."""
    try:
        text = Path("/proc/pressure/cpu").read_text()
    except OSError:
        return None
    return int(text.splitlines()[0].rpartition("total=")[2]) / 1e6


class Watch:
    """Stalls during a block; they are there when it has ended."""

    def __init__(self, pids: Sequence[int]) -> None:
        """pids: processes whose threads are watched, as they are at the beginning."""
        self._pids = pids
        self.machine = Spans([])  # the core stood still
        self.shared = Spans([])  # an ordinary process got the core late
        self.waits = Spans([])  # threads of the measured processes were ready, and waited
        self.facts: dict[str, Any] = {}

    def __enter__(self) -> Watch:
        context = multiprocessing.get_context("spawn")
        self._children: list[tuple[Any, Connection, str]] = []
        kinds = []
        wanted: list[tuple[Any, tuple[Any, ...], str]] = [(_watch_threads, (self._pids,), "waits")]
        for core in sorted(os.sched_getaffinity(0)):
            wanted += [
                (_watch_core, (core, True), "machine"), (_watch_core, (core, False), "shared")
            ]  # fmt: skip
        for function, arguments, name in wanted:
            ours, theirs = context.Pipe()
            child = context.Process(target=function, args=(theirs, *arguments), daemon=True)
            child.start()
            theirs.close()
            self._children.append((child, ours, name))
        for _, ends, name in self._children:
            kind = ends.recv()
            if name == "machine":
                kinds.append(kind)
        self._is_realtime = all(kind == REALTIME for kind in kinds)
        self._before, self._pressure_s, self._begun_ns = processor_s(), pressure_s(), now_ns()
        return self

    def __exit__(self, *error: object) -> None:
        seconds = (now_ns() - self._begun_ns) / SECOND
        after, pressure = processor_s(), pressure_s()
        found: dict[str, list[Span]] = {"machine": [], "shared": [], "waits": []}
        for child, ends, name in self._children:
            with contextlib.suppress(BrokenPipeError, EOFError):
                ends.send(None)
                found[name] += ends.recv()
            child.join()
        self.machine, self.shared, self.waits = (Spans(spans) for spans in found.values())
        self.facts = {
            "seconds": round(seconds, 1),
            "class of the processes that see the cores stand still": REALTIME
            if self._is_realtime
            else ORDINARY,
            **{f"processors, {use}, s": round(after[use] - self._before[use], 2) for use in after},
            "some process waited for a core, s": (
                None
                if pressure is None or self._pressure_s is None
                else round(pressure - self._pressure_s, 2)
            ),
            **dict(self._told("cores stood still", self.machine.spans)),
            **dict(self._told("an ordinary process got its core late", self.shared.spans)),
            **dict(self._told("threads measured waited for a core", self.waits.spans)),
        }

    @staticmethod
    def _told(title: str, spans: Sequence[Span]) -> Iterator[tuple[str, Any]]:
        lost_ms = np.array([span.lost_ns for span in spans]) / MS
        yield f"{title}, times of {LATE_NS / MS:g} ms and more", len(spans)
        yield f"{title}, ms in all", round(float(lost_ms.sum()), 1)
        yield f"{title}, longest ms", round(float(lost_ms.max(initial=0.0)), 1)
