"""How long an execution or a load will take, from what the last ones took.

Estimates belong to (program, input shape, batch, device kind): models of equal architecture teach
each other. Each batch size that was seen has a sliding window, seeded by the profile; the estimate
is its second largest sample, so that one outlier moves nothing and a real shift is followed as soon
as two samples show it. (The original takes 0.91 of the largest and 0.09 of the second: one outlier
then inflates every plan for ten actions.)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from clockwork.scheduler.types import ProfilePoint, ShapeKey

WINDOW = 10
"""Samples that an estimate looks back on."""

MARGIN_RATIO = 0.02
MARGIN_NS = 100_000
"""A plan counts max(MARGIN_RATIO of the estimate, MARGIN_NS) on top of each action: the gap between two
actions and what the estimate misses. It costs no throughput: the device is fed as it becomes free."""

RAISE_RATIO = 0.01
LOWER_RATIO = 0.03
"""An estimate is published, and the plans timed anew, when it rose or fell by more than this."""

BOUND_RATIO_MAX = 8
"""A shape with more than this many times the elements of the largest profiled one has no bound."""

BATCH_TABLE_MAX = 1024
"""Batches of more rows than this are taken to cost in proportion, and teach nothing."""

SHAPES_MAX = 1024
"""Shapes of one program with estimates of their own; the oldest unprofiled one is forgotten first."""


def robust(window: list[int]) -> int:
    """The second largest sample (the only one, if there is one)."""
    if len(window) < 2:
        return window[0]
    return sorted(window)[-2]


def with_margin(ns: int) -> int:
    return ns + max(int(ns * MARGIN_RATIO), MARGIN_NS)


class Curve:
    """Execution time over batch size, for one program, shape and device kind."""

    __slots__ = ("_planned", "_raw", "_seeds", "_windows", "profiled")

    def __init__(self) -> None:
        self._seeds: dict[int, int] = {}
        self._windows: dict[int, list[int]] = {}
        self._raw: list[int] = []  # by batch size, 0 unused; published values
        self._planned: list[int] = []
        self.profiled = False

    def seed(self, batch: int, ns: int) -> None:
        """A profile point. Measured windows are kept: they are fresher."""
        if 1 <= batch <= BATCH_TABLE_MAX and ns > 0:
            self._seeds[batch] = ns
            self.profiled = True
            self._raw, self._planned = [], []

    def exec_ns(self, batch: int) -> int:
        """The expected duration of a batch; monotone in ``batch``."""
        if batch >= len(self._raw):
            if batch > BATCH_TABLE_MAX:
                return self.exec_ns(BATCH_TABLE_MAX) * batch // BATCH_TABLE_MAX
            self._build(batch)
        return self._raw[batch]

    def planned_ns(self, batch: int) -> int:
        """exec_ns with the margin that a plan counts."""
        if batch >= len(self._planned):
            if batch > BATCH_TABLE_MAX:
                return with_margin(self.exec_ns(batch))
            self._build(batch)
        return self._planned[batch]

    def measure(self, batch: int, ns: int) -> bool:
        """One execution took this long. True if the published estimates changed."""
        if batch > BATCH_TABLE_MAX:
            return False
        window = self._windows.get(batch)
        if window is None:
            # The seed counts twice: one sample, high or low, is not yet believed against the profile.
            window = self._windows[batch] = []
            if batch in self._seeds:
                window += [self._seeds[batch]] * 2
            elif self._seeds:
                window += [self.exec_ns(batch)] * 2
        window.append(max(ns, 1))
        if len(window) > WINDOW:
            del window[0]
        if batch >= len(self._raw):
            self._build(batch)
            return True
        old, new = self._raw[batch], robust(window)
        if new > old * (1 + RAISE_RATIO) or new < old * (1 - LOWER_RATIO):
            self._build(len(self._raw) - 1)
            return True
        return False

    def _build(self, batch_max: int) -> None:
        """Publish values for batches up to ``batch_max`` and then some."""
        points = {batch: robust(window) for batch, window in self._windows.items() if window}
        # A seed that was never executed here drifts with its nearest measured neighbour.
        drifts = [
            (batch, points[batch] / self._seeds[batch]) for batch in sorted(points) if batch in self._seeds
        ]
        for batch, ns in self._seeds.items():
            if batch not in points:
                ratio = min(drifts, key=lambda one: abs(one[0] - batch))[1] if drifts else 1.0
                points[batch] = int(ns * ratio)
        if not points:
            raise ValueError("an estimate of something that was never measured")
        order = sorted(points)
        size = max(batch_max, order[-1] if order[-1] <= 256 else 0, 8)
        raw = [0] * (size + 1)
        for low, high in itertools.pairwise(order):
            span, rise = high - low, points[high] - points[low]
            for batch in range(low, min(high, size + 1)):
                raw[batch] = points[low] + rise * (batch - low) // span
        for batch in range(1, min(order[0], size + 1)):
            raw[batch] = points[order[0]]
        last = order[-1]
        for batch in range(last, size + 1):
            raw[batch] = points[last] * batch // last
        for batch in range(1, size + 1):
            raw[batch] = max(raw[batch], raw[batch - 1])
        self._raw = raw
        self._planned = [0, *(with_margin(ns) for ns in raw[1:])]

    @property
    def measured(self) -> bool:
        return bool(self._windows)


def element_count(shape: ShapeKey) -> int:
    """Elements of all inputs, for one row."""
    total = 0
    for dims in shape:
        count = 1
        for dim in dims:
            count *= dim
        total += count
    return max(total, 1)


class ProgramEstimates:
    """The curves of one program on one device kind, by shape."""

    __slots__ = ("curves",)

    def __init__(self) -> None:
        self.curves: dict[ShapeKey, Curve] = {}

    def seed(self, points: Iterable[ProfilePoint]) -> None:
        for point in points:
            curve = self.curves.get(point.shape)
            if curve is None:
                curve = self.curves[point.shape] = Curve()
            if not curve.measured:
                curve.seed(point.batch, point.exec_ns)

    def is_profiled(self, shape: ShapeKey) -> bool:
        return shape in self.curves

    def bound_ns(self, shape: ShapeKey, batch: int) -> int:
        """A conservative duration for a shape never seen, with margin; 0 if there is no ground for one.

        The largest known shape, times the square of how many more elements this one has (attention is
        quadratic), at least the reference itself.
        """
        reference, reference_count = None, 0
        for known, curve in self.curves.items():
            count = element_count(known)
            if count > reference_count:
                reference, reference_count = curve, count
        if reference is None:
            return 0
        ratio = max(element_count(shape) / reference_count, 1.0)
        if ratio > BOUND_RATIO_MAX:
            return 0
        return with_margin(int(reference.exec_ns(batch) * ratio * ratio))

    def measure(self, shape: ShapeKey, batch: int, ns: int) -> bool:
        """One execution took this long. True if published estimates changed."""
        curve = self.curves.get(shape)
        if curve is None:
            if len(self.curves) >= SHAPES_MAX:
                for known, old in self.curves.items():
                    if not old.profiled:
                        del self.curves[known]
                        break
                else:
                    return False
            curve = self.curves[shape] = Curve()
        return curve.measure(batch, ns)


class LoadEstimates:
    """Load times of one device kind: each model's own window once it was loaded, its profile before.

    What loads take against their profiles is kept for the kind as a whole (a ratio in thousandths), so
    that the first load of the hundredth model already knows that this machine is slower than it was.
    """

    __slots__ = ("_page_ns", "_ratios", "_windows")

    def __init__(self) -> None:
        self._windows: dict[int, list[int]] = {}
        self._ratios: list[int] = [1000, 1000]
        self._page_ns: list[int] = []

    def load_ns(self, model_id: int, seed_ns: int, page_count: int) -> int:
        """The expected duration of a load."""
        window = self._windows.get(model_id)
        if window is not None:
            return robust(window)
        if seed_ns > 0:
            return seed_ns * min(max(robust(self._ratios), 500), 4000) // 1000
        return robust(self._page_ns) * page_count if self._page_ns else 0

    def measure(self, model_id: int, seed_ns: int, page_count: int, ns: int) -> None:
        ns = max(ns, 1)
        window = self._windows.get(model_id)
        if window is None:
            seed = self.load_ns(model_id, seed_ns, page_count)
            window = self._windows[model_id] = [seed, seed] if seed else []
        _push(window, ns)
        if seed_ns > 0:
            _push(self._ratios, ns * 1000 // seed_ns)
        if page_count > 0:
            _push(self._page_ns, ns // page_count)

    def forget(self, model_id: int) -> None:
        self._windows.pop(model_id, None)


def _push(window: list[int], value: int) -> None:
    window.append(value)
    if len(window) > WINDOW:
        del window[0]


class Estimates:
    """Every estimate, by device kind."""

    __slots__ = ("_loads", "_programs")

    def __init__(self) -> None:
        self._programs: dict[tuple[str, str], ProgramEstimates] = {}
        self._loads: dict[str, LoadEstimates] = {}

    def program(self, program: str, kind: str) -> ProgramEstimates:
        estimates = self._programs.get((program, kind))
        if estimates is None:
            estimates = self._programs[program, kind] = ProgramEstimates()
        return estimates

    def loads(self, kind: str) -> LoadEstimates:
        estimates = self._loads.get(kind)
        if estimates is None:
            estimates = self._loads[kind] = LoadEstimates()
        return estimates
