"""Prometheus text of a cluster's metrics, under Clockwork's own names and under Triton's.

``render()`` writes the answer to the query "metrics" (``AsyncClient.metrics()``) as text, and
``render_gateway()`` a gateway's own counts. ``METRICS`` declares every metric that they can emit; tests
compare docs/metrics.md, the dashboard and the alert rules with it. prometheus_client is not used, because it
would rename Triton's counters (their names do not end in _total) and takes seven times as long with a
thousand models. The tests parse the text with that library.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import dataclasses
import struct
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from clockwork.config import METRIC_BOUNDS_NS, SHARE_WHOLE
from clockwork.config.gateway import METRICS_CACHE_NS, METRICS_GZIP_LEVEL, METRICS_MODELS_MAX
from clockwork.errors import ClockworkError
from clockwork.system.clock import now_ns
from clockwork.wire.description import STORE_STATES

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


SECOND = 1_000_000_000
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
SHADOW_OUTCOMES = ("compared", "unanswered", "moot", "dropped")
OUTCOMES = ("success", "refused", "deadline_missed", "cancelled", "failed", "invalid_input")
FAILURES = {
    "REJECTED": ("refused", "deadline_missed"),
    "CANCELED": ("cancelled",),
    "BACKEND": ("failed",),
    "OTHER": ("invalid_input",),
}
"""By Triton's reason of failure: the outcomes that are counted under it."""

Read = Callable[[], Awaitable[Mapping[str, Any]]]
"""Queries the controller for metrics; raises ClockworkError where the controller does not answer."""


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """A metric that can be emitted. kind: counter, gauge or histogram. unit: the unit of its value."""

    name: str
    kind: str
    labels: tuple[str, ...]
    unit: str
    help: str

    def series(self) -> tuple[str, ...]:
        """Return the names of the metric's time series."""
        if self.kind == "histogram":
            return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
        return (self.name,)


_MODEL = ("model", "version")
_DEVICE = ("worker", "device", "kind")

