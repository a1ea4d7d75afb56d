"""Prometheus text: read back with prometheus_client's parser, and checked against the declarations and the
conventions."""

from __future__ import annotations

import asyncio
import copy
import re
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="the extra [gateway] is not installed")

from prometheus_client.parser import text_string_to_metric_families

from clockwork.config import METRIC_BOUNDS_NS
from clockwork.config.controller import PREDICTION_BOUNDS_NS
from clockwork.errors import ConnectionLost
from clockwork.gateway import metrics
from clockwork.gateway.metrics import (
    METRICS,
    GatewayCounters,
    MetricsSource,
    render,
    render_gateway,
)
from clockwork.system.clock import SECOND

MS = 1_000_000


def histogram(values_ns: list[int], bounds_ns: tuple[int, ...] = METRIC_BOUNDS_NS) -> dict[str, Any]:
    buckets = [sum(one <= bound for one in values_ns) for bound in bounds_ns]
    return {"count": len(values_ns), "sum_ns": sum(values_ns), "buckets": [*buckets, len(values_ns)]}


def model(name: str = "resnet", version: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "version": version,
        "state": "ready",
        "pending": 3,
        "outcomes": {
            "success": 2, "refused": {"deadline": 5, "overloaded": 1}, "deadline_missed": 1, "cancelled": 4,
            "failed": 7, "invalid_input": 8,
        },
        "inferences": 11,
        "executions": 2,
        "last_ns": 90 * SECOND,
        "times": {
            "total": histogram([3 * MS, 30 * MS]), "queue": histogram([1 * MS, 2 * MS]), "load": histogram([20 * MS]),
            "execute": histogram([2 * MS, 2 * MS]), "copy_in": histogram([1_000, 2_000]),
            "copy_out": histogram([0, 0]),
        },
        "batches": {"1": [1, 2 * MS], "10": [1, 2 * MS]},
        "resident": [["w", 0]],
        "hosted": ["w"],
        "pages": 7,
        "weights_bytes": 100_000_000,
        "share": 9_000,
        "shadow": {
            "copied": 9, "compared": 5, "unanswered": 2, "moot": 1, "dropped": 1, "differing": 0, "beyond": 3,
            "absolute_max": 2.0, "relative_max": 0.5,
        },
        **more,
    }  # fmt: skip


def body(*models: dict[str, Any]) -> dict[str, Any]:
    errors = {"over": histogram([20_000], PREDICTION_BOUNDS_NS), "under": histogram([], PREDICTION_BOUNDS_NS)}
    return {
        "now_ns": 100 * SECOND,
        "started_ns": 40 * SECOND,
        "policy": "adaptive",
        "models": list(models),
        "workers": [
            {
                "name": "w",
                "state": "serving",
                "models": {"ready": 2, "preparing": 0, "failed": 1},
                "devices": [
                    {
                        "index": 0, "kind": "cuda", "name": "H100", "pages": 100, "free_pages": 40, "page_bytes": 16 << 20,
                        "busy_ns": 30 * SECOND, "load_busy_ns": SECOND, "loads": 9, "unloads": 4, "evicted_early": 2,
                        "executions": 50, "resident": 5, "clock_mhz": 1980, "lost": "",
                        "margin": 0.0125, "contested_ns": 1_500_000_000, "level": 0.9, "beyond": 2,
                    }
                ],
                "host_bytes": 1 << 30, "host_used": 1 << 29, "fetches": 3, "drops": 1, "jitter_ns": 60_000,
                "rtt_ns": 100_000,
            }
        ],
        "prediction": {},
        "prediction_errors": {"bounds_ns": list(PREDICTION_BOUNDS_NS), "infer_duration": errors},
        "lag": histogram([100_000]),
        "devices_wanted": 1.23456,
        "devices": 1,
        "stores": {
            "scarce": 5, "awaited": 2, "cramped": 1, "lost": 3, "copying": 4, "bytes": 1 << 30, "used": 1 << 29, "room": 7,
        },
        "learnt": {"pace": 0.98, "need": 1.25, "share": 0.5},
        "links": {"contested_ns": 1_200_000_000, "level": 0.75, "beyond": 3},
        "requests_open": 3,
        "clients": 2,
        "unserved": {"model_not_found": 1, "unavailable": 0},
        "complaints": {"client malformed": 3, "worker failed": 0},
        "standing": {
            "role": "active", "active": "tcp://a:5555", "since_ns": 7 * SECOND, "expects_standbys": True,
            "standbys": [{"address": "tcp://b:5555", "process": "", "behind": 2, "silent_ns": 0}],
            "takeovers": {"killed": 3, "stopped": 0, "ended": 1, "handed_over": 0}, "last": None,
        },
    "troubles": {"model_set_aside": {"open": 1, "since_ns": 5_000_000_000, "noted": 2}},
    }  # fmt: skip


