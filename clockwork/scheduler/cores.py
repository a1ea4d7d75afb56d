"""The division of a machine's cores: how many executors of one core, and how many of several. Pure.

An execution of four threads ends sooner and takes more of the cores' time, so it is worth it where an SLO is
too short for one thread, or nearly. The obvious measure, how much the cores can execute (the fluid bound),
fails there: an execution of 28 ms for an SLO of 30 ms fits, but only on an executor that is free just then.
So a division is judged by the loss of a queue with deadlines, after Gnedenko and Kovalenko: n executors, each
of which serves an execution in T, lose of Poisson arrivals of load a = rate T the part

    E / ((1 - B) / B + (E - 1) / (a / n - 1) + E),   E = exp(2 (a - n) S / T)

B is Erlang's loss of n executors without a queue, and S the time that a request can wait: its SLO less its
execution. The factor 2 takes times as constant, whose queues are half as long as those of exponential times.
Requests that executors of one kind lose go to those of the other kind, as the scheduler sends a request
wherever it can be in time; the rates between the two are found by iteration. ``python -m bench.cores``
compares the choice with the simulation of every division.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from clockwork.config.cores import (
    DIVISION_DELAY_NS,
    DIVISION_GAIN,
    DIVISION_KEPT,
    DIVISION_MARGIN,
    DIVISION_PASSES,
    DIVISION_TIE,
    EXPONENT_MAX,
    LOSS_CHANGE_MIN,
)

SECOND = 1_000_000_000


def can_meet(times: Mapping[int, int], slo_ns: int) -> bool:
    """Whether an execution of any batch size can meet an SLO. times: ns by batch size. slo_ns: 0: none."""
    return not slo_ns or min(times.values()) <= slo_ns


@dataclasses.dataclass(frozen=True, slots=True)
class CoreLoad:
    """A model's load on a machine: its execution times, and what is asked of it."""

    name: str
    exec_ns: Mapping[int, Mapping[int, int]]  # number of threads -> batch size -> ns; at least {1: {1: ...}}
    slo_ns: int  # 0: none
    rate: float  # requests per second

    def meets(self, threads: int) -> bool:
        """Whether an execution of so many threads can meet the SLO."""
        times = self.exec_ns.get(threads)
        return times is not None and can_meet(times, self.slo_ns)


@dataclasses.dataclass(frozen=True, slots=True)
class Division:
    """Executors of one core, and executors of ``threads`` cores each."""

    narrow: int
    wide: int = 0
    threads: int = 0  # cores of a wide executor; 0: there is none

    @property
    def wide_cores(self) -> int:
        return self.wide * self.threads

    def __str__(self) -> str:
        wide = f" and {self.wide} of {self.threads} cores" if self.wide else ""
        return f"{self.narrow} of one core{wide}"


