"""Explains a request from a history: why it was refused, waited or missed its deadline. The result is
sentences and a timeline.

    explanation = explain(history, request_id)
    print("\n".join(explanation.sentences))
    explanation.timeline  # drawn by observe.timeline
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from clockwork.config.observe import EXPLAINED_DEVICES_MAX, EXPLAINED_MODELS_MAX
from clockwork.errors import InvalidInput
from clockwork.observe.history import (
    LOADING,
    UNKNOWN,
    WAITING,
    History,
    ResidencySpan,
    SeenAction,
    SeenDevice,
    SeenModel,
    SeenRequest,
)
from clockwork.observe.lanes import TimeSpan, executing_spans, intersection, span_of, total_ns, without
from clockwork.scheduler.types import NEVER_NS, Reason, Status
from clockwork.system.clock import duration
from clockwork.system.words import say_count

FAR_PARTS = 10
"""A device is called far if the delay of its link is more than 1/FAR_PARTS of the time that the request had.
"""

REASONS = {
    Reason.DEADLINE: "it could not have been answered by its deadline behind the requests that waited or were under way",
    Reason.INFEASIBLE: "even an idle device that has the model would have been too slow for its SLO",
    Reason.OVERLOADED: "the controller held as many requests, or bytes of them, as it may",
    Reason.MEMORY: "no device has room for the model",
    Reason.DISPLACED: "a request of higher priority took its place",
    Reason.UNPROFILED: "an input of this shape was never measured, and its bound is above the SLO",
    Reason.NO_WORKER: "no worker that can serve the model was connected",
    Reason.DRAINING: "the model was being removed, or the workers that serve it were leaving",
}
"""Meaning of each reason of a refusal."""


@dataclasses.dataclass(frozen=True, slots=True)
class LaneSpan:
    """An action of a device, or a time in which it was idle. ``what``: execute, load or idle with work."""

    begin_ns: int
    end_ns: int
    what: str
    label: str  # label of the model
    text: str  # description of the action in one line
    is_own: bool = False  # whether it belongs to the request that is explained, or loads its model
    is_predicted: bool = False  # whether it had not ended: it is drawn with its predicted duration


@dataclasses.dataclass(frozen=True, slots=True)
class LaneTimeline:
    """An execute or load lane of a device within a timeline."""

    name: str
    what: str  # name of the lane: execute or load
    spans: Sequence[LaneSpan]


class Moment(NamedTuple):
    """A mark on a timeline."""

    at_ns: int
    sign: str  # letter that marks the action in a timeline
    word: str


@dataclasses.dataclass(frozen=True, slots=True)
class Timeline:
    """The actions of devices around a request's time. Times are the history's."""

    title: str
    from_ns: int
    until_ns: int
    zero_ns: int  # the request's arrival, from which times are counted
    moments: Sequence[Moment]
    lanes: Sequence[LaneTimeline]


@dataclasses.dataclass(frozen=True, slots=True)
class Explanation:
    """The explanation of a request's outcome."""

    request_id: int
    model: str
    outcome: str  # an element of OUTCOMES; "" before the answer
    sentences: Sequence[str]
    devices: Sequence[str]  # a sentence for each device that could have served the request
    timeline: Timeline


def explain(history: History, request_id: int) -> Explanation:
    """Explain a request of the history. Raises InvalidInput if the request or its arrival is unknown."""
    request = history.requests.get(request_id)
    if request is None or not request.arrived_ns:
        raise InvalidInput(_absence(history, request_id))
    return _Case(history, request).explanation()


def find_request(history: History, outcome: str, model: str = "") -> int:
    """Return the id of the newest request with an outcome. Raises InvalidInput if there is none.

    model: restricts the search to a name or name@version.
    """
    for request in reversed(history.requests.values()):
        if request.outcome == outcome and request.arrived_ns and _is_of(history, request, model):
            return request.id
    raise InvalidInput(f"no request{f' of {model}' if model else ''} was {outcome} {_period(history)}")


def find_slowest(history: History, model: str = "") -> int:
    """Return the id of the answered request with the highest latency. Raises InvalidInput if there is none.

    model: as for find_request().
    """
    found = max(
        (
            request
            for request in history.requests.values()
            if request.outcome == "answered" and _is_of(history, request, model)
        ),
        key=lambda request: request.latency_ns,
        default=None,
    )
    if found is None or not found.latency_ns:
        raise InvalidInput(f"no request{f' of {model}' if model else ''} was answered {_period(history)}")
    return found.id


def _is_of(history: History, request: SeenRequest, model: str) -> bool:
    if not model:
        return True
    seen = history.models.get(request.model_id)
    return seen is not None and model in (seen.name, seen.label)