def counters() -> GatewayCounters:
    found = GatewayCounters()
    found.end("http", "infer", 200, found.begin("http"), 48_000, 4_000)
    found.end("http", "infer", 503, found.begin("http"), 48_000, 100)
    found.end("grpc", "ModelInfer", "OK", found.begin("grpc"), 10, 20)
    found.begin("grpc")
    found.begin("grpc")
    found.abandon("grpc")
    return found


def samples_of(text: bytes) -> dict[str, float]:
    """The names as written: the parser renames counters that do not end in _total."""
    lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


EVERYTHING = render(body(model())) + render_gateway(counters())


def test_standbys_are_told_where_there_are_or_should_be_some() -> None:
    found = samples_of(EVERYTHING)
    assert found['clockwork_active_controller{address="tcp://a:5555"}'] == 1
    assert (found["clockwork_active_seconds"], found["clockwork_standbys"]) == (7, 1)
    assert found['clockwork_standby_behind_changes{address="tcp://b:5555"}'] == 2
    assert found['clockwork_takeovers_total{why="killed"}'] == 3
    both = body(model())
    there = both["standing"]["standbys"]
    both["standing"] |= {
        "standbys": [there[0] | {"behind": 4}, *there]
    }  # machines that listen at the same words
    found = samples_of(render(both))
    assert (
        found["clockwork_standbys"],
        found['clockwork_standby_behind_changes{address="tcp://b:5555"}'],
    ) == (2, 4)
    assert render(both).count(b"clockwork_standby_behind_changes{") == 1, "a sample is told once"
    alone = body(model())
    alone["standing"] |= {"standbys": []}
    assert samples_of(render(alone))["clockwork_standbys"] == 0, "one is missing"
    alone["standing"] |= {"expects_standbys": False}
    assert "clockwork_standbys" not in samples_of(render(alone))


def test_every_declared_metric_is_emitted_and_no_other() -> None:
    typed = dict(re.findall(r"^# TYPE (\S+) (\S+)$", EVERYTHING.decode(), re.MULTILINE))
    assert typed == {one.name: one.kind for one in METRICS.values()}
    helped = re.findall(r"^# HELP (\S+) (.+)$", EVERYTHING.decode(), re.MULTILINE)
    assert dict(helped) == {one.name: one.help for one in METRICS.values()}
    assert len(helped) == len(typed)


def test_the_parser_of_prometheus_reads_it_with_the_declared_labels() -> None:
    families = list(text_string_to_metric_families(EVERYTHING.decode()))
    assert len(families) == len(METRICS)
    for family in families:
        declared = METRICS.get(family.name) or METRICS[f"{family.name}_total"]
        assert family.type == declared.kind
        assert family.samples
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(declared.labels), sample
            assert sample.value >= 0


def test_names_and_units_are_as_prometheus_wants_them() -> None:
    """The rules of `promtool check metrics`, except for Triton's names."""
    for metric in METRICS.values():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", metric.name)
        assert metric.help.endswith((".", "OTHER."))
        assert "le" not in metric.labels
        assert "quantile" not in metric.labels
        if metric.name.startswith("nv_"):
            assert (metric.unit == "microseconds") == metric.name.endswith("_us")
            continue
        assert metric.name.startswith("clockwork_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        stem = metric.name.removesuffix("_total")
        assert stem.endswith("_seconds") == (metric.unit == "seconds"), metric
        assert stem.endswith("_bytes") == (metric.unit == "bytes"), metric
        assert not re.search(r"milli|micro|_ms\b|_us\b|_ns\b|_kb|_count$|_sum$|_bucket$|_info_", metric.name)
        assert metric.kind != "histogram" or metric.unit in ("seconds", "rows")


def test_histograms_add_up() -> None:
    for family in text_string_to_metric_families(EVERYTHING.decode()):
        if family.type != "histogram":
            continue
        by_labels: dict[tuple[Any, ...], dict[str, list[float]]] = {}
        for sample in family.samples:
            key = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "le"))
            by_labels.setdefault(key, {}).setdefault(sample.name.rpartition("_")[2], []).append(sample.value)
        for parts in by_labels.values():
            assert parts["bucket"] == sorted(parts["bucket"])
            assert parts["bucket"][-1] == parts["count"][0]
            assert len(parts["sum"]) == 1


