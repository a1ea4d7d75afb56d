"""Open-loop clients: a source of arrivals for each model, each with random numbers of its own.

A source is a renewal process in *operational time*, in which its mean gap is 1; its rate, which may change in
steps, is the speed at which that time passes. So a source at twice the rate has the same arrivals twice as
dense, a gap that spans a change of rate is carried over it, and the k-th arrival of a source depends on
nothing but the seed, its own number and its own rates: a further model does not shift the arrivals of the
others.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from clockwork.config.workloads import DURATION_MAX_NS, RATE_MAX, SOURCES_MAX, WINDOW_ARRIVALS, WINDOW_CELLS
from clockwork.errors import ConfigError
from clockwork.system.clock import SECOND
from clockwork.workloads.arrivals import Arrivals, Floats, Int64s, Workload

BLOCK_MIN, BLOCK_MAX = 16, 1 << 16
"""Bounds of the number of gaps that a source draws at a time. The number is about the need of four
windows."""


KEY_BITS = 62
"""Bits of the integer by which arrivals are sorted: their time within a window, then the number of their
source."""

Steps: TypeAlias = Iterable[tuple[int, float]]
"""(duration_ns, factor) of each step: the factor multiplies the rates for that duration."""


class Gaps(abc.ABC):
    """The distribution of a source's gaps; their mean is 1."""

    @abc.abstractmethod
    def first(self, rng: np.random.Generator, rate: float) -> float:
        """Return the time to the first arrival of a stationary source.

        With a whole gap here, bursty sources would all begin with a burst at time 0.
        """

    @abc.abstractmethod
    def draw(self, rng: np.random.Generator, rate: float, count: int) -> Floats:
        """Return the next gaps. They are the same, whether drawn at once or in several parts.

        rate: the source's, in requests per second.
        """


@dataclasses.dataclass(frozen=True, slots=True)
class Exponential(Gaps):
    """A Poisson process."""

    def first(self, rng: np.random.Generator, rate: float) -> float:
        return float(rng.standard_exponential())

    def draw(self, rng: np.random.Generator, rate: float, count: int) -> Floats:
        return rng.standard_exponential(count)


@dataclasses.dataclass(frozen=True, slots=True)
class Constant(Gaps):
    """Evenly spaced arrivals. Each source has a phase of its own."""

    def first(self, rng: np.random.Generator, rate: float) -> float:
        return float(rng.random())

    def draw(self, rng: np.random.Generator, rate: float, count: int) -> Floats:
        return np.ones(count)


@dataclasses.dataclass(frozen=True, slots=True)
class Gamma(Gaps):
    """Gamma gaps with a coefficient of variation: 1 is Poisson, higher is burstier, lower is more even."""

    cv: float

    def __post_init__(self) -> None:
        if not 0.01 <= self.cv <= 100:
            raise ConfigError(f"CV {self.cv:g} is not between 0.01 and 100")

    def first(self, rng: np.random.Generator, rate: float) -> float:
        # The gap that contains a random time is longer than usual: its density is that of a gap times its
        # length, which is a gamma with a shape larger by 1. The time is uniform within it.
        shape = self.cv**-2
        return float(rng.random() * rng.standard_gamma(shape + 1) / shape)

    def draw(self, rng: np.random.Generator, rate: float, count: int) -> Floats:
        shape = self.cv**-2
        return rng.standard_gamma(shape, count) / shape


