"""Ready means that a worker serves the model; measurements belong to a worker, and the interface to the
package."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clockwork import Client
from clockwork.controller.catalog.records import Change
from clockwork.controller.process import Controller
from clockwork.errors import InvalidModel, Refused, Unavailable
from clockwork.formats.prepared import TensorSpec
from clockwork.scheduler.types import ProfilePoint
from clockwork.system.clock import MS
from clockwork.wire import messages
from clockwork.wire.messages import Status
from tests.catalogues import apply, open_catalog, records_of
from tests.patience import PATIENCE_S, eventually
from tests.process.peers import FakeWorker, echo_model, prepared_model, running_controller
from tests.process.threaded_worker import threaded_worker

X = np.arange(2, dtype=np.float32).reshape(1, 2)
WIDE = {"batch_max": 8}
NARROW = {
    "batch_max": 2,
    "holding": "packed",
    "runs": [1, 1],
    "load_ns": 200_000,
    "profile": [ProfilePoint(((2,),), batch, 1_000_000 + batch * 10_000) for batch in (1, 2)],
}
OTHER = {
    "inputs": [TensorSpec("x", 1, ("N", 3))],
    "outputs": [TensorSpec("y", 1, ("N", 3))],
    "fingerprint": "own",
}


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    with running_controller(tmp_path / "data", policy="edf") as found:
        yield found


@contextmanager
def started(tmp_path: Path) -> Iterator[tuple[Controller, Client]]:
    """A controller on an existing directory, and a client of it."""
    with running_controller(tmp_path / "data", policy="edf") as controller, connect(controller) as client:
        yield controller, client


def connect(controller: Controller) -> Client:
    return Client(controller.client_endpoint, timeout=PATIENCE_S)


def register(client: Client, name: str = "m") -> None:
    client.register(name, echo_model(note=name))


def states(client: Client, name: str = "m") -> dict[str, str]:
    return {one["worker"]: one["state"] for one in client.model(name).raw["preparations"]}


def check_answers(client: Client, x: np.ndarray = X, count: int = 40) -> None:
    """Send so many requests at once; check that each gets its own answer."""
    futures = [client.submit("m", x + index, slo=PATIENCE_S) for index in range(count)]
    for index, future in enumerate(futures):
        assert np.array_equal(future.result(PATIENCE_S), x + index)


@pytest.mark.parametrize("order", [(WIDE, NARROW), (NARROW, WIDE)])
def test_workers_that_measured_differently_both_serve_and_one_is_enough(
    controller: Controller, order: tuple[dict[str, Any], ...]
) -> None:
    with (
        threaded_worker(controller, 1, order[0]) as first,
        threaded_worker(controller, 2, order[1]) as second,
        connect(controller) as client,
    ):
        register(client)
        assert states(client) == {"fake1": "ready", "fake2": "ready"}
        shown = {one["worker"]: one for one in client.model("m").raw["preparations"]}
        for name, measured in zip(("fake1", "fake2"), order):
            assert shown[name]["batch_max"] == measured["batch_max"]
            assert shown[name]["holding"] == measured.get("holding", "bound")
        check_answers(client)
        first.drain()
        eventually(
            lambda: "draining" in [one["state"] for one in client.status()["workers"]], "it is known to leave"
        )
        worked = len(second.batches)
        check_answers(client)
        assert len(second.batches) > worked
        for worker, measured in zip((first, second), order):
            assert max(worker.batches, default=0) <= measured["batch_max"]
            assert set(worker.runs) <= {len(measured.get("runs", [1]))}
        for _ in range(20):  # requests that come no faster than they are answered form no batch
            if max(second.batches) > 1:
                break
            check_answers(client)
        assert 1 < max(second.batches) <= order[1]["batch_max"]
        assert client.model("m").state == "ready"
        assert not client.status()["why_not_ready"]
        second.drain()
        eventually(lambda: client.model("m").state == "unserved", "nobody serves it")
        assert client.models()[0].state == "unserved"
        assert client.status()["models"] == {"unserved": 1}
        assert client.status()["why_not_ready"] == "no worker is connected"
        with pytest.raises(Refused, match="leaving"):
            client.infer("m", X)


def test_a_batching_model_is_served_request_by_request_where_rows_do_not_batch(
    controller: Controller,
) -> None:
    """Whether rows may share a batch follows from answers, which may differ with the hardware."""
    alone: dict[str, Any] = {
        "batches": False,
        "batch_max": 1,
        "profile": [ProfilePoint(((1, 2),), 1, 1_010_000)],
    }
    with (
        threaded_worker(controller, 1, WIDE) as first,
        connect(controller) as client,
    ):
        register(client)
        with threaded_worker(controller, 2, alone) as second:
            eventually(lambda: states(client).get("fake2") == "ready", "it is prepared there, too")
            check_answers(client, np.tile(X, (3, 1)))
            first.drain()
            eventually(
                lambda: "draining" in [one["state"] for one in client.status()["workers"]], "it leaves"
            )
            check_answers(client, np.tile(X, (3, 1)))
            assert set(second.batches) == {1}


LIES: dict[str, dict[str, Any]] = {
    "another input": {"inputs": [TensorSpec("z", 1, ("N", 2))]},
    "another shape": OTHER,
    "a fixed batch": {"inputs": [TensorSpec("x", 1, (1, 2))]},
    "another type": {"outputs": [TensorSpec("y", 7, ("N", 2))]},
    "an output too many": {"outputs": [TensorSpec("y", 1, ("N", 2)), TensorSpec("z", 1, ("N", 2))]},
    "another shape, as it returned": {"outputs": [TensorSpec("y", 1, ("N", 3))], "outputs_verified": True},
    "another package": {"digest": "1" * 64},
}


@pytest.mark.parametrize("lie", LIES)
def test_an_honest_worker_serves_whatever_another_said_before_it(controller: Controller, lie: str) -> None:
    with (
        threaded_worker(controller, 1, LIES[lie]) as liar,
        FakeWorker(controller, 2) as honest,
        connect(controller) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        registered = pool.submit(register, client)
        prepare, _ = honest.receive(messages.Prepare)
        eventually(lambda: liar.forgotten, "the liar was heard first")
        assert client.status()["complaints"]["worker fault"] == 1
        summary = prepared_model(digest=prepare.digest, outputs_verified=True).summary()
        honest.send(messages.Prepared(prepare.model_id, Status.OK, "", summary))
        registered.result(PATIENCE_S)
        info = client.model("m")
        assert [one.shape for one in (*info.inputs, *info.outputs)] == [("N", 2), ("N", 2)]
        answer = client.submit("m", X, slo=PATIENCE_S)
        honest.serve_one()
        assert np.array_equal(answer.result(PATIENCE_S), X)
        assert not liar.batches


def test_a_record_of_an_earlier_version_is_held_against_its_package(tmp_path: Path) -> None:
    with started(tmp_path) as (controller, client), threaded_worker(controller, 1):
        register(client)
    data = tmp_path / "data"
    (record,) = records_of(data)
    assert record.interface is not None
    with open_catalog(data) as catalog:
        apply(catalog, Change(save=[dataclasses.replace(record, is_read=False, interface=None)]))
    with started(tmp_path) as (controller, client), threaded_worker(controller, 2, OTHER):
        eventually(lambda: client.model("m").state == "failed", "the liar does not serve it")
        with threaded_worker(controller, 3):
            eventually(lambda: client.model("m").state == "ready", "an honest one does")
            check_answers(client)
    assert records_of(data) == [record], "it is kept"


def test_a_worker_that_contradicts_two_packages_is_let_go(controller: Controller) -> None:
    with (
        threaded_worker(controller, 1),
        threaded_worker(controller, 2, OTHER) as liar,
        connect(controller) as client,
    ):
        register(client, "m")
        register(client, "other")
        eventually(lambda: liar.is_let_go, "it is let go")
        assert [one["name"] for one in client.status()["workers"]] == ["fake1"]
        check_answers(client)


def test_what_a_package_leaves_open_is_no_workers_to_fix(controller: Controller) -> None:
    """Otherwise the answers of a worker that saw other shapes would look impossible."""
    wide = {"inputs": [TensorSpec("x", 1, ("N", "M"))], "outputs_verified": True}
    narrow = wide | {"outputs": [TensorSpec("y", 1, ("N", 3))]}
    with threaded_worker(controller, 1, narrow) as first, connect(controller) as client:
        client.register("m", echo_model("M"))
        with threaded_worker(controller, 2, wide | {"outputs": [TensorSpec("y", 1, ("N", ""))]}) as second:
            eventually(lambda: states(client).get("fake2") == "ready", "it is prepared there, too")
            first.drain()
            eventually(
                lambda: "draining" in [one["state"] for one in client.status()["workers"]], "it leaves"
            )
            check_answers(client)
            assert second.batches
            assert client.status()["complaints"]["worker fault"] == 0


def test_a_worker_that_contradicts_the_package_does_not_serve_and_changes_nothing(tmp_path: Path) -> None:
    def failed(client: Client) -> list[str]:
        troubles = client.status()["troubles"]["open"]
        return [one["subject"] for one in troubles if one["kind"] == "preparation_failed"]

    def described(client: Client) -> Any:
        info = client.model("m")
        return [one.shape for one in (*info.inputs, *info.outputs)]

    with started(tmp_path) as (controller, client), threaded_worker(controller, 1, WIDE):
        register(client)
        honest = described(client)
        with threaded_worker(controller, 2, OTHER) as liar:
            why = eventually(
                lambda: states(client).get("fake2", "preparing") != "preparing" and states(client), ""
            )
            assert why["fake2"] == ("it contradicts the package: input 'x' is ['N', 3], not ['N', 2]")
            assert why["fake1"] == "ready"
            assert described(client) == honest
            check_answers(client)
            assert not liar.batches
            eventually(lambda: liar.forgotten, "it need not keep it")
            assert client.status()["complaints"]["worker fault"] == 1
            assert failed(client) == ["m@1 on fake2"]
        eventually(lambda: not failed(client), "it left")
    # Nor is it the first after a restart.
    with started(tmp_path) as (controller, client), threaded_worker(controller, 3, OTHER):
        eventually(lambda: client.model("m").state == "failed", "the liar does not serve it")
        assert "contradicts" in client.model("m").text
        # the model has failed for a reason, so the cluster is ready
        assert not client.status()["why_not_ready"]
        with pytest.raises(Unavailable, match="contradicts"):
            client.infer("m", X)
        with threaded_worker(controller, 4, NARROW):
            eventually(lambda: client.model("m").state == "ready", "an honest one does")
            assert described(client) == honest
            check_answers(client)


def test_a_worker_that_prepared_another_package_does_not_serve(controller: Controller) -> None:
    with (
        threaded_worker(controller, 1, {"digest": "1" * 64}),
        connect(controller) as client,
        pytest.raises(InvalidModel, match="prepared another package"),
    ):
        register(client)


def test_a_failed_preparation_is_tried_again_by_itself_and_when_asked(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clockwork.controller.registration.preparation_book.PREPARE_AGAIN_NS", (MS, MS))
    with threaded_worker(controller, 1), connect(controller) as client:
        register(client)
        with threaded_worker(controller, 2, "no space is left on the device") as second:
            eventually(lambda: second.asked == 3, "it was asked three times")
            assert states(client) == {"fake1": "ready", "fake2": "no space is left on the device"}
            assert client.models()[0].raw["not_prepared"] == {"fake2": "no space is left on the device"}
            (row,) = [one for one in client.status()["workers"] if one["name"] == "fake2"]
            assert row["models"] == {
                "ready": 0, "preparing": 0, "failed": 1, "failures": [["m@1", "no space is left on the device"]],
            }  # fmt: skip
            check_answers(client)
            assert client.model("m").state == "ready"
            second.prepares = NARROW
            client.load("m")  # failed preparations are asked for once more
            eventually(lambda: states(client)["fake2"] == "ready", "it has prepared it")
            assert client.status()["troubles"]["open"] == []
            assert second.asked == 4
            second.prepares = "again there is no space"
        # A worker that joins anew begins anew.
        with threaded_worker(controller, 3) as third:
            eventually(lambda: states(client).get("fake3") == "ready", "at its next hello")
            assert third.asked == 1


def test_the_cluster_is_ready_once_whatever_it_began_with_is_served_or_has_failed(tmp_path: Path) -> None:
    with started(tmp_path) as (controller, client):
        assert client.status()["why_not_ready"] == "no worker is connected"
        with threaded_worker(controller, 1):
            register(client, "m")
            register(client, "other")
            assert not client.status()["why_not_ready"]
    with started(tmp_path) as (controller, client):
        assert client.status()["why_not_ready"] == "no worker is connected"
        with FakeWorker(controller) as worker:  # this worker prepares when it is told to
            assert client.status()["why_not_ready"] == "2 models are not served yet, among them m@1"
            assert client.model("m").state == "preparing"
            first = worker.prepare()
            eventually(lambda: client.model(first.name).state == "ready", "it is served")
            assert "@1 is not served yet" in client.status()["why_not_ready"]
            worker.prepare(Status.INVALID_MODEL, "it is broken")
            eventually(lambda: not client.status()["why_not_ready"], "one is served, one failed")
            assert client.status()["models"] == {"ready": 1, "failed": 1}
