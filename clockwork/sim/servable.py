"""Tests whether a policy turns away requests that could have been served.

``python -m clockwork.sim.servable --worlds 1000`` makes a cluster of each seed whose devices and links are
less than half busy: memory for a twentieth to all of its models, arrivals with a coefficient of variation
from 1 to 8, and mixed SLOs from 1.2 times a load and an execution upward. Every request that a policy does
not answer in time gets a verdict, by the schedule that was executed and without any estimate of the policy:

- *servable*: the request fits into that schedule. A device that had the model was idle for long enough before
  the deadline; or a batch of the model had room; or a link and a device were idle for long enough to load and
  execute it, and its pages were free, or held by models that were not used meanwhile and could be loaded
  again before their next use. A request that has been fitted in is part of the schedule for the next ones.
- *impossible*: work that was under way when the request arrived, and cannot be interrupted, left no time on
  any device; or more requests of its model were due by its deadline than all devices could have executed,
  counting the loads that the links could have completed.
- *undecided*: neither is proven.

The proof of *servable* is constructive, so it may only miss some. It knows the future, which a policy does
not: which models are not used until their reload.

With ``--executors N`` as many devices share an arena: each cluster has N times the devices, and its memory.
"""

from __future__ import annotations

import argparse
import bisect
import collections
import dataclasses
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clockwork.formats.profiles import ModelProfile
from clockwork.observe.recorded import opened
from clockwork.scheduler.types import (
    ActionDone,
    AnswerFailed,
    AnswerOk,
    Arrived,
    Command,
    Event,
    ModelReady,
    Request,
    SendInfer,
    SendLoad,
    SendUnload,
    WorkerJoined,
)
from clockwork.sim.check import policy_name
from clockwork.sim.world import Cluster, Open, Report, simulate
from clockwork.wire.messages import NEVER_NS, Status
from clockwork.workloads import Arrivals, zipf

MS, SECOND = 1_000_000, 1_000_000_000

HELD = ("adaptive", "edf")
"""Policies that are judged by default."""

BUSY_JUDGED = 0.5
"""Largest part of the time in which the devices, or the links, of a judged world may be busy on average."""

REQUESTS = 2000
"""Requests of a world, on average."""

PAGE_BYTES = 1 << 20
MODELS = 400  # at most
LINK_NS = 50_000
EXEC_NOISE = 0.0003
LOAD_NOISE = 0.01
NOISE_SIGMAS = 4
"""A proof takes executions and loads this many sigmas longer, a refutation this many shorter."""

VERDICTS = ("servable", "impossible", "undecided")


# ----- worlds -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ServableWorld:
    """A cluster and its arrivals, made from a seed."""

    seed: int
    models: Sequence[ModelProfile]
    cluster: Cluster
    arrivals: Arrivals
    sentence: str

    def run(self, policy: str, recording: Path, memory: str = "") -> Report:
        """Simulate the world with a policy, and record its events and commands."""
        return simulate(
            self.models, self.cluster, [Open([self.arrivals])], policy=policy, memory=memory, seed=self.seed,
            resident=True, recording=recording,
        )  # fmt: skip