_DECLARED = (
    # ----- requests, by model and version -----
    Metric("clockwork_requests_total", "counter", (*_MODEL, "outcome"), "requests",
           "Requests answered, by outcome. Successes are answers before the deadline; their rate is the"
           " goodput."),
    Metric("clockwork_refusals_total", "counter", (*_MODEL, "reason"), "requests",
           "Requests refused, by the reason in the refusal."),
    Metric("clockwork_requests_pending", "gauge", _MODEL, "requests",
           "Requests that have arrived and were not answered yet."),
    Metric("clockwork_request_duration_seconds", "histogram", _MODEL, "seconds",
           "Time from a request's arrival at the controller to its answer, of successful requests."),
    Metric("clockwork_queue_duration_seconds", "histogram", _MODEL, "seconds",
           "Time from a request's arrival until a device began with it, less the wait for a load, of"
           " successful requests."),
    Metric("clockwork_load_wait_duration_seconds", "histogram", _MODEL, "seconds",
           "Time for which a successful request waited for a load. Requests without such a wait are not"
           " counted, so the count is that of cold answers."),
    Metric("clockwork_execute_duration_seconds", "histogram", _MODEL, "seconds",
           "Duration of the execution of a request's batch."),
    Metric("clockwork_copy_in_duration_seconds", "histogram", _MODEL, "seconds",
           "Duration of copying the inputs of a request's batch to the device."),
    Metric("clockwork_copy_out_duration_seconds", "histogram", _MODEL, "seconds",
           "Duration of copying the outputs of a request's batch from the device."),
    Metric("clockwork_rows_total", "counter", _MODEL, "rows", "Rows of successful requests."),
    Metric("clockwork_batch_rows", "histogram", _MODEL, "rows",
           "Rows of each executed batch; numbers above 64 are rounded up to the next power of two."),
    Metric("clockwork_requests_unserved_total", "counter", ("reason",), "requests",
           "Requests for models that are not registered or that no worker serves; they are in no model's"
           " counts."),
    # ----- models -----
    Metric("clockwork_models", "gauge", ("state",), "models", "Registered models (versions), by state."),
    Metric("clockwork_ready", "gauge", (), "",
           "1 if the cluster is ready: it has a worker, and each model of its start or of --await-model is"
           " served or has failed."),
    Metric("clockwork_model_ready", "gauge", _MODEL, "",
           "1 if the controller accepts requests for the model; 0 while the model is prepared or drained,"
           " or if it failed."),
    Metric("clockwork_model_resident_devices", "gauge", _MODEL, "devices", "Devices that hold the model."),
    Metric("clockwork_model_hosted_workers", "gauge", _MODEL, "workers",
           "Workers whose host store, which has a budget, holds the model."),
    Metric("clockwork_model_weights_bytes", "gauge", _MODEL, "bytes", "Size of the model's weights."),
    Metric("clockwork_model_pages", "gauge", _MODEL, "pages", "Pages that the model takes on a device."),
    Metric("clockwork_model_share", "gauge", _MODEL, "ratio",
           "The part of the requests for the model's name that this version serves."),
    # ----- shadows: versions that get copies of requests that other versions answer -----
    Metric("clockwork_shadow_copies_total", "counter", (*_MODEL, "outcome"), "requests",
           "Copies of requests for a shadow version, by outcome: both answers compared, no answer of the"
           " shadow, no answer of the serving version, or dropped."),
    Metric("clockwork_shadow_beyond_tolerance_total", "counter", _MODEL, "requests",
           "Compared pairs of answers of a shadow and the serving version that differ by more than the"
           " tolerance, or in names, dtypes or shapes."),
    Metric("clockwork_shadow_relative_difference_max", "gauge", _MODEL, "ratio",
           "The largest difference between answers of a shadow and the serving version, relative to the"
           " largest magnitude in the serving version's tensor."),
    # ----- devices -----
    Metric("clockwork_device_up", "gauge", _DEVICE, "",
           "1 if the device works; 0 if it is broken and its worker serves with its other devices."),
    Metric("clockwork_device_info", "gauge", (*_DEVICE, "name"), "",
           "Always 1; the label name is the name of the card or processor."),
    Metric("clockwork_device_clock_hertz", "gauge", _DEVICE, "hertz",
           "Clock at which the device executes, where it is known: lower than usual if the device is too hot."),
    Metric("clockwork_device_busy_seconds_total", "counter", _DEVICE, "seconds",
           "Time in which the device executed batches; its rate is the utilisation."),
    Metric("clockwork_device_idle_with_work_seconds_total", "counter", _DEVICE, "seconds",
           "Time in which the device executed nothing although a request waited in the controller that the"
           " device could have served."),
    Metric("clockwork_device_load_seconds_total", "counter", _DEVICE, "seconds",
           "Time in which weights were copied to the device."),
    Metric("clockwork_device_executions_total", "counter", _DEVICE, "batches",
           "Batches that the device executed."),
    Metric("clockwork_device_loads_total", "counter", _DEVICE, "models", "Models loaded onto the device."),
    Metric("clockwork_device_evictions_total", "counter", _DEVICE, "models",
           "Models unloaded from the device, for any reason."),
    Metric("clockwork_device_evictions_early_total", "counter", _DEVICE, "models",
           "Models unloaded to make room for others less than 10 s after their load; a high rate means"
           " thrashing."),
    Metric("clockwork_device_arena_pages", "gauge", _DEVICE, "pages",
           "Pages of the device's arena; 0 where it executes from the arena of another."),
    Metric("clockwork_device_arena_free_pages", "gauge", _DEVICE, "pages",
           "Free pages of the device's arena."),
    Metric("clockwork_device_arena_bytes", "gauge", _DEVICE, "bytes", "Size of the device's arena."),
    Metric("clockwork_device_resident_models", "gauge", _DEVICE, "models", "Models loaded on the device."),
    Metric("clockwork_device_margin_ratio", "gauge", _DEVICE, "ratio",
           "Planned time of executions on the device relative to their expected time, learnt by policy"
           " adaptive; 0 under other policies."),
    Metric("clockwork_device_contested_seconds", "gauge", _DEVICE, "seconds",
           "Remaining time for which models are limited to their shares, after a request was turned away"
           " from the device."),
    Metric("clockwork_device_share_level", "gauge", _DEVICE, "ratio",
           "The part of the device's time up to which a model gets all that it asks for; 0 while the time"
           " is not divided into shares."),
    Metric("clockwork_device_models_beyond_share", "gauge", _DEVICE, "models",
           "Models that ask for more than the share level and have had at least the mean of such models."),
    Metric("clockwork_devices", "gauge", (), "devices", "Devices of workers that are not leaving."),
    Metric("clockwork_devices_wanted", "gauge", (), "devices",
           "Number of devices that the present load needs, by the scheduler's estimates; a target for"
           " scaling."),
    Metric("clockwork_threads_wanted", "gauge", (), "threads",
           "Most threads of an execution that any model needs to meet its SLO; 1 if one thread does for all."),
    Metric("clockwork_stored_models", "gauge", ("state",), "models",
           "Models in workers' stores with a bound (--store-bytes) that are scarce (fewer copies than"
           " --stored-copies asks for), awaited (scarce, and a worker that has left may bring a copy back), cramped"
           " (scarce, and no store has room), lost (no copy left), or copying (on their way into a store)."),
    Metric("clockwork_stores_planned_bytes", "gauge", (), "bytes",
           "The part of all stores with a bound that the controller plans with."),
    Metric("clockwork_stores_planned_used_bytes", "gauge", (), "bytes",
           "The bytes of it that models take, those on their way included."),
    # ----- workers -----
    Metric("clockwork_workers", "gauge", (), "workers", "Connected workers."),
    Metric("clockwork_worker_serving", "gauge", ("worker",), "",
           "1 if the worker gets work; 0 while it drains."),
    Metric("clockwork_worker_models", "gauge", ("worker", "state"), "models",
           "Models on the worker by state: ready, preparing, or failed in preparation."),
    Metric("clockwork_worker_host_store_bytes", "gauge", ("worker",), "bytes",
           "Budget of the worker's host store; 0 if it has none."),
    Metric("clockwork_worker_host_store_used_bytes", "gauge", ("worker",), "bytes",
           "Used bytes of the worker's host store."),
    Metric("clockwork_worker_fetches_total", "counter", ("worker",), "models",
           "Models fetched: from disk into the host store, or from another worker into a store with a bound."),
    Metric("clockwork_worker_drops_total", "counter", ("worker",), "models", "Models dropped from such a store."),
    Metric("clockwork_worker_store_bytes", "gauge", ("worker",), "bytes",
           "Bound of the prepared models on the worker's disk (--store-bytes); 0 if it has none."),
    Metric("clockwork_worker_store_used_bytes", "gauge", ("worker",), "bytes",
           "Bytes of the prepared models in a store with a bound, and of their programs."),
    Metric("clockwork_worker_wakeup_jitter_seconds", "gauge", ("worker",), "seconds",
           "Delay with which the operating system wakes the worker's threads, 99th percentile."),
    Metric("clockwork_worker_round_trip_seconds", "gauge", ("worker",), "seconds",
           "Duration of a message from the controller to the worker and back, without the worker's own"
           " time."),
    # ----- the scheduler and its controller -----
    Metric("clockwork_prediction_error_seconds", "histogram", ("action", "of", "side"), "seconds",
           "Error of predicted durations or completions (of) of actions; side over: predicted longer or"
           " later than measured; under: shorter or earlier."),
    Metric("clockwork_controller_lag_seconds", "histogram", (), "seconds",
           "Lateness of the controller's loop: time from a turn's oldest event, when it was due or can have"
           " arrived, until all its consequences were sent."),
    Metric("clockwork_requests_open", "gauge", (), "requests",
           "Requests that the controller has not answered yet."),
    Metric("clockwork_clients", "gauge", (), "clients", "Connected clients, gateways included."),
    Metric("clockwork_controller_start_time_seconds", "gauge", (), "seconds",
           "Time at which the controller started, in seconds since the epoch."),
    Metric("clockwork_scheduler_info", "gauge", ("policy",), "",
           "Always 1; the label policy is the name of the scheduling policy."),
    Metric("clockwork_links_contested_seconds", "gauge", (), "seconds",
           "Remaining time for which models may be limited to their shares of the links that load models, after a"
           " request was turned away because its model was not loaded."),
    Metric("clockwork_links_share_level", "gauge", (), "links",
           "The time of links, in links, up to which a model gets all that it asks for; 0 while it is not divided"
           " into shares."),
    Metric("clockwork_links_models_beyond_share", "gauge", (), "models",
           "Models that ask for more than the share level of the links; their loads come behind all others."),
    Metric("clockwork_scheduler_pace_ratio", "gauge", (), "ratio",
           "Ratio of executed to planned time of executions, as policy adaptive has learnt; absent under others."),
    Metric("clockwork_scheduler_need_ratio", "gauge", (), "ratio",
           "The part of its time that each device would need for the arriving requests, in batches as large"
           " as SLOs allow; more than 1 in overload. Policy adaptive only."),
    Metric("clockwork_scheduler_share_devices", "gauge", (), "devices",
           "Number of devices to which policy adaptive limits a model, as of the last request; 0 without a"
           " limit."),
    Metric("clockwork_up", "gauge", (), "",
           "1 if the controller answered the gateway; 0 if not, and then the controller's metrics are"
           " missing."),
    Metric("clockwork_models_without_histograms", "gauge", (), "models",
           "Models (versions) that have counters but no histograms, because there are too many models."),
    # ----- controllers -----
    Metric("clockwork_active_controller", "gauge", ("address",), "",
           "Always 1; the label address is the address for clients of the controller that is active."),
    Metric("clockwork_active_seconds", "gauge", (), "seconds",
           "Time for which this controller has been the active."),
    Metric("clockwork_standbys", "gauge", (), "controllers",
           "Standby controllers that live; absent where none is there and none is to be there."),
    Metric("clockwork_standby_behind_changes", "gauge", ("address",), "changes",
           "Changes of the catalogue that a standby has not read yet, of several at one address the most; absent where"
           " it reads them when it takes over."),
    Metric("clockwork_takeovers_total", "counter", ("why",), "takeovers",
           "Times that a standby became active, by what the active did before: it was killed, was stopped (and"
           " then ended by a standby, or its lease expired), ended in order, or handed over. Kept in the data"
           " directory, or in PostgreSQL where the catalogue is there, over restarts."),
    # ----- troubles -----
    Metric("clockwork_messages_rejected_total", "counter", ("sender", "why"), "messages",
           "Messages that were malformed or met a defect of the controller (failed), and connections whose"
           " key was not admitted (refused)."),
    Metric("clockwork_troubles", "gauge", ("kind",), "",
           "Troubles of this kind that exist or occurred within the last day; `clockwork status` lists"
           " them."),
    Metric("clockwork_trouble_since_seconds", "gauge", ("kind",), "seconds",
           "Age of the oldest trouble of this kind; 0 if there is none."),
    Metric("clockwork_troubles_noted_total", "counter", ("kind",), "events",
           "Number of times that trouble of this kind occurred."),
    # ----- the gateway's own metrics -----
    Metric("clockwork_gateway_requests_total", "counter", ("protocol", "method", "code"), "requests",
           "Requests that this gateway answered, by HTTP status or gRPC code."),
    Metric("clockwork_gateway_requests_in_flight", "gauge", ("protocol",), "requests",
           "Requests that this gateway has not answered yet, without scrapes of its metrics."),
    Metric("clockwork_gateway_request_duration_seconds", "histogram", ("protocol", "method"), "seconds",
           "Time from this gateway's reading of a request to its writing of the answer."),
    Metric("clockwork_gateway_received_bytes_total", "counter", ("protocol",), "bytes", "Bodies of requests; over gRPC their raw tensors."),
    Metric("clockwork_gateway_sent_bytes_total", "counter", ("protocol",), "bytes", "Bodies of answers; over gRPC their raw tensors."),
    Metric("clockwork_gateway_abandoned_total", "counter", ("protocol",), "requests",
           "Requests whose client went away before the answer."),
    # ----- Triton's names for the same values -----
    Metric("nv_inference_request_success", "counter", _MODEL, "requests", "Number of successful inference requests."),
    Metric("nv_inference_request_failure", "counter", (*_MODEL, "reason"), "requests",
           "Number of failed inference requests: REJECTED (refused, or its deadline passed), CANCELED, BACKEND, OTHER."),
    Metric("nv_inference_count", "counter", _MODEL, "rows", "Number of inferences performed (rows)."),
    Metric("nv_inference_exec_count", "counter", _MODEL, "batches", "Number of model executions (batches)."),
    Metric("nv_inference_request_duration_us", "counter", _MODEL, "microseconds",
           "Cumulative duration of successful requests."),
    Metric("nv_inference_queue_duration_us", "counter", _MODEL, "microseconds",
           "Cumulative time of successful requests in queues, waiting for a load included."),
    Metric("nv_inference_compute_input_duration_us", "counter", _MODEL, "microseconds",
           "Cumulative time of copying inputs."),
    Metric("nv_inference_compute_infer_duration_us", "counter", _MODEL, "microseconds",
           "Cumulative time of execution."),
    Metric("nv_inference_compute_output_duration_us", "counter", _MODEL, "microseconds",
           "Cumulative time of copying outputs."),
    Metric("nv_inference_pending_request_count", "gauge", _MODEL, "requests",
           "Number of requests that were not answered yet."),
)  # fmt: skip