@dataclasses.dataclass(frozen=True, slots=True)
class OnOff(Gaps):
    """Poisson bursts: on and off for exponentially distributed times. The mean rate is the source's.

    Such a process is a renewal process whose gaps are a mixture of two exponentials (Kuczura, "The
    interrupted Poisson process as an overflow process", 1973).
    """

    on_ns: int  # mean length of a burst
    off_ns: int  # mean time between bursts

    def __post_init__(self) -> None:
        if not (0 < self.on_ns < DURATION_MAX_NS and 0 < self.off_ns < DURATION_MAX_NS):
            raise ConfigError(f"bursts of {self.on_ns} ns every {self.off_ns} ns: both must be above 0")

    def _mixture(self, rate: float) -> tuple[float, float, float]:
        """Return (rate of the short gaps, rate of the long gaps, part of the short gaps) for a mean
        gap of 1."""
        burst = (self.on_ns + self.off_ns) / self.on_ns  # rate within a burst, for a mean rate of 1
        end, begin = SECOND / self.on_ns / rate, SECOND / self.off_ns / rate
        total = burst + end + begin
        root = math.sqrt(total * total - 4 * burst * begin)
        short = (total + root) / 2
        long = burst * begin / short  # (total - root) / 2 would lose precision
        return short, long, (burst - long) / (short - long)

    def first(self, rng: np.random.Generator, rate: float) -> float:
        short, long, part = self._mixture(rate)
        is_short = rng.random() < part / short  # the share of time in short gaps
        return float(rng.standard_exponential()) / (short if is_short else long)

    def draw(self, rng: np.random.Generator, rate: float, count: int) -> Floats:
        short, long, part = self._mixture(rate)
        # Two adjacent numbers for each gap, so that the result does not depend on how many are drawn at once.
        which, length = rng.random((count, 2)).T
        return np.asarray(-np.log1p(-length) * np.where(which < part, 1 / short, 1 / long), np.float64)


class _Source:
    """A client, with the operational times of its arrivals as far as gaps have been drawn."""

    __slots__ = ("_block", "_gaps", "_rate", "_rng", "_times")

    def __init__(self, seed: int, key: tuple[int, ...], gaps: Gaps, rate: float, block: int) -> None:
        self._rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))
        self._gaps, self._rate, self._block = gaps, rate, block
        self._times = np.array([gaps.first(self._rng, rate)])

    def ahead(self) -> float:
        """Return the time of the next arrival."""
        return float(self._times[0])

    def take(self, limit: float) -> Floats:
        """Remove and return the operational times of all arrivals before the limit."""
        times = self._times
        parts = []
        while times[-1] < limit:
            parts.append(times)
            gaps = self._gaps.draw(self._rng, self._rate, self._block)
            gaps[0] += times[-1]
            times = np.cumsum(gaps)
        cut = int(times.searchsorted(limit))
        self._times = times[cut:]
        parts.append(times[:cut])
        return np.concatenate(parts) if len(parts) > 1 else parts[0]


class _Sources:
    """All clients of a workload, which advance together."""

    def __init__(self, seed: int, stream: int, gaps: Gaps, rates: Floats, keys: Sequence[int]) -> None:
        """rates: requests per second of each client. keys: seed number of each client."""
        blocks = np.clip(4 * WINDOW_ARRIVALS * rates / max(float(rates.sum()), 1e-30), BLOCK_MIN, BLOCK_MAX)
        # A source of rate 0 never has an arrival, and OnOff has no distribution of gaps for it.
        self._all = [
            _Source(seed, (stream, key), gaps, float(rate), int(block)) if rate > 0 else None
            for key, rate, block in zip(keys, rates, blocks)
        ]
        self._ahead = np.array([math.inf if source is None else source.ahead() for source in self._all])
        self.passed = np.zeros(len(rates))  # operational time of each client

    def advance(self, gain: Floats) -> tuple[Int64s, Int64s, Floats]:
        """Advance operational time by ``gain``.

        Returns the sources with arrivals, their counts of arrivals, and the times of these since the last
        call.
        """
        limit = self.passed + gain
        active = np.flatnonzero(self._ahead < limit)
        parts = []
        for index in active.tolist():
            source = self._all[index]
            assert source is not None
            parts.append(source.take(float(limit[index])))
            self._ahead[index] = source.ahead()
        counts = np.array([len(part) for part in parts], np.int64)
        times = np.concatenate(parts) if parts else np.zeros(0)
        times -= np.repeat(self.passed[active], counts)
        self.passed = limit
        return active, counts, times


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """A time span in which every source has a constant rate."""

    duration_ns: int
    rates: Floats  # requests per second of each source


