"""The run of a seed, from its start to its judgement."""

from __future__ import annotations

import bisect
import dataclasses
import json
import os
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clockwork.errors import ClockworkError, Refused, Unavailable
from clockwork.system.clock import MS, SECOND, now_ns
from tests.catalogues import open_catalog
from tests.chaos import faults, oracle
from tests.chaos.load import Answers, LoadSettings
from tests.chaos.oracle import Breach, Rule, State
from tests.chaos.processes import World, shared_memory, usage
from tests.chaos.records import Change, Request, read
from tests.chaos.scenario import CLOCKS, DISKS, Kind, Scenario
from tests.chaos.template import Template
from tests.patience import eventually

WHOLE_S = 20.0
"""Time limit for the cluster until both workers serve every model again, processes restarted."""

CALM_S = 1.2
"""Duration of the load after each fault, once the cluster is whole: longer than oracle.SERVED_AGAIN_NS."""

GIVER_DESCRIPTORS = 8
"""Duration of the load after a worker was asked for a package: it sends the package over a connection of its
own."""

PRESSURE_S = 0.05

DESCRIPTORS_SETTLE_S = 3.0
DESCRIPTORS_MORE = 2
"""Descriptors that a process may hold in addition to those before its first client: some are opened once,
when needed."""

RATE = 60.0


@dataclasses.dataclass(slots=True)
class Report:
    """The report of a seed; written to a file as JSON."""

    seed: int
    faults: list[dict[str, Any]]
    outcomes: dict[str, int]
    changes: dict[str, int]
    breaches: list[list[str]]
    wall_s: float
    waited_s: float  # longest wait for a processor among the processes of the cluster
    logs: dict[str, str] = dataclasses.field(default_factory=dict)  # logs of a seed that failed


def run(
    scenario: Scenario, template: Template, root: Path, *, rate: float = RATE, kind: type[World] = World
) -> Report:
    begin_ns = now_ns()
    memory_before = shared_memory()
    world = kind(
        root / "world",
        template,
        preload=_clocks(root, root / "world") if scenario.kinds & CLOCKS else None,
        own_disks=bool(scenario.kinds & DISKS),
    )
    breaches: list[Breach] = []
    effects: list[faults.Effect] = []
    # The waits of the harness itself count as well, because it restarts processes and measures when it
    # noticed their ends; so do the load's, because it measures when its answers came.
    pressure = Pressure(
        lambda: [
            ("harness", os.getpid()),
            *(("load", program.pid) for program in list(world.others)),
            *((one.name, one.program.pid) for one in list(world.supervised)),
        ]
    )
    try:
        world.wait_until_whole()
        before = {one.program.pid: usage(one.program.pid) for one in world.supervised}
        load, records_path = _start_load(world, template, root, scenario.seed, rate)
        pause = threading.Event()
        for fault in scenario.faults:
            pause.wait(fault.after_ms / 1000)  # load before the fault
            effect = faults.apply(world, fault)
            effects.append(effect)
            try:
                world.wait_until_whole(WHOLE_S)
            except AssertionError:
                breaches.append(Breach(Rule.NOT_WHOLE, f"{fault.kind}: {_condition(world)}"))
                effect.due_ns = now_ns()
                break
            effect.whole_ns = now_ns()
            pause.wait(CALM_S)  # load during which everything must be right
        load.send(signal.SIGTERM)
        if load.wait(40.0) != 0:
            breaches.append(Breach(Rule.HARNESS, load.text[-2000:]))
        records = list(read(records_path))
        requests = [one for one in records if isinstance(one, Request)]
        changes = [one for one in records if isinstance(one, Change)]
        for effect in effects:
            if effect.fault.kind is Kind.HOLD_CLIENT_LINK:
                effect.detected_ns = oracle.noticed_by_client_ns(requests, effect, "linked")
        breaches += oracle.judge_detection(effects, pressure.waited_ns)
        breaches += oracle.judge_requests(requests, effects, pressure.waited_ns)
        may_be, contradictions = oracle.states(changes, template.churn)
        breaches += contradictions
        breaches += oracle.judge_states(may_be, _live_states(world, template), "in the cluster")
        breaches += _still_right(world, template)
        breaches += _descriptors(
            world, before, GIVER_DESCRIPTORS if Kind.FLIP_CATALOG in scenario.kinds else DESCRIPTORS_MORE
        )
        flipped = [effect.fault.target for effect in effects if effect.fault.kind is Kind.FLIP_WORKER_STORE]
        for index in dict.fromkeys(flipped):
            breaches += _right_alone(world, template, index)
        breaches += [Breach(Rule.LEFT, text) for text in world.stop()]
        breaches += oracle.judge_states(may_be, _kept_states(world, template), "on disk")
        breaches += [Breach(Rule.LEFT, f"on disk: {path}") for path in _temporary_files(world)]
        if left := shared_memory() - memory_before:
            breaches.append(Breach(Rule.LEFT, f"in shared memory: {', '.join(sorted(left))}"))
    finally:
        pressure.close()
        world.destroy()
    return Report(
        scenario.seed,
        [_told(effect, requests, pressure) for effect in effects],
        dict(Counter(f"{one.client} {'roomy' if one.roomy else 'tight'} {one.outcome}" for one in requests)),
        dict(Counter(f"{one.operation} {one.outcome}" for one in changes)),
        [[one.rule, one.text] for one in breaches],
        (now_ns() - begin_ns) / SECOND,
        pressure.waited_ns(begin_ns, now_ns()) / SECOND,
        {one.name: "\n--- started again\n".join(program.so_far[-4000:] for program in one.programs) for one in world.supervised}
        if breaches
        else {},
    )  # fmt: skip