METRICS: dict[str, Metric] = {metric.name: metric for metric in _DECLARED}

_TIMES = {
    "total": "clockwork_request_duration_seconds",
    "queue": "clockwork_queue_duration_seconds",
    "load": "clockwork_load_wait_duration_seconds",
    "execute": "clockwork_execute_duration_seconds",
    "copy_in": "clockwork_copy_in_duration_seconds",
    "copy_out": "clockwork_copy_out_duration_seconds",
}
_ALIASED_TIMES = {
    "nv_inference_request_duration_us": ("total",),
    "nv_inference_queue_duration_us": ("queue", "load"),
    "nv_inference_compute_input_duration_us": ("copy_in",),
    "nv_inference_compute_infer_duration_us": ("execute",),
    "nv_inference_compute_output_duration_us": ("copy_out",),
}


# ----- a gateway's counters ---------------------------------------------------------------------


class GatewayCounters:
    """Counts requests and bytes of a gateway's servers. For the event loop's thread alone.

    protocol: http or grpc. method: a name from a fixed set, such as infer or model_metadata, never a client's
    text.
    """

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, str]] = Counter()
        self.in_flight: Counter[str] = Counter()
        self.received_bytes: Counter[str] = Counter()
        self.sent_bytes: Counter[str] = Counter()
        self.abandoned: Counter[str] = Counter()
        # Counts by bucket (not cumulative), then the sum in ns
        self.durations: defaultdict[tuple[str, str], list[int]] = defaultdict(
            lambda: [0] * (len(METRIC_BOUNDS_NS) + 2)
        )

    def begin(self, protocol: str) -> int:
        """Count a request that has been read, and return the time for end()."""
        self.in_flight[protocol] += 1
        return now_ns()

    def end(
        self,
        protocol: str,
        method: str,
        code: int | str,
        begun_ns: int,
        received_bytes: int = 0,
        sent_bytes: int = 0,
    ) -> None:
        """Count the answer to a request."""
        self.in_flight[protocol] -= 1
        self.requests[protocol, method, str(code)] += 1
        self.received_bytes[protocol] += received_bytes
        self.sent_bytes[protocol] += sent_bytes
        took_ns = now_ns() - begun_ns
        found = self.durations[protocol, method]
        found[bisect.bisect_left(METRIC_BOUNDS_NS, took_ns)] += 1
        found[-1] += took_ns

    def sent(self, protocol: str, count: int) -> None:
        """Count bytes of an answer that are not passed to end()."""
        self.sent_bytes[protocol] += count

    @contextlib.contextmanager
    def uncounted(self, protocol: str) -> Iterator[None]:
        """Do not count a request as in flight inside the context: a scrape would otherwise count itself."""
        self.in_flight[protocol] -= 1
        try:
            yield
        finally:
            self.in_flight[protocol] += 1

    def abandon(self, protocol: str) -> None:
        """Count a request whose client disconnected before the answer."""
        self.in_flight[protocol] -= 1
        self.abandoned[protocol] += 1


