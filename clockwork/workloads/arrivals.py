"""Arrivals of requests, as chunks of arrays in order of time, and operations on streams of them.

A Workload can be iterated any number of times and yields the same arrivals each time, so that several
policies can run the same object. It is lazy: whatever its length, only a few chunks of it exist at once.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clockwork.config import PRIORITY_MAX
from clockwork.config.workloads import CHUNK_ARRIVALS, CLASSES_MAX, COLLECT_MAX
from clockwork.errors import ConfigError

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# types of the fields of Arrivals
COLUMN_TYPES: tuple[type[np.integer[Any]], ...] = (np.int64, np.int32, np.int64, np.uint8, np.uint8)


@dataclasses.dataclass(frozen=True, slots=True)
class Arrivals:
    """Arrivals in order of time: an array for each field, all of the same length."""

    t_ns: Int64s  # times since the start of the workload, ascending
    model: npt.NDArray[np.int32]  # index into the workload's models
    slo_ns: Int64s  # SLO of each request; 0: the model's own
    priority: npt.NDArray[np.uint8]  # level of each request; 0: the default
    cls: npt.NDArray[np.uint8]  # class in which each request is counted

    def __len__(self) -> int:
        return len(self.t_ns)

    def columns(self) -> tuple[npt.NDArray[Any], ...]:
        """Return the arrays, of COLUMN_TYPES."""
        return self.t_ns, self.model, self.slo_ns, self.priority, self.cls

    def part(self, begin: int, end: int) -> Arrivals:
        """Return views of the arrivals from one index to another."""
        return self.at(slice(begin, end))

    def at(self, where: slice | Int64s | npt.NDArray[np.bool_]) -> Arrivals:
        """Return the arrivals that an index array, a mask or a slice selects."""
        return Arrivals(*(column[where] for column in self.columns()))

    @staticmethod
    def of(
        t_ns: npt.ArrayLike,
        model: npt.ArrayLike,
        slo_ns: npt.ArrayLike = 0,
        priority: npt.ArrayLike = 0,
        cls: npt.ArrayLike = 0,
    ) -> Arrivals:
        """Return arrivals from arrays of equal length, or single values that hold for all. t_ns must be
        sorted."""
        times = np.asarray(t_ns, np.int64)
        if times.ndim != 1:
            raise ConfigError(f"t_ns has the shape {times.shape}: it must have one dimension")
        if len(times) and (times[0] < 0 or np.any(np.diff(times) < 0)):
            raise ConfigError("arrival times must not be negative nor fall")
        fields = []
        given = {"model": model, "slo_ns": slo_ns, "priority": priority, "cls": cls}
        for (name, value), dtype in zip(given.items(), COLUMN_TYPES[1:], strict=True):
            array = np.asarray(value)
            if array.shape not in ((), times.shape):
                raise ConfigError(
                    f"{name} has the shape {array.shape}: it must have that of t_ns, {times.shape}"
                )
            low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
            if low < 0 or high > np.iinfo(dtype).max:
                raise ConfigError(
                    f"{name} {low if low < 0 else high} is not between 0 and {np.iinfo(dtype).max}"
                )
            fields.append(np.broadcast_to(array.astype(dtype), times.shape))
        return Arrivals(times, *fields)

    @staticmethod
    def join(parts: Sequence[Arrivals]) -> Arrivals:
        """Concatenate the parts. No parts make empty arrays."""
        if not parts:
            return Arrivals.of([], [])
        if len(parts) == 1:
            return parts[0]
        return Arrivals(*map(np.concatenate, zip(*(part.columns() for part in parts), strict=True)))

    def chunks(self) -> Iterator[Arrivals]:
        """Yield the arrivals in parts of at most CHUNK_ARRIVALS."""
        for begin in range(0, len(self), CHUNK_ARRIVALS):
            yield self.part(begin, begin + CHUNK_ARRIVALS)


class Workload(abc.ABC):
    """Arrivals of all models in order of time; the same arrivals at every iteration."""

    duration_ns: int  # later than every arrival

    @abc.abstractmethod
    def __iter__(self) -> Iterator[Arrivals]:
        """Yield chunks of at most CHUNK_ARRIVALS. None is empty, and each begins at or after the end of the
        last."""

    def collect(self, limit: int = COLLECT_MAX) -> Arrivals:
        """Return all arrivals in a single set of arrays. Raises ConfigError if there are more than
        the limit."""
        parts: list[Arrivals] = []
        count = 0
        for part in self:
            parts.append(part)
            count += len(part)
            if count > limit:
                raise ConfigError(f"the workload has more than {limit} arrivals: too many to hold at once")
        return Arrivals.join(parts)


class Recorded(Workload):
    """A workload of given arrays."""

    def __init__(self, arrivals: Arrivals, duration_ns: int = 0) -> None:
        """duration_ns: 0 means just after the last arrival."""
        last = int(arrivals.t_ns[-1]) if len(arrivals) else 0
        self.duration_ns = duration_ns or last + 1
        if last >= self.duration_ns:
            raise ConfigError(f"the last arrival, at {last} ns, is not before the end, {duration_ns} ns")
        self._arrivals = arrivals

    def __iter__(self) -> Iterator[Arrivals]:
        return self._arrivals.chunks()


class merge(Workload):
    """Several workloads at once. Arrivals at the same time come in the order of the workloads."""

    def __init__(self, *workloads: Workload) -> None:
        if not workloads:
            raise ConfigError("merge needs at least one workload")
        self.duration_ns = max(workload.duration_ns for workload in workloads)
        self._workloads = workloads

    def __iter__(self) -> Iterator[Arrivals]:
        sources = [iter(workload) for workload in self._workloads]
        heads: list[Arrivals | None] = [next(source, None) for source in sources]
        while True:
            # Up to the earliest end of a head, no workload has further arrivals. Arrivals of later workloads
            # at exactly that time wait until the head's workload has shown whether it has more.
            ends = [(int(head.t_ns[-1]), index) for index, head in enumerate(heads) if head is not None]
            if not ends:
                return
            end_ns, first = min(ends)
            parts = []
            for index, head in enumerate(heads):
                if head is None:
                    continue
                cut = int(head.t_ns.searchsorted(end_ns, "right" if index <= first else "left"))
                parts.append(head.part(0, cut))
                rest: Arrivals | None = head.part(cut, len(head))
                heads[index] = rest if rest is not None and len(rest) else next(sources[index], None)
            joined = Arrivals.join([part for part in parts if len(part)])
            yield from joined.at(np.argsort(joined.t_ns, kind="stable")).chunks()


class scale(Workload):
    """A workload at ``factor`` times its rate: the same arrivals, in less (or more) time."""

    def __init__(self, workload: Workload, factor: float) -> None:
        if not 1e-6 <= factor <= 1e6:
            raise ConfigError(f"factor {factor:g} is not between 1e-6 and 1e6")
        self.duration_ns = max(1, round(workload.duration_ns / factor))
        self._workload, self._factor = workload, factor

    def __iter__(self) -> Iterator[Arrivals]:
        for chunk in self._workload:
            times = np.minimum((chunk.t_ns / self._factor).astype(np.int64), self.duration_ns - 1)
            yield dataclasses.replace(chunk, t_ns=times)


class window(Workload):
    """The arrivals of a workload from begin_ns until before end_ns, with begin_ns as the new time 0."""

    def __init__(self, workload: Workload, begin_ns: int, end_ns: int) -> None:
        if not 0 <= begin_ns < end_ns:
            raise ConfigError(
                f"window from {begin_ns} ns to {end_ns} ns: it must begin at 0 or later and then end"
            )
        self.duration_ns = end_ns - begin_ns
        self._workload, self._begin_ns, self._end_ns = workload, begin_ns, end_ns

    def __iter__(self) -> Iterator[Arrivals]:
        for chunk in self._workload:
            if chunk.t_ns[0] >= self._end_ns:
                return
            begin, end = chunk.t_ns.searchsorted((self._begin_ns, self._end_ns))
            if begin < end:
                inside = chunk.part(int(begin), int(end))
                yield dataclasses.replace(inside, t_ns=inside.t_ns - self._begin_ns)


class delayed(Workload):
    """A workload that begins later. With merge, it makes workloads follow each other."""

    def __init__(self, workload: Workload, by_ns: int) -> None:
        if by_ns < 0:
            raise ConfigError(f"delay {by_ns} ns is negative")
        self.duration_ns = workload.duration_ns + by_ns
        self._workload, self._by_ns = workload, by_ns

    def __iter__(self) -> Iterator[Arrivals]:
        for chunk in self._workload:
            yield dataclasses.replace(chunk, t_ns=chunk.t_ns + self._by_ns)


def rehearsed(part: Callable[[int], Workload], warmup_ns: int, window_ns: int) -> Workload:
    """Return a window after a warm-up that repeats the window's begin. part: returns the window's first ns
    nanoseconds."""
    window = delayed(part(window_ns), warmup_ns)
    return merge(part(warmup_ns), window) if warmup_ns else window


@dataclasses.dataclass(frozen=True, slots=True)
class Class:
    """A class of requests within a mix."""

    share: float = 1.0  # share of the mix, relative to the other shares
    slo_ns: int = 0  # SLO of the requests; 0: the model's own
    priority: int = 0  # level of the requests; 0: the default

    def check(self) -> None:
        if not 0 < self.share < 1e9:
            raise ConfigError(f"share {self.share:g} is not between 0 and 1e9")
        if self.slo_ns < 0:
            raise ConfigError(f"SLO {self.slo_ns} ns is negative")
        if not 0 <= self.priority <= PRIORITY_MAX:
            raise ConfigError(f"priority {self.priority} is not between 0 and {PRIORITY_MAX}")


class mixed(Workload):
    """A workload whose requests are randomly assigned to classes 0, 1, ...

    The class of a request depends on its time, its model and the seed alone, whatever else arrives.
    """

    def __init__(self, workload: Workload, classes: Sequence[Class], seed: int = 0) -> None:
        if not 1 <= len(classes) <= CLASSES_MAX:
            raise ConfigError(f"{len(classes)} classes: there must be 1 to {CLASSES_MAX}")
        for group in classes:
            group.check()
        self.duration_ns = workload.duration_ns
        self._workload, self._seed = workload, seed
        self._edges = _edges([group.share for group in classes])
        self._slo_ns = np.array([group.slo_ns for group in classes], np.int64)
        self._priority = np.array([group.priority for group in classes], np.uint8)

    def __iter__(self) -> Iterator[Arrivals]:
        for chunk in self._workload:
            cls = self._edges.searchsorted(uniform(self._seed, chunk.t_ns, chunk.model), "right")
            yield dataclasses.replace(
                chunk, slo_ns=self._slo_ns[cls], priority=self._priority[cls], cls=cls.astype(np.uint8)
            )


class chosen(Workload):
    """A process of arrivals whose requests are randomly assigned to models, in proportion to the shares."""

    def __init__(self, workload: Workload, shares: Sequence[float], seed: int = 0) -> None:
        if not shares or min(shares) < 0 or not 0 < sum(shares) < 1e18:
            raise ConfigError("shares must be one or more, none negative, and not all 0")
        self.duration_ns = workload.duration_ns
        self._workload, self._seed, self._edges = workload, seed, _edges(shares)

    def __iter__(self) -> Iterator[Arrivals]:
        for chunk in self._workload:
            model = self._edges.searchsorted(uniform(self._seed, chunk.t_ns, chunk.model), "right")
            yield dataclasses.replace(chunk, model=model.astype(np.int32))


class slo_steps(Workload):
    """A workload whose SLO changes at given times; each step is a class of its own."""

    def __init__(self, workload: Workload, steps: Sequence[tuple[int, int]]) -> None:
        """steps: (from_ns, slo_ns) in the order of time. The first must begin at 0."""
        if not 1 <= len(steps) <= CLASSES_MAX:
            raise ConfigError(f"{len(steps)} steps: there must be 1 to {CLASSES_MAX}")
        begins = [begin_ns for begin_ns, _ in steps]
        if begins[0] != 0 or begins != sorted(set(begins)):
            raise ConfigError(
                f"steps begin at {begins} ns: the first must at 0, each other later than the last"
            )
        self.duration_ns = workload.duration_ns
        self._workload = workload
        self._begins_ns = np.array(begins, np.int64)
        self._slo_ns = np.array([slo_ns for _, slo_ns in steps], np.int64)

    def __iter__(self) -> Iterator[Arrivals]:
        for chunk in self._workload:
            step = self._begins_ns.searchsorted(chunk.t_ns, "right") - 1
            yield dataclasses.replace(chunk, slo_ns=self._slo_ns[step], cls=step.astype(np.uint8))


def zipf(count: int, exponent: float) -> list[float]:
    """Return shares of ``count`` models that sum to 1, the i-th proportional to 1 / i ** exponent."""
    if count < 1 or not 0 <= exponent <= 10:
        raise ConfigError(f"zipf of {count} models with exponent {exponent:g}: 1 or more, and 0 to 10")
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return [float(weight) for weight in weights / weights.sum()]


def uniform(seed: int, t_ns: Int64s, model: npt.NDArray[np.int32]) -> Floats:
    """Return a number in [0, 1) for each arrival, which depends on the arrival and the seed alone."""
    state = t_ns.astype(np.uint64) + _mixed(model.astype(np.uint64) + np.uint64(seed % (1 << 32) << 32))
    return np.asarray((_mixed(state) >> np.uint64(11)) * (1.0 / (1 << 53)), np.float64)


def _mixed(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return SplitMix64's output function (Steele, Lea and Flood, OOPSLA 2014) of every element."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _edges(shares: Sequence[float]) -> Floats:
    """Return the boundaries between the shares when these are laid end to end and scaled to [0, 1]."""
    sums: Floats = np.cumsum(np.asarray(shares, np.float64))
    return np.asarray(sums[:-1] / sums[-1], np.float64)
