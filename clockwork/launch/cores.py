"""The division of this machine's cores between the workers of `clockwork up`: which is wanted, by what the
controller says of its models.

CoreDivider decides and is pure. CoreWatch asks the controller, on a thread of its own, and wakes the main
thread where there is something to do; clockwork.launch.local starts and ends the workers.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clockwork.config.launch import (
    CORES_ASKED_NS,
    DIVISION_JUDGED_NS,
    DIVISION_REFUSED_NS,
    DIVISION_SETTLED_NS,
    RATE_LEAST_NS,
    RATE_SAMPLES_MAX,
)
from clockwork.errors import ClockworkError
from clockwork.scheduler.cores import CoreLoad, Division, choose, unserved_by
from clockwork.system.clock import now_ns, to_seconds


@dataclasses.dataclass(frozen=True, slots=True)
class DividedCores:
    """The cores that are divided, and how."""

    cores: int  # those that execute
    narrow_least: int  # those of them that executors of one core keep
    flags: Callable[[Division], tuple[tuple[str, ...], ...]]  # flags of each worker of a division

    @property
    def threads_max(self) -> int:
        """The most threads that an execution can get."""
        return self.cores - self.narrow_least


PlanDivision = Callable[[Sequence[CoreLoad], int, int], Division]
"""Chooses a division for loads, cores, and the cores that wide executors may have at most."""


def simulated(loads: Sequence[CoreLoad], cores: int, most_wide: int) -> Division:
    """Return the best of the likeliest divisions, by simulation, which takes a few seconds at most."""
    from clockwork.sim.division import planned_for  # loaded where it is needed: few machines are divided anew

    return planned_for(loads, cores, most_wide)


class CoreDivider:
    """Decides on the division by the controller's answers to the query "cores".

    A model that no executor can serve in time changes the division at once. A gain changes it only when it
    has been there for DIVISION_SETTLED_NS. The present division stays while it is nearly as good: a change
    costs a start of workers.
    """

    def __init__(self, cores: int, narrow_least: int, plan: PlanDivision) -> None:
        """plan: chooses the division, once the present one is to be replaced."""
        self.present = Division(cores)
        self._cores = cores
        self._wide_most = cores - narrow_least
        # Numbers of requests by load, sampled for the rates of the last minute
        self._samples: collections.deque[tuple[int, dict[Any, int]]] = collections.deque(
            maxlen=RATE_SAMPLES_MAX
        )
        self._plan = plan
        self._judged_ns: int | None = None
        self._gain_since_ns: int | None = None  # since when another division would be better
        self._refused: dict[Division, int] = {}  # divisions that could not be, until when

    def read(self, body: Mapping[str, Any], now_ns: int) -> Division:
        """Return the division that is wanted after an answer to the query "cores"."""
        rows = [(_key(row), row) for row in body["loads"]]
        loads = [CoreLoad(str(row["name"]), _times(row), int(row["slo_ns"]), 0.0) for _, row in rows]
        lacking = unserved_by(self.present, loads)
        if self._judged_ns is not None and now_ns < self._judged_ns + DIVISION_JUDGED_NS and not lacking:
            return self.present
        self._judged_ns = now_ns
        self._samples.append((now_ns, {key: int(row["requests"]) for key, row in rows}))
        if not (self.present.wide or any(threads > 1 for load in loads for threads in load.exec_ns)):
            return self.present  # no model was slow enough to be timed with more threads
        loads = [dataclasses.replace(load, rate=self._rate(key)) for (key, _), load in zip(rows, loads)]
        found = choose(loads, self._cores, self._wide_most, self.present)
        if found == self.present or self._is_refused(found, now_ns):
            self._gain_since_ns = None
            return self.present
        serves_more = len(unserved_by(found, loads)) < len(lacking)
        if self._gain_since_ns is None:
            self._gain_since_ns = now_ns
        if not serves_more and now_ns < self._gain_since_ns + DIVISION_SETTLED_NS:
            return self.present
        division = self._plan(loads, self._cores, self._wide_most)
        if self._is_refused(division, now_ns):
            self._refused[found] = self._refused[division]
        elif division != self.present:
            return division
        self._gain_since_ns = None
        return self.present

    def became(self, division: Division) -> None:
        """Note the division that is there now. Rates are measured anew: others may be asked now."""
        self.present = division
        self._gain_since_ns = None
        self._samples.clear()

    def refuse(self, division: Division, now_ns: int) -> None:
        """Note that the workers of a division could not be started; it is not tried again for some time."""
        self._refused[division] = now_ns + DIVISION_REFUSED_NS

    def _is_refused(self, division: Division, now_ns: int) -> bool:
        self._refused = {other: until for other, until in self._refused.items() if now_ns < until}
        return division in self._refused

    def _rate(self, key: Any) -> float:
        """Return the requests per second of a load in the time of the samples; 0 while that is too short."""
        (first_ns, first), (last_ns, last) = self._samples[0], self._samples[-1]
        if last_ns - first_ns < RATE_LEAST_NS:
            return 0.0
        return max(0, last[key] - first.get(key, last[key])) / to_seconds(last_ns - first_ns)


def _key(row: Mapping[str, Any]) -> Any:
    """Return what identifies a load: its SLO and times, as its name is that of any of its models."""
    return row["slo_ns"], tuple(map(tuple, row["exec_ns"]))


def _times(row: Mapping[str, Any]) -> dict[int, dict[int, int]]:
    found: dict[int, dict[int, int]] = {}
    for threads, batch, ns in row["exec_ns"]:
        found.setdefault(int(threads), {})[int(batch)] = int(ns)
    return found


class CoreWatch:
    """Asks the controller for the loads of its models, on a thread, until close()."""

    def __init__(self, endpoint: str, keys: Any, divided: DividedCores) -> None:
        """endpoint: for clients; of several controllers, with commas. keys: an operator's, or None."""
        self._endpoint = endpoint
        self._keys = keys
        self._divider = CoreDivider(divided.cores, divided.narrow_least, simulated)
        self._deciding = threading.Lock()  # of the divider, whose decision may take a second
        self._lock = threading.Lock()  # of the fields below
        self._present = self._wanted = self._divider.present
        self._workers: Sequence[Mapping[str, Any]] = ()
        self._waiting: Sequence[Sequence[Any]] = ()
        self._follows = False
        self._ended = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="cw-cores", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Return a descriptor that can be read when there is something to do."""
        return self._wake

    def settle(self) -> None:
        """Take note of a wake-up."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    @property
    def present(self) -> Division:
        """The division that is there."""
        with self._lock:
            return self._present

    @property
    def wanted(self) -> Division:
        """The division that is wanted now."""
        with self._lock:
            return self._wanted

    @property
    def waiting(self) -> str:
        """The first model that waits for executions of more threads, for people; "" if none does."""
        with self._lock:
            return str(self._waiting[0][0]) if self._waiting else ""

    def follow(self, follows: bool) -> None:
        """Wake at each answer, and decide nothing. False: wake when another division is wanted."""
        with self._lock:
            self._follows = follows

    def have_joined(self, names: Sequence[str], is_whole: bool) -> bool:
        """Whether workers of these names have joined. is_whole: and have prepared all models."""
        with self._lock:
            there = {worker["name"]: worker for worker in self._workers if not worker["draining"]}
        return all(name in there and not (is_whole and there[name]["preparing"]) for name in names)

    def became(self, division: Division) -> None:
        """Note the division that is there now."""
        with self._deciding, self._lock:
            self._divider.became(division)
            self._present = self._wanted = division

    def refuse(self, division: Division) -> None:
        """Note that the workers of a division could not be started."""
        with self._deciding, self._lock:
            self._divider.refuse(division, now_ns())
            self._wanted = self._present

    def end(self) -> None:
        """Have the thread end after the call under way."""
        self._ended.set()

    def close(self) -> None:
        """End the thread, which takes up to the timeout of a call."""
        self.end()
        self._thread.join()
        os.close(self._wake)

    def _run(self) -> None:
        from clockwork.client.blocking import Client

        timeout = to_seconds(CORES_ASKED_NS)
        with Client(self._endpoint, keys=self._keys, name="up", timeout=timeout) as client:
            while not self._ended.wait(timeout):
                # A controller that starts, or has ended, is asked again.
                with contextlib.suppress(ClockworkError):
                    self._take(client.core_loads())

    def _take(self, body: Mapping[str, Any]) -> None:
        with self._lock:
            self._workers, self._waiting = body["workers"], body["waiting"]
            follows = self._follows
        if not follows:
            with self._deciding:
                wanted = self._divider.read(body, now_ns())
                with self._lock:
                    self._wanted = wanted
                    follows = wanted != self._present
        if follows:
            os.eventfd_write(self._wake, 1)
