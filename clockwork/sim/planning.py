"""Capacity planning: the devices that a load needs, the load or SLO that devices hold, and the bottleneck.

A question is answered by simulation: a trial runs the same models and policy on several seeds of a workload
and counts bad answers, among all requests and in groups. So a rate does not hold if every tenth model is
always refused, however rarely it is requested. The answer is found by bisection between a trial that passes
and one that does not, beginning at the fluid bound. At the trial that just fails, each resource in turn is
doubled: the resource whose doubling helps most is the bottleneck.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clockwork.config import POLICY
from clockwork.config import workloads as bounds
from clockwork.errors import ConfigError
from clockwork.formats.profiles import ModelProfile
from clockwork.scheduler import make_scheduler
from clockwork.sim import fluid
from clockwork.sim.world import Cluster, Histogram, Open, Report, simulate
from clockwork.system.words import say_count
from clockwork.workloads import Workload, rehearsed

SECOND = 1_000_000_000

GROUP_BAD_FACTOR = 2.0
"""Default factor by which the bad part of a group may exceed the bad part of all requests."""

GROUPS = 10  # Groups of models by popularity, and by SLO if there are more SLOs than this number
REQUESTS = 20_000  # Counted requests of a trial over all seeds, if bad_max does not need more

BAD_SEEN = 3
"""Expected bad requests of a trial at the limit. A trial without any is then below the limit with 95 %
confidence."""

WARM_UP_SLOS = 5  # Shortest warm-up as a multiple of the longest SLO
REFILLS = 2  # Number of times that the whole memory can be loaded during the warm-up, if not all models fit
WINDOW_SLOS = 20  # Shortest counted time as a multiple of the longest SLO
RATE_TOLERANCE = 1.02
SLO_TOLERANCE = 1.03
DEVICES_GROWTH = 1.25  # Factor by which the number of devices grows (by 1 at least) until it suffices
BEYOND = 1.1  # Factor by which the load grows until a trial fails, if the search itself met no failing trial
FLUID_ARRIVALS = 2_000_000  # Number of arrivals from which the fluid bound takes each model's share

RESOURCES = ("execution", "loading", "memory", "link")
"""Possible bottlenecks: device time, copies of weights to devices, pages, and the network with input
copies."""

MakeWorkload = Callable[[float, int, int], Workload]
"""Returns the arrivals at a rate (requests per second), for a duration in ns, with a seed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Scenario:
    """A question to the planner. The field whose value is sought is ignored."""

    models: Sequence[ModelProfile]
    make_workload: MakeWorkload
    cluster: Cluster  # a cluster whose devices `devices` ignores
    rate: float  # requests per second, of all models; ignored by `rate`
    # rate of the counted time in multiples of `rate`: not 1 if the counted time is a busier part of a whole
    crowding: float = 1.0
    slo_ns: int = 0  # SLO of every request; 0: each model's own
    bad_max: float = bounds.BAD_MAX
    # largest bad part of a group's requests; 0: GROUP_BAD_FACTOR times bad_max; 1: no limit
    group_bad_max: float = 0.0
    policy: str = POLICY
    memory: str = ""
    options: Mapping[str, float] = dataclasses.field(default_factory=dict)
    seeds: Sequence[int] = (1, 2, 3)
    requests: int = 0  # counted requests over all seeds; 0: enough for bad_max
    duration_ns: int = 0  # counted time of each seed; 0: derived from the number of requests
    warmup_ns: int = -1  # uncounted time at the beginning; -1: derived from the time that loading takes
    rehearsed: bool = False  # whether the warm-up repeats the beginning of the counted time

    def check(self) -> None:
        """Raise ConfigError for a value out of bounds, with the value and the bound."""
        if not self.models:
            raise ConfigError("a plan needs at least one model")
        make_scheduler(self.policy, self.memory, self.options)
        if not 0 < self.bad_max < 1:
            raise ConfigError(f"the part that may be bad, {self.bad_max:g}, is not between 0 and 1")
        if self.group_bad_max and not self.bad_max <= self.group_bad_max <= 1:
            raise ConfigError(
                f"the part of a group that may be bad, {self.group_bad_max:g}, is not between that of all requests,"
                f" {self.bad_max:g}, and 1"
            )
        if not self.seeds:
            raise ConfigError("a plan needs at least one seed")
        if not 0 < self.rate < math.inf:
            raise ConfigError(f"rate {self.rate:g} is not above 0")
        if not 0 < self.crowding < math.inf:
            raise ConfigError(
                f"the counted part has {self.crowding:g} times the rate: the factor is not above 0"
            )
        if not 1 <= self.cluster.devices <= bounds.DEVICES_MAX:
            raise ConfigError(f"{self.cluster.devices} devices: there must be 1 to {bounds.DEVICES_MAX}")
        if self.slo_ns == 0 and (missing := [model.name for model in self.models if not model.slo_ns]):
            raise ConfigError(f"model {missing[0]!r} has no SLO: give one for all")
        for model in self.models:
            if model.pages(self.cluster.page_bytes) > self.cluster.page_count:
                raise ConfigError(
                    f"model {model.name!r} takes {model.pages(self.cluster.page_bytes)} pages,"
                    f" a device has {self.cluster.page_count}"
                )
        if self.counted() > bounds.REQUESTS_MAX:
            raise ConfigError(
                f"{self.counted()} requests would have to be simulated for each trial, at most {bounds.REQUESTS_MAX}"
                " can be: allow more to be bad"
            )

    def counted(self) -> int:
        """Return the number of requests that a trial counts, over all seeds."""
        return self.requests or max(REQUESTS, math.ceil(BAD_SEEN / self.bad_max))

    def group_limit(self) -> float:
        """Return the part of each group's requests that may be bad."""
        return self.group_bad_max or min(1.0, GROUP_BAD_FACTOR * self.bad_max)

    def pages(self) -> int:
        """Return the pages of all models together."""
        return sum(model.pages(self.cluster.page_bytes) for model in self.models)

    def slo_of(self, model: ModelProfile) -> int:
        return self.slo_ns or model.slo_ns

    def slo_max_ns(self) -> int:
        return max(self.slo_of(model) for model in self.models)

    def window_ns(self) -> int:
        """Return the counted time of each seed."""
        if self.duration_ns:
            return self.duration_ns
        each = self.counted() / len(self.seeds)
        rate = self.rate * self.crowding
        return max(math.ceil(each / rate * SECOND), WINDOW_SLOS * self.slo_max_ns(), SECOND)

    def warm_ns(self) -> int:
        """Return the length of the warm-up."""
        if self.warmup_ns >= 0:
            return self.warmup_ns
        warm = max(bounds.WARM_UP_MIN_NS, WARM_UP_SLOS * self.slo_max_ns())
        pages = self.pages()
        if pages > self.cluster.page_count:
            page_ns = sum(model.load_ns for model in self.models) / pages
            warm = max(warm, math.ceil(REFILLS * page_ns * self.cluster.page_count))
        return warm

    def workload(self, seed: int) -> Workload:
        """Return the arrivals of the warm-up and of the counted time after it."""
        if self.rehearsed:
            return rehearsed(
                lambda ns: self.make_workload(self.rate, ns, seed), self.warm_ns(), self.window_ns()
            )
        return self.make_workload(self.rate, self.warm_ns() + self.window_ns(), seed)

    def with_devices(self, devices: int) -> Scenario:
        return dataclasses.replace(self, cluster=dataclasses.replace(self.cluster, devices=devices))

    def relieved(self, resource: str) -> Scenario:
        """Return the scenario with twice as much of a resource from RESOURCES."""
        models, cluster = list(self.models), self.cluster
        if resource == "execution":
            models = [
                dataclasses.replace(
                    model, exec_ns={size: max(1, ns // 2) for size, ns in model.exec_ns.items()}
                )
                for model in models
            ]
        elif resource == "loading":
            models = [dataclasses.replace(model, load_ns=model.load_ns // 2) for model in models]
        elif resource == "memory":
            cluster = dataclasses.replace(cluster, page_count=2 * cluster.page_count)
        elif resource == "link":
            cluster = dataclasses.replace(
                cluster,
                input_bandwidth=2 * cluster.input_bandwidth,
                copy_bandwidth=2 * cluster.copy_bandwidth,
                link_there_ns=cluster.link_there_ns // 2,
                link_back_ns=cluster.link_back_ns // 2,
                link_jitter_ns=cluster.link_jitter_ns // 2,
            )
        else:
            raise ConfigError(f"no resource {resource!r}: there are {', '.join(RESOURCES)}")
        return dataclasses.replace(self, models=models, cluster=cluster)


@dataclasses.dataclass(frozen=True, slots=True)
class ScenarioResult:
    """The outcome of a simulated scenario over all its seeds."""

    devices: int
    rate: float
    slo_ns: int  # SLO of every request; 0: each model's own
    passes: bool
    bad_fraction: float
    groups_bad: dict[str, float]  # bad fractions of the groups: popularity, SLOs, classes; {}: a single group
    worst_group: str
    # bad_fraction, or the worst group's in proportion to its limit; a trial passes up to bad_max
    badness: float
    offered: int
    goodput: float  # good answers per second
    latency_ns: dict[str, float]  # latencies by percentile
    execution: float  # part of the time in which a device executes, mean over the devices
    loading: float  # part of the time in which a worker loads, mean over the workers
    memory: float  # pages of all models as a part of the pages of all arenas, at most 1
    link: float  # busy part of the workers' input links; 0 where they take no time
    loads_rate: float  # loads per second
    unloads_rate: float
    cold: float  # part of the answered requests that waited for a load
    seeds_bad: tuple[float, ...]  # bad fraction of each seed

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def bad_text(self) -> str:
        """Return the bad part as text, with the worst group if its limit is the tighter bound."""
        text = f"{100 * self.bad_fraction:.3g} % bad"
        if self.badness > self.bad_fraction:
            text += f" (of {self.worst_group} {100 * self.groups_bad[self.worst_group]:.3g} %)"
        return text

    def line(self) -> str:
        """Return the trial as a line for people."""
        slo = f", {self.slo_ns / 1e6:.4g} ms" if self.slo_ns else ""
        return (
            f"{say_count(self.devices, 'device')}, {self.rate:.5g}/s{slo}: {self.bad_text()},"
            f" execution {100 * self.execution:.0f} %, loading {100 * self.loading:.0f} %"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class CapacityPlan:
    """An answer with the trials that support it."""

    sought: str  # the sought field: devices, rate or slo
    answer: float | None  # devices, requests per second, or ns; None: no trial passed
    fluid: float  # fluid bound, which the answer cannot beat on average
    limited_by: str  # bottleneck from RESOURCES; "" if no relief helps or none was tried
    relief: dict[str, float]  # badness of the failing trial: "none", and with twice as much of each resource
    at: ScenarioResult | None  # trial at the answer
    beyond: ScenarioResult | None  # nearest failing trial; None: there was none, or none was sought
    trials: tuple[ScenarioResult, ...]  # all trials, ordered by the field that was sought

    def to_json(self) -> dict[str, Any]:
        """Return plain data for json.dumps(). An infinite fluid bound becomes None, as JSON has no
        infinity."""
        return dataclasses.asdict(self) | {"fluid": self.fluid if math.isfinite(self.fluid) else None}


TellProgress = Callable[[str], None]  # A function that is called with a line after every trial

WatchProgress = Callable[[str, float], None]
"""A function that is called at times, from any thread, with the simulated scenario and the part of it that is
over, 0 to 1."""


class Planner:
    """Trials of a scenario. Each trial is simulated once."""

    def __init__(
        self,
        scenario: Scenario,
        tell: TellProgress | None = None,
        threads: int = 0,
        limits: bool = True,
        watch: WatchProgress | None = None,
    ) -> None:
        """threads: parallel simulations; 0: number of processors. limits: find the bottleneck. That takes a
        simulation of each seed for each of RESOURCES and, if no trial failed, first a trial that fails."""
        scenario.check()
        self._limits = limits
        self.scenario = scenario
        self._tell: TellProgress = tell or (lambda line: None)
        self._watch: WatchProgress = watch or (lambda what, part: None)
        self._threads = threads or len(os.sched_getaffinity(0))
        self._shares = self._find_shares()
        self.trials: list[ScenarioResult] = []

    # ----- the three questions -----------------------------------------------------------------

    def devices(self, at_most: int = bounds.DEVICES_MAX) -> CapacityPlan:
        """Return the fewest devices that hold the rate."""
        scenario = self.scenario
        first = self.fluid_devices()
        if first == math.inf:
            return self._nothing("devices", math.inf)
        passing, failing = 0, 0
        count = int(min(first, at_most))
        while not passing:
            if self.trial(scenario.with_devices(count)).passes:
                passing = count
            elif count == at_most:
                return self._nothing("devices", first, scenario.with_devices(count))
            else:
                failing = count
                count = min(at_most, max(count + 1, math.ceil(count * DEVICES_GROWTH)))
        while passing > 1 and not failing:  # chance may beat the fluid bound, which is about means
            if self.trial(scenario.with_devices(passing - 1)).passes:
                passing -= 1
            else:
                failing = passing - 1
        while passing - failing > 1:
            middle = (passing + failing) // 2
            if self.trial(scenario.with_devices(middle)).passes:
                passing = middle
            else:
                failing = middle
        answer = scenario.with_devices(passing)
        beyond = scenario.with_devices(failing) if failing else self._overloaded(answer)
        return self._plan("devices", passing, first, answer, beyond)

    def rate(self, tolerance: float = RATE_TOLERANCE) -> CapacityPlan:
        """Return the highest rate that the devices hold."""
        scenario = self.scenario

        def at(rate: float) -> Scenario:
            return dataclasses.replace(scenario, rate=rate)

        bound = self.fluid_rate(scenario)
        if bound == 0:
            return self._nothing("rate", 0.0)
        passing, failing = 0.0, 0.0
        tried = 0.7 * bound if bound < math.inf else scenario.rate
        while not (passing and failing):
            if self.trial(at(tried)).passes:
                passing = tried
                tried = tried / 0.7 if tried < bound * 0.99 else tried * BEYOND
            else:
                failing = tried
                tried = tried / 2
                if not passing and tried < bound / 1e4:
                    return self._nothing("rate", bound, at(failing))
        while failing / passing > tolerance:
            middle = math.sqrt(passing * failing)
            if self.trial(at(middle)).passes:
                passing = middle
            else:
                failing = middle
        return self._plan("rate", passing, bound, at(passing), at(failing))

    def slo(self, tolerance: float = SLO_TOLERANCE) -> CapacityPlan:
        """Return the tightest SLO that the devices can meet for all requests at the scenario's rate."""
        scenario = self.scenario

        def at(slo_ns: int) -> Scenario:
            return dataclasses.replace(scenario, slo_ns=slo_ns)

        low, high = 1, bounds.SLO_MAX_NS
        if self.fluid_rate(at(high)) < scenario.rate:
            return self._nothing("slo", math.inf)
        while high / low > 1.001:  # the fluid bound is cheap, and rises with the SLO
            middle = math.isqrt(low * high)
            low, high = (low, middle) if self.fluid_rate(at(middle)) >= scenario.rate else (middle, high)
            if high - low <= 1:
                break
        bound = high
        passing, failing, tried = 0, 0, bound
        while not passing:
            if self.trial(at(tried)).passes:
                passing = tried
            elif tried >= bounds.SLO_MAX_NS:
                return self._nothing("slo", bound, at(tried))
            else:
                failing, tried = tried, min(bounds.SLO_MAX_NS, tried * 3 // 2)
        while failing and passing / failing > tolerance:
            middle = math.isqrt(passing * failing)
            if self.trial(at(middle)).passes:
                passing = middle
            else:
                failing = middle
        beyond = at(failing) if failing else self._overloaded(at(passing))
        return self._plan("slo", passing, bound, at(passing), beyond)

    # ----- bounds and trials -------------------------------------------------------------------

    def fluid_devices(self) -> float:
        """Return the fewest devices that could execute all requests; infinite if no number could."""
        each = self.fluid_rate(self.scenario.with_devices(1))
        if each == 0:
            return math.inf
        return max(1, math.ceil(self.scenario.rate / each - 1e-9)) if each < math.inf else 1

    def fluid_rate(self, scenario: Scenario) -> float:
        """Return a bound in requests per second for any policy, whichever models are loaded."""
        cluster = scenario.cluster
        network = cluster.link_there_ns + cluster.link_back_ns
        faster = min(0.5, 4 * cluster.exec_noise)
        byte_ns = sum(SECOND / rate for rate in (cluster.input_bandwidth, cluster.copy_bandwidth) if rate)
        times: dict[tuple[Any, ...], float] = {}
        costs = []
        for model, share in zip(scenario.models, self._shares):
            room = scenario.slo_of(model) - network - math.floor(model.input_bytes * byte_ns)
            key = (tuple(sorted(model.exec_ns.items())), model.largest_batch(), room)
            if key not in times:
                times[key] = fluid.cheapest(fluid.curve(model, faster), room)
            costs.append((times[key], float(share)))
        speeds = scenario.cluster.speeds or (1.0,)
        of_all = sum(speeds[index % len(speeds)] for index in range(scenario.cluster.devices))
        return fluid.fluid_rate(costs, 1, scenario.bad_max) * of_all / scenario.crowding

    def trial(self, scenario: Scenario) -> ScenarioResult:
        """Return the trial of a scenario, simulated now or before."""
        for known in self.trials:
            if (known.devices, known.rate, known.slo_ns) == _key(scenario):
                return known
        trial = self._simulate(scenario)
        self.trials.append(trial)
        self._tell(trial.line())
        return trial

    def _find_shares(self) -> npt.NDArray[np.float64]:
        scenario = self.scenario
        counts = np.zeros(len(scenario.models), np.int64)
        for chunk in scenario.make_workload(scenario.rate, scenario.window_ns(), scenario.seeds[0]):
            counts += np.bincount(chunk.model, minlength=len(counts))
            if counts.sum() >= FLUID_ARRIVALS:
                break
        if not counts.sum():
            raise ConfigError(f"nothing arrives in {scenario.window_ns() / SECOND:g} s")
        return np.asarray(counts / counts.sum(), np.float64)

    def _simulate(self, scenario: Scenario) -> ScenarioResult:
        warm, window = scenario.warm_ns(), scenario.window_ns()
        models = (
            [dataclasses.replace(model, slo_ns=scenario.slo_ns) for model in scenario.models]
            if scenario.slo_ns
            else scenario.models
        )

        done = dict.fromkeys(scenario.seeds, 0.0)
        what = f"{say_count(scenario.cluster.devices, 'device')}, {scenario.rate:.6g} requests/s"

        def run(seed: int) -> Report:
            def look(now_ns: int, requests: int) -> None:
                done[seed] = min(1.0, now_ns / (warm + window))
                self._watch(what, sum(done.values()) / len(done))

            return simulate(
                models,
                scenario.cluster,
                [Open(scenario.workload(seed))],
                scenario.policy,
                scenario.memory,
                scenario.options,
                seed=seed,
                warmup_ns=warm,
                until_ns=warm + window,
                resident=True,
                on_progress=look,
            )

        # simulations run without the interpreter's lock
        with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
            reports = list(pool.map(run, scenario.seeds))
        return _trial(scenario, reports, self._shares)

    def _overloaded(self, scenario: Scenario) -> Scenario | None:
        """Return the scenario with the load raised until it fails. None: limits are not sought."""
        if not self._limits:
            return None
        for _ in range(bounds.OVERLOADS_MAX):
            scenario = dataclasses.replace(scenario, rate=scenario.rate * BEYOND)
            if not self.trial(scenario).passes:
                return scenario
        raise ConfigError(
            f"even {scenario.rate:g} requests a second do not fill {scenario.cluster.devices} devices"
        )

    def _plan(
        self, sought: str, answer: float, bound: float, at: Scenario, beyond: Scenario | None
    ) -> CapacityPlan:
        failed = None if beyond is None else self.trial(beyond)
        limit, relief = self._find_limit(beyond)
        return CapacityPlan(
            sought, answer, bound, limit, relief, self.trial(at), failed, self._sorted(sought)
        )

    def _nothing(self, sought: str, bound: float, beyond: Scenario | None = None) -> CapacityPlan:
        if beyond is None:
            return CapacityPlan(sought, None, bound, "execution", {}, None, None, ())
        limit, relief = self._find_limit(beyond)
        return CapacityPlan(
            sought, None, bound, limit, relief, None, self.trial(beyond), self._sorted(sought)
        )

    def _find_limit(self, beyond: Scenario | None) -> tuple[str, dict[str, float]]:
        if beyond is None or not self._limits:
            return "", {}
        found = {"none": self.trial(beyond).badness}
        for resource in RESOURCES:
            relieved = self._simulate(beyond.relieved(resource))
            found[resource] = relieved.badness
            self._tell(f"twice as much {resource}: {relieved.bad_text()}")
        best = min(RESOURCES, key=lambda resource: found[resource])
        return (best if found[best] < found["none"] else ""), found

    def _sorted(self, sought: str) -> tuple[ScenarioResult, ...]:
        places = {"devices": lambda trial: (trial.devices, trial.rate), "rate": lambda trial: trial.rate}
        return tuple(sorted(self.trials, key=places.get(sought, lambda trial: (trial.slo_ns, trial.rate))))


def _key(scenario: Scenario) -> tuple[int, float, int]:
    return scenario.cluster.devices, scenario.rate, scenario.slo_ns


def _groups(
    scenario: Scenario, shares: npt.NDArray[np.float64], reports: Sequence[Report]
) -> dict[str, tuple[int, int]]:
    """Return (offered, bad) of each group, for the kinds that have more than one group."""
    offered = np.sum([report.models.offered - report.models.cancelled for report in reports], axis=0)
    bad = np.sum([report.models.bad for report in reports], axis=0)
    found: dict[str, tuple[int, int]] = {}

    def add(name: str, members: npt.NDArray[np.int64]) -> None:
        found[name] = (int(offered[members].sum()), int(bad[members].sum()))

    ranks = np.argsort(-shares, kind="stable")
    if 1 < len(ranks) <= GROUPS:
        for model in ranks:
            add(f"model {scenario.models[model].name}", np.array([model]))
    elif len(ranks) > GROUPS:
        first = 1
        for members in np.array_split(ranks, GROUPS):
            last = first + len(members) - 1
            span = f"models {first} to {last}" if last > first else f"model {first}"
            add(f"{span} by popularity", members)
            first += len(members)
    slos = np.array([scenario.slo_of(model) for model in scenario.models])
    different = np.unique(slos)
    if 1 < len(different) <= GROUPS:
        for slo in different:
            add(f"SLO {slo / 1e6:.4g} ms", np.flatnonzero(slos == slo))
    elif len(different) > GROUPS:
        for values in np.array_split(different, GROUPS):
            members = np.flatnonzero((slos >= values[0]) & (slos <= values[-1]))
            span = f"SLOs {values[0] / 1e6:.4g} to" if len(values) > 1 else "SLO"
            add(f"{span} {values[-1] / 1e6:.4g} ms", members)
    classes = max(len(report.classes.offered) for report in reports)
    for place in range(classes) if classes > 1 else ():
        rows = [report.classes for report in reports if place < len(report.classes.offered)]
        found[f"class {place}"] = (
            sum(int(report.offered[place] - report.cancelled[place]) for report in rows),
            sum(int(report.bad[place]) for report in rows),
        )
    return found


def _group_bad(offered: int, bad: int) -> float:
    """Return the bad fraction of a group. It is 0 for a single bad request, which proves nothing in a small
    group."""
    return bad / offered if bad > 1 else 0.0


def _trial(scenario: Scenario, reports: Sequence[Report], shares: npt.NDArray[np.float64]) -> ScenarioResult:
    offered = sum(int(report.models.offered.sum() - report.models.cancelled.sum()) for report in reports)
    bad = sum(int(report.models.bad.sum()) for report in reports)
    answered = sum(int((report.models.good + report.models.late).sum()) for report in reports)
    seconds = sum(report.span_ns for report in reports) / SECOND
    latency = Histogram(
        np.sum([report.latency.counts for report in reports], axis=0),
        max(report.latency.largest_ns for report in reports),
    )
    fraction = bad / offered if offered else 0.0
    groups = {name: _group_bad(*counts) for name, counts in _groups(scenario, shares, reports).items()}
    worst = max(groups, key=lambda name: groups[name], default="")
    badness = fraction
    if groups and scenario.group_limit() < 1:
        badness = max(fraction, groups[worst] * scenario.bad_max / scenario.group_limit())
    cluster = scenario.cluster
    workers = -(-cluster.devices // cluster.devices_per_worker)
    link = 0.0
    if cluster.input_bandwidth:
        arrived = sum(
            float(report.models.offered @ np.array([model.input_bytes for model in scenario.models]))
            for report in reports
        )
        link = arrived / seconds / workers / cluster.input_bandwidth
    return ScenarioResult(
        devices=cluster.devices,
        rate=scenario.rate,
        slo_ns=scenario.slo_ns,
        passes=badness <= scenario.bad_max,
        bad_fraction=fraction,
        groups_bad=groups,
        worst_group=worst,
        badness=badness,
        offered=offered,
        goodput=sum(int(report.models.good.sum()) for report in reports) / seconds,
        latency_ns={str(percent): latency.percentile(percent) for percent in (50, 99, 99.9)},
        execution=float(np.mean([report.device_busy.mean() for report in reports])),
        loading=float(np.mean([report.link_busy.mean() for report in reports])),
        memory=min(1.0, scenario.pages() / (cluster.page_count * cluster.arenas)),
        link=link,
        loads_rate=sum(report.loads for report in reports) / seconds,
        unloads_rate=sum(report.unloads for report in reports) / seconds,
        cold=sum(int(report.models.cold.sum()) for report in reports) / max(1, answered),
        seeds_bad=tuple(report.bad_fraction for report in reports),
    )
