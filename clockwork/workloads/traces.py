"""Traces of serverless functions, read or synthetic, and their replay as requests for models.

The format is that of the Azure Functions trace of 2019, a row for each function with its calls in each
minute of a day. The data set is Microsoft's AzurePublicDataset, under CC-BY; users of it cite Shahrad et al.,
"Serverless in the Wild: Characterizing and Optimizing the Serverless Workload at a Large Cloud Provider"
(USENIX ATC 2020). No part of it is in this repository: the constants of synthetic_trace() are statistics.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from clockwork.config.workloads import COUNT_MAX, MINUTES_MAX, RATE_MAX, SOURCES_MAX
from clockwork.errors import ConfigError
from clockwork.system.clock import SECOND
from clockwork.workloads.arrivals import Floats, Int64s
from clockwork.workloads.generators import Exponential, Gaps, OpenLoopClients, Segment

MINUTE_NS = 60 * SECOND
DAY_MINUTES = 1440
COUNT_DIGITS = len(str(COUNT_MAX))  # Digits of the largest count of calls of a function in a minute


IDS = ("hashowner", "hashapp", "hashfunction", "trigger")
"""Columns that name a row, in lower case. Their order is free, and only the function is required."""

MINUTE_COLUMN = re.compile(r"(?:minute_?)?([0-9]{1,5})", re.IGNORECASE)

Mapping: TypeAlias = Literal["original", "shuffled"]


@dataclasses.dataclass(frozen=True, slots=True)
class Trace:
    """Calls of functions in every minute."""

    counts: npt.NDArray[np.int32]  # array of (functions, minutes)
    names: tuple[str, ...]  # names of the functions

    def check(self) -> None:
        """Raise ConfigError for counts or names out of bounds."""
        functions, minutes = self.counts.shape
        if not 1 <= functions <= SOURCES_MAX:
            raise ConfigError(f"the trace has {functions} functions: there must be 1 to {SOURCES_MAX}")
        if not 1 <= minutes <= MINUTES_MAX:
            raise ConfigError(f"the trace has {minutes} minutes: there must be 1 to {MINUTES_MAX}")
        if len(self.names) != functions:
            raise ConfigError(f"the trace has {functions} functions and {len(self.names)} names")

    def totals(self) -> Int64s:
        """Return the calls of each function."""
        return np.asarray(self.counts.sum(axis=1, dtype=np.int64))

    def minutes(self) -> Int64s:
        """Return the calls in each minute."""
        return np.asarray(self.counts.sum(axis=0, dtype=np.int64))

    def scale(self, rate: float, begin: int = 0, minutes: int = 0) -> float:
        """Return how many requests each call must become for a mean of ``rate`` requests per second.

        The mean is taken over ``minutes`` minutes (0: all) from minute ``begin`` on."""
        calls = self.minutes()
        count = minutes or len(calls)
        return rate * 60 * count / float(calls[(begin + np.arange(count)) % len(calls)].sum())

    def busiest(self, part: float, begin: int = 0, minutes: int = 0) -> int:
        """Return the minute at which the busiest ``part`` minutes begin, within ``minutes`` minutes from
        ``begin`` on (0: all).

        If the part ends within a minute, that fraction of the minute's calls counts. Raises ConfigError.
        """
        if not part > 0:
            raise ConfigError(f"a part of {part:g} minutes of a trace: it must be longer than 0")
        calls = self.minutes()
        among = calls[(begin + np.arange(minutes or len(calls))) % len(calls)]
        # of each minute of the part
        inside = np.clip(min(part, len(among)) - np.arange(len(among)), 0.0, 1.0)
        sums = np.correlate(among.astype(np.float64), inside[inside > 0], "valid")
        return (begin + int(np.argmax(sums))) % len(calls)


def load_trace(*paths: Path) -> Trace:
    """Return the trace in a CSV file, or in several files that follow each other in time.

    The header names the columns: HashOwner, HashApp, HashFunction and Trigger in any order, followed by the
    minutes as 1, 2, ... (the public files) or minute_1, minute_2, ... (samples made of them). A function is
    the same in two files if all of its names are. A function that a file lacks makes no call in its time.
    Raises ConfigError with file, line and value.
    """
    if not paths:
        raise ConfigError("a trace needs at least one file")
    parts = [_read(path) for path in paths]
    if len(parts) == 1:
        names, counts = parts[0]
    else:
        places: dict[str, int] = {}
        for part_names, _ in parts:
            for name in part_names:
                places.setdefault(name, len(places))
        names = list(places)
        counts = np.zeros((len(names), sum(part.shape[1] for _, part in parts)), np.int32)
        begin = 0
        for part_names, part in parts:
            rows = [places[name] for name in part_names]
            counts[rows, begin : begin + part.shape[1]] = part
            begin += part.shape[1]
    trace = Trace(counts, tuple(names))
    trace.check()
    return trace


def _read(path: Path) -> tuple[list[str], npt.NDArray[np.int32]]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            header = next(rows, None)
            if header is None:
                raise ConfigError(f"{path} is empty")
            ids, first, minutes = _columns(path, header)
            names: list[str] = []
            counts: list[npt.NDArray[np.int32]] = []
            seen: dict[str, int] = {}
            for row in rows:
                where = f"{path}, line {rows.line_num}"
                if len(row) != first + minutes:
                    raise ConfigError(
                        f"{where} has {len(row)} columns where the header has {first + minutes}"
                    )
                name = "/".join(row[column] for column in ids)
                seen[name] = seen.get(name, 0) + 1  # rows of the same name are different functions
                names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
                counts.append(_counts(where, header[first:], row[first:]))
                if len(counts) > SOURCES_MAX:
                    raise ConfigError(f"{path} has more than {SOURCES_MAX} functions")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} is not a CSV file: {error}") from None
    if not counts:
        raise ConfigError(f"{path} has no function, only a header")
    return names, np.stack(counts)


def _columns(path: Path, header: Sequence[str]) -> tuple[list[int], int, int]:
    """Return (columns that name a row, first minute's column, number of minutes)."""
    found: dict[str, int] = {}
    first = 0
    while first < len(header) and not MINUTE_COLUMN.fullmatch(header[first].strip()):
        name = header[first].strip().lower()
        if name not in IDS or name in found:
            raise ConfigError(
                f"{path}: column {header[first]!r} is none of HashOwner, HashApp, HashFunction and Trigger, each once,"
                " nor a minute (1 or minute_1)"
            )
        found[name] = first
        first += 1
    if "hashfunction" not in found:
        raise ConfigError(f"{path} has no column HashFunction")
    minutes = len(header) - first
    if not 1 <= minutes <= MINUTES_MAX:
        raise ConfigError(f"{path} has {minutes} minutes: there must be 1 to {MINUTES_MAX}")
    for expected, name in enumerate(header[first:], 1):
        match = MINUTE_COLUMN.fullmatch(name.strip())
        if match is None or int(match[1]) != expected:
            raise ConfigError(f"{path}: column {name!r} where minute {expected} should be")
    return [found[name] for name in IDS if name in found], first, minutes


def _counts(where: str, titles: Sequence[str], fields: Sequence[str]) -> npt.NDArray[np.int32]:
    if _plain("".join(fields)) and "" not in fields and max(map(len, fields)) <= COUNT_DIGITS:
        values = np.array([int(field) for field in fields], np.int64)
        if values.max() <= COUNT_MAX:
            return values.astype(np.int32)
    for title, field in zip(titles, fields):
        if not (_plain(field) and len(field) <= COUNT_DIGITS and int(field) <= COUNT_MAX):
            raise ConfigError(f"{where}, minute {title}: {field!r} is not a count from 0 to {COUNT_MAX}")
    raise AssertionError(f"{where} is wrong as a whole but in no field")


def _plain(text: str) -> bool:
    """Return whether a text consists of ASCII digits. int() would also accept 1_0, spaces and digits of other
    scripts."""
    return text.isascii() and text.isdigit()


# ----- replay --------------------------------------------------------------------------------


class replay(OpenLoopClients):
    """A trace as requests: every function is a Poisson client whose mean gap follows its calls by the minute.

    Functions are sorted by their calls in the whole trace, most first (as the original does), or, if
    "shuffled", put in a random order. The i-th of T functions calls model M * i // T of M. With many more
    functions than models the first models get the hottest functions, unless they are shuffled. The trace is
    repeated at its end.
    """

    def __init__(
        self,
        trace: Trace,
        models: int,
        duration_ns: int,
        *,
        mapping: Mapping = "original",
        rate: float = 0.0,
        scale: float = 0.0,
        begin_minute: int = 0,
        minute_ns: int = MINUTE_NS,
        gaps: Gaps = Exponential(),  # noqa: B008 - it is frozen
        seed: int = 0,
        stream: int = 0,
        slo_ns: int = 0,
        priority: int = 0,
        cls: int = 0,
    ) -> None:
        """models: number of models. rate: mean requests per second over the duration; or scale: requests for
        each call. minute_ns: the time in which a minute of the trace is replayed."""
        trace.check()
        functions, minutes = trace.counts.shape
        if models < 1:
            raise ConfigError(f"{models} models: there must be at least 1")
        if (rate > 0) == (scale > 0) or not (0 <= rate <= RATE_MAX and 0 <= scale <= RATE_MAX):
            raise ConfigError(f"replay at rate {rate:g} and scale {scale:g}: one above 0, up to {RATE_MAX:g}")
        if not 0 <= begin_minute < minutes:
            raise ConfigError(f"begin_minute {begin_minute} is not between 0 and {minutes - 1}")
        if minute_ns < 1:
            raise ConfigError(f"minute_ns {minute_ns} is not above 0")
        if mapping not in ("original", "shuffled"):
            raise ConfigError(f"mapping {mapping!r} is neither 'original' nor 'shuffled'")
        if mapping == "original":
            order = np.argsort(-trace.totals(), kind="stable")
        else:
            key = np.random.SeedSequence(seed, spawn_key=(stream, SOURCES_MAX))
            order = np.random.Generator(np.random.PCG64(key)).permutation(functions)
        super().__init__(
            np.arange(functions, dtype=np.int64) * models // functions, gaps, duration_ns,
            seed=seed, stream=stream, slo_ns=slo_ns, priority=priority, cls=cls,
        )  # fmt: skip
        self._counts, self._order = trace.counts, order
        self._begin_minute, self._minute_ns = begin_minute, minute_ns
        calls = self._calls()
        if not calls.any():
            raise ConfigError("the trace has no call in the time that is replayed")
        self.scale = scale or rate * (duration_ns / SECOND) / float(calls.sum())
        """Requests for each call."""
        self._nominal = calls * (self.scale * SECOND / duration_ns)

    def _minutes(self) -> Iterator[tuple[int, int]]:
        """Yield (minute of the trace, duration of its replay), in order of time."""
        left_ns, minute = self.duration_ns, self._begin_minute
        while left_ns:
            used_ns = min(left_ns, self._minute_ns)
            yield minute, used_ns
            left_ns -= used_ns
            minute = (minute + 1) % self._counts.shape[1]

    def _calls(self) -> Floats:
        """Return the calls of each function in the replayed time, in the order of the clients."""
        shares = np.zeros(self._counts.shape[1])
        for minute, used_ns in self._minutes():
            shares[minute] += used_ns / self._minute_ns
        used = np.flatnonzero(shares)
        return np.asarray((self._counts[:, used] @ shares[used])[self._order], np.float64)

    def nominal(self) -> Floats:
        return self._nominal

    def segments(self) -> Iterator[Segment]:
        per_call = self.scale * SECOND / self._minute_ns
        for minute, used_ns in self._minutes():
            yield Segment(used_ns, self._counts[self._order, minute] * per_call)