def servable_world(seed: int, executors: int = 1) -> ServableWorld:
    """Return the world of a seed. executors: devices that share an arena; they have its memory together."""
    rng = np.random.default_rng(seed)

    def choose(*values: float) -> float:
        return float(values[int(rng.integers(len(values)))])

    def spread(low: float, high: float) -> float:
        return math.exp(rng.uniform(math.log(low), math.log(high)))

    devices = int(choose(1, 2, 4, 8, 12, 24, 40))
    per_link = int(choose(*[count for count in (1, 2, 4, 8) if devices % count == 0])) * executors
    devices *= executors
    models = _models(rng, max(4, min(int(spread(2 * devices, 40 * devices)), MODELS)))
    pages = np.array([model.pages(PAGE_BYTES) for model in models])
    fits = spread(0.05, 1)
    # Below a handful of models a device cannot load one while it runs another.
    page_count = max(math.ceil(fits * int(pages.sum()) * executors / devices), 4 * int(pages.max()))
    cv = choose(1, 2, 4, 8)
    shares = np.array(zipf(len(models), choose(0, 0.5, 0.8, 1.0, 1.2)))
    executions = np.array([model.exec_ns[1] for model in models], np.float64)
    loads = np.array([model.load_ns for model in models], np.float64)
    busy = rng.uniform(0.05, 0.4)
    rate = busy * devices / float((shares * executions).sum())  # requests per ns
    # Each request for a model beyond the memory may need a load.
    popular = np.argsort(-shares, kind="stable")
    is_beyond = np.cumsum(pages[popular]) > page_count * (devices // executors)
    loading = float((shares * loads)[popular][is_beyond].sum())
    if loading > 0:
        rate = min(rate, busy * (devices // per_link) / loading)
    times, asked = _arrivals(rng, shares * rate, cv)
    classes = np.array(sorted({choose(1.2, 1.5, 2, 3, 5, 10, 30) for _ in range(int(rng.integers(1, 4)))}))
    least = loads + executions + 6 * LINK_NS
    slos = np.rint(least[asked] * classes[rng.integers(len(classes), size=len(asked))]).astype(np.int64)
    cluster = Cluster(
        devices=devices, devices_per_worker=per_link, executors=executors, page_bytes=PAGE_BYTES, page_count=page_count,
        exec_noise=EXEC_NOISE, load_noise=LOAD_NOISE, link_there_ns=LINK_NS, link_back_ns=LINK_NS,
    )  # fmt: skip
    sentence = (
        f"{devices} devices, {executors} of an arena, {per_link} on a link, {len(models)} models, memory for {fits:.2f}, cv {cv:g}, "
        f"SLO {'/'.join(f'{factor:g}' for factor in classes)} x least, busy {busy:.2f}"
    )
    arrivals = Arrivals.of(times, asked, slos, np.zeros(len(times)))
    return ServableWorld(seed, models, cluster, arrivals, sentence)


def _models(rng: np.random.Generator, count: int) -> list[ModelProfile]:
    curves = []
    for _ in range(int(rng.integers(1, 8))):
        first = math.exp(rng.uniform(math.log(0.5), math.log(12))) * MS
        row = first * rng.choice([0.05, 0.2, 0.5, 0.9, 1.0])
        curves.append({batch: round(first + row * (batch - 1)) for batch in (1, 2, 4, 8, 16)})
    models: list[ModelProfile] = []
    loads: dict[tuple[int, int], int] = {}
    for number in range(count):
        program, pages = int(rng.integers(len(curves))), int(rng.integers(1, 9))
        load_ns = round(pages * rng.uniform(0.3, 1.5) * MS)
        models.append(
            ModelProfile(
                # Models of one program and size load alike.
                f"m{number}", curves[program], pages * PAGE_BYTES, loads.setdefault((program, pages), load_ns),
                program=f"p{program}", slo_ns=SECOND,
            )
        )  # fmt: skip
    return models


def _arrivals(
    rng: np.random.Generator, rates: npt.NDArray[np.float64], cv: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Times and models of arrivals; each model's are a Gamma renewal process that began long before."""
    span = REQUESTS / float(rates.sum())
    shape = 1 / cv**2
    times, asked = [], []
    for number, rate in enumerate(rates):
        reached, found = -rng.uniform(0, 50 * cv) / rate, []
        while reached < span:
            found.append(reached + np.cumsum(rng.gamma(shape, 1 / (rate * shape), 256)))
            reached = float(found[-1][-1])
        at = np.concatenate(found)
        at = at[(at >= 0) & (at < span)]
        times.append(at)
        asked.append(np.full(len(at), number))
    t_ns = np.rint(np.concatenate(times)).astype(np.int64) + 1
    order = np.argsort(t_ns, kind="stable")
    return t_ns[order], np.concatenate(asked)[order]


# ----- the schedule that was executed ---------------------------------------------------------------


class Occupied:
    """Disjoint intervals of time, in order."""

    def __init__(self) -> None:
        self.begins: list[int] = []
        self.ends: list[int] = []

    def add(self, begin: int, end: int) -> None:
        place = bisect.bisect_left(self.begins, begin)
        self.begins.insert(place, begin)
        self.ends.insert(place, end)

    def gaps(self, low: int, high: int, length: int) -> Iterator[int]:
        """The begins of the idle intervals of at least this length within [low, high], in order."""
        place = bisect.bisect_right(self.ends, low)
        begin = low
        while begin + length <= high:
            until = self.begins[place] if place < len(self.begins) else high
            if min(until, high) - begin >= length:
                yield begin
            if place == len(self.begins):
                return
            begin = max(begin, self.ends[place])
            place += 1

    def under_way_until(self, time: int) -> int:
        """The end of the interval that began before this time and has not ended; otherwise the time."""
        place = bisect.bisect_left(self.begins, time) - 1
        return max(time, self.ends[place]) if place >= 0 else time

    def until(self, time: int) -> int:
        """The end of the interval that contains this time; otherwise the time itself."""
        place = bisect.bisect_right(self.begins, time) - 1
        return max(time, self.ends[place]) if place >= 0 else time


@dataclasses.dataclass
class ModelStay:
    """A model on a device, from its load to its unload."""

    model: int
    sent_ns: int  # the LOAD was sent, and its pages are taken
    ready_ns: int = NEVER_NS
    gone_ns: int = NEVER_NS
    uses: list[int] = dataclasses.field(default_factory=list)  # begins of executions, in order

    def next_use_ns(self, time: int) -> int:
        place = bisect.bisect_left(self.uses, time)
        return self.uses[place] if place < len(self.uses) else NEVER_NS

    def last_use_ns(self, time: int) -> int:
        place = bisect.bisect_left(self.uses, time)
        return self.uses[place - 1] if place > 0 else -NEVER_NS


@dataclasses.dataclass
class ExecutedBatch:
    """An execution. ``due_ns``: the least deadline of its requests."""

    model: int
    begin_ns: int
    end_ns: int
    due_ns: int
    rows: int


@dataclasses.dataclass
class ArenaTimeline:
    """An arena, the models in it, and its executors. Arenas of a worker have the same ``link``."""

    link: Occupied
    page_count: int
    stays: list[ModelStay] = dataclasses.field(default_factory=list)
    executors: list[DeviceTimeline] = dataclasses.field(default_factory=list)

    def is_running(self, stay: ModelStay, time: int) -> bool:
        """Whether an execution of the model may be under way at this time."""
        last_ns = max(stay.last_use_ns(time), 0)
        return any(executor.busy.until(last_ns) > time for executor in self.executors)


@dataclasses.dataclass
class DeviceTimeline:
    """A device: its executions, and the arena that it executes from."""

    arena: ArenaTimeline
    busy: Occupied = dataclasses.field(default_factory=Occupied)
    batches: list[ExecutedBatch] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class TurnedAway:
    """A request that was not answered in time, and the verdict on it."""

    request: Request
    at_ns: int
    reason: str
    verdict: str = "undecided"
    because: str = ""

    def __str__(self) -> str:
        request = self.request
        slo_ms = (request.deadline_ns - request.arrived_ns) / MS
        after_ms = (self.at_ns - request.arrived_ns) / MS
        return (
            f"request {request.id} for model {request.model_id} at {request.arrived_ns / SECOND:.6f} s, SLO "
            f"{slo_ms:.2f} ms, {self.reason} after {after_ms:.2f} ms: {self.verdict}; {self.because}"
        )


@dataclasses.dataclass(frozen=True)
class Eviction:
    """A model whose pages a load takes, and the time of its next load; NEVER_NS: it is not used again."""

    stay: ModelStay
    reload_ns: int


class ExecutedSchedule:
    """A recorded schedule, into which requests are fitted that were turned away."""

    def __init__(self, world: ServableWorld, recording: Path) -> None:
        self.turned: list[TurnedAway] = []
        self.offered = 0
        self._there_ns = world.cluster.link_there_ns
        self._back_ns = world.cluster.link_back_ns
        self._by_name = {model.name: model for model in world.models}
        self._profiles: dict[int, ModelProfile] = {}
        self._devices: dict[tuple[int, int], DeviceTimeline] = {}
        self._links: dict[int, Occupied] = {}
        self._requests: dict[int, Request] = {}
        self._by_model: dict[int, list[Request]] = collections.defaultdict(list)
        self._sent: dict[int, SendLoad | SendUnload | SendInfer] = {}
        self._stays: dict[tuple[int, int], ModelStay] = {}  # the last one, by arena and model
        with opened(recording) as (_, steps):
            for step in steps:
                for event in step.events:
                    self._follow(event)
                for command in step.commands:
                    self._obey(command, step.events[-1].now_ns)
        self.offered = len(self._requests)

    def _follow(self, event: Event) -> None:
        if isinstance(event, Arrived):
            self._requests[event.request.id] = event.request
            self._by_model[event.request.model_id].append(event.request)
        elif isinstance(event, WorkerJoined):
            link = self._links[event.worker] = Occupied()
            for index, (_, _, page_count, _, *owner) in enumerate(event.devices):
                if owner:
                    arena = self._devices[event.worker, owner[0]].arena
                else:
                    arena = ArenaTimeline(link, page_count)
                self._devices[event.worker, index] = DeviceTimeline(arena)
                arena.executors.append(self._devices[event.worker, index])
        elif isinstance(event, ModelReady):
            self._profiles[event.spec.model_id] = self._by_name[event.spec.name]
        elif isinstance(event, ActionDone):
            order = self._sent.pop(event.action_id)
            if event.status != Status.OK:
                return
            device = self._devices[order.worker, order.device]
            stay = self._stays[id(device.arena), order.model_id]
            if isinstance(order, SendInfer):
                parts = [self._requests[number] for number in order.requests]
                due_ns = min(part.deadline_ns for part in parts)
                rows = sum(part.rows for part in parts)
                device.busy.add(event.begin_ns, event.end_ns)
                device.batches.append(
                    ExecutedBatch(order.model_id, event.begin_ns, event.end_ns, due_ns, rows)
                )
                bisect.insort(stay.uses, event.begin_ns)  # executors of an arena end in any order
            elif isinstance(order, SendLoad):
                device.arena.link.add(event.begin_ns, event.end_ns)
                stay.ready_ns = event.end_ns

    def _obey(self, command: Command, now_ns: int) -> None:
        if isinstance(command, SendLoad | SendUnload | SendInfer):
            self._sent[command.action_id] = command
            arena = self._devices[command.worker, command.device].arena
            place = id(arena), command.model_id
            if isinstance(command, SendLoad):
                stay = self._stays[place] = ModelStay(command.model_id, now_ns)
                arena.stays.append(stay)
            elif isinstance(command, SendUnload):
                self._stays[place].gone_ns = now_ns
        elif isinstance(command, AnswerFailed):
            reason = str(command.reason or command.status.name)
            self.turned.append(TurnedAway(self._requests[command.request_id], now_ns, reason))
        elif isinstance(command, AnswerOk):
            request = self._requests[command.request_id]
            if now_ns > request.deadline_ns:
                self.turned.append(TurnedAway(request, now_ns, "late"))

    def judge(self) -> None:
        """Give each request that was turned away its verdict, in the order of their deadlines."""
        for turned in sorted(self.turned, key=lambda turned: turned.request.deadline_ns):
            if because := self._fit(turned.request):
                turned.verdict, turned.because = "servable", because
            elif because := self._refute(turned.request):
                turned.verdict, turned.because = "impossible", because

    # ----- servable -----------------------------------------------------------------------------

    @staticmethod
    def _most_execution_ns(profile: ModelProfile, rows: int) -> int:
        return math.ceil(profile.execution_ns(rows) * (1 + NOISE_SIGMAS * EXEC_NOISE))

    def _most_load_ns(self, model: int) -> int:
        return math.ceil(self._profiles[model].load_ns * (1 + NOISE_SIGMAS * LOAD_NOISE))

    def _pages(self, model: int) -> int:
        return self._profiles[model].pages(PAGE_BYTES)

    def _fit(self, request: Request) -> str:
        """Enter the request into the schedule, and return how it fits; "": it does not."""
        low, high = request.arrived_ns + self._there_ns, request.deadline_ns - self._back_ns
        took = self._most_execution_ns(self._profiles[request.model_id], 1)
        for name, device in self._devices.items():
            for stay in device.arena.stays:
                if stay.model != request.model_id or stay.gone_ns <= low or stay.ready_ns >= high:
                    continue
                for begin in device.busy.gaps(max(low, stay.ready_ns), min(high, stay.gone_ns), took):
                    device.busy.add(begin, begin + took)
                    bisect.insort(stay.uses, begin)
                    return f"device {name} had the model and was idle from {begin / SECOND:.6f} s on"
                if rows := self._join_batch(device, request, low, high):
                    return f"a batch of {rows} on device {name} had room"
        for name, device in self._devices.items():
            if self._load_and_run(device, request.model_id, low, high, took):
                return f"device {name} and its link were idle"
        return ""

    def _join_batch(self, device: DeviceTimeline, request: Request, low: int, high: int) -> int:
        """Make an executed batch larger by the request, and return its former size; 0: none has room."""
        profile = self._profiles[request.model_id]
        for batch in device.batches:
            if (
                batch.model != request.model_id
                or batch.begin_ns < low
                or batch.rows >= profile.largest_batch()
            ):
                continue
            longer = self._most_execution_ns(profile, batch.rows + 1) - profile.execution_ns(batch.rows)
            end = batch.end_ns + longer
            place = bisect.bisect_left(device.busy.begins, batch.begin_ns)
            is_free = place + 1 == len(device.busy.begins) or device.busy.begins[place + 1] >= end
            if end <= min(high, batch.due_ns - self._back_ns) and is_free:
                device.busy.ends[place] = batch.end_ns = end
                batch.rows += 1
                batch.due_ns = min(batch.due_ns, request.deadline_ns)
                return batch.rows - 1
        return 0

    def _load_and_run(self, device: DeviceTimeline, model: int, low: int, high: int, took: int) -> bool:
        """Enter a load of the model and an execution. False: there is no time, or there are no pages."""
        arena = device.arena
        if any(stay.model == model and stay.sent_ns < high and stay.gone_ns > low for stay in arena.stays):
            return False
        load = self._most_load_ns(model)
        for begin in arena.link.gaps(low, high - took, load):
            ready = begin + load
            # The controller sends the execution when it has the load's result.
            for start in device.busy.gaps(ready + self._back_ns + self._there_ns, high, took):
                evictions = self._make_room(arena, model, begin, start + took)
                if evictions is None:
                    break  # a later start needs the pages for longer
                arena.link.add(begin, ready)
                device.busy.add(start, start + took)
                for eviction in evictions:
                    if eviction.reload_ns < NEVER_NS:
                        reload = self._most_load_ns(eviction.stay.model)
                        arena.link.add(eviction.reload_ns, eviction.reload_ns + reload)
                arena.stays.append(ModelStay(model, begin, ready, start + took, [start]))
                return True
        return False

    def _make_room(self, arena: ArenaTimeline, model: int, begin: int, end: int) -> list[Eviction] | None:
        """Return the models to evict from begin to end, those used the latest first; None: too few."""
        stays = [stay for stay in arena.stays if stay.sent_ns < end and stay.gone_ns > begin]
        missing = self._pages(model) - arena.page_count + sum(self._pages(stay.model) for stay in stays)
        evictions: list[Eviction] = []
        reloads = Occupied()
        for stay in sorted(stays, key=lambda stay: -stay.next_use_ns(begin)):
            if missing <= 0:
                break
            next_ns = stay.next_use_ns(begin)
            if stay.ready_ns > begin or next_ns < end or arena.is_running(stay, begin):
                continue
            reload_ns = NEVER_NS
            if next_ns < NEVER_NS:
                load = self._most_load_ns(stay.model)
                # No reload overlaps another, nor the load that they make room for.
                first = max(end, begin + self._most_load_ns(model))
                reload_ns = next(
                    (at for at in arena.link.gaps(first, next_ns, load) if reloads.until(at) == at), NEVER_NS
                )
                if reload_ns == NEVER_NS or next(reloads.gaps(reload_ns, reload_ns + load, load), -1) < 0:
                    continue
                reloads.add(reload_ns, reload_ns + load)
            evictions.append(Eviction(stay, reload_ns))
            missing -= self._pages(stay.model)
        return evictions if missing <= 0 else None

    # ----- impossible ---------------------------------------------------------------------------

    def _refute(self, request: Request) -> str:
        """Why no schedule from the request's arrival on could have served it; "": nothing is proven."""
        low, high = request.arrived_ns + self._there_ns, request.deadline_ns - self._back_ns
        profile = self._profiles[request.model_id]
        took = profile.execution_ns(1) * (1 - NOISE_SIGMAS * EXEC_NOISE)
        if low + took > high:
            return "its SLO is shorter than an execution"
        if all(
            self._first_start_ns(device, request.model_id, low) + took > high
            for device in self._devices.values()
        ):
            return "work under way at its arrival left no time on any device"
        rival = [
            other for other in self._by_model[request.model_id] if other.deadline_ns <= request.deadline_ns
        ]
        for first in rival:
            if request.arrived_ns - 2 * (high - low) <= first.arrived_ns <= request.arrived_ns:
                due = sum(other.arrived_ns >= first.arrived_ns for other in rival)
                most = self._most_executed(request.model_id, first.arrived_ns + self._there_ns, high)
                if most < due:
                    return f"{due} requests of its model were due, of which at most {most} could be executed"
        return ""

    def _least_load_ns(self, model: int) -> float:
        return self._profiles[model].load_ns * (1 - NOISE_SIGMAS * LOAD_NOISE)

    def _is_there(self, device: DeviceTimeline, model: int, time: int) -> ModelStay | None:
        """The model's stay on the device, or its load under way, at this time."""
        return next(
            (
                stay
                for stay in device.arena.stays
                if stay.model == model and stay.sent_ns < time < stay.gone_ns
            ),
            None,
        )

    def _first_start_ns(self, device: DeviceTimeline, model: int, time: int) -> float:
        """When the device could begin to execute the model, with nothing but the work under way before it."""
        stay = self._is_there(device, model, time)
        if stay is not None:
            ready: float = max(time, stay.ready_ns)
        else:
            ready = device.arena.link.under_way_until(time) + self._least_load_ns(model)
        return max(ready, device.busy.under_way_until(time))

    def _most_executed(self, model: int, time: int, high: int) -> int:
        """An upper bound of the model's requests that all devices could execute from time to high."""
        profile = self._profiles[model]
        sizes = range(1, profile.largest_batch() + 1)
        cost = min(profile.execution_ns(size) / size for size in sizes) * (1 - NOISE_SIGMAS * EXEC_NOISE)
        most = 0
        for link in self._links.values():
            behind = [device for device in self._devices.values() if device.arena.link is link]
            cold = []
            for device in behind:
                if self._is_there(device, model, time) is not None:
                    most += int(max(0.0, high - self._first_start_ns(device, model, time)) / cost)
                else:
                    cold.append(device.busy.under_way_until(time))
            # A load serves all executors of an arena: at best those that are free first have the same one.
            width = max(len(device.arena.executors) for device in behind)
            begun = link.under_way_until(time)
            for place, free in enumerate(sorted(cold)):
                loaded = begun + (place // width + 1) * self._least_load_ns(model)
                most += int(max(0.0, high - max(loaded, free)) / cost)
        return most


# ----- verdicts -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class WorldVerdict:
    """The requests of a world that a policy turned away."""

    seed: int
    policy: str
    offered: int
    busy: float  # part of the devices' time
    link_busy: float
    turned: Sequence[TurnedAway]
    sentence: str

    def count(self, verdict: str) -> int:
        return sum(turned.verdict == verdict for turned in self.turned)

    def __str__(self) -> str:
        counts = ", ".join(f"{verdict} {self.count(verdict)}" for verdict in VERDICTS)
        return (
            f"{self.policy}, seed {self.seed}: of {self.offered} requests {counts}; devices {self.busy:.2f} "
            f"and links {self.link_busy:.2f} busy; {self.sentence}"
        )


def judge(world: ServableWorld, policy: str, memory: str = "") -> WorldVerdict:
    """Run a world with a policy, and judge all requests that it turned away."""
    with tempfile.TemporaryDirectory() as folder:
        recording = Path(folder, "world.rec")
        report = world.run(policy, recording, memory)
        schedule = ExecutedSchedule(world, recording)
    schedule.judge()
    busy, link_busy = float(report.device_busy.mean()), float(report.link_busy.mean())
    return WorldVerdict(
        world.seed, policy, schedule.offered, busy, link_busy, schedule.turned, world.sentence
    )


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m clockwork.sim.servable",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--worlds", type=int, default=100, help="how many seeds (default 100)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--executors", type=int, default=1, help="devices that share an arena (default 1)")
    parser.add_argument(
        "--policy", type=policy_name, action="append", help=f"only these (default: {' and '.join(HELD)})"
    )
    parser.add_argument("--memory", default="", help="memory rules, where the policy has a choice")
    parser.add_argument(
        "--verbose", action="store_true", help="list the requests, but for the impossible ones"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    totals: dict[str, collections.Counter[str]] = {}
    for seed in range(arguments.first, arguments.first + arguments.worlds):
        world = servable_world(seed, arguments.executors)
        verdicts = [judge(world, policy, arguments.memory) for policy in arguments.policy or HELD]
        is_busy = any(max(verdict.busy, verdict.link_busy) > BUSY_JUDGED for verdict in verdicts)
        for verdict in verdicts:
            total = totals.setdefault(verdict.policy, collections.Counter())
            if is_busy:
                total["left_out"] += 1
                continue
            total.update({"worlds": 1, "offered": verdict.offered})
            total.update({name: verdict.count(name) for name in VERDICTS})
            if verdict.turned and not arguments.json:
                print(verdict, flush=True)
                if arguments.verbose:
                    for turned in verdict.turned:
                        if turned.verdict != "impossible":
                            print(f"    {turned}")
    rows = [{"policy": policy, **total} for policy, total in totals.items()]
    if arguments.json:
        print(json.dumps({"rows": rows}))
    else:
        for row in rows:
            print(", ".join(f"{name} {value}" for name, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