def windows(segments: Iterable[Segment], span_ns: int) -> Iterator[list[Segment]]:
    """Cut and group the segments so that about WINDOW_ARRIVALS are expected in each window."""
    found: list[Segment] = []
    width_ns, expected = 0, 0.0
    for segment in segments:
        left_ns, total = segment.duration_ns, float(segment.rates.sum())
        while left_ns:
            step_ns = min(left_ns, span_ns - width_ns)
            if total > 0:
                step_ns = min(step_ns, max(1, math.ceil((WINDOW_ARRIVALS - expected) / total * SECOND)))
            found.append(Segment(step_ns, segment.rates))
            left_ns -= step_ns
            width_ns += step_ns
            expected += total * step_ns / SECOND
            cells = (len(found) + 1) * len(segment.rates)
            if expected >= WINDOW_ARRIVALS or width_ns >= span_ns or cells > WINDOW_CELLS:
                yield found
                found, width_ns, expected = [], 0, 0.0
    if found:
        yield found


class OpenLoopClients(Workload):
    """Independent open-loop clients whose rates are constant within segments."""

    def __init__(
        self,
        models: npt.ArrayLike,
        gaps: Gaps,
        duration_ns: int,
        *,
        seed: int = 0,
        stream: int = 0,
        slo_ns: int = 0,
        priority: int = 0,
        cls: int = 0,
    ) -> None:
        """models: the model of each client's requests. stream: merged workloads should differ in seed or
        stream; otherwise client i of both has the same random numbers."""
        self._models = np.asarray(models, np.int32)
        if not 1 <= len(self._models) <= SOURCES_MAX:
            raise ConfigError(f"{len(self._models)} clients: there must be 1 to {SOURCES_MAX}")
        if not 0 < duration_ns <= DURATION_MAX_NS:
            raise ConfigError(f"duration {duration_ns} ns is not between 1 and {DURATION_MAX_NS}")
        if seed < 0 or stream < 0:
            raise ConfigError(f"seed {seed} and stream {stream} must not be negative")
        Arrivals.of([0], self._models[:1], slo_ns, priority, cls)  # raises if a value is out of bounds
        self.duration_ns = duration_ns
        self._gaps, self._seed, self._stream = gaps, seed, stream
        self._slo_ns, self._priority, self._cls = slo_ns, priority, cls

    @abc.abstractmethod
    def nominal(self) -> Floats:
        """Return the mean rate of each client in requests per second."""

    @abc.abstractmethod
    def segments(self) -> Iterator[Segment]:
        """Yield the rates, from time 0 to duration_ns."""

    def keys(self) -> Sequence[int]:
        """Return the seed number of each client."""
        return range(len(self._models))

    def sources(self) -> _Sources:
        return _Sources(self._seed, self._stream, self._gaps, self.nominal(), self.keys())

    def span_ns(self) -> int:
        """Return the longest window whose times can be sorted together with the sources' numbers."""
        return 1 << (KEY_BITS - len(self._models).bit_length())

    def __iter__(self) -> Iterator[Arrivals]:
        sources = self.sources()
        begin_ns = 0
        for window in windows(self.segments(), self.span_ns()):
            width_ns = sum(segment.duration_ns for segment in window)
            mass = np.stack([segment.rates * (segment.duration_ns / SECOND) for segment in window])
            active, counts, times = sources.advance(mass.sum(axis=0))
            if len(window) == 1:
                ns = times * np.repeat(SECOND / window[0].rates[active], counts)
            else:
                ns = self._through_steps(window, mass[:, active], counts, times)
            yield from self.sorted_chunks(begin_ns, width_ns, active, counts, ns)
            begin_ns += width_ns

    @staticmethod
    def _through_steps(window: list[Segment], mass: Floats, counts: Int64s, times: Floats) -> Floats:
        """Convert operational times to ns, both since the window's begin, by each client's own piecewise
        line.

        All lines are laid end to end, 1 apart, for a single interpolation.
        """
        steps, clients = mass.shape
        edges_ns = np.concatenate([[0], np.cumsum([segment.duration_ns for segment in window])]).astype(
            np.float64
        )
        reached = np.zeros((clients, steps + 1))
        np.cumsum(mass.T, axis=1, out=reached[:, 1:])
        offsets = np.concatenate([[0.0], np.cumsum(reached[:-1, -1] + 1.0)]) if clients else np.zeros(0)
        reached += offsets[:, None]
        if not clients:
            return times
        return np.interp(times + np.repeat(offsets, counts), reached.ravel(), np.tile(edges_ns, clients))

    def sorted_chunks(
        self, begin_ns: int, width_ns: int, active: Int64s, counts: Int64s, ns: Floats
    ) -> Iterator[Arrivals]:
        """Yield the arrivals of a window, in order of time, and at the same time in order of the client's
        number.

        ns: times since begin_ns, client by client. A single integer holds both time and number, because
        sorting plain integers is several times as fast as argsort, and equal integers are interchangeable.
        """
        bits = len(self._models).bit_length()
        keys = np.minimum(ns.astype(np.int64), width_ns - 1) << bits
        keys |= np.repeat(active, counts)
        keys.sort()
        t_ns = (keys >> bits) + begin_ns
        model = self._models[keys & ((1 << bits) - 1)]
        size = len(keys)
        slo_ns, priority = np.full(size, self._slo_ns, np.int64), np.full(size, self._priority, np.uint8)
        yield from Arrivals(t_ns, model, slo_ns, priority, np.full(size, self._cls, np.uint8)).chunks()