def _told(effect: faults.Effect, requests: list[Request], pressure: Pressure) -> dict[str, Any]:
    """Return the report's entry for a fault."""
    origin_ns, recovered_ns = effect.detected_ns or effect.due_ns, oracle.recovered_ns(requests, effect)
    waited_ns = pressure.waited_ns(origin_ns, recovered_ns)
    return {
        "kind": effect.fault.kind,
        "target": effect.fault.target,
        "duration_ms": effect.fault.duration_ms,
        "note": effect.note,
        "skipped": effect.skipped,
        "how": effect.how,
        "detected_ms": (effect.detected_ns - effect.begin_ns) / MS if effect.detected_ns else None,
        "recovered_ms": (recovered_ns - origin_ns) / MS,
        "recovered_unhindered_ms": (recovered_ns - origin_ns - waited_ns) / MS,
        "whole_ms": (effect.whole_ns - effect.begin_ns) / MS if effect.whole_ns else None,
    }


def _start_load(world: World, template: Template, root: Path, seed: int, rate: float) -> tuple[Any, Path]:
    records = root / "records"
    settings = LoadSettings(
        world.endpoint, world.client_link.endpoint, world.gateway_address, str(template.answers), template.models,
        template.churn, str(records), seed, rate,
    )  # fmt: skip
    path = root / "load.json"
    path.write_text(json.dumps(dataclasses.asdict(settings)))
    load = world.program([str(path)], module="tests.chaos.load")
    load.wait_for("the load runs")
    return load, records


def _clocks(root: Path, world_root: Path) -> Any:
    """Return the environment with which a process has clocks that can be made to jump."""
    source, library = Path(__file__).parent / "clock_shim.c", root / "clock_shim.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"],
        check=True,
        capture_output=True,
    )
    world_root.mkdir(parents=True, exist_ok=True)

    def environment(name: str) -> dict[str, str]:
        file = world_root / f"clocks-{name}"
        file.write_bytes(bytes(16))
        return {"LD_PRELOAD": str(library), "CHAOS_CLOCKS": str(file)}

    return environment


def _condition(world: World) -> str:
    """Return why the cluster is not whole, by its own account."""
    try:
        workers = [worker["name"] for worker in world.client.status(timeout=2.0)["workers"]]
        models = {name: world.client.model(name, timeout=2.0).raw for name in world.template.models}
    except ClockworkError as error:
        return f"{type(error).__name__}: {error}"
    return f"workers {workers}, " + ", ".join(
        f"{name}: {raw['state']} {raw['workers']}" for name, raw in models.items()
    )


def _live_states(world: World, template: Template) -> dict[str, State]:
    found = {}
    for info in world.client.models():
        if info.name in template.churn:
            found[info.name] = State.UNLOADED if info.state == "unloaded" else State.SERVING
    return found


def _kept_states(world: World, template: Template) -> dict[str, State]:
    with open_catalog(world.root / "controller") as catalog:
        records, _ = catalog.records()
    return {
        record.name: State.SERVING if record.offered else State.UNLOADED
        for record in records
        if record.name in template.churn
    }


