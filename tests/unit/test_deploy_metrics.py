"""The dashboard and the alert rules use metrics that exist, with labels that they have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from clockwork.config import METRICS_MODELS_PAGE
from clockwork.config.gateway import METRICS_MODELS_MAX
from clockwork.controller.troubles import PASSING, TroubleKind
from clockwork.gateway.metrics import METRICS, OUTCOMES, PARTS, Metric, reference
from clockwork.wire.messages import Reason

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "clockwork.json"
PROMETHEUS = ROOT / "deploy" / "prometheus"

SERIES: dict[str, Metric] = {name: one for one in METRICS.values() for name in one.series()}
ADDED = {"le", "instance", "job", "cluster"}
"""Labels that histograms and Prometheus itself add."""
WORDS = {
    "sum", "max", "min", "avg", "by", "without", "rate", "and", "or", "unless", "on", "ignoring", "absent",
    "bool", "histogram_quantile", "max_over_time", "label_values", "count", "increase", "clamp_max",
}  # fmt: skip
UNITS = {"reqps", "s", "percentunit", "short", "ops", "Bps", "bytes"}


def check(expression: str) -> set[str]:
    """Return the metrics of an expression, each of them known, with existing labels and possible values, as
    far as the text shows."""
    used: set[str] = set()
    bare = re.sub(r"\[[^\]]*\]", "", expression)
    for name, matchers in re.findall(r"([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}", bare):
        assert name in SERIES, f"{name} in {expression}"
        for label, _, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers):
            assert label in {*SERIES[name].labels, *ADDED}, f"{name} has no label {label}: {expression}"
            if "$" in value:
                continue
            known = {"outcome": OUTCOMES, "reason": tuple(map(str, Reason)), "side": ("over", "under"),
                     "kind": tuple(map(str, TroubleKind)), "of": ("duration", "completion"), "action": ("infer", "load", "fetch")}.get(label)  # fmt: skip
            assert known is None or set(value.split("|")) <= set(known), f"{label}={value} in {expression}"
    bare = re.sub(r"\{[^}]*\}", "", bare)
    grouped = [label for labels in re.findall(r"\bby\s*\(([^)]*)\)", bare) for label in labels.split(",")]
    bare = re.sub(r"\bby\s*\([^)]*\)", "", bare)
    for word in re.findall(r"(?<![\w.$])[a-zA-Z_:][\w:]*", bare):
        if word not in WORDS:
            assert word in SERIES, f"{word!r} in {expression}"
            used.add(word)
    labels = {label for name in used for label in SERIES[name].labels} | ADDED
    assert {label.strip() for label in grouped} <= labels, expression
    return used


def check_deduplicated(expression: str) -> None:
    """Every gateway reports the cluster's metrics: an expression must first merge them, by all of their
    labels."""
    pattern = r"(max(?: by \(([^)]*)\))? \(|max\()?(?:rate\(|max_over_time\(|absent\()?\b(clockwork_\w+)"
    for maximum, labels, name in re.findall(pattern, expression):
        metric = SERIES[name]
        if metric.name.startswith("clockwork_gateway_") or f"absent({name})" in expression:
            continue
        assert maximum, f"{name} is not made one in {expression}"
        wanted = {*metric.labels, *(["le"] if name.endswith("_bucket") else [])}
        assert {one.strip() for one in labels.split(",") if one.strip()} == wanted, f"{name} in {expression}"


def panels() -> Iterator[dict[str, Any]]:
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    yield from board["panels"]


def test_the_dashboard_uses_only_metrics_that_exist() -> None:
    used = {name for one in panels() for target in one.get("targets", ()) for name in check(target["expr"])}
    for one in panels():
        for target in one.get("targets", ()):
            check_deduplicated(target["expr"])
    families = {SERIES[name].name for name in used}
    shown_elsewhere = {
        "clockwork_requests_open", "clockwork_clients", "clockwork_rows_total", "clockwork_model_ready", "clockwork_up",
        "clockwork_model_hosted_workers", "clockwork_model_weights_bytes", "clockwork_model_pages",
        "clockwork_device_arena_bytes", "clockwork_device_resident_models", "clockwork_scheduler_info",
        "clockwork_controller_start_time_seconds", "clockwork_models_without_histograms", "clockwork_device_info",
        "clockwork_messages_rejected_total", "clockwork_device_clock_hertz", "clockwork_ready",
        "clockwork_worker_models", "clockwork_threads_wanted",
    }  # fmt: skip
    ours = {name for name in METRICS if name.startswith("clockwork_")}
    assert ours - families == shown_elsewhere, "a metric that is on no panel, or one that is said not to be"


def test_every_panel_has_a_title_a_description_and_a_unit() -> None:
    seen: set[int] = set()
    for one in panels():
        assert one["title"]
        assert one["id"] not in seen
        seen.add(one["id"])
        if one["type"] == "row":
            continue
        assert one["description"].endswith("."), one["title"]
        assert one["fieldConfig"]["defaults"]["unit"] in UNITS, one["title"]
        assert one["datasource"]["uid"] == "${datasource}"
        assert one["targets"], one["title"]
        assert all(target["legendFormat"] for target in one["targets"])


def test_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for one in panels():
        place = one["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, one["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_variables_ask_for_labels_that_exist() -> None:
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    queries = [one["definition"] for one in board["templating"]["list"] if one["type"] == "query"]
    assert queries
    for query in queries:
        found = re.fullmatch(r"label_values\((\w+), (\w+)\)", query)
        assert found, query
        assert found[2] in SERIES[found[1]].labels


def test_the_alert_rules_use_only_metrics_that_exist_and_say_what_to_do() -> None:
    rules = [
        rule
        for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
    ]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 5
    for rule in rules:
        assert check(rule["expr"]), rule["alert"]
        check_deduplicated(rule["expr"])
        assert re.fullmatch(r"\d+[ms]", rule["for"])
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
            assert re.search(rf"by \([^)]*\b{label}\b", rule["expr"]), rule["alert"]


def test_an_alert_names_every_kind_of_trouble_that_stays() -> None:
    text = (PROMETHEUS / "alerts.yml").read_text(encoding="utf-8")
    found = re.findall(r'clockwork_troubles\{kind=~?"([^"]*)"\}', text)
    named = [kind for kinds in found for kind in kinds.split("|")]
    assert len(set(named)) == len(named), "one alert for each"
    assert set(named) == {str(kind) for kind in TroubleKind} - set(map(str, PASSING))


def test_the_scrape_configuration_asks_for_what_there_is() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    assert [job["params"]["of"] for job in config["scrape_configs"]] == [[part] for part in PARTS]
    assert all((PROMETHEUS / name).exists() for name in config["rule_files"])


def test_the_reference_lists_what_is_declared_and_its_answers_can_be_asked_for() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert reference() in text, "run python tools/metrics_reference.py"
    questions = text.partition("## Questions and answers")[2].partition("##")[0]
    expressions = [
        one for one in re.findall(r"`([^`]+)`", questions) if one.startswith(("sum", "rate", "hist"))
    ]
    assert len(expressions) >= 8
    for expression in expressions:
        assert check(expression)
    for bound in (f"pages of {METRICS_MODELS_PAGE}", f"{METRICS_MODELS_MAX:,} versions"):
        assert bound in text


@pytest.mark.parametrize(
    "twice",
    [
        "sum(rate(clockwork_requests_total[5m]))",
        "sum(max by (model, version) (rate(clockwork_requests_total[5m])))",
        "histogram_quantile(0.9, max by (le) (rate(clockwork_request_duration_seconds_bucket[5m])))",
        "clockwork_devices",
    ],
)
def test_what_would_be_counted_once_for_each_gateway_is_found(twice: str) -> None:
    assert check(twice)
    with pytest.raises(AssertionError):
        check_deduplicated(twice)


@pytest.mark.parametrize(
    "wrong",
    [
        "sum(rate(clockwork_requests[5m]))",
        'clockwork_requests_total{models="x"}',
        'clockwork_requests_total{outcome="good"}',
        "sum by (worker) (clockwork_requests_total)",
        "clockwork_lag_seconds_sum",
    ],
)
def test_what_does_not_exist_is_found(wrong: str) -> None:
    with pytest.raises(AssertionError):
        check(wrong)
