"""Histories of a running cluster, read from its controller's flight recorder.

Steps identify workers and models by numbers, and a history that begins in the middle has not seen their
names. introduce() takes the names from a controller's status and its list of models.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from clockwork.config.observe import LIVE_LATE_S, LIVE_POLL_S
from clockwork.errors import Unavailable
from clockwork.observe.history import History
from clockwork.scheduler.recording import Step, Stream
from clockwork.scheduler.types import Event, ModelReady, ModelSpec, WorkerJoined, device_shape

Ask = Callable[[str], Mapping[str, Any]]  # The type of Client.recorder()


class ClusterDescription(NamedTuple):
    """A controller's description of its cluster."""

    status: Mapping[str, Any]  # answer of Client.status()
    models: Sequence[Mapping[str, Any]]  # ``raw`` of Client.models()


class RecorderReading(NamedTuple):
    """The size of what was read from a flight recorder."""

    bytes: int
    lost: int  # bytes that the recorder had dropped before they were read


def follow(ask: Ask, history: History, cluster: ClusterDescription, span_ns: int) -> RecorderReading:
    """Read a recorder's steps from now on, until the history spans ``span_ns``.

    An idle cluster makes no steps, so reading also ends when that time has passed on this machine's clock.
    Raises Unavailable if the controller was restarted meanwhile.
    """
    ended = threading.Event()
    until_s = time.monotonic() + span_ns / 1e9 + LIVE_LATE_S
    stream, size = Stream("-0"), 0
    while time.monotonic() < until_s:
        size += _take(ask, stream, history, cluster, span_ns)
        if history.begun_ns and history.now_ns - history.begun_ns >= span_ns:
            break
        if stream.is_at_end:
            ended.wait(LIVE_POLL_S)
    return RecorderReading(size, stream.lost)


def look_back(ask: Ask, history: History, cluster: ClusterDescription, span_ns: int) -> RecorderReading:
    """Read a recorder's steps of the last ``span_ns``, or from its oldest step on. Raises Unavailable as
    follow() does."""
    stream, size = Stream(f"-{span_ns}"), 0
    while not stream.is_at_end:
        size += _take(ask, stream, history, cluster)
    return RecorderReading(size, stream.lost)


def _take(ask: Ask, stream: Stream, history: History, cluster: ClusterDescription, span_ns: int = 0) -> int:
    """Add the next piece of a recorder to a history. span_ns: bound of the history's time, 0: none. Returns
    the bytes read."""
    epoch, lost = stream.epoch, stream.lost
    piece = ask(stream.argument)
    steps = stream.take(piece)
    if epoch not in (0, stream.epoch) or piece.get("epoch", stream.epoch) != stream.epoch:
        raise Unavailable("the controller was started anew while its flight recorder was read: try again")
    if steps and not history.steps:
        introduce(history, cluster, steps[0].events[0].now_ns)
    if stream.lost > lost:
        history.skip()
    for step in steps:
        if span_ns and step.events[0].now_ns - history.begun_ns > span_ns:
            break
        history.apply(step)
    return len(piece["bytes"])


def introduce(history: History, cluster: ClusterDescription, at_ns: int, is_now: bool = True) -> None:
    """Enter the workers, devices and models that a history does not know, and resident models.

    at_ns: time of the history's next step. is_now: whether the description is of about that time; otherwise
    resident models are not entered, as they may have changed. Fields that the controller did not send are
    skipped, so its version may be older or newer.
    """
    events: list[Event] = []
    workers = {int(worker["id"]): worker for worker in cluster.status.get("workers", ()) if "id" in worker}
    for number, worker in workers.items():
        if number not in history.workers or not history.workers[number].joined_ns:
            devices = tuple(
                device_shape(
                    device.get("kind", ""),
                    device.get("page_bytes", 0),
                    device.get("page_count", 0),
                    device.get("run_ahead", 1),
                    device.get("arena", -1),
                )
                for device in worker.get("devices", ())
            )
            events.append(WorkerJoined(at_ns, number, devices))
    for model in cluster.models:
        if "id" not in model or (model["id"] in history.models and history.models[model["id"]].name):
            continue
        spec = ModelSpec(
            model["id"], model.get("name", ""), model.get("version", 0), model.get("program", ""), model.get("batches", False),
            model.get("batch_max", 1), model.get("slo_ns", 0), tuple(model.get("runs", ())), model.get("load_ns", 0), [],
        )  # fmt: skip
        lacking = model.get("not_prepared", {})
        ready = [number for number, worker in workers.items() if worker.get("name") not in lacking]
        events += [ModelReady(at_ns, worker, spec) for worker in ready]
    if events:
        history.apply(Step(events, ()))
    numbers = {worker.get("name"): number for number, worker in workers.items()}
    for name, number in numbers.items():
        history.workers[number].name = name or ""
    if not is_now:
        return
    told: dict[tuple[int, int], dict[int, str]] = {
        (number, index): {}
        for number, worker in workers.items()
        for index in range(len(worker.get("devices", ())))
    }
    for model in cluster.models:
        for place in model.get("devices", ()):
            if "id" in model and place.get("worker") in numbers:
                there = told.setdefault((numbers[place["worker"]], place["device"]), {})
                there[model["id"]] = place.get("state", "")
    is_complete = all("devices" in model for model in cluster.models if "id" in model)
    for (number, index), there in told.items():
        if is_complete:
            history.settle(number, index, there)
        for model_id, state in there.items():
            if state == "resident":
                history.hold(number, index, model_id)
