"""Changes of a cluster's numbers between two readings: of the whole, of each device and of each model.

A reading is the body of the query "metrics" (``Client.metrics()``), whose counts only grow. This module does
no I/O. Texts are safe to print (wire.telling.visible).
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from clockwork.config import METRIC_BOUNDS_NS, SHARE_WHOLE
from clockwork.wire.description import describe_standing
from clockwork.wire.references import model_reference
from clockwork.wire.telling import visible

SECOND = 1_000_000_000

Reading = Mapping[str, Any]


class Rates(NamedTuple):
    """Answers per second, by outcome. answered: in time. failed: any other end, invalid inputs and cancelled
    requests included."""

    answered: float
    refused: float
    missed: float
    failed: float

    @property
    def ended(self) -> float:
        return sum(self)


class DeviceRow(NamedTuple):
    """A device in the time between two readings. Shares are parts of that time, from 0 to 1."""

    worker: str
    device: int
    kind: str
    state: str  # serving, leaving or lost
    executing: float
    idle_with_work: float
    loading: float
    executions: float  # executions per second
    loads: float  # loads per second
    models: int  # number of resident models
    pages: int
    free_pages: int
    page_bytes: int
    early: int  # models that were evicted although they were used again soon, since the start
    text: str  # reason of the device's loss

    @property
    def idle(self) -> float:
        return max(0.0, 1 - self.executing - self.idle_with_work)


class ModelRow(NamedTuple):
    """A version of a model in the time between two readings. A percentile is None if no request was answered
    in time."""

    model: str  # label name@version of the model
    state: str
    rates: Rates
    reasons: Mapping[str, float]  # refusals per second, by reason
    waiting: int
    batch: float  # mean rows per execution; 0: no execution
    p50_ns: int | None
    p99_ns: int | None
    queue_p99_ns: int | None
    execute_p50_ns: int | None
    resident: Sequence[tuple[str, int]]  # devices with the model, as (worker, device)
    pages: int
    weights_bytes: int
    share: float  # part of the requests to its name, from 0 to 1


class Overview(NamedTuple):
    """The cluster between two readings. seconds: time between them."""

    seconds: float
    policy: str
    uptime_s: float
    ready: bool
    rates: Rates
    reasons: Mapping[str, float]  # refusals per second, by reason
    waiting: int
    clients: int
    wanted: float  # number of devices that the load needs
    late_p99_ns: int | None  # lateness of the controller's loop
    troubles: int  # number of kinds of open troubles
    standing: str  # a sentence about the controllers; "": there is one alone
    devices: tuple[DeviceRow, ...]
    models: tuple[ModelRow, ...]


def is_same_run(before: Reading, after: Reading) -> bool:
    """Return whether both readings are from the same start of a controller. Counts begin anew with each
    start."""
    return bool(before.get("started_ns") == after.get("started_ns"))


def compare(before: Reading, after: Reading) -> Overview:
    """Return the changes between two readings of the same start. A new worker or model counts from zero."""
    seconds = max((after["now_ns"] - before["now_ns"]) / SECOND, 1e-9)
    devices = tuple(_devices(before, after, seconds))
    models = tuple(_models(before, after, seconds))
    return Overview(
        seconds=seconds,
        policy=visible(after["policy"]),
        uptime_s=(after["now_ns"] - after["started_ns"]) / SECOND,
        ready=after["ready"],
        rates=Rates(*(sum(column) for column in zip(*(row.rates for row in models))))
        if models
        else Rates(0, 0, 0, 0),
        reasons=_added(row.reasons for row in models),
        waiting=after["requests_open"],
        clients=after["clients"],
        wanted=after["devices_wanted"],
        late_p99_ns=percentile(_grown(before["lag"]["buckets"], after["lag"]["buckets"]), 0.99),
        troubles=sum(trouble["open"] > 0 for trouble in after["troubles"].values()),
        standing=visible(describe_standing(after.get("standing"))),
        devices=devices,
        models=models,
    )


def percentile(buckets: Sequence[int], part: float) -> int | None:
    """Return a percentile of a cumulative histogram over METRIC_BOUNDS_NS. None: the histogram is empty.

    Values are taken to be spread evenly within a bucket. The last bucket has no end, so its begin is
    returned.
    """
    if not buckets or not buckets[-1]:
        return None
    rank = part * buckets[-1]
    place = bisect.bisect_left(buckets, rank)
    low: int = METRIC_BOUNDS_NS[place - 1] if place else 0
    if place >= len(METRIC_BOUNDS_NS):
        return low
    under = buckets[place - 1] if place else 0
    part_of_bucket = (rank - under) / (buckets[place] - under)
    return round(low + (int(METRIC_BOUNDS_NS[place]) - low) * part_of_bucket)


def _devices(before: Reading, after: Reading, seconds: float) -> Iterable[DeviceRow]:
    earlier = {
        (worker["name"], device["index"]): device
        for worker in before["workers"]
        for device in worker["devices"]
    }
    for worker in after["workers"]:
        for device in worker["devices"]:
            was = earlier.get((worker["name"], device["index"]), {})
            if any(was.get(name, 0) > device[name] for name in ("busy_ns", "executions", "loads")):
                was = {}  # another process of the same name

            def grown(name: str, was: Mapping[str, int] = was, device: Mapping[str, int] = device) -> float:
                return max(0, device[name] - was.get(name, 0)) / seconds

            executing = min(1.0, grown("busy_ns") / SECOND)
            yield DeviceRow(
                worker=visible(worker["name"]),
                device=device["index"],
                kind=visible(device["kind"]),
                state="lost"
                if device["lost"]
                else "leaving"
                if worker["state"] == "draining"
                else visible(worker["state"]),
                executing=executing,
                idle_with_work=min(1.0 - executing, grown("idle_with_work_ns") / SECOND),
                loading=min(1.0, grown("load_busy_ns") / SECOND),
                executions=grown("executions"),
                loads=grown("loads"),
                models=device["resident"],
                pages=device["pages"],
                free_pages=device["free_pages"],
                page_bytes=device["page_bytes"],
                early=device["evicted_early"],
                text=visible(device["lost"]),
            )


def _models(before: Reading, after: Reading, seconds: float) -> Iterable[ModelRow]:
    earlier = {(model["name"], model["version"]): model for model in before["models"]}
    for model in after["models"]:
        was = earlier.get((model["name"], model["version"]))
        if was is not None and any(was[name] > model[name] for name in ("inferences", "executions")):
            was = None  # the model was removed and registered again
        now, then = model["outcomes"], was["outcomes"] if was else {}
        refused = {
            reason: (count - then.get("refused", {}).get(reason, 0)) / seconds
            for reason, count in now["refused"].items()
        }

        def grown(*names: str, now: Mapping[str, int] = now, then: Mapping[str, int] = then) -> float:
            return sum(now[name] - then.get(name, 0) for name in names) / seconds

        def times(name: str, model: Reading = model, was: Reading | None = was) -> list[int]:
            return _grown(was["times"][name]["buckets"] if was else (), model["times"][name]["buckets"])

        executions = model["executions"] - (was["executions"] if was else 0)
        inferences = model["inferences"] - (was["inferences"] if was else 0)
        yield ModelRow(
            model=visible(model_reference(model["name"], model["version"])),
            state=visible(model["state"]),
            rates=Rates(
                grown("success"), sum(refused.values()), grown("deadline_missed"),
                grown("failed", "invalid_input", "cancelled"),
            ),
            reasons={visible(reason): rate for reason, rate in refused.items() if rate},
            waiting=model["pending"],
            batch=inferences / executions if executions else 0.0,
            p50_ns=percentile(times("total"), 0.5),
            p99_ns=percentile(times("total"), 0.99),
            queue_p99_ns=percentile(times("queue"), 0.99),
            execute_p50_ns=percentile(times("execute"), 0.5),
            resident=tuple((visible(worker), device) for worker, device in model["resident"]),
            pages=model["pages"],
            weights_bytes=model["weights_bytes"],
            share=model["share"] / SHARE_WHOLE,
        )  # fmt: skip


def _grown(before: Sequence[int], after: Sequence[int]) -> list[int]:
    return [now - then for now, then in zip(after, before)] if before else list(after)


def _added(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total
