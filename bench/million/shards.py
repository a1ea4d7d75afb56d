"""Simulation in shards: parts of a million requests, each with a seed, a file and a list of its own of the
requests outside of their SLO.

A shard is simulated once. If a request was refused or late, its beginning is simulated again with the flight
recorder, which changes nothing else, and the recording explains each of them.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.million import cases, recordings
from bench.paper.common import MS, SECOND
from clockwork.scheduler.recording import REASONS
from clockwork.sim import Report
from clockwork.sim._world import OUTCOME_NAMES
from clockwork.workloads import Arrivals, Workload

MINUTES_APART = 5
"""Minutes of the trace from the beginning of a shard to that of the next."""


SEQUENCE_SHIFT = 24
"""A simulated request's id has its number in the order of arrival, from 1, above so many bits."""

GOOD = OUTCOME_NAMES.index("good")
BAD = [OUTCOME_NAMES.index(name) for name in ("late", "refused", "missed", "failed", "unanswered")]


@dataclasses.dataclass(frozen=True)
class Shard:
    workload: str
    policy: str
    number: int
    rate: float
    requests: int  # expected number
    seed: int  # seed of the whole run
    explained: int  # requests that are explained; the others are listed with their fates

    @property
    def name(self) -> str:
        return f"{self.workload}-{self.policy}-{self.number:04d}"

    @property
    def own_seed(self) -> int:
        return self.seed * 100_000 + self.number

    @property
    def duration_ns(self) -> int:
        return int(self.requests / self.rate * SECOND)

    @property
    def minute(self) -> int:
        return self.number * MINUTES_APART % cases.MINUTES

    def arrivals(self) -> Workload:
        return cases.warmed(self.workload, self.rate, self.own_seed, self.minute, self.duration_ns)


class Seen:
    """The arrivals of a workload up to a time; those that were taken are kept as times and models."""

    def __init__(self, arrivals: Workload, until_ns: int = 1 << 62) -> None:
        self._arrivals, self._until_ns = arrivals, until_ns
        self._parts: list[tuple[Any, Any]] = []

    def __iter__(self) -> Iterator[Arrivals]:
        for chunk in self._arrivals:
            cut = int(chunk.t_ns.searchsorted(self._until_ns))
            if cut:
                part = chunk.part(0, cut)
                self._parts.append((part.t_ns, part.model))
                yield part
            if cut < len(chunk):
                return

    def arrays(self) -> tuple[Any, Any]:
        times, models = zip(*self._parts)
        return np.concatenate(times), np.concatenate(models)


def perform(shard: Shard, tick: Callable[[float], None] = lambda part: None) -> dict[str, Any]:
    """Simulate a shard. Returns its counts, and a row for each request outside of its SLO."""
    total_ns = cases.WARMUP_NS + shard.duration_ns
    seen = Seen(shard.arrivals())
    found = cases.run(
        shard.policy, seen, shard.duration_ns, shard.own_seed,
        fates=True, on_progress=lambda now_ns, _: tick(min(1.0, now_ns / total_ns)),
    )  # fmt: skip
    rows = outside(found, *seen.arrays())
    if rows and shard.explained:
        explain(shard, rows[: shard.explained])
    counts = {name: int(getattr(found.models, name).sum()) for name in ("offered", *OUTCOME_NAMES, "cold")}
    if len(rows) != int(found.models.bad.sum()):
        raise AssertionError(f"{len(rows)} fates outside of the SLO, {int(found.models.bad.sum())} counted")
    durations = found.errors["infer_duration"]
    return {
        **dataclasses.asdict(shard),
        "own_seed": shard.own_seed,
        "counts": counts,
        "outside": rows,
        "latency": found.latency.to_json()["buckets"],
        "largest_ns": found.latency.largest_ns,
        "over": durations.over.to_json()["buckets"],
        "under": durations.under.to_json()["buckets"],
        "executing": float(found.device_busy.mean()),
        "loading": float(found.link_busy.mean()),
        "loads": found.loads,
        "infers": found.infers,
        "too_late": found.too_late,
        "cpu_s": round(found.cpu_s, 3),
        "digest": found.digest,
    }


def outside(found: Report, t_ns: Any, model: Any) -> list[dict[str, Any]]:
    """A row for each counted request that was not answered in time, in the order of arrival."""
    fates = found.fates
    counted = t_ns[: len(fates)] >= cases.WARMUP_NS
    return [
        {
            "request": int(place) + 1,  # number in the order of arrival, warm-up included
            "at_s": round((int(t_ns[place]) - cases.WARMUP_NS) / SECOND, 6),
            "model": cases.models()[model[place]].name,
            "outcome": OUTCOME_NAMES[fates[place, 0]],
            "reason": str(REASONS[fates[place, 1]]),
            "device": int(fates[place, 2]),
            "after_ms": round(int(fates[place, 3]) / MS, 3),
        }
        for place in np.flatnonzero(np.isin(fates[:, 0], BAD) & counted)
    ]


def explain(shard: Shard, rows: list[dict[str, Any]]) -> None:
    """Add to each row the sentences of `clockwork explain`, from a second, recorded simulation."""
    last_ns = cases.WARMUP_NS + int(rows[-1]["at_s"] * SECOND) + cases.SLO_NS + 2 * recordings.AFTERWARDS_NS
    with tempfile.TemporaryDirectory(prefix="clockwork-million-") as directory:
        path = Path(directory) / "shard.rec"
        seen = Seen(shard.arrivals(), last_ns)
        cases.run(shard.policy, seen, shard.duration_ns, shard.own_seed, recording=path)
        said = recordings.explained(
            path, [row["request"] for row in rows], lambda request_id: request_id >> SEQUENCE_SHIFT
        )
    for row in rows:
        if row["request"] not in said:
            raise AssertionError(f"request {row['request']} of {shard.name} is not in its recording")
        found = said[row["request"]]
        if found.outcome != {"late": "answered", "unanswered": ""}.get(row["outcome"], row["outcome"]):
            raise AssertionError(
                f"request {row['request']} of {shard.name} was {found.outcome} when recorded"
            )
        row["said"] = [*found.sentences, *found.devices]
