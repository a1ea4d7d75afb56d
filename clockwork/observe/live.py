"""Histories of a running cluster, from its controller's flight recorder.

Steps name workers and models by numbers, and a history that begins in the middle has not seen who they are. A
controller's status and its list of models say that (``introduce()``).
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
from clockwork.scheduler.types import Event, ModelReady, ModelSpec, WorkerJoined

Ask = Callable[[str], Mapping[str, Any]]
"""Client.recorder()."""


class Cluster(NamedTuple):
    """What a controller says of its cluster."""

    status: Mapping[str, Any]  # of Client.status()
    models: Sequence[Mapping[str, Any]]  # ``raw`` of Client.models()


class Reading(NamedTuple):
    """What was read of a flight recorder."""

    bytes: int
    lost: int  # bytes that it had forgotten before they were read


def follow(ask: Ask, history: History, cluster: Cluster, span_ns: int) -> Reading:
    """Read a recorder's steps from now on, until the history has so much time of them.

    A cluster in which nothing happens tells no time, so it also ends when that time has passed here. Raises Unavailable where
    the controller is another one by the end.
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
    return Reading(size, stream.lost)


def look_back(ask: Ask, history: History, cluster: Cluster, span_ns: int) -> Reading:
    """Read a recorder's steps from so long ago, or from the oldest that it has, until now. Raises Unavailable as follow()."""
    stream, size = Stream(f"-{span_ns}"), 0
    while not stream.is_at_end:
        size += _take(ask, stream, history, cluster)
    return Reading(size, stream.lost)


def _take(ask: Ask, stream: Stream, history: History, cluster: Cluster, span_ns: int = 0) -> int:
    """Take the next piece into a history, up to so much time (0: all). Its bytes."""
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


def introduce(history: History, cluster: Cluster, at_ns: int, is_now: bool = True) -> None:
    """Tell a history of the workers, devices and models that it does not know, and of what is resident.

    at_ns: the time of its next step. is_now: whether that step, or another at hand, is of the time of the description;
    otherwise no resident models are told, which may be others at that step. What the controller did not say is
    left out, so an older or a newer one does no harm.
    """
    events: list[Event] = []
    workers = {int(one["id"]): one for one in cluster.status.get("workers", ()) if "id" in one}
    for number, worker in workers.items():
        if number not in history.workers or not history.workers[number].joined_ns:
            devices = tuple(
                (
                    one.get("kind", ""),
                    one.get("page_bytes", 0),
                    one.get("page_count", 0),
                    one.get("run_ahead", 1),
                )
                for one in worker.get("devices", ())
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
        ready = [one for one, worker in workers.items() if worker.get("name") not in lacking]
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
