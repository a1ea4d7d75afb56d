"""A model whose executions end workers is set aside: users see it, and can make it serve again."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from clockwork.cli.root import cli
from clockwork.config.controller import OVERRUNS_MAX
from clockwork.wire import messages
from clockwork.wire.messages import Status
from tests.patience import PATIENCE_NS
from tests.process.peers import FakeWorker, RawClient, running_controller

ROW = struct.pack("<2f", 1.5, -2.5)


def ask(client: RawClient, what: str, argument: str = "", request_id: int = 900) -> Any:
    client.send(messages.Query(request_id, what, argument))
    return client.receive(messages.Reply)[0].body


def execute(worker: FakeWorker) -> tuple[messages.Infer, list[bytes]]:
    """Do the required LOADs; return the INFER that comes then, unanswered."""
    while True:
        action, frames = worker.next_action()
        if type(action) is messages.Infer:
            return action, frames
        worker.answer(action, frames)


def overrun_until_set_aside(worker: FakeWorker, client: RawClient) -> None:
    for number in range(1, OVERRUNS_MAX + 1):
        client.infer("m", number, [1, 2], ROW, slo_ns=PATIENCE_NS)
        action, frames = execute(worker)
        worker.answer(action, frames, Status.OVERRUN, "the execution took longer than it may and was ended")
        failure = client.receive(messages.Failure)[0]
        assert failure.status == Status.EXECUTION_FAILED
        assert "longer than it may" in failure.text


def test_a_model_that_is_set_aside_says_so_everywhere_and_serves_again_when_told(tmp_path: Path) -> None:
    with running_controller(tmp_path) as controller, RawClient(controller) as client:
        with FakeWorker(controller) as worker:
            with worker.preparing():
                client.register("m", b"model", request_id=800)
            client.infer("m", 700, [1, 2], ROW, slo_ns=PATIENCE_NS)
            action, frames = execute(worker)
            worker.answer(action, frames, Status.OVERRUN, "too long")
            client.receive(messages.Failure)
            assert ask(client, "model", "m")["faults"] == {"overrun": 1}
            body = ask(client, "status")["troubles"]["open"]
            assert [(one["kind"], one["subject"]) for one in body] == [("model_overrun", "m@1")]
            for number in range(1, OVERRUNS_MAX):
                client.infer("m", number, [1, 2], ROW, slo_ns=PATIENCE_NS)
                action, frames = execute(worker)
                worker.answer(action, frames, Status.OVERRUN, "too long")
                client.receive(messages.Failure)
            client.infer("m", 701, [1, 2], ROW, slo_ns=PATIENCE_NS)
            failure = client.receive(messages.Failure)[0]
            assert failure.status == Status.UNAVAILABLE
            assert "set aside" in failure.text
            unload, frames = worker.next_action()
            worker.answer(unload, frames)
            assert type(worker.next_action()[0]) is messages.Forget
        described = ask(client, "model", "m")
        assert described["state"] == "set_aside"
        assert f"{OVERRUNS_MAX} of its executions" in described["text"]
        assert [one["state"] for one in ask(client, "models")["models"]] == ["set_aside"]
        shown = CliRunner().invoke(cli, ["models", "list", "--endpoint", controller.client_endpoint]).output
        assert "set_aside" in shown
        client.infer("m", 702, [1, 2], ROW, slo_ns=PATIENCE_NS)
        failure = client.receive(messages.Failure)[0]
        assert failure.status == Status.UNAVAILABLE
        assert "clockwork models load m@1" in failure.text
        # A new registration does not make it serve again: a program that follows a repository would register
        # it again and again.
        assert type(client.register("m", b"model", request_id=801)) is messages.Failure
    with running_controller(tmp_path) as controller, RawClient(controller) as client:
        assert ask(client, "model", "m")["state"] == "set_aside", "a restart has not forgotten"
        assert ask(client, "status")["troubles"]["open"][0]["kind"] == "model_set_aside"
        with FakeWorker(controller, epoch=2) as worker:
            client.send(messages.Offer(802, "m", True))
            worker.prepare()
            assert type(client.receive()[0]) is messages.Reply
            assert ask(client, "status")["troubles"]["open"] == []
            client.infer("m", 703, [1, 2], ROW, slo_ns=PATIENCE_NS)
            worker.serve_one()
            client.receive(messages.Answer)
            assert ask(client, "model", "m")["state"] == "ready"
    with running_controller(tmp_path) as controller, RawClient(controller) as client:
        assert ask(client, "model", "m")["state"] == "preparing"


def test_what_was_set_aside_can_be_removed(tmp_path: Path) -> None:
    with (
        running_controller(tmp_path) as controller,
        RawClient(controller) as client,
        FakeWorker(controller) as worker,
    ):
        with worker.preparing():
            client.register("m", b"model", request_id=800)
        overrun_until_set_aside(worker, client)
        worker.answer(*worker.next_action())  # answers the UNLOAD
        worker.next_action()
        client.send(messages.Unregister(803, "m"))
        client.receive(messages.Reply)
        assert ask(client, "models")["models"] == []
        assert ask(client, "status")["troubles"]["noted"]["model_set_aside"] == 1
        kinds = [one["kind"] for one in ask(client, "status")["troubles"]["open"]]
        assert kinds == ["model_overrun"], "what happened stays for a day"


def test_a_worker_that_crashes_twice_over_one_request_has_its_model_set_aside(tmp_path: Path) -> None:
    with (
        running_controller(tmp_path) as controller,
        RawClient(controller) as client,
        FakeWorker(controller, epoch=1) as first,
        FakeWorker(controller, epoch=2) as second,
    ):
        with first.preparing(), second.preparing():
            client.register("m", b"model", request_id=800)
        client.infer("m", 1, [1, 2], ROW, slo_ns=PATIENCE_NS)
        action, frames = execute(first)
        first.answer(action, frames, Status.CRASHED, "signal 11")
        first.close()
        action, frames = execute(second)
        second.answer(action, frames, Status.CRASHED, "signal 11")
        failure = client.receive(messages.Failure)[0]
        assert failure.status == Status.EXECUTION_FAILED
        assert "workers ended while they executed" in failure.text
        body = {one["kind"]: one for one in ask(client, "status")["troubles"]["open"]}
        assert body["model_set_aside"]["subject"] == "m@1"
        assert body["worker_killed"]["count"] == 2
