"""Shrinks a random world to the smallest that still fails, and writes a test for it.

A world has requests, clients, models, devices and failures. Each is removed as long as the run still fails by
the same rule: requests by delta debugging (halves, then quarters, and so on), the others singly. The seed of
the simulator's own randomness stays.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from clockwork.config.workloads import SHRINK_RUNS_MAX
from clockwork.sim.random_world import RandomWorld
from clockwork.sim.world import Cluster
from clockwork.workloads import Arrivals

SIZES = ("devices", "devices_per_worker", "executors", "run_ahead", "page_bytes", "page_count")
"""Fields of a cluster that are no troubles."""

RecordRow = tuple[int, int, int, int]
"""A request: time (ns), index of the model, SLO (ns; 0: the model's), priority (0: the default)."""


@dataclasses.dataclass(frozen=True)
class Shrunk:
    """A world that failed, after shrinking."""

    policy: str
    world: RandomWorld
    sentence: str  # message of the world's failure
    runs: int  # number of simulations that shrinking took
    requests_before: int

    @property
    def requests(self) -> list[RecordRow]:
        return rows_of(self.world.arrivals)


def rule_of(sentence: str) -> str:
    """Return the rule that a message reports as broken: the message without numbers and brackets."""
    return re.sub(r"\d+", "n", re.sub(r"\s*\(.*?\)", "", sentence)).strip()


def rows_of(arrivals: Arrivals) -> list[RecordRow]:
    columns = (arrivals.t_ns, arrivals.model, arrivals.slo_ns, arrivals.priority)
    return [
        (int(t), int(model), int(slo), int(priority))
        for t, model, slo, priority in zip(*columns, strict=True)
    ]


def arrivals_of(rows: Sequence[RecordRow]) -> Arrivals:
    return Arrivals.of(*zip(*rows, strict=True)) if rows else Arrivals.of((), (), (), ())


def failure_of(world: RandomWorld, policy: str) -> str:
    """Return the message of a run's failure; "" if it does not fail."""
    try:
        world.run(policy)
    except AssertionError as error:
        return str(error) or type(error).__name__
    return ""


def shrink(world: RandomWorld, policy: str, runs_max: int = SHRINK_RUNS_MAX) -> Shrunk:
    """Return the smallest failing world that at most ``runs_max`` runs find. Raises ValueError if the world
    does not fail."""
    return _Shrinking(world, policy, runs_max).work()


class _Shrinking:
    def __init__(self, world: RandomWorld, policy: str, runs_max: int) -> None:
        self.world, self.policy = world, policy
        self.runs, self._runs_max = 1, runs_max
        self.sentence = failure_of(world, policy)
        if not self.sentence:
            raise ValueError(f"seed {world.seed} does not fail under {policy}")
        self._rule = rule_of(self.sentence)
        self._before = len(rows_of(world.arrivals))

    def work(self) -> Shrunk:
        steps: Sequence[Callable[[], bool]] = (
            self._stop_early, self._fewer_requests, self._begin_at_once, self._fewer_clients, self._fewer_models, self._fewer_devices,
            self._fewer_troubles, self._plainer_models,
        )  # fmt: skip
        while sum(step() for step in steps) > 0:  # a removal may make another possible
            if self.runs >= self._runs_max:
                break
        return Shrunk(self.policy, self.world, self.sentence, self.runs, self._before)

    def _try(self, **changes: Any) -> bool:
        """Keep a change if the world still fails by the same rule. Returns whether the change was kept."""
        if self.runs >= self._runs_max:
            return False
        self.runs += 1
        world = dataclasses.replace(self.world, **changes)
        try:
            sentence = failure_of(world, self.policy)
        except ValueError:  # the changed world is inconsistent
            return False
        if rule_of(sentence) != self._rule:
            return False
        self.world, self.sentence = world, sentence
        return True

    def _stop_early(self) -> bool:
        """Remove the arrivals after the failure."""
        found = re.search(r"at (\d+) ns", self.sentence)
        if found is None or int(found[1]) + 1 >= self.world.until_ns:
            return False
        until_ns = int(found[1]) + 1
        rows = [row for row in rows_of(self.world.arrivals) if row[0] < until_ns]
        return self._try(until_ns=until_ns, arrivals=arrivals_of(rows))

    def _fewer_requests(self) -> bool:
        rows, any_kept = rows_of(self.world.arrivals), False
        size = len(rows)
        while size >= 1:
            start = 0
            while start < len(rows):
                fewer = rows[:start] + rows[start + size :]
                if self._try(arrivals=arrivals_of(fewer)):
                    rows, any_kept = fewer, True
                else:
                    start += size
            size //= 2
        return any_kept

    def _begin_at_once(self) -> bool:
        rows = rows_of(self.world.arrivals)
        first = rows[0][0] if rows else 0
        shifted = [(at - first, model, slo, priority) for at, model, slo, priority in rows]
        return first > 0 and self._try(arrivals=arrivals_of(shifted), until_ns=self.world.until_ns - first)

    def _fewer_clients(self) -> bool:
        kept = False
        for place in reversed(range(len(self.world.closed))):
            closed = list(self.world.closed)
            clients = closed.pop(place)
            kept |= self._try(closed=closed)
            if len(closed) != len(self.world.closed) and clients.concurrency > 1:
                closed.insert(place, dataclasses.replace(clients, concurrency=1))
                kept |= self._try(closed=closed)
        return kept

    def _fewer_models(self) -> bool:
        """Remove models, with their requests and clients."""
        kept = False
        for place in reversed(range(len(self.world.models))):
            if len(self.world.models) == 1:
                break
            rows = [row for row in rows_of(self.world.arrivals) if row[1] != place]
            rows = [(at, model - (model > place), slo, priority) for at, model, slo, priority in rows]
            closed = [
                dataclasses.replace(clients, model=clients.model - (clients.model > place))
                for clients in self.world.closed
                if clients.model != place
            ]
            models = [model for index, model in enumerate(self.world.models) if index != place]
            kept |= self._try(models=models, arrivals=arrivals_of(rows), closed=closed)
        return kept

    def _fewer_devices(self) -> bool:
        kept = False
        for field in ("devices", "devices_per_worker", "executors", "run_ahead"):
            for count in range(1, getattr(self.world.cluster, field)):
                fewer: dict[str, Any] = {field: count}
                if self._try(cluster=dataclasses.replace(self.world.cluster, **fewer)):
                    kept = True
                    break
        return kept

    def _fewer_troubles(self) -> bool:
        """Set every option of the cluster to its default, failures included."""
        plain, kept = Cluster(), False
        for field in dataclasses.fields(Cluster):
            if field.name in SIZES:
                continue
            default = getattr(plain, field.name)
            if getattr(self.world.cluster, field.name) != default:
                kept |= self._try(cluster=dataclasses.replace(self.world.cluster, **{field.name: default}))
        return kept

    def _plainer_models(self) -> bool:
        """Remove batches, inputs and shared programs from models."""
        kept = False
        for place, model in enumerate(self.world.models):
            plainer: list[dict[str, Any]] = [
                {"exec_ns": {1: model.exec_ns[1]}},
                {"input_bytes": 0},
                {"program": ""},
            ]
            for change in plainer:
                now = self.world.models[place]
                if all(getattr(now, name) == value for name, value in change.items()):
                    continue
                models = list(self.world.models)
                models[place] = dataclasses.replace(now, **change)
                kept |= self._try(models=models)
        return kept


# ----- the test ----------------------------------------------------------------------------------


def as_test(shrunk: Shrunk) -> str:
    """Return the text of a test that fails as the world does, and passes after the defect is fixed."""
    world = shrunk.world
    kind = "calm" if world.calm else "disturbed"
    name = re.sub(r"\W+", "_", rule_of(shrunk.sentence).lower())[:60].strip("_")
    policy = re.sub(r"\W", "_", shrunk.policy)
    lines = [
        f"def test_{policy}_seed_{world.seed}_{kind}_{name}() -> None:",
        f'    """{_sentence(shrunk.sentence)}',
        "",
        f"    Shrunk from the {kind} world of seed {world.seed} under {shrunk.policy}:",
        f"    {len(shrunk.requests)} of {shrunk.requests_before} requests.",
        '    """',
        "    models = [",
        *(f"        {_call(model)}," for model in world.models),
        "    ]",
        f"    cluster = {_call(world.cluster)}",
    ]
    workloads = [_call(clients) for clients in world.closed]
    if shrunk.requests:
        lines += [
            "    requests = [  # at ns, model, SLO in ns, priority",
            *(
                f"        ({at:_}, {model}, {slo:_}, {priority}),"
                for at, model, slo, priority in shrunk.requests
            ),
            "    ]",
        ]
        workloads.insert(0, "Open([Arrivals.of(*zip(*requests, strict=True))])")
    lines += [
        "    simulate(",
        f"        models, cluster, [{', '.join(workloads)}], policy={shrunk.policy!r},",
        f"        seed={world.seed}, until_ns={world.until_ns:_}, drain_ns={world.DRAIN_NS:_}, check=True,",
        "    )",
    ]
    return "\n".join(lines) + "\n"


IMPORTS = """\
from clockwork.formats.profiles import ModelProfile
from clockwork.workloads import Arrivals
from clockwork.sim.world import Closed, Cluster, Open, simulate
"""
"""The imports that the test needs."""


def _sentence(text: str) -> str:
    return text.replace("\\", "/").replace('"""', "'''")


def _call(record: Any) -> str:
    """Return the constructor call of a dataclass, without fields at their defaults."""
    said = ", ".join(f"{name}={_value(value)}" for name, value in _differing(record))
    return f"{type(record).__name__}({said})"


def _differing(record: Any) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if value != field.default:
            yield field.name, value


def _value(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:_}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {number:_}" for key, number in value.items()) + "}"
    return repr(value)