# ----- the text ----------------------------------------------------------------------------------


def _escaped(value: object) -> str:
    return str(value).replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _labels(names: Sequence[str], values: Iterable[object]) -> str:
    """Return labels in Prometheus form: ``a="x",b="y"``."""
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))


def _le_labels(bounds: Iterable[float]) -> list[str]:
    return [*(f'le="{bound:g}"' for bound in bounds), 'le="+Inf"']


_LE_SECONDS = _le_labels(bound / SECOND for bound in METRIC_BOUNDS_NS)
_LE_ROWS = _le_labels(BATCH_BOUNDS)


class _Text:
    """Collects samples by metric, because the format wants a metric's samples in one block."""

    def __init__(self) -> None:
        self._samples: dict[str, list[str]] = {name: [] for name in METRICS}

    def add(self, name: str, values: Sequence[object], value: float) -> None:
        self.add_labelled(name, _labels(METRICS[name].labels, values), value)

    def add_labelled(self, name: str, labels: str, value: float) -> None:
        self._samples[name].append(f"{name}{{{labels}}} {value}" if labels else f"{name} {value}")

    def histogram(
        self, name: str, labels: str, les: Sequence[str], buckets: Sequence[int], total: float
    ) -> None:
        """Add a histogram.

        buckets: cumulative, the last counts all values. total: their sum, in the metric's unit.
        """
        lines = self._samples[name]
        before = f"{name}_bucket{{{labels}," if labels else f"{name}_bucket{{"
        lines.extend([f"{before}{le}}} {count}" for le, count in zip(les, buckets, strict=True)])
        after = f"{{{labels}}}" if labels else ""
        lines.append(f"{name}_sum{after} {total}")
        lines.append(f"{name}_count{after} {buckets[-1]}")

    def durations(
        self, name: str, labels: str, found: Mapping[str, Any], les: Sequence[str] = _LE_SECONDS
    ) -> None:
        self.histogram(name, labels, les, found["buckets"], found["sum_ns"] / SECOND)

    def encode(self) -> bytes:
        lines = []
        for name, samples in self._samples.items():
            if samples:
                metric = METRICS[name]
                lines.append(f"# HELP {name} {metric.help}")
                lines.append(f"# TYPE {name} {metric.kind}")
                lines.extend(samples)
        lines.append("")
        return "\n".join(lines).encode()


