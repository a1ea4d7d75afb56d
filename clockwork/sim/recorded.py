"""Simulates a recording's arrivals again in a cluster like the recorded one, perhaps under another policy.

The cluster is rebuilt from the recording: workers and devices, models with their layouts, models resident at
its begin, link delays, and measured times of executions, loads and fetches. The simulator knows less than
the real cluster: every request counts as one row (a batch of n requests takes the time of such batches),
workers differ only in speed, and inputs take no time beyond their link's delay. To judge the accuracy,
compare the ``RecordedOutcomes`` of the recording with those of its simulation under the recorded settings.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clockwork.errors import ConfigError
from clockwork.formats.profiles import ModelProfile
from clockwork.observe.recorded import opened
from clockwork.scheduler import known_options
from clockwork.scheduler.recording import REASONS, Header, Step
from clockwork.scheduler.types import (
    NEVER_NS,
    ActionDone,
    AnswerFailed,
    AnswerOk,
    Arrived,
    DeviceShape,
    ModelReady,
    ModelSpec,
    SendFetch,
    SendInfer,
    SendLoad,
    SendUnload,
    Status,
    WorkerJoined,
    WorkerLeft,
    arena_of,
)
from clockwork.sim.world import Cluster, Disturbance, Open, simulate
from clockwork.workloads import Arrivals

SECOND = 1_000_000_000

WARM_UP_NS = SECOND
"""Time at the begin of a partial recording that is not counted, because the requests that wait then are
unknown."""

OUTLIER = 1.5
"""An execution that takes more than this multiple of the usual time is an outlier, as in `clockwork
status`."""

Ints = npt.NDArray[np.int64]

GOOD, REFUSED, MISSED, FAILED, CANCELLED, OPEN = range(6)
"""Outcomes of a request. OPEN: not answered before the recording's end."""

_OF_SIMULATED = np.array([GOOD, MISSED, REFUSED, MISSED, FAILED, CANCELLED, OPEN])
"""Outcome for each of the simulator's OUTCOME_NAMES. A late answer counts as missed, as no client waits for
it."""

_OF_STATUS = {Status.REFUSED: REFUSED, Status.DEADLINE_MISSED: MISSED, Status.CANCELLED: CANCELLED}


@dataclasses.dataclass(frozen=True, slots=True)
class RecordedOutcomes:
    """The outcomes of requests in the order of arrival."""

    arrived_ns: Ints  # time since the recording began
    outcome: Ints
    reason: Ints  # reason of a refusal, as an index into REASONS
    device: Ints  # device to which it was sent last, in the recording's numbering; -1: none
    latency_ns: Ints  # latency of the answer

    def at(self, where: npt.NDArray[np.bool_]) -> RecordedOutcomes:
        return RecordedOutcomes(*(getattr(self, field.name)[where] for field in dataclasses.fields(self)))

    def likeness(self, other: RecordedOutcomes) -> dict[str, float]:
        """Return the part of equal outcomes, and the part of the requests answered in both that ran on the
        same device."""
        both = (self.outcome == GOOD) & (other.outcome == GOOD)
        return {
            "same_answer": float(np.mean(self.outcome == other.outcome)) if len(self.outcome) else 1.0,
            "same_device": float(np.mean((self.device == other.device)[both])) if both.any() else 1.0,
        }

    def summary(self, span_ns: int) -> dict[str, Any]:
        """Return counts, goodput, refusals by reason and percentiles of latency."""
        good = self.outcome == GOOD
        latency = np.sort(self.latency_ns[good])
        refusals = Counter(self.reason[self.outcome == REFUSED].tolist())
        return {
            "requests": len(self.outcome),
            "goodput_rate": float(good.sum()) * SECOND / span_ns,
            "good": int(good.sum()),
            "refused": int((self.outcome == REFUSED).sum()),
            "refusals": {str(REASONS[reason]): count for reason, count in sorted(refusals.items())},
            "missed": int((self.outcome == MISSED).sum()),
            "failed": int((self.outcome == FAILED).sum()),
            **{
                f"p{percent:g}_ns": int(latency[min(int(len(latency) * percent / 100), len(latency) - 1)])
                if len(latency)
                else 0
                for percent in (50, 99, 99.9)
            },
        }