def test_requests_are_told_by_outcome_reason_and_part_of_their_time() -> None:
    found = samples_of(EVERYTHING)
    labels = 'model="resnet",version="1"'
    outcomes = {
        one: found[f'clockwork_requests_total{{{labels},outcome="{one}"}}'] for one in metrics.OUTCOMES
    }
    assert outcomes == {
        "success": 2, "refused": 6, "deadline_missed": 1, "cancelled": 4, "failed": 7, "invalid_input": 8,
    }  # fmt: skip
    assert found[f'clockwork_refusals_total{{{labels},reason="deadline"}}'] == 5
    assert found[f'clockwork_request_duration_seconds_bucket{{{labels},le="0.005"}}'] == 1
    assert found[f'clockwork_request_duration_seconds_bucket{{{labels},le="0.05"}}'] == 2
    assert found[f"clockwork_request_duration_seconds_sum{{{labels}}}"] == pytest.approx(0.033)
    assert found[f"clockwork_load_wait_duration_seconds_count{{{labels}}}"] == 1
    assert found[f'clockwork_batch_rows_bucket{{{labels},le="8"}}'] == 1
    assert found[f'clockwork_batch_rows_bucket{{{labels},le="16"}}'] == 2
    assert found[f"clockwork_batch_rows_sum{{{labels}}}"] == 11


def test_tritons_names_say_the_same_in_microseconds() -> None:
    found = samples_of(EVERYTHING)
    labels = 'model="resnet",version="1"'
    assert {
        name: found[f"nv_inference_{name}{{{labels}}}"]
        for name in (
            "request_success", "count", "exec_count", "request_duration_us", "queue_duration_us",
            "compute_input_duration_us", "compute_infer_duration_us", "compute_output_duration_us",
            "pending_request_count",
        )
    } == {
        "request_success": 2, "count": 11, "exec_count": 2, "request_duration_us": 33_000, "queue_duration_us": 23_000,
        "compute_input_duration_us": 3, "compute_infer_duration_us": 4_000, "compute_output_duration_us": 0,
        "pending_request_count": 3,
    }  # fmt: skip
    failures = {
        reason: found[f'nv_inference_request_failure{{{labels},reason="{reason}"}}']
        for reason in metrics.FAILURES
    }
    assert failures == {"REJECTED": 7, "CANCELED": 4, "BACKEND": 7, "OTHER": 8}