class renewal(OpenLoopClients):
    """A client for each model, at a rate that may change in steps."""

    def __init__(
        self,
        rates: Sequence[float] | Floats,
        gaps: Gaps,
        duration_ns: int,
        *,
        models: Sequence[int] | None = None,
        steps: Sequence[tuple[int, float]] = (),
        seed: int = 0,
        stream: int = 0,
        slo_ns: int = 0,
        priority: int = 0,
        cls: int = 0,
    ) -> None:
        """rates: requests per second of each client. models: index of each client's model (None: 0, 1, ...).
        steps: (duration_ns, factor of the rates), of which the last lasts to the end; see ramp() and
        pulses()."""
        self._rates = np.asarray(rates, np.float64)
        if self._rates.ndim != 1 or not np.all((self._rates >= 0) & (self._rates <= RATE_MAX)):
            raise ConfigError(f"rates must be a list of numbers between 0 and {RATE_MAX:g} per second")
        asked = np.arange(len(self._rates)) if models is None else np.asarray(models, np.int64)
        if asked.shape != self._rates.shape or (len(asked) and int(asked.min()) < 0):
            raise ConfigError(
                f"{len(asked)} models for {len(self._rates)} rates: one index, 0 or more, for each"
            )
        for step_ns, factor in steps:
            if step_ns <= 0 or not 0 <= factor <= 1e6:
                raise ConfigError(f"step of {step_ns} ns by a factor of {factor:g}: above 0, and 0 to 1e6")
        super().__init__(
            asked, gaps, duration_ns, seed=seed, stream=stream, slo_ns=slo_ns, priority=priority, cls=cls
        )
        self._steps = tuple(steps) or ((duration_ns, 1.0),)

    def nominal(self) -> Floats:
        return self._rates

    def keys(self) -> Sequence[int]:
        if len(np.unique(self._models)) == len(self._models):
            return [int(model) for model in self._models]
        return range(len(self._models))

    def segments(self) -> Iterator[Segment]:
        left_ns = self.duration_ns
        factor = 1.0
        for step_ns, factor in self._steps:
            if left_ns:
                used_ns = min(step_ns, left_ns)
                yield Segment(used_ns, self._rates * factor)
                left_ns -= used_ns
        if left_ns:
            yield Segment(left_ns, self._rates * factor)


def poisson(rates: Sequence[float] | Floats, duration_ns: int, **more: object) -> renewal:
    """Return Poisson clients. more: arguments of renewal()."""
    return renewal(rates, Exponential(), duration_ns, **more)  # type: ignore[arg-type]