def divisions(cores: int, widths: Sequence[int]) -> Iterator[Division]:
    """Yield the divisions of so many cores, those with the fewest cores of wide executors first.

    No core is left over where executors of one core can have it.
    """
    found = [Division(cores)]
    for threads in sorted(set(widths)):
        if threads > 1:
            found += [
                Division(cores - wide * threads, wide, threads) for wide in range(1, cores // threads + 1)
            ]
    yield from sorted(found, key=lambda division: (division.wide_cores, division.threads))


def ranked(
    loads: Sequence[CoreLoad], cores: int, most_wide: int | None = None
) -> list[tuple[Division, float]]:
    """Return the divisions of so many cores that serve most of the models, with the goodput to expect, those
    with the fewest cores in wide executors first.

    most_wide: cores that wide executors may have; by default all.
    """
    if cores < 1:
        raise ValueError(f"a division of {cores} cores")
    limit = cores if most_wide is None else most_wide
    widths = {threads for load in loads for threads in load.exec_ns}
    able = [division for division in divisions(cores, sorted(widths)) if division.wide_cores <= limit]
    counts = [len(unserved_by(division, loads)) for division in able]
    return [
        (division, goodput_of(loads, division))
        for division, count in zip(able, counts)
        if count == min(counts)
    ]


def fewest_wide(found: Sequence[tuple[Division, float]]) -> Division:
    """Return the first of these divisions, ordered as ranked() does, whose goodput is as high as the highest:
    less than DIVISION_GAIN apart from one core each, and less than DIVISION_TIE from others."""
    best = max(goodput for _, goodput in found)
    return next(
        division
        for division, goodput in found
        if goodput * (DIVISION_TIE if division.wide_cores else DIVISION_GAIN) >= best
    )


def choose(
    loads: Sequence[CoreLoad], cores: int, most_wide: int | None = None, kept: Division | None = None
) -> Division:
    """Return the division of so many cores with the highest expected goodput.

    A division that serves more of the models comes before one with a higher goodput: a model that no executor
    serves fails for good. Of divisions whose goodput is as high it is the one with the fewest cores in wide
    executors; see fewest_wide(). most_wide: as of ranked(). kept: the division that there is, which stays
    unless another gains more than DIVISION_KEPT, so that it does not flap.
    """
    found = ranked(loads, cores, most_wide)
    goodputs = dict(found)
    if kept in goodputs and goodputs[kept] * DIVISION_KEPT >= max(goodputs.values()):
        return kept
    return fewest_wide(found)


def unserved_by(division: Division, loads: Sequence[CoreLoad]) -> list[str]:
    """Return the models whose SLO no executor of a division can meet."""
    kinds = [threads for threads, count in ((1, division.narrow), (division.threads, division.wide)) if count]
    return [load.name for load in loads if not any(load.meets(threads) for threads in kinds)]


def goodput_of(loads: Sequence[CoreLoad], division: Division) -> float:
    """Return the good answers per second to expect of a division."""
    asked = [load for load in loads if load.rate > 0]
    best = 0.0
    largest = max((batch for load in asked for times in load.exec_ns.values() for batch in times), default=1)
    batch = 1
    while batch <= largest:  # a queue that grows makes batches grow
        best = max(best, _goodput(asked, division, batch))
        batch *= 2
    return best


@dataclasses.dataclass(frozen=True, slots=True)
class _Service:
    """The service of a model by executors of a kind, in batches of a size that it reaches."""

    batch: int
    exec_ns: int
    slack_ns: int


def _goodput(loads: Sequence[CoreLoad], division: Division, batch: int) -> float:
    kinds = [(1, division.narrow), (division.threads, division.wide)]
    kinds = [(threads, count) for threads, count in kinds if count]
    services = [[_service(load, threads, batch) for load in loads] for threads, _ in kinds]
    first = [_first_kind(load, [row[place] for row in services], kinds) for place, load in enumerate(loads)]
    losses = [[0.0] * len(loads) for _ in kinds]
    change = 1.0
    for _ in range(DIVISION_PASSES):
        if change < LOSS_CHANGE_MIN:
            break
        change = 0.0
        for kind, (_, count) in enumerate(kinds):
            rates = [
                0.0
                if services[kind][place] is None
                else load.rate * (1.0 if first[place] == kind else losses[first[place]][place])
                for place, load in enumerate(loads)
            ]
            found = _losses(services[kind], rates, count)
            halfway = [(old + new) / 2 for old, new in zip(losses[kind], found)]  # else it may swing for ever
            change = max(change, *(abs(new - old) for old, new in zip(losses[kind], halfway)), 0.0)
            losses[kind] = halfway
    good = 0.0
    for place, load in enumerate(loads):
        if first[place] >= 0:
            lost = math.prod(
                losses[kind][place] for kind in range(len(kinds)) if services[kind][place] is not None
            )
            good += load.rate * (1 - lost)
    return good


def _service(load: CoreLoad, threads: int, batch_max: int) -> _Service | None:
    """Return the service of a model in the largest batches up to a size that its requests come together for;
    None: its SLO is too short."""
    if not load.meets(threads):
        return None
    slo_ns = load.slo_ns or SECOND
    found = None
    for batch, exec_ns in sorted(load.exec_ns[threads].items()):
        slack_ns = slo_ns - round(exec_ns * (1 + DIVISION_MARGIN)) - DIVISION_DELAY_NS
        if slack_ns < 0 or batch > batch_max:
            continue
        if found is None or (
            load.rate * slack_ns / SECOND >= batch - 1 and exec_ns * found.batch < found.exec_ns * batch
        ):
            found = _Service(batch, exec_ns, slack_ns)
    return found


def _first_kind(load: CoreLoad, services: Sequence[_Service | None], kinds: Sequence[tuple[int, int]]) -> int:
    """Return the kind of executors that costs a model the least time of cores; -1: none serves it."""
    costs = [
        (service.exec_ns * threads / service.batch, kind)
        for kind, (service, (threads, _)) in enumerate(zip(services, kinds))
        if service is not None
    ]
    return min(costs)[1] if costs else -1


def _losses(services: Sequence[_Service | None], rates: Sequence[float], count: int) -> list[float]:
    """Return the part of each model's requests that executors of a kind lose."""
    pairs = [(service, rate) for service, rate in zip(services, rates) if service is not None]
    executions = sum(rate / service.batch for service, rate in pairs)
    if executions <= 0:
        return [1.0 if service is None else 0.0 for service in services]
    load = sum(rate / service.batch * service.exec_ns / SECOND for service, rate in pairs)
    erlang, mean_s = erlang_loss(count, load), load / executions
    return [
        1.0 if service is None else deadline_loss(count, load, erlang, service.slack_ns / SECOND / mean_s)
        for service in services
    ]


def erlang_loss(executors: int, load: float) -> float:
    """Return Erlang's B: the part of arrivals that find all executors busy. load: work, in executors."""
    loss = 1.0
    for number in range(1, executors + 1):
        loss = load * loss / (number + load * loss)
    return loss


def deadline_loss(executors: int, load: float, erlang: float, slack: float) -> float:
    """Return the part that is lost of arrivals that can wait for ``slack``, in executions' times.

    erlang: erlang_loss() of the executors and the load.
    """
    if erlang <= 0:
        return 0.0
    beyond = load / executors - 1
    exponent = 2 * beyond * executors * slack
    if exponent > EXPONENT_MAX:
        return max(0.0, 1 - executors / load)
    grown = math.exp(exponent)
    waiting = 2 * executors * slack if abs(beyond) < 1e-9 else (grown - 1) / beyond
    return grown / ((1 - erlang) / erlang + waiting + grown)


__all__ = [
    "CoreLoad",
    "Division",
    "can_meet",
    "choose",
    "deadline_loss",
    "divisions",
    "erlang_loss",
    "fewest_wide",
    "goodput_of",
    "ranked",
    "unserved_by",
]
