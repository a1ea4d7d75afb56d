"""The query for metrics: the controller's counters, read by a client while peers act as a test says."""

from __future__ import annotations

import itertools
import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from clockwork import Client, config
from clockwork.cli.root import cli
from clockwork.controller.views.metrics import PAGE_MARK, unique_names
from clockwork.errors import InvalidInput, ModelNotFound
from clockwork.scheduler.types import ProfilePoint
from clockwork.system.clock import MS, SECOND, now_ns
from clockwork.wire import messages
from clockwork.wire.messages import Status
from tests.patience import PATIENCE_NS
from tests.process.peers import FakeWorker, RawClient, running_controller

ROW = struct.pack("<2f", 1.5, -2.5)


@pytest.fixture
def served(tmp_path: Path) -> Any:
    """A controller with one worker and one model ``m`` that echoes [N, 2] floats."""
    with (
        running_controller(tmp_path) as controller,
        FakeWorker(controller) as worker,
        RawClient(controller) as client,
    ):
        with worker.preparing():
            assert type(client.register("m", b"model", request_id=1)) is messages.Reply
        yield controller, worker, client


def metrics_of(client: RawClient, argument: str = "", request_id: int = 900) -> dict[str, Any]:
    client.send(messages.Query(request_id, "metrics", argument))
    found: dict[str, Any] = client.receive(messages.Reply)[0].body
    return found


def test_requests_are_counted_by_what_became_of_them(served: Any) -> None:
    _, worker, client = served
    client.infer("m", 1, [1, 2], ROW, slo_ns=PATIENCE_NS)
    worker.serve_one()
    answer, _ = client.receive(messages.Answer)
    client.infer("m", 2, [3, 2], ROW * 3, slo_ns=PATIENCE_NS)
    worker.serve_one()
    client.receive(messages.Answer)
    client.infer("m", 3, [1, 2], ROW, slo_ns=100_000)  # an SLO below the model's time
    assert client.receive(messages.Failure)[0].status == Status.REFUSED
    client.infer("m", 4, [1, 3], ROW)
    assert client.receive(messages.Failure)[0].status == Status.INVALID_INPUT
    client.infer("nope", 5, [1, 2], ROW)
    assert client.receive(messages.Failure)[0].status == Status.MODEL_NOT_FOUND
    client.infer("m", 6, [1, 2], ROW, slo_ns=PATIENCE_NS)
    waiting = metrics_of(client)["models"][0]
    client.send(messages.Cancel(6))
    assert client.receive(messages.Failure)[0].status == Status.CANCELLED

    body = metrics_of(client)
    (model,) = body["models"]
    assert (waiting["pending"], model["pending"]) == (1, 0)
    assert model["outcomes"] == {
        "success": 2, "refused": {"infeasible": 1}, "deadline_missed": 0, "cancelled": 1, "failed": 0, "invalid_input": 1,
    }  # fmt: skip
    assert body["unserved"] == {"model_not_found": 1, "unavailable": 0}
    assert (model["name"], model["version"], model["state"]) == ("m", 1, "ready")
    assert model["resident"] == [["fake1", 0]]
    assert (model["pages"], model["weights_bytes"]) == (1, 100)
    assert model["inferences"] == 4
    assert model["executions"] == 2
    assert model["batches"] == {"1": [1, 50_000], "3": [1, 50_000]}
    assert model["last_ns"] > body["started_ns"]
    times = model["times"]
    assert {name: one["count"] for name, one in times.items()} == {
        "total": 2, "queue": 2, "load": 1, "execute": 2, "copy_in": 2, "copy_out": 2,
    }  # fmt: skip
    assert times["execute"]["sum_ns"] == 2 * 50_000
    assert times["load"]["sum_ns"] == 50_000
    assert times["execute"]["buckets"] == [2] * (len(config.METRIC_BOUNDS_NS) + 1)
    assert answer.times[1] == 50_000  # the time of the load
    assert answer.times[2] == 50_000  # the time on the device
    assert 0 < answer.times[3] <= times["total"]["sum_ns"]
    assert len(answer.times) == 7