def _still_right(world: World, template: Template, patience_s: float = 0.0) -> Iterator[Breach]:
    """Ask every serving model again, without load. patience_s: how long a model may report itself
    unavailable."""
    answers = Answers(template.answers)
    serving = [name for name, state in _live_states(world, template).items() if state is State.SERVING]
    pause = threading.Event()
    for name in [*template.models, *serving]:
        for number in range(2):
            x: np.ndarray = answers.input(name, number)
            limit_ns = now_ns() + int(patience_s * SECOND)
            while True:
                try:
                    right = answers.right(name, number, world.client.infer(name, x, slo=10.0))
                except (Unavailable, Refused) as error:
                    if now_ns() < limit_ns:
                        pause.wait(0.05)
                        continue
                    yield Breach(Rule.LOST, f"{name} at the end: {type(error).__name__}: {error}")
                except ClockworkError as error:
                    yield Breach(Rule.LOST, f"{name} at the end: {type(error).__name__}: {error}")
                else:
                    if not right:
                        yield Breach(Rule.WRONG, f"{name} at the end")
                break


def _right_alone(world: World, template: Template, index: int) -> list[Breach]:
    """Ask a single worker for every model, while the others are down."""
    others = [worker for number, worker in enumerate(world.workers) if number != index]
    for worker in others:
        worker.hold()
        worker.end(signal.SIGTERM)
    eventually(lambda: len(world.client.status()["workers"]) == 1, "the others have left")
    # a worker prepares models again that it finds damaged
    breaches = list(_still_right(world, template, WHOLE_S))
    for worker in others:
        worker.release()
    eventually(lambda: len(world.client.status()["workers"]) == len(world.workers), "the others are back")
    return breaches


def _descriptors(world: World, before: dict[int, Any], more: int) -> Iterator[Breach]:
    """Check that processes which lived through the seed hold as much as before the load, give or take a few
    descriptors."""
    for one in world.supervised:
        pid = one.program.pid
        if (first := before.get(pid)) is None:
            continue

        def settled(pid: int = pid, most: int = first.descriptors + more) -> bool:
            used = usage(pid)
            return used is not None and used.descriptors <= most

        try:
            eventually(settled, one.name, DESCRIPTORS_SETTLE_S)
        except AssertionError:
            yield Breach(Rule.LEFT, f"{one.name} holds {usage(pid)}, and held {first} before the load")


def _temporary_files(world: World) -> list[str]:
    return [
        str(path.relative_to(world.root))
        for folder in ("controller", "worker-0", "worker-1")
        for path in (world.root / folder).rglob(".*")
        if path.name.startswith(".incoming-") or path.name.endswith(".tmp")
    ]


class Pressure:
    """How long the processes of a cluster were ready to run but waited for a processor, sampled from the
    kernel's account.

    Time that other programs of the machine took is not held against the cluster. Between two times the
    largest wait of a single process counts, all its threads together: the steps of a recovery mostly happen
    in one process after the other. Where the kernel keeps no account, nothing is subtracted.
    """

    def __init__(self, processes: Callable[[], Iterable[tuple[str, int]]]) -> None:
        """processes: (name, process id) of those that run; a restarted process keeps its name."""
        self._processes = processes
        self._at_ns: list[int] = []
        self._waits: list[dict[str, int]] = []  # waits so far of all processes of each name
        self._last: dict[int, tuple[str, int]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def waited_ns(self, begin_ns: int, end_ns: int) -> int:
        """Return the wait between two times, rounded inwards to samples."""
        first = bisect.bisect_left(self._at_ns, begin_ns)
        last = bisect.bisect_right(self._at_ns, end_ns) - 1
        if not 0 <= first < last:
            return 0
        before, after = self._waits[first], self._waits[last]
        return max((waited - before.get(name, 0) for name, waited in after.items()), default=0)

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(PRESSURE_S):
            for name, pid in self._processes():
                self._last[pid] = (name, max(_run_delay_ns(pid), self._last.get(pid, ("", 0))[1]))
            waits: dict[str, int] = {}
            for name, waited in self._last.values():
                waits[name] = waits.get(name, 0) + waited
            self._at_ns.append(now_ns())
            self._waits.append(waits)


def _run_delay_ns(pid: int) -> int:
    """Return how long the threads of a process have waited for a processor; 0 once it has ended."""
    total = 0
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            total += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):  # the process or a thread has ended meanwhile
        return 0
    return total


def write(report: Report, path: Path) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(dataclasses.asdict(report), indent=1))
    os.replace(temporary, path)