def _period(history: History) -> str:
    since_ns = max(history.begun_ns, history.now_ns - history.keep_ns)
    return f"in the {duration(history.now_ns - since_ns)} that are kept"


def _absence(history: History, request_id: int) -> str:
    known = [request.id for request in history.requests.values() if request.arrived_ns]
    if not known:
        return f"there is no request {request_id} {_period(history)}, nor any other"
    return f"there is no request {request_id} {_period(history)}: those are {min(known)} to {max(known)}"


class _Case:
    """A request that is explained, with the history around it."""

    def __init__(self, history: History, request: SeenRequest) -> None:
        self._history = history
        self._request = request
        self._model = history.models.get(request.model_id) or SeenModel(request.model_id)
        self._arrived_ns = request.arrived_ns
        self._ended_ns = request.answered_ns or history.now_ns
        deadline = request.deadline_ns if request.deadline_ns < NEVER_NS else self._ended_ns
        self._until_ns = max(self._ended_ns, deadline)  # a free device was of use until this time

    def explanation(self) -> Explanation:
        could = self._capable_devices()
        return Explanation(
            self._request.id,
            self._model.label,
            self._request.outcome,
            [*self._arrival(), *self._end(), *self._devices_in_all(could), *self._joinable()],
            [self._device(device) for device in could[:EXPLAINED_DEVICES_MAX]],
            self._timeline(could[:EXPLAINED_DEVICES_MAX]),
        )

    # ----- sentences -----------------------------------------------------------------------------

    def _arrival(self) -> Iterator[str]:
        request = self._request
        slo = f"an SLO of {duration(request.slo_ns)}" if request.slo_ns else "no deadline"
        ago = duration(self._history.now_ns - self._arrived_ns)
        yield (
            f"Request {request.id} for {self._model.label} ({say_count(request.rows, 'row')}, priority {request.priority}) "
            f"arrived {ago} before the end of this history, with {slo}."
        )
        waiting = [
            other
            for other in self._history.requests.values()
            if other is not request
            and 0 < other.arrived_ns <= self._arrived_ns
            and self._left(other) > self._arrived_ns
        ]
        same = sum(other.model_id == request.model_id for other in waiting)
        yield (
            f"{say_count(len(waiting), 'other request')} waited in the controller then, {same} of them for its model."
        )

    def _left(self, request: SeenRequest) -> int:
        """Return the time at which a request no longer waited in the controller."""
        return request.sent_ns or request.answered_ns or NEVER_NS

    def _end(self) -> Iterator[str]:
        request = self._request
        took = duration(self._ended_ns - self._arrived_ns)
        if request.outcome == "refused":
            when = "at its arrival" if request.answered_ns == self._arrived_ns else f"after {took}"
            meaning = REASONS.get(request.reason, "")  # type: ignore[call-overload]
            yield f"It was refused {when} ({request.reason}): {meaning or request.text}."
            if meaning and request.text:
                yield f"The refusal said: {request.text}."
            if request.feasible_slo_ns:
                yield f"It would have needed an SLO of {duration(request.feasible_slo_ns)}, by the estimates of that moment."
            if request.retry_after_ns:
                yield f"After {duration(request.retry_after_ns)} the same request would probably have been admitted."
        elif request.outcome == "answered":
            yield (
                f"It was answered after {took}: {duration(request.queue_ns)} in a queue, "
                f"{duration(request.load_ns)} waiting for a load and {duration(request.exec_ns)} on the device."
            )
        elif request.outcome == "missed":
            yield f"It missed its deadline, and was told so after {took}: {request.text}."
        elif request.outcome:
            yield f"It was {request.outcome} after {took}: {request.text}."
        elif request.state == UNKNOWN:
            yield "Its outcome is not known: steps of the scheduler were left out."
        else:
            doing = "waits in the controller" if request.state == WAITING else "is in a batch that was sent"
            yield f"It has not been answered; after {took} it {doing}."
        if request.action is not None:
            yield from self._own_batch(request.action)
        elif request.outcome in ("missed", "cancelled", "failed") or (
            request.outcome == "refused" and request.answered_ns > self._arrived_ns
        ):
            yield "It was never sent to a device."

    def _own_batch(self, action: SeenAction) -> Iterator[str]:
        request, history = self._request, self._history
        device = history.device_label(action.worker, action.device)
        waited = action.ordered_ns - self._arrived_ns
        again = (
            f" (it was sent {request.sent_count} times, this is the last)" if request.sent_count > 1 else ""
        )
        yield (
            f"{duration(waited)} after its arrival it was sent to {device}, in a batch of "
            f"{say_count(len(action.requests), 'request')} with {say_count(action.rows, 'row')}{again}."
        )
        span = span_of(action)
        if span is None:
            if action.is_under_way:
                yield f"That batch has not ended; it was predicted to take {duration(action.expected_ns)}."
            else:
                status = _status(action.status)
                yield f"That batch was not executed: {status}{f', {action.text}' if action.text else ''}."
            return
        seen = history.devices.get((action.worker, action.device))
        if seen is not None:
            yield from self._before(seen, action, span[0])
        late = span[1] - request.deadline_ns
        yield (
            f"It was executed from {self._at(span[0])} to {self._at(span[1])}: predicted were "
            f"{duration(action.expected_ns)}, measured {duration(action.duration_ns)}"
            + (f"; it ended {duration(late)} after the deadline." if late > 0 else ".")
        )

    def _before(self, device: SeenDevice, action: SeenAction, begin_ns: int) -> Iterator[str]:
        """Describe the actions of the device between the arrival and the execution."""
        wait = [(self._arrived_ns, begin_ns)] if begin_ns > self._arrived_ns else []
        others = [
            other
            for other in device.executions
            if other is not action and (span := span_of(other)) is not None and intersection([span], wait)
        ]
        busy_ns = total_ns(intersection(executing_spans(device), wait))
        if others:
            models: dict[str, int] = {}
            for other in others:
                label = self._history.label(other.model_id)
                models[label] = models.get(label, 0) + 1
            often = sorted(models.items(), key=lambda entry: -entry[1])
            told = ", ".join(
                label if count == 1 else f"{label} {count} times"
                for label, count in often[:EXPLAINED_MODELS_MAX]
            )
            if len(often) > EXPLAINED_MODELS_MAX:
                told += f" and {say_count(len(often) - EXPLAINED_MODELS_MAX, 'other model')}"
            yield (
                f"Before it, {self._name(device)} executed {say_count(len(others), 'other batch', 'other batches')} for "
                f"{duration(busy_ns)} of that time: {told}."
            )
        load = self._load_that_ends(device, begin_ns)
        if load is not None and load.end_ns > self._arrived_ns:
            yield (
                f"The model had to be loaded there first: that was ordered {self._at(load.ordered_ns)}, began "
                f"{self._at(load.begin_ns)} and ended {self._at(load.end_ns)}; predicted were {duration(load.expected_ns)}, "
                f"measured {duration(load.duration_ns)}."
            )
        free = without(wait, executing_spans(device))
        if load is not None and load.end_ns > self._arrived_ns:
            free = without(free, [(self._arrived_ns, load.end_ns)])
        idle = [(begin, end) for begin, end in free if end <= action.ordered_ns]
        if total_ns(idle) > 0:
            yield (
                f"{self._name(device)} was idle for {duration(total_ns(idle))} of that time before the batch was ordered: "
                "the policy waited for more requests, or preferred another device."
            )

    def _load_that_ends(self, device: SeenDevice, by_ns: int) -> SeenAction | None:
        """Return the newest load of the model that ended well by a time."""
        for action in reversed(device.loads):
            if (
                action.kind == "load"
                and action.model_id == self._request.model_id
                and action.status is Status.OK
            ) and action.end_ns <= by_ns:
                return action
        return None

    def _capable_devices(self) -> list[SeenDevice]:
        """Return the devices whose worker had prepared the model: first the request's own, then those that
        held or loaded the model."""
        found = []
        for device in self._history.lanes():
            worker = self._history.workers.get(device.worker)
            residency = device.residency_of(self._model.id, self._arrived_ns)
            is_lost = 0 < device.lost_ns <= self._arrived_ns
            is_leaving = worker is not None and 0 < worker.draining_ns <= self._arrived_ns
            is_ready = self._model.ready_ns.get(device.worker, NEVER_NS) <= self._arrived_ns
            if is_lost or is_leaving or not (is_ready or residency is not None):
                continue
            found.append((self._rank(device, residency), device))
        found.sort(key=lambda ranked: ranked[0])
        return [device for _, device in found]

    def _rank(self, device: SeenDevice, residency: ResidencySpan | None) -> int:
        own = self._request.action
        if own is not None and (own.worker, own.device) == (device.worker, device.index):
            return 0
        if residency is None:
            return 3
        return 1 if self._had(residency) else 2

    def _had(self, residency: ResidencySpan) -> bool:
        """Return whether the model was executable at the arrival. since_ns 0: the model was loaded before the
        history."""
        return 0 < residency.ready_ns <= self._arrived_ns or not residency.since_ns

    def _devices_in_all(self, could: Sequence[SeenDevice]) -> Iterator[str]:
        there = [device for device in self._history.lanes() if not 0 < device.lost_ns <= self._arrived_ns]
        if not could:
            yield f"None of {say_count(len(there), 'device')} could have served it: no worker that has prepared {self._model.label} was there."
            return
        held = sum(
            (residency := device.residency_of(self._model.id, self._arrived_ns)) is not None
            and self._had(residency)
            for device in could
        )
        busy = sum(self._executing(device, self._arrived_ns) is not None for device in could)
        yield (
            f"{len(could)} of {say_count(len(there), 'device')} could have served it: {held} had the model, and {busy} "
            f"{'was' if busy == 1 else 'were'} executing when it arrived."
        )
        if len(could) > EXPLAINED_DEVICES_MAX:
            yield f"{EXPLAINED_DEVICES_MAX} of these devices are told of below."

    def _executing(self, device: SeenDevice, at_ns: int) -> SeenAction | None:
        """Return the action that a device executed at a time, by measured or else predicted times."""
        for action in reversed(device.executions):
            begin_ns, end_ns = self._shown(device, action)
            if begin_ns <= at_ns < end_ns:
                return action
        return None

    def _shown(self, device: SeenDevice, action: SeenAction) -> TimeSpan:
        """Return the span of an action: measured, or predicted if it has not ended. (0, 0): it was not
        executed."""
        span = span_of(action)
        if span is not None:
            return span
        if not action.is_under_way:
            return 0, 0
        lane = device.executions if action.is_execution else device.loads
        begin_ns = max(action.earliest_ns, action.ordered_ns)
        for other in lane:
            if other is action:
                break
            if other.is_under_way:
                begin_ns += other.expected_ns
        return begin_ns, begin_ns + action.expected_ns

    def _device(self, device: SeenDevice) -> str:
        """Describe a device's state and actions at the request's arrival."""
        at_ns, name = self._arrived_ns, self._name(device)
        residency = device.residency_of(self._model.id, at_ns)
        parts = []
        if residency is None:
            needed = self._load_expected_ns(device)
            takes = f", and a load takes {duration(needed)}" if needed else ""
            parts.append(f"did not have the model{takes}")
        elif self._had(residency):
            parts.append("had the model")
        elif residency.ready_ns:
            parts.append(f"was loading the model until {self._at(residency.ready_ns)}")
        elif residency.state == LOADING and not residency.until_ns:
            parts.append("is loading the model")
        else:
            parts.append("was loading the model, which came to nothing")
        executing = self._executing(device, at_ns)
        if executing is None:
            parts.append("executed nothing at that moment")
        else:
            _, end_ns = self._shown(device, executing)
            size = f" with {say_count(executing.rows, 'row')}" if executing.rows > 1 else ""
            parts.append(f"executed {self._history.label(executing.model_id)}{size} until {self._at(end_ns)}")
        sent = [
            action
            for action in device.executions
            if action is not self._request.action
            and action.ordered_ns <= at_ns < self._shown(device, action)[0]
        ]
        if sent:
            parts.append(
                f"had {say_count(len(sent), 'batch', 'batches')} more, sent before, until "
                f"{self._at(max(self._shown(device, action)[1] for action in sent))}"
            )
        loading = [
            action
            for action in device.loads
            if action.kind == "load"
            and action.model_id != self._model.id
            and self._shown(device, action)[0] <= at_ns < self._shown(device, action)[1]
        ]
        if loading:
            until = self._at(self._shown(device, loading[0])[1])
            parts.append(f"was loading {self._history.label(loading[0].model_id)} until {until}")
        worker = self._history.workers.get(device.worker)
        if worker is not None and (worker.there_ns + worker.back_ns) * FAR_PARTS > self._until_ns - at_ns > 0:
            parts.append(
                f"is far: messages take up to {duration(worker.there_ns)} there and {duration(worker.back_ns)} back"
            )
        if self._until_ns > at_ns:
            window = [(at_ns, self._until_ns)]
            busy_ns = total_ns(intersection(self._shown_executing(device), window))
            parts.append(
                f"executed for {busy_ns / (self._until_ns - at_ns):.0%} of the {duration(self._until_ns - at_ns)} until "
                + ("its deadline" if self._until_ns == self._request.deadline_ns else "its answer")
            )
        return f"{name} {', '.join(parts)}."

    def _shown_executing(self, device: SeenDevice) -> list[TimeSpan]:
        spans = (self._shown(device, action) for action in device.executions)
        return sorted(span for span in spans if span[1])

    def _load_expected_ns(self, device: SeenDevice) -> int:
        for action in reversed(device.loads):
            if action.kind == "load" and action.model_id == self._model.id:
                return action.expected_ns
        spec = self._model.specs.get(device.worker)
        return spec.load_ns if spec is not None else 0

    def _joinable(self) -> Iterator[str]:
        """Describe the first other batch of the same model and shape that was ordered after the arrival."""
        request = self._request
        if request.outcome == "answered":
            return
        found = min(self._later_batches(), key=lambda batch: batch[1].ordered_ns, default=None)
        if found is None:
            yield "No other batch of its model was ordered after it came."
            return
        device, action = found
        if action.ordered_ns > request.deadline_ns:
            late = duration(action.ordered_ns - request.deadline_ns)
            yield f"The next other batch of its model was ordered {late} after its deadline."
            return
        spec = self._model.specs.get(device.worker)
        has_room = spec is None or action.rows + request.rows <= spec.batch_max
        _, end_ns = self._shown(device, action)
        slack_ns = request.deadline_ns - end_ns
        ends = "ended" if span_of(action) is not None else "would have ended"
        yield (
            f"The next other batch of its model was ordered {self._at(action.ordered_ns)}, on {self._name(device)}, of "
            f"{say_count(action.rows, 'row')}, {'with room for it' if has_room else 'full'}"
            + ("." if request.deadline_ns == NEVER_NS
               else f"; it {ends} {duration(abs(slack_ns))} {'before' if slack_ns >= 0 else 'after'} its deadline.")
        )  # fmt: skip

    def _later_batches(self) -> Iterator[tuple[SeenDevice, SeenAction]]:
        request = self._request
        for device in self._history.lanes():
            for action in device.executions:
                if (
                    action.kind != "infer"
                    or action.model_id != request.model_id
                    or request.id in action.requests
                ):
                    continue
                others = (self._history.requests.get(request_id) for request_id in action.requests)
                shape = next(
                    (other.shape for other in others if other is not None and other.arrived_ns), request.shape
                )
                if (
                    shape == request.shape
                    and action.ordered_ns >= self._arrived_ns
                    and self._shown(device, action)[0]
                ):
                    yield device, action

    def _name(self, device: SeenDevice) -> str:
        return f"device {self._history.device_label(device.worker, device.index)}"

    def _at(self, at_ns: int) -> str:
        """Return a time in words, relative to the arrival."""
        ns = at_ns - self._arrived_ns
        return f"{duration(ns)} after its arrival" if ns >= 0 else f"{duration(-ns)} before its arrival"

    # ----- the picture ---------------------------------------------------------------------------

    def _timeline(self, devices: Sequence[SeenDevice]) -> Timeline:
        request = self._request
        span_ns = max(self._until_ns - self._arrived_ns, 1_000_000)
        from_ns, until_ns = self._arrived_ns - span_ns // 4, self._until_ns + span_ns // 4
        moments = [Moment(self._arrived_ns, "A", "arrival")]
        if request.sent_ns:
            moments.append(Moment(request.sent_ns, "S", "sent"))
        if request.answered_ns:
            moments.append(Moment(request.answered_ns, "E", request.outcome))
        if request.deadline_ns < NEVER_NS:
            moments.append(Moment(request.deadline_ns, "D", "deadline"))
        lanes = []
        for device in devices:
            for what, actions in (("execute", device.executions), ("load", device.loads)):
                spans = []
                for action in actions:
                    begin_ns, end_ns = self._shown(device, action)
                    if end_ns > from_ns and begin_ns < until_ns and begin_ns:
                        spans.append(self._lane_span(action, begin_ns, end_ns))
                lanes.append(
                    LaneTimeline(
                        f"{self._history.device_label(device.worker, device.index)} {what}", what, spans
                    )
                )
        title = f"Request {request.id} for {self._model.label}: {request.outcome or 'not answered'}"
        return Timeline(title, from_ns, until_ns, self._arrived_ns, moments, lanes)

    def _lane_span(self, action: SeenAction, begin_ns: int, end_ns: int) -> LaneSpan:
        label = self._history.label(action.model_id)
        size = f", {say_count(action.rows, 'row')}" if action.rows else ""
        text = f"{action.kind} {label}{size}, {duration(end_ns - begin_ns)}, predicted {duration(action.expected_ns)}"
        is_own = action is self._request.action or (
            action.kind == "load" and action.model_id == self._request.model_id
        )
        what = "execute" if action.is_execution else "load"
        return LaneSpan(begin_ns, end_ns, what, label, text, is_own, action.is_under_way)


def _status(status: Status | None) -> str:
    return "unknown" if status is None else status.name.lower().replace("_", " ")