def test_an_input_that_the_worker_finds_wrong_is_counted_as_the_callers_mistake(served: Any) -> None:
    _, worker, client = served
    client.infer("m", 1, [1, 2], ROW, slo_ns=PATIENCE_NS)
    worker.answer(*worker.next_action())  # answers the load
    worker.answer(*worker.next_action(), status=Status.INVALID_INPUT, text="input 'x' is no image")
    assert client.receive(messages.Failure)[0].status == Status.INVALID_INPUT
    client.infer("m", 2, [1, 3], ROW)
    assert client.receive(messages.Failure)[0].status == Status.INVALID_INPUT

    outcomes = metrics_of(client)["models"][0]["outcomes"]
    assert (outcomes["invalid_input"], outcomes["failed"]) == (2, 0)
    for query, argument in (("model", "m"), ("status", "")):
        client.send(messages.Query(901, query, argument))
        counts = client.receive(messages.Reply)[0].body["counts"]
        assert (counts["invalid_input"], counts["failed"]) == (2, 0)


def test_devices_are_counted_by_what_they_did(served: Any) -> None:
    _, worker, client = served
    client.infer("m", 1, [1, 2], ROW, slo_ns=PATIENCE_NS)
    worker.serve_one()
    client.receive(messages.Answer)
    body = metrics_of(client)
    (row,) = body["workers"]
    (device,) = row["devices"]
    assert (row["name"], row["state"], row["fetches"], row["drops"]) == ("fake1", "serving", 0, 0)
    counted = {"executions": 1, "busy_ns": 50_000, "loads": 1, "load_busy_ns": 50_000, "unloads": 0}
    assert {name: device[name] for name in counted} == counted
    assert (device["kind"], device["pages"], device["free_pages"]) == ("cpu", 4, 3)
    assert (device["resident"], device["evicted_early"]) == (1, 0)
    assert (body["devices"], body["clients"], body["requests_open"]) == (1, 1, 0)
    assert 0 < body["devices_wanted"] < 1
    assert body["lag"]["count"] > 0
    assert body["prediction_errors"]["infer_duration"]["over"]["count"] == 1
    assert body["prediction"]["infer_duration"]["over"]["total"] == 1


def test_workers_that_are_called_alike_are_told_apart() -> None:
    assert unique_names({1: "a", 2: "b", 7: "a"}) == {1: "a#1", 2: "b", 7: "a#7"}


def test_a_model_that_makes_room_soon_after_its_load_is_thrashing(tmp_path: Path) -> None:
    with (
        running_controller(tmp_path) as controller,
        FakeWorker(controller, pages=1) as worker,
        RawClient(controller) as client,
    ):
        for place, name in enumerate("ab"):
            with worker.preparing():
                assert type(client.register(name, name.encode(), request_id=1 + place)) is messages.Reply
        for request, name in enumerate("aba", 10):
            client.infer(name, request, [1, 2], ROW, slo_ns=PATIENCE_NS)
            worker.serve_one()
            client.receive(messages.Answer)
        (device,) = metrics_of(client)["workers"][0]["devices"]
        assert device["loads"] == 3
        assert device["evicted_early"] == 2


def test_lag_is_what_a_turn_took_and_its_wait_before(served: Any) -> None:
    controller, _, client = served
    before = metrics_of(client)["lag"]
    slow = controller.queries.describe

    def busy(model: Any) -> Any:
        deadline = now_ns() + 30 * MS
        while now_ns() < deadline:  # the loop does nothing else meanwhile
            pass
        return slow(model)

    controller.queries.describe = busy
    client.send(messages.Query(7, "model", "m"))
    client.receive(messages.Reply)
    after = metrics_of(client)["lag"]
    assert after["count"] > before["count"]
    slower = config.METRIC_BOUNDS_NS.index(25 * MS)
    assert (after["count"] - after["buckets"][slower]) - (before["count"] - before["buckets"][slower]) >= 1
    assert after["sum_ns"] - before["sum_ns"] >= 30 * MS