@dataclasses.dataclass(frozen=True, slots=True)
class RecordedRun:
    """The parts of a recording that a simulation needs."""

    header: Header
    span_ns: int
    warm_up_ns: int
    arrivals: Arrivals
    outcomes: RecordedOutcomes
    models: Sequence[ModelProfile]
    cluster: Cluster
    placed: Sequence[tuple[int, int]]  # (device, model) resident when the recording began

    def counted(self) -> npt.NDArray[np.bool_]:
        """Return a mask of the requests that are compared.

        Left out are requests of the warm-up, requests whose end is not recorded, and requests that their
        clients cancelled, which the simulator cannot predict.
        """
        closed = ~np.isin(self.outcomes.outcome, (OPEN, CANCELLED))
        return closed & (self.outcomes.arrived_ns >= self.warm_up_ns)

    def simulate(
        self,
        policy: str = "",
        devices: int = 0,
        slo_ns: int = 0,
        seed: int = 0,
        recording: Path | None = None,
    ) -> RecordedOutcomes:
        """Return the outcomes of the same arrivals, by default with the recorded settings.

        policy: another policy, with its defaults. devices: another number of the recorded kind. slo_ns: SLO
        of every request. recording: file for the simulated scheduler's events and decisions. Raises
        ConfigError if the cluster cannot be simulated.
        """
        cluster, placed = self.cluster, self.placed
        if devices:
            cluster = dataclasses.replace(
                cluster,
                devices=devices,
                devices_per_worker=min(cluster.devices_per_worker, devices),
                disturbances=[
                    disturbance
                    for disturbance in cluster.disturbances
                    if disturbance.worker * cluster.devices_per_worker < devices
                ],
            )
            placed = [(device, model) for device, model in placed if device < devices]
        arrivals = self.arrivals
        if slo_ns:
            arrivals = dataclasses.replace(arrivals, slo_ns=np.full(len(arrivals), slo_ns, np.int64))
        is_other = policy not in ("", self.header.policy)
        try:
            report = simulate(
                self.models,
                cluster,
                [Open([arrivals])],
                policy if is_other else self.header.policy,
                "" if is_other else self.header.memory,
                {} if is_other else self.header.options,
                seed,
                placed=placed,
                fates=True,
                recording=recording,
                labels=[_label(model.name) for model in self.models],
            )
        except ValueError as error:
            raise ConfigError(f"the recorded cluster cannot be simulated: {error}") from None
        fates = report.fates
        return RecordedOutcomes(
            self.outcomes.arrived_ns, _OF_SIMULATED[fates[:, 0]], fates[:, 1], fates[:, 2], fates[:, 3]
        )


def _profile_name(spec: ModelSpec) -> str:
    """Return a name that is unique in a recording, where a version may have been registered twice."""
    return f"{spec.name}@{spec.version}#{spec.model_id}"


def _label(profile_name: str) -> tuple[str, int]:
    """Return the model's name and version from a result of _profile_name()."""
    name, _, rest = profile_name.rpartition("@")
    return name, int(rest.partition("#")[0])


def check_policy(policy: str) -> None:
    """Raise ConfigError for an unknown policy. A policy in Python, module:Class, is only checked when it
    runs."""
    if ":" not in policy:
        known_options(policy)


def read_recorded(path: Path) -> RecordedRun:
    """Read a recording or a dump. Raises ConfigError unless the file is one with requests."""
    with opened(path) as (header, steps):
        fold = _Fold()
        for number, step in enumerate(steps):
            fold.take(step, number < header.cluster_steps)
    return fold.recorded(path, header)


@dataclasses.dataclass(slots=True)
class _Sent:
    """An action that has not ended."""

    worker: int
    device: int
    model_id: int
    load_id: int
    ordered_ns: int
    requests: Sequence[int]
    is_fetch: bool