def gamma(rates: Sequence[float] | Floats, cv: float, duration_ns: int, **more: object) -> renewal:
    """Return clients with gamma gaps. more: arguments of renewal()."""
    return renewal(rates, Gamma(cv), duration_ns, **more)  # type: ignore[arg-type]


def constant(rates: Sequence[float] | Floats, duration_ns: int, **more: object) -> renewal:
    """Return clients with even gaps. more: arguments of renewal()."""
    return renewal(rates, Constant(), duration_ns, **more)  # type: ignore[arg-type]


def on_off(
    rates: Sequence[float] | Floats, on_ns: int, off_ns: int, duration_ns: int, **more: object
) -> renewal:
    """Return clients with Poisson bursts of random lengths. Rates are means. more: arguments of renewal()."""
    return renewal(rates, OnOff(on_ns, off_ns), duration_ns, **more)  # type: ignore[arg-type]


def ramp(factor: float, every_ns: int, steps: int, first: float = 1.0) -> list[tuple[int, float]]:
    """Return steps for renewal() that each multiply the rates by ``factor``."""
    return [(every_ns, first * factor**index) for index in range(steps)]


def slo_ramp(first_ns: int, factor: float, every_ns: int, steps: int) -> list[tuple[int, int]]:
    """Return steps (from_ns, slo_ns) for slo_steps() that each multiply the SLO by ``factor``."""
    return [(index * every_ns, round(first_ns * factor**index)) for index in range(steps)]


def pulses(on_ns: int, off_ns: int, count: int, high: float, low: float = 0.0) -> list[tuple[int, float]]:
    """Return steps for renewal(), common to all clients: ``high`` for on_ns, then ``low`` for off_ns,
    ``count`` times."""
    return [step for _ in range(count) for step in ((on_ns, high), (off_ns, low))]


class bursty(renewal):
    """Poisson clients that alternate between burst_ns of activity and idle_ns of idleness, each with a phase
    of its own.

    Like BurstyPoissonOpenLoop of the original, its rates are those within a burst.
    """

    def __init__(
        self, rates: Sequence[float] | Floats, burst_ns: int, idle_ns: int, duration_ns: int, **more: object
    ) -> None:
        if burst_ns <= 0 or idle_ns < 0:
            raise ConfigError(f"bursts of {burst_ns} ns, idle for {idle_ns} ns: above 0, and 0 or more")
        super().__init__(rates, Exponential(), duration_ns, **more)  # type: ignore[arg-type]
        self._burst_ns, self._period_ns = burst_ns, burst_ns + idle_ns

    def _awake_ns(self, t_ns: Int64s) -> Int64s:
        """Return the part of the time from 0 to t_ns that lies in bursts of a client with phase 0."""
        periods, rest = np.divmod(t_ns, self._period_ns)
        return periods * self._burst_ns + np.minimum(rest, self._burst_ns)

    def __iter__(self) -> Iterator[Arrivals]:
        sources = self.sources()
        phase_ns = np.array([
            np.random.Generator(np.random.PCG64(np.random.SeedSequence(self._seed, spawn_key=(self._stream, key, 1))))
            .integers(self._period_ns)
            for key in self.keys()
        ], np.int64)  # fmt: skip
        begin_ns = 0
        for window in windows(self.segments(), self.span_ns()):
            for part in window:  # segment by segment, as the phases cut segments further
                awake_ns = self._awake_ns(phase_ns + begin_ns)
                gain_ns = self._awake_ns(phase_ns + begin_ns + part.duration_ns) - awake_ns
                active, counts, times = sources.advance(part.rates * (gain_ns / SECOND))
                # Times are computed as if clients were always active. Then the idle times are inserted.
                since = times * np.repeat(SECOND / part.rates[active], counts)
                awake = np.repeat(awake_ns[active], counts) + since.astype(np.int64)
                periods, rest = np.divmod(awake, self._burst_ns)
                ns = periods * self._period_ns + rest - np.repeat(phase_ns[active] + begin_ns, counts)
                yield from self.sorted_chunks(
                    begin_ns, part.duration_ns, active, counts, np.maximum(ns, 0).astype(np.float64)
                )
                begin_ns += part.duration_ns