def test_models_come_in_pages_and_one_model_alone(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    controller, worker, client = served
    monkeypatch.setattr("clockwork.controller.views.metrics.METRICS_MODELS_PAGE", 2)
    for place, name in enumerate("nopq"):
        with worker.preparing():
            assert type(client.register(name, name.encode(), request_id=10 + place)) is messages.Reply
    first = metrics_of(client)
    assert [one["name"] for one in first["models"]] == ["m", "n"]
    assert first["next"].startswith(PAGE_MARK)
    second = metrics_of(client, first["next"])
    assert [one["name"] for one in second["models"]] == ["o", "p"]
    assert "workers" not in second
    with Client(controller.client_endpoint) as caller:
        body = caller.metrics()
        assert [one["name"] for one in body["models"]] == ["m", "n", "o", "p", "q"]
        assert "next" not in body
        assert [one["name"] for one in caller.metrics("p@1")["models"]] == ["p"]
        with pytest.raises(ModelNotFound):
            caller.metrics("nope")
        with pytest.raises(InvalidInput, match="no page"):
            caller.metrics(f"{PAGE_MARK}x")


def test_the_command_prints_text_that_prometheus_reads(served: Any) -> None:
    parser = pytest.importorskip("prometheus_client.parser", reason="the extra [gateway] is not installed")
    controller, worker, client = served
    client.infer("m", 1, [1, 2], ROW, slo_ns=PATIENCE_NS)
    worker.serve_one()
    client.receive(messages.Answer)
    result = CliRunner().invoke(cli, ["metrics", "--endpoint", controller.client_endpoint])
    assert result.exit_code == 0, result.output
    samples = {
        (one.name, one.labels.get("model"), one.labels.get("outcome")): one.value
        for family in parser.text_string_to_metric_families(result.output)
        for one in family.samples
    }
    assert samples["clockwork_requests_total", "m", "success"] == 1
    assert (
        'nv_inference_request_success{model="m",version="1"} 1\n' in result.output
    )  # the name as written, which the parser would change
    assert samples["clockwork_up", None, None] == 1
    shown = CliRunner().invoke(cli, ["status", "--endpoint", controller.client_endpoint]).output
    assert re.search(r"^devices    1; the load needs (less than 0\.01|0\.0\d)$", shown, re.MULTILINE), shown
    as_json = CliRunner().invoke(cli, ["metrics", "m", "--json", "--endpoint", controller.client_endpoint])
    assert '"success": 1' in as_json.output


def test_top_prints_rates_once_for_people_and_for_scripts(served: Any) -> None:
    controller, worker, client = served
    client.infer("m", 1, [1, 2], ROW, slo_ns=PATIENCE_NS)
    worker.serve_one()
    client.receive(messages.Answer)
    once = ["top", "--once", "--interval", "0.2", "--endpoint", controller.client_endpoint]
    shown = CliRunner().invoke(cli, once)
    assert shown.exit_code == 0, shown.output
    assert re.search(r"^ m@1 +- +- +- +- +- +0 +- +- +- +1 +ready", shown.output, re.MULTILINE), shown.output
    assert "requests/s -:" in shown.output or "requests/s 0:" in shown.output
    body = json.loads(CliRunner().invoke(cli, [*once, "--json"]).output)
    assert (body["devices"][0]["worker"], body["models"][0]["resident"]) == ("fake1", [["fake1", 0]])
    wrong = CliRunner().invoke(cli, ["top", "--once", "--interval", "0"])
    assert (wrong.exit_code, "0.2<=x<=3600" in wrong.output) == (2, True)


def test_what_is_learnt_of_a_device_is_in_status_by_name_and_in_metrics_by_device(tmp_path: Path) -> None:
    profile = [ProfilePoint(((2,),), 1, 100 * MS)]
    with (
        running_controller(tmp_path, policy="adaptive") as controller,
        FakeWorker(controller) as worker,
        RawClient(controller) as client,
    ):
        for place, name in enumerate(("quiet", "flood")):
            with worker.preparing(profile=profile, batches=False, batch_max=1):
                assert type(client.register(name, name.encode(), request_id=1 + place)) is messages.Reply
            client.infer(name, 10 + place, [1, 2], ROW, slo_ns=PATIENCE_NS)
            worker.serve_one(took_ns=100 * MS)
            client.infer(name, 15 + place, [1, 2], ROW, slo_ns=PATIENCE_NS)
            worker.serve_one(took_ns=100 * MS)
        for request in itertools.count(20):  # each asks for 100 ms of the device
            client.infer("flood", request, [1, 2], ROW, slo_ns=SECOND // 2)
            client.send(messages.Query(request, "status", ""))
            body = client.receive(messages.Reply)[0].body
            if body["workers"][0]["devices"][0]["plan"]["beyond"]:
                break
        (device,) = body["workers"][0]["devices"]
        standings = {share["name"]: share["standing"] for share in device["plan"]["shares"]}
        assert standings == {"flood@1": "beyond", "quiet@1": "within"}
        assert body["learnt"]["need"] > 1

        found = metrics_of(client)
        (device,) = found["workers"][0]["devices"]
        assert device["beyond"] == 1
        assert 0 < device["level"] < 1
        assert 0 < device["contested_ns"] <= 2 * SECOND
        assert 0 < device["margin"] < 0.25
        assert found["learnt"].keys() == {"pace", "need", "hold", "share"}
        assert found["links"] == {"contested_ns": 0, "level": 0, "beyond": 0}

        shown = CliRunner().invoke(cli, ["status", "--endpoint", controller.client_endpoint]).output
        assert re.search(r"^learnt     pace [\d.]+, need [1-9][\d.]*", shown, re.MULTILINE), shown
        assert re.search(
            r"^ *fake1 .* % +\d\.\d s +\d+ % +1 +flood@1 \d+ of \d+ % \(beyond\), quiet@1 ",
            shown,
            re.MULTILINE,
        ), shown


def test_what_is_wrong_is_in_status_and_metrics_until_it_is_mended(served: Any) -> None:
    controller, worker, client = served
    worker.send(messages.DeviceFault(0, "the bus is gone"))
    client.send(messages.Query(901, "status", ""))
    body = client.receive(messages.Reply)[0].body
    while not body["troubles"]["open"]:  # the worker's message came by another socket
        client.send(messages.Query(901, "status", ""))
        body = client.receive(messages.Reply)[0].body
    (trouble,) = body["troubles"]["open"]
    assert (trouble["kind"], trouble["text"], trouble["count"]) == ("device_lost", "the bus is gone", 1)
    assert 0 <= trouble["since_ns"] < 10 * SECOND
    found = metrics_of(client)["troubles"]["device_lost"]
    assert found["open"] == found["noted"] == 1
    shown = CliRunner().invoke(cli, ["status", "--endpoint", controller.client_endpoint]).output
    assert "device lost" in shown
    assert "the bus is gone" in shown
    text = CliRunner().invoke(cli, ["metrics", "--endpoint", controller.client_endpoint]).output
    assert 'clockwork_troubles{kind="device_lost"} 1' in text
    assert 'clockwork_trouble_since_seconds{kind="model_set_aside"} 0' in text
    worker.close()
    while body["troubles"]["open"]:
        client.send(messages.Query(901, "status", ""))
        body = client.receive(messages.Reply)[0].body
    assert body["troubles"]["noted"]["device_lost"] == 1