def test_devices_workers_and_the_cluster() -> None:
    found = samples_of(EVERYTHING)
    device = 'worker="w",device="0",kind="cuda"'
    assert found[f"clockwork_device_busy_seconds_total{{{device}}}"] == 30
    assert found[f"clockwork_device_evictions_early_total{{{device}}}"] == 2
    assert found[f"clockwork_device_arena_bytes{{{device}}}"] == 100 * (16 << 20)
    assert found['clockwork_worker_host_store_used_bytes{worker="w"}'] == 1 << 29
    assert found["clockwork_devices_wanted"] == pytest.approx(1.2346)
    counts = {"scarce": 5, "awaited": 2, "cramped": 1, "lost": 3, "copying": 4}
    assert {state: found[f'clockwork_stored_models{{state="{state}"}}'] for state in counts} == counts
    assert found["clockwork_stores_planned_used_bytes"] / found["clockwork_stores_planned_bytes"] == 0.5
    assert found[f"clockwork_device_margin_ratio{{{device}}}"] == 0.0125
    assert found[f"clockwork_device_contested_seconds{{{device}}}"] == 1.5
    assert found[f"clockwork_device_share_level{{{device}}}"] == 0.9
    assert found[f"clockwork_device_models_beyond_share{{{device}}}"] == 2
    assert found["clockwork_links_contested_seconds"] == 1.2
    assert found["clockwork_links_share_level"] == 0.75
    assert found["clockwork_links_models_beyond_share"] == 3
    assert found["clockwork_scheduler_pace_ratio"] == 0.98
    assert found["clockwork_scheduler_need_ratio"] == 1.25
    assert found["clockwork_scheduler_share_devices"] == 0.5
    assert found['clockwork_models{state="ready"}'] == 1
    assert (
        found[
            'clockwork_prediction_error_seconds_bucket{action="infer",of="duration",side="over",le="2.5e-05"}'
        ]
        == 1
    )
    assert found['clockwork_gateway_requests_total{protocol="http",method="infer",code="503"}'] == 1
    assert found['clockwork_gateway_requests_in_flight{protocol="grpc"}'] == 1
    assert found['clockwork_gateway_abandoned_total{protocol="grpc"}'] == 1
    assert found['clockwork_gateway_received_bytes_total{protocol="http"}'] == 96_000


def test_a_policy_that_learns_nothing_has_no_metrics_of_it() -> None:
    found = samples_of(render({**body(), "learnt": {}}))
    assert not any(name.startswith("clockwork_scheduler_") for name in found if "info" not in name)


def test_a_name_may_hold_whatever_labels_must_not() -> None:
    odd = 'a"b\\c\nd'
    families = text_string_to_metric_families(render(body(model(odd))).decode())
    names = {
        sample.labels["model"] for family in families for sample in family.samples if "model" in sample.labels
    }
    assert names == {odd}


def test_versions_of_a_model_are_apart() -> None:
    found = samples_of(render(body(model(), model(version=2, pending=9))))
    assert found['clockwork_requests_pending{model="resnet",version="1"}'] == 3
    assert found['clockwork_requests_pending{model="resnet",version="2"}'] == 9


def test_beyond_a_bound_models_have_counters_alone_and_those_before_keep_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "METRICS_MODELS_MAX", 2)
    found = samples_of(render(body(*(model(f"m{place}") for place in range(3)))))
    with_histograms = {
        match[1]
        for name in found
        if (match := re.match(r'clockwork_request_duration_seconds_count\{model="(\w+)"', name))
    }
    assert with_histograms == {"m0", "m1"}
    assert found['clockwork_requests_total{model="m2",version="1",outcome="success"}'] == 2
    assert found["clockwork_models_without_histograms"] == 1


def test_a_model_of_which_nothing_was_asked_has_counters_at_zero_and_no_histograms() -> None:
    unasked = copy.deepcopy(model(last_ns=0))
    unasked["outcomes"] |= {"success": 0, "refused": {}}
    found = samples_of(render(body(unasked)))
    assert found['clockwork_requests_total{model="resnet",version="1",outcome="success"}'] == 0
    assert not any(name.startswith("clockwork_request_duration_seconds") for name in found)


def test_scrapes_at_once_ask_the_controller_once_and_a_dead_one_is_no_error() -> None:
    asked: list[int] = []
    alive = True

    async def read() -> dict[str, Any]:
        asked.append(1)
        await asyncio.sleep(0)
        if not alive:
            raise ConnectionLost("gone")
        return body(model())

    async def scrape() -> None:
        nonlocal alive
        source = MetricsSource(read, counters())
        texts = await asyncio.gather(*(source.text() for _ in range(5)))
        assert len(asked) == 1
        assert all(
            b"clockwork_up 1\n" in text and b"clockwork_gateway_requests_total" in text for text in texts
        )
        assert b"nv_inference_count" not in await source.text("gateway")
        assert b"clockwork_gateway" not in await source.text("cluster")
        assert len(asked) == 1, "the text is as good as new"
        alive = False
        source._taken_ns -= metrics.METRICS_CACHE_NS
        text = await source.text()
        assert b"clockwork_up 0\n" in text
        assert b"clockwork_requests_total" not in text
        assert b"clockwork_gateway_requests_total" in text

    asyncio.run(scrape())