def render(body: Mapping[str, Any] | None) -> bytes:
    """Return the text for an answer to the query "metrics"; None: the controller did not answer."""
    text = _Text()
    text.add("clockwork_up", (), int(body is not None))
    if body is not None:
        _add_models(text, body.get("models", ()), body.get("unloaded", 0))
        for worker in body.get("workers", ()):
            _add_worker(text, worker)
        _add_cluster(text, body)
    return text.encode()


def render_gateway(gateway: GatewayCounters) -> bytes:
    """Return the text of a gateway's own counts."""
    text = _Text()
    _add_gateway(text, gateway)
    return text.encode()


def _add_models(text: _Text, models: Sequence[Mapping[str, Any]], unloaded: int) -> None:
    states = {"unloaded": unloaded} if unloaded else {}
    without = 0
    for place, model in enumerate(models):
        states[model["state"]] = states.get(model["state"], 0) + 1
        is_brief = place >= METRICS_MODELS_MAX
        without += is_brief
        _add_model(text, model, is_brief)
    for state, count in states.items():
        text.add("clockwork_models", (state,), count)
    text.add("clockwork_models_without_histograms", (), without)


def _add_model(text: _Text, model: Mapping[str, Any], is_brief: bool) -> None:
    labels = _labels(_MODEL, (model["name"], model["version"]))
    outcomes, times = model["outcomes"], model["times"]
    add = text.add_labelled
    add("clockwork_model_ready", labels, int(model["state"] == "ready"))
    add("clockwork_model_resident_devices", labels, len(model["resident"]))
    add("clockwork_model_hosted_workers", labels, len(model["hosted"]))
    add("clockwork_model_weights_bytes", labels, model["weights_bytes"])
    add("clockwork_model_pages", labels, model["pages"])
    add("clockwork_model_share", labels, model.get("share", 0) / SHARE_WHOLE)
    if shadow := model.get("shadow"):
        for outcome in SHADOW_OUTCOMES:
            add("clockwork_shadow_copies_total", f'{labels},outcome="{outcome}"', shadow[outcome])
        add("clockwork_shadow_beyond_tolerance_total", labels, shadow["beyond"])
        add("clockwork_shadow_relative_difference_max", labels, shadow["relative_max"])
    add("clockwork_requests_pending", labels, model["pending"])
    add("nv_inference_pending_request_count", labels, model["pending"])
    for outcome in OUTCOMES:
        found = outcomes[outcome]
        count = sum(found.values()) if outcome == "refused" else found
        add("clockwork_requests_total", f'{labels},outcome="{outcome}"', count)
    for reason, count in outcomes["refused"].items():
        add("clockwork_refusals_total", f'{labels},reason="{_escaped(reason)}"', count)
    add("clockwork_rows_total", labels, model["inferences"])
    add("nv_inference_request_success", labels, outcomes["success"])
    for reason, members in FAILURES.items():
        count = sum(
            sum(outcomes[outcome].values()) if outcome == "refused" else outcomes[outcome]
            for outcome in members
        )
        add("nv_inference_request_failure", f'{labels},reason="{reason}"', count)
    add("nv_inference_count", labels, model["inferences"])
    add("nv_inference_exec_count", labels, model["executions"])
    for name, parts in _ALIASED_TIMES.items():
        add(name, labels, sum(times[part]["sum_ns"] for part in parts) // 1_000)
    if is_brief or not model["last_ns"]:
        return  # no empty histogram, which would have twenty lines, for each model that was never asked
    for part, name in _TIMES.items():
        text.durations(name, labels, times[part])
    buckets = [0] * (len(BATCH_BOUNDS) + 1)
    rows = 0
    for size, (count, _) in model["batches"].items():
        buckets[bisect.bisect_left(BATCH_BOUNDS, int(size))] += count
        rows += int(size) * count
    for place in range(1, len(buckets)):
        buckets[place] += buckets[place - 1]
    text.histogram("clockwork_batch_rows", labels, _LE_ROWS, buckets, rows)


def _add_worker(text: _Text, worker: Mapping[str, Any]) -> None:
    labels = _labels(("worker",), (worker["name"],))
    add = text.add_labelled
    add("clockwork_worker_serving", labels, int(worker["state"] != "draining"))
    for state, count in worker.get("models", {}).items():
        add("clockwork_worker_models", f'{labels},state="{state}"', count)
    add("clockwork_worker_host_store_bytes", labels, worker["host_bytes"])
    add("clockwork_worker_host_store_used_bytes", labels, worker["host_used"])
    add("clockwork_worker_fetches_total", labels, worker["fetches"])
    add("clockwork_worker_drops_total", labels, worker["drops"])
    add("clockwork_worker_store_bytes", labels, worker.get("store_bytes", 0))
    add("clockwork_worker_store_used_bytes", labels, worker.get("store_used", 0))
    add("clockwork_worker_wakeup_jitter_seconds", labels, worker.get("jitter_ns", 0) / SECOND)
    add("clockwork_worker_round_trip_seconds", labels, worker.get("rtt_ns", 0) / SECOND)
    for device in worker["devices"]:
        labels = _labels(_DEVICE, (worker["name"], device["index"], device["kind"]))
        add("clockwork_device_up", labels, int(not device.get("lost")))
        add("clockwork_device_info", f'{labels},name="{_escaped(device["name"])}"', 1)
        if clock_mhz := device.get("clock_mhz", 0):
            add("clockwork_device_clock_hertz", labels, clock_mhz * 1_000_000)
        add("clockwork_device_busy_seconds_total", labels, device["busy_ns"] / SECOND)
        add(
            "clockwork_device_idle_with_work_seconds_total",
            labels,
            device.get("idle_with_work_ns", 0) / SECOND,
        )
        add("clockwork_device_load_seconds_total", labels, device["load_busy_ns"] / SECOND)
        add("clockwork_device_executions_total", labels, device["executions"])
        add("clockwork_device_loads_total", labels, device["loads"])
        add("clockwork_device_evictions_total", labels, device["unloads"])
        add("clockwork_device_evictions_early_total", labels, device["evicted_early"])
        add("clockwork_device_arena_pages", labels, device["pages"])
        add("clockwork_device_arena_free_pages", labels, device["free_pages"])
        add("clockwork_device_arena_bytes", labels, device["pages"] * device.get("page_bytes", 0))
        add("clockwork_device_resident_models", labels, device.get("resident", 0))
        add("clockwork_device_margin_ratio", labels, round(device.get("margin", 0), 6))
        add("clockwork_device_contested_seconds", labels, device.get("contested_ns", 0) / SECOND)
        add("clockwork_device_share_level", labels, round(device.get("level", 0), 6))
        add("clockwork_device_models_beyond_share", labels, device.get("beyond", 0))


def _add_cluster(text: _Text, body: Mapping[str, Any]) -> None:
    workers = body.get("workers", ())
    text.add("clockwork_workers", (), len(workers))
    text.add("clockwork_ready", (), int(body.get("ready", False)))
    text.add("clockwork_devices", (), body["devices"])
    text.add("clockwork_devices_wanted", (), round(body["devices_wanted"], 4))
    text.add("clockwork_threads_wanted", (), body.get("threads_wanted", 1))
    if (stores := body.get("stores")) and stores["bytes"]:
        for state in STORE_STATES:
            text.add("clockwork_stored_models", (state,), stores[state])
        text.add("clockwork_stores_planned_bytes", (), stores["bytes"])
        text.add("clockwork_stores_planned_used_bytes", (), stores["used"])
    text.add("clockwork_requests_open", (), body["requests_open"])
    text.add("clockwork_clients", (), body["clients"])
    text.add("clockwork_scheduler_info", (body["policy"],), 1)
    if links := body.get("links"):
        text.add("clockwork_links_contested_seconds", (), links["contested_ns"] / SECOND)
        text.add("clockwork_links_share_level", (), round(links["level"], 6))
        text.add("clockwork_links_models_beyond_share", (), links["beyond"])
    if learnt := body.get("learnt"):
        text.add("clockwork_scheduler_pace_ratio", (), round(learnt["pace"], 6))
        text.add("clockwork_scheduler_need_ratio", (), round(learnt["need"], 6))
        text.add("clockwork_scheduler_share_devices", (), round(learnt["share"], 6))
    started_s = time.time() - (body["now_ns"] - body["started_ns"]) / SECOND
    text.add("clockwork_controller_start_time_seconds", (), round(started_s, 1))
    for reason, count in body.get("unserved", {}).items():
        text.add("clockwork_requests_unserved_total", (reason,), count)
    for kind, count in body.get("complaints", {}).items():
        text.add("clockwork_messages_rejected_total", tuple(kind.split()), count)
    for kind, found in body.get("troubles", {}).items():
        text.add("clockwork_troubles", (kind,), found["open"])
        text.add("clockwork_trouble_since_seconds", (kind,), found["since_ns"] / SECOND)
        text.add("clockwork_troubles_noted_total", (kind,), found["noted"])
    if standing := body.get("standing"):
        text.add("clockwork_active_controller", (standing["active"],), 1)
        text.add("clockwork_active_seconds", (), standing["since_ns"] / SECOND)
        if standing["standbys"] or standing["expects_standbys"]:
            text.add("clockwork_standbys", (), len(standing["standbys"]))
        behind: dict[str, int] = {}  # machines may listen at the same words
        for standby in standing["standbys"]:
            if standby["behind"] >= 0:
                behind[standby["address"]] = max(standby["behind"], behind.get(standby["address"], 0))
        for address, changes in behind.items():
            text.add("clockwork_standby_behind_changes", (address,), changes)
        for why, count in standing["takeovers"].items():
            text.add("clockwork_takeovers_total", (why,), count)
    text.durations("clockwork_controller_lag_seconds", "", body["lag"])
    errors = body.get("prediction_errors", {})
    les = _le_labels(bound / SECOND for bound in errors.get("bounds_ns", ()))
    for key, sides in errors.items():
        if key != "bounds_ns":
            action, _, of = key.partition("_")
            for side in ("over", "under"):
                labels = _labels(METRICS["clockwork_prediction_error_seconds"].labels, (action, of, side))
                text.durations("clockwork_prediction_error_seconds", labels, sides[side], les)


def _add_gateway(text: _Text, gateway: GatewayCounters) -> None:
    for key, count in gateway.requests.items():
        text.add("clockwork_gateway_requests_total", key, count)
    for name, table in (
        ("clockwork_gateway_requests_in_flight", gateway.in_flight),
        ("clockwork_gateway_received_bytes_total", gateway.received_bytes),
        ("clockwork_gateway_sent_bytes_total", gateway.sent_bytes),
        ("clockwork_gateway_abandoned_total", gateway.abandoned),
    ):
        for protocol, count in table.items():
            text.add(name, (protocol,), count)
    for labels, (*counts, sum_ns) in gateway.durations.items():
        for place in range(1, len(counts)):
            counts[place] += counts[place - 1]
        joined = _labels(METRICS["clockwork_gateway_request_duration_seconds"].labels, labels)
        name = "clockwork_gateway_request_duration_seconds"
        text.histogram(name, joined, _LE_SECONDS, counts, sum_ns / SECOND)


# ----- for scrapes ------------------------------------------------------------------------------


PARTS = ("cluster", "gateway")
"""Values of ?of=. All gateways have the same cluster metrics, so Prometheus needs these from one of them."""


class MetricsSource:
    """Makes the text of /metrics, with one query to the controller at a time and one per METRICS_CACHE_NS at
    most.

    read: AsyncClient.metrics(), with a time limit of its own (METRICS_TIMEOUT_S).
    """

    def __init__(self, read: Read, gateway: GatewayCounters) -> None:
        self._read = read
        self._gateway = gateway
        self._lock = asyncio.Lock()
        self._text = b""
        self._taken_ns = -METRICS_CACHE_NS
        self._squeezed: tuple[bytes, bytes] = b"", b""  # the cluster's text, plain and deflated

    async def text(self, of: str = "") -> bytes:
        """Return the whole text, or one of PARTS."""
        cluster = b"" if of == "gateway" else await self._cluster()
        return cluster if of == "cluster" else cluster + render_gateway(self._gateway)

    async def gzipped(self, of: str = "") -> bytes:
        """Return text() as gzip. The cluster's part, which is long, is deflated once while it is cached."""
        cluster, deflated = (b"", b"") if of == "gateway" else await self._deflated()
        rest = b"" if of == "cluster" else render_gateway(self._gateway)
        deflate = zlib.compressobj(METRICS_GZIP_LEVEL, wbits=-zlib.MAX_WBITS)
        end = struct.pack("<II", zlib.crc32(rest, zlib.crc32(cluster)), len(cluster) + len(rest) & 0xFFFFFFFF)
        return b"".join((_GZIP_BEGIN, deflated, deflate.compress(rest), deflate.flush(), end))

    async def _deflated(self) -> tuple[bytes, bytes]:
        """Return the cluster's part, plain and deflated; the latter ends at a byte, so another part may
        follow."""
        text = await self._cluster()
        async with self._lock:
            if self._squeezed[0] is not text:
                self._squeezed = text, await asyncio.to_thread(_deflate, text)
            return self._squeezed

    async def _cluster(self) -> bytes:
        """Return the cluster's part, at most METRICS_CACHE_NS old; clockwork_up is 0 without the controller's
        answer."""
        async with self._lock:
            if now_ns() - self._taken_ns >= METRICS_CACHE_NS:
                body: Mapping[str, Any] | None = None
                try:
                    body = await self._read()
                except ClockworkError:
                    body = None
                # With thousands of models, rendering takes tenths of a second, which would delay requests on
                # the loop.
                self._text = await asyncio.to_thread(render, body)
                self._taken_ns = now_ns()
            return self._text


_GZIP_BEGIN = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # The gzip header, without a file name or a time


def _deflate(text: bytes) -> bytes:
    deflate = zlib.compressobj(METRICS_GZIP_LEVEL, wbits=-zlib.MAX_WBITS)
    return deflate.compress(text) + deflate.flush(zlib.Z_FULL_FLUSH)


# ----- the reference -----------------------------------------------------------------------------


def reference() -> str:
    """Return the table of all metrics in Markdown, a part of docs/metrics.md."""
    lines = ["| Metric | Type | Labels | Unit | Meaning |", "|---|---|---|---|---|"]
    lines += [
        f"| `{metric.name}` | {metric.kind} | {', '.join(metric.labels) or '-'} | {metric.unit or '-'} | {metric.help} |"
        for metric in METRICS.values()
    ]
    return "\n".join(lines) + "\n"