class _Fold:
    """Folds the steps of a recording into a simulation's arguments."""

    def __init__(self) -> None:
        self._begun_ns = -1
        self._now_ns = 0
        self._workers: dict[int, WorkerJoined] = {}
        self._joined: list[tuple[int, int]] = []  # (time, worker) in order of time
        self._left: dict[int, int] = {}
        self._specs: dict[int, ModelSpec] = {}
        # delays of batches to workers, and of results back
        self._links: dict[str, list[int]] = {"there": [], "back": []}
        self._sent: dict[int, _Sent] = {}
        self._loaded: set[tuple[int, int, int]] = set()  # (worker, device, load) ordered within the recording
        # model of a load that was ordered before the recording
        self._early: dict[tuple[int, int, int], int] = {}
        self._runs: list[tuple[int, int, int, int]] = []  # (model, requests, worker, duration) of executions
        self._loads: dict[int, list[int]] = {}
        self._fetches: list[tuple[int, int, int, int]] = []  # (worker, begin, end, model) of FETCHes
        # Requests in the order of arrival: arrived, model, slo, priority, rows, bytes.
        self._rows: list[tuple[int, int, int, int, int, int]] = []
        self._place: dict[int, int] = {}  # index in _rows of each unanswered request, by id
        self._ends: dict[int, tuple[int, int, int]] = {}  # outcome, reason and time, by index in _rows
        self._devices: dict[int, tuple[int, int]] = {}  # worker and device, by index in _rows

    def take(self, step: Step, is_cluster: bool) -> None:
        for event in step.events:
            self._now_ns = max(self._now_ns, event.now_ns)
            match event:
                case Arrived():
                    self._arrived(event)
                case ActionDone():
                    self._done(event)
                case WorkerJoined():
                    self._workers[event.worker] = event
                    self._joined.append((event.now_ns, event.worker))
                case WorkerLeft():
                    self._left[event.worker] = event.now_ns
                case ModelReady():
                    self._specs.setdefault(event.spec.model_id, event.spec)
        if self._begun_ns < 0 and not is_cluster:
            self._begun_ns = step.events[0].now_ns
        for command in step.commands:
            match command:
                case SendInfer():
                    self._ordered(command, command.requests)
                    for request in command.requests:
                        if (place := self._place.get(request)) is not None:
                            self._devices[place] = (command.worker, command.device)
                case SendLoad():
                    self._loaded.add((command.worker, command.device, command.load_id))
                    self._send(command)
                case SendUnload():
                    self._ordered(command, ())
                case SendFetch():
                    self._send(command)
                case AnswerOk():
                    self._answered(command.request_id, GOOD, 0)
                case AnswerFailed():
                    outcome = _OF_STATUS.get(command.status, FAILED)
                    self._answered(command.request_id, outcome, REASONS.index(command.reason))

    def _arrived(self, event: Arrived) -> None:
        request = event.request
        slo_ns = request.deadline_ns - request.arrived_ns if request.deadline_ns < NEVER_NS else 0
        self._place[request.id] = len(self._rows)
        self._rows.append(
            (request.arrived_ns, request.model_id, slo_ns, request.priority, request.rows, request.bytes)
        )

    def _answered(self, request_id: int, outcome: int, reason: int) -> None:
        place = self._place.pop(request_id, None)
        if place is not None:
            self._ends[place] = (outcome, reason, self._now_ns)

    def _ordered(self, command: SendInfer | SendUnload, requests: Sequence[int]) -> None:
        key = (command.worker, command.device, command.load_id)
        if key not in self._loaded:
            self._early[key] = command.model_id
        self._send(command, requests)

    def _send(
        self, command: SendInfer | SendLoad | SendUnload | SendFetch, requests: Sequence[int] = ()
    ) -> None:
        self._sent[command.action_id] = _Sent(
            command.worker, command.device, command.model_id, command.load_id, self._now_ns, requests,
            isinstance(command, SendFetch),
        )  # fmt: skip

    def _done(self, event: ActionDone) -> None:
        sent = self._sent.pop(event.action_id, None)
        if sent is None or event.status is not Status.OK or event.duration_ns <= 0:
            return
        if sent.requests:
            self._runs.append((sent.model_id, len(sent.requests), sent.worker, event.duration_ns))
            if event.ready_ns:
                self._links["there"].append(max(event.ready_ns - sent.ordered_ns, 0))
                self._links["back"].append(max(event.now_ns - event.end_ns, 0))
        elif sent.is_fetch:
            self._fetches.append((sent.worker, event.end_ns - event.duration_ns, event.end_ns, sent.model_id))
        elif (sent.worker, sent.device, sent.load_id) in self._loaded:
            self._loads.setdefault(sent.model_id, []).append(event.duration_ns)

    # ----- what a simulation is told -----------------------------------------------------------

    def recorded(self, path: Path, header: Header) -> RecordedRun:
        if not self._rows:
            raise ConfigError(f"{path} has no request")
        first_ns = self._rows[0][0]
        begun_ns = self._begun_ns if header.start else first_ns
        workers = self._slots(first_ns)
        if not workers:
            raise ConfigError(f"{path}: no worker was there when the first request came")
        shape = self._workers[workers[0][0]].devices[0]
        counts = {len(self._workers[slot[0]].devices) for slot in workers}
        per_worker = max(counts) if len(counts) == 1 else 1
        index: dict[tuple[int, int], int] = {}  # (worker, device): the simulated device
        for slot in workers:
            base = len(set(index.values()))
            for worker in slot:
                for device in range(len(self._workers[slot[0]].devices)):
                    index[worker, device] = base + device
        devices = len(set(index.values()))
        numbers = {model_id: number for number, model_id in enumerate(sorted(self._specs))}
        known = [place for place, row in enumerate(self._rows) if row[1] in numbers]
        rows = [self._rows[place] for place in known]
        page_bytes = shape[1]
        models, noise = self._models(page_bytes, rows)
        there_ns, back_ns = map(_delay_ns, self._links.values())
        first = self._workers[workers[0][0]]
        fetched = self._fetch_bandwidth(page_bytes)
        cluster = Cluster(
            devices=devices,
            devices_per_worker=per_worker,
            executors=_executors(self._workers[workers[0][0]].devices) if len(counts) == 1 else 1,
            page_bytes=page_bytes,
            page_count=shape[2],
            run_ahead=max(shape[3], 1),
            speeds=self._speeds(workers),
            link_there_ns=there_ns,
            link_back_ns=back_ns,
            host_bytes=first.host_bytes,
            disk_bandwidth=fetched if first.host_bytes else 0,
            store_bytes=first.store_bytes,
            store_bandwidth=fetched if first.store_bytes else 0,
            disturbances=self._absences(workers, begun_ns) if per_worker > 1 or len(counts) == 1 else (),
        )
        cluster = dataclasses.replace(cluster, **noise)  # type: ignore[arg-type]
        ends = [self._ends.get(place, (OPEN, 0, 0)) for place in known]
        arrived = np.array([row[0] - begun_ns for row in rows], np.int64)
        outcomes = RecordedOutcomes(
            arrived,
            np.array([end[0] for end in ends], np.int64),
            np.array([end[1] for end in ends], np.int64),
            np.array([index.get(self._devices.get(place, (0, 0)), -1) for place in known], np.int64),
            np.array(
                [end[2] - row[0] if end[2] else 0 for row, end in zip(rows, ends, strict=True)], np.int64
            ),
        )
        arrivals = Arrivals.of(
            np.maximum.accumulate(arrived),
            np.array([numbers[row[1]] for row in rows], np.int32),
            np.array([row[2] for row in rows], np.int64),
            np.array([row[3] for row in rows], np.uint8),
        )
        return RecordedRun(
            header,
            max(self._now_ns - begun_ns, 1),
            WARM_UP_NS if header.start else 0,
            arrivals,
            outcomes,
            models,
            cluster,
            sorted(self._placed(header, index, numbers)),
        )

    def _slots(self, first_ns: int) -> list[list[int]]:
        """Return a list for each worker: the worker, followed by its replacements.

        A replacement has as many devices and joined after its predecessor had left.
        """
        slots: list[list[int]] = []
        for at_ns, worker in self._joined:
            if at_ns <= first_ns:
                if self._left.get(worker, NEVER_NS) > first_ns:
                    slots.append([worker])
                continue
            devices = len(self._workers[worker].devices)
            for slot in slots:
                last = slot[-1]
                if self._left.get(last, NEVER_NS) <= at_ns and len(self._workers[last].devices) == devices:
                    slot.append(worker)
                    break
        return slots

    def _absences(self, slots: Sequence[Sequence[int]], begun_ns: int) -> list[Disturbance]:
        """Return the absences of workers as disturbances in which they stop."""
        found = []
        joined = {worker: at_ns for at_ns, worker in self._joined}
        for number, slot in enumerate(slots):
            for place, worker in enumerate(slot):
                left_ns = self._left.get(worker)
                if left_ns is None or left_ns <= begun_ns:
                    continue
                back_ns = joined[slot[place + 1]] if place + 1 < len(slot) else NEVER_NS // 2
                if back_ns > left_ns:
                    found.append(Disturbance("stop", left_ns - begun_ns, back_ns - begun_ns, worker=number))
        return found

    def _speeds(self, slots: Sequence[Sequence[int]]) -> Sequence[float]:
        """Return a relative speed for each slot of _slots(); () if all devices are of the same kind."""
        kinds = {self._workers[worker].devices[0][0] for slot in slots for worker in slot}
        if len(kinds) == 1:
            return ()
        usual = self._usual()
        ratios: dict[int, list[float]] = {}
        for model_id, count, worker, duration_ns in self._runs:
            ratio = duration_ns / usual[self._specs[model_id].program, count]
            ratios.setdefault(worker, []).append(ratio)
        found = []
        for slot in slots:
            own = [ratio for worker in slot for ratio in ratios.get(worker, ())]
            found.append(1 / statistics.median(own) if own else 1.0)
        return found

    def _fetch_bandwidth(self, page_bytes: int) -> int:
        """Return the bytes/s at which a worker fetched while it did; 0: there was no FETCH.

        Simulated FETCHes of a worker come one after the other. Real ones overlap, so that time counts once.
        """
        total = took_ns = 0
        until_ns: dict[int, int] = {}  # end of the time that was counted, by worker
        for worker, begin_ns, end_ns, model_id in sorted(self._fetches):
            if model_id in self._specs:
                total += sum(self._specs[model_id].runs) * page_bytes
                took_ns += max(end_ns - max(begin_ns, until_ns.get(worker, begin_ns)), 0)
                until_ns[worker] = max(end_ns, until_ns.get(worker, end_ns))
        return max(total * SECOND // took_ns, 1) if took_ns else 0

    def _usual(self) -> dict[tuple[str, int], float]:
        """Return the median time of an execution, by program and number of requests."""
        runs: dict[tuple[str, int], list[int]] = {}
        for model_id, count, _, duration_ns in self._runs:
            if model_id in self._specs:
                runs.setdefault((self._specs[model_id].program, count), []).append(duration_ns)
        return {key: statistics.median(durations) for key, durations in runs.items()}

    def _models(
        self, page_bytes: int, rows: Iterable[tuple[int, int, int, int, int, int]]
    ) -> tuple[list[ModelProfile], dict[str, float]]:
        """Return the models with their measured times, in the order of their ids, and the noise of executions
        around these."""
        usual = self._usual()
        by_program: dict[str, dict[int, float]] = {}
        for (program, count), duration_ns in usual.items():
            by_program.setdefault(program, {})[count] = duration_ns
        sums: dict[int, list[int]] = {}  # for each model: requests, their rows, their bytes
        for row in rows:
            total = sums.setdefault(row[1], [0, 0, 0])
            total[0] += 1
            total[1] += row[4]
            total[2] += row[5]
        found = []
        for model_id in sorted(self._specs):
            spec = self._specs[model_id]
            requests, row_count, input_bytes = sums.get(model_id, (1, 1, 0))
            loads = self._loads.get(model_id)
            found.append(
                ModelProfile(
                    _profile_name(spec),
                    _curve(spec, row_count / requests, by_program.get(spec.program, {})),
                    weights_bytes=sum(spec.runs) * page_bytes,
                    load_ns=int(statistics.median(loads)) if loads else spec.load_ns,
                    input_bytes=input_bytes // requests,
                    program=spec.program,
                    page_bytes=page_bytes,
                    page_count=sum(spec.runs),
                    runs=tuple(spec.runs),
                )
            )
        ratios = np.array(
            [
                duration_ns / usual[self._specs[model_id].program, count]
                for model_id, count, _, duration_ns in self._runs
                if model_id in self._specs
            ]
        )
        if len(ratios) < 10:
            return found, {}
        low, high = np.percentile(np.log(ratios), (16, 84))
        beyond = ratios[ratios > OUTLIER]
        noise = {"exec_noise": float(high - low) / 2, "outlier": len(beyond) / len(ratios)}
        if len(beyond):
            noise["outlier_factor"] = float(np.median(beyond))
        return found, noise

    def _placed(
        self, header: Header, index: Mapping[tuple[int, int], int], numbers: Mapping[int, int]
    ) -> Iterator[tuple[int, int]]:
        """Yield the models that were resident when the recording began.

        These are models that devices held at its end, or were ordered to use, and that were not loaded within
        it.
        """
        held = {
            (held_model.worker, held_model.device, held_model.load_id): held_model.model_id
            for held_model in header.held
        }
        early = {key: model_id for key, model_id in held.items() if key not in self._loaded} | self._early
        seen = set()
        for (worker, device, _), model_id in early.items():
            if (worker, device) in index and model_id in numbers:
                place = (index[worker, device], numbers[model_id])
                if place not in seen:
                    seen.add(place)
                    yield place


def _executors(devices: Sequence[DeviceShape]) -> int:
    """Return how many devices share each arena of a worker; 1 if they are not the same number."""
    owners = [place if arena_of(shape) < 0 else arena_of(shape) for place, shape in enumerate(devices)]
    count = owners.count(0)
    return count if owners == [place - place % count for place in range(len(devices))] else 1


def _delay_ns(measured_ns: Sequence[int]) -> int:
    """Return a link's delay: the mean of measurements without the longest twentieth.

    No jitter is simulated in addition: a simulated link keeps messages in order, so jitter would delay every
    message to the latest before it.
    """
    if not measured_ns:
        return 50_000
    delays = np.sort(measured_ns)
    return int(delays[: max(len(delays) * 19 // 20, 1)].mean())


def _curve(spec: ModelSpec, rows: float, measured: Mapping[int, float]) -> dict[int, int]:
    """Return the time of an execution by number of requests: measured, or else interpolated from the profile
    in proportion.

    rows: mean rows of a request.
    """
    shape = spec.profile[0].shape if spec.profile else ()
    told = {point.batch: point.exec_ns for point in spec.profile if point.shape == shape} or {1: 1_000_000}
    profile = ModelProfile("", {1: told[min(told)], **told}, 0, 0, batch_max=max(spec.batch_max, *told))

    def told_ns(count: float) -> int:
        return profile.execution_ns(min(max(round(count * rows), 1), profile.largest_batch()))

    largest = max(int(spec.batch_max / rows), 1)
    sizes = sorted({1, largest, *(max(int(batch / rows), 1) for batch in told), *measured})
    ratio = statistics.median([ns / told_ns(count) for count, ns in measured.items()]) if measured else 1.0
    curve = {}
    least = 1
    for count in sizes:
        if count <= max(largest, max(measured, default=1)):
            least = max(least, round(measured.get(count, told_ns(count) * ratio)))
            curve[count] = least
    return curve
