"""The texts about wrong requests and wrong results, to the byte.

Users and their programs read these sentences, so they change on purpose or not at all. The texts are in
tests/data/answers.json; ``python -m tests.process.test_wrong_messages`` writes it anew.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clockwork.controller.ports import clients, workers
from clockwork.system.clock import SECOND, now_ns
from clockwork.wire import codec, messages
from clockwork.wire.messages import Infer, Status
from clockwork.wire.tensors import FLOAT
from tests.patience import PATIENCE_NS
from tests.process.peers import (
    FakeWorker,
    RawClient,
    on_loop,
    prepared_model,
    result_of,
    running_controller,
)
from tests.process.wrong_messages import MODELS, PLAIN, RESULT_MODELS, RESULTS, RIGHT, ROW, Change, requests

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "answers.json"


class Stage:
    """A controller, its worker and its client, all on this thread but the controller."""

    def __init__(self, stack: contextlib.ExitStack, models: dict[str, dict[str, Any]]) -> None:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.models = models
        self.controller = stack.enter_context(running_controller(data))
        self.worker = stack.enter_context(FakeWorker(self.controller, pages=16))
        self.client = stack.enter_context(RawClient(self.controller))
        self.epoch = 1
        self.failures: set[str] = set()  # of requests whose results were wrong, where they were read
        for number, (name, changes) in enumerate(models.items()):
            content = b"one" if name == "m" else name.encode()
            with self.worker.preparing(**({"program": f"program {number}"} | changes)):
                reply = self.client.register(name, content)
                assert type(reply) is messages.Reply, reply

    def ask(self, header: bytes, frames: list[bytes], *, serves: bool = True) -> dict[str, Any]:
        """Return the client's message, without measured values that differ from run to run. serves: the
        controller's orders until then are done."""
        assert self.client.dealer.send(header, frames)
        deadline = now_ns() + PATIENCE_NS
        while (answer := self.client.dealer.receive()) is None:
            assert now_ns() < deadline, "no answer came"
            if serves:
                self.serve()
            self.client.wait(SECOND // 1000)
        message = codec.decode(answer[0], messages.TO_CLIENT)
        assert answer[0] == codec.encode(message), "a header in its one canonical form"
        if type(message) is messages.Failure:
            found = {"id": message.request_id, "status": Status(message.status).name, "text": message.text}
            message.details.pop("request", None)  # the number of earlier requests differs from run to run
            if message.status == Status.REFUSED:
                found["text"] = re.sub(r"[0-9.]+ (us|ms|s)\b", "t", message.text)
                message.details.update(feasible_slo_ns=0, retry_after_ns=0)
            return found | {"details": message.details}
        assert type(message) is messages.Answer, message
        assert all(time >= 0 for time in message.times)
        sizes = [len(bytes(frame)) for frame in answer[1:]]
        return {
            "id": message.request_id,
            "version": message.model_version,
            "tensors": message.tensors,
            "bytes": sizes,
        }

    def serve(self) -> None:
        """Do the controller's orders so far."""
        while (frames := self.worker.dealer.receive()) is not None:
            message = codec.decode(frames[0], messages.TO_WORKER)
            if type(message) is messages.Ping:
                self.worker.pong(message)
            elif isinstance(message, messages.Load | messages.Unload | messages.Profile):
                self.worker.answer(message, [])
            elif type(message) is Infer:
                self.infer(message)

    def infer(self, order: Infer) -> None:
        """Do it right, for any model: as many tensors as it has outputs, the first of which is y [N, 2]."""
        rows = order.parts[0][0][1][0] if order.parts[0][0][1] else 1
        parts = [[[FLOAT, [rows, 2], place]] for place in range(len(order.parts))]
        self.answer(order, parts, [bytes(8 * rows)] * len(parts))

    def answer(self, order: Infer, parts: list[Any], frames: list[bytes]) -> None:
        self.worker.send(result_of(order.action_id, parts, took_ns=1000), *frames)

    # ----- results -----------------------------------------------------------------------------

    def replace_worker(self) -> None:
        """Have another life of the worker serve: wrong messages of a life are not held against the next."""
        self.worker.send(messages.Goodbye())
        self.worker.close()
        self.epoch += 1
        self.worker = FakeWorker(self.controller, epoch=self.epoch, pages=16)
        by_id = {model.model_id: model.record.name for model in list(self.controller._table.by_id.values())}
        for number in range(len(self.models)):
            prepare, _ = self.worker.receive(messages.Prepare)
            changes = {"program": f"program {number}"} | self.models[by_id[prepare.model_id]]
            summary = prepared_model(digest=prepare.digest, **changes).summary()
            self.worker.send(messages.Prepared(prepare.model_id, Status.OK, "", summary))
        deadline = now_ns() + PATIENCE_NS
        while not on_loop(self.controller, self.is_ready):
            assert now_ns() < deadline, "its models were not ready"

    def is_ready(self) -> bool:
        return all(
            list(model.workers.values()) == ["ready"] for model in self.controller._table.by_id.values()
        )

    def lie(self, name: str, change: Change, number: int, *kinds: str) -> str:
        """Return the complaint about a result with this change; "" if there is none. kinds: of complaints, if
        others."""
        self.client.infer(name, number, [1, 2], ROW)
        while type(order := self.worker.next_action()[0]) is not Infer:
            self.worker.answer(order, [])
        part, frames = json.loads(json.dumps(RIGHT[name][0])), list(RIGHT[name][1])
        now, nothing = now_ns(), [0, 0, 0]
        fields: list[Any] = [order.action_id, 0, "", now, nothing, [now - 1000, now, 1000], nothing, [part]]
        change(fields, part, frames)
        before = self.complaints(*kinds)[0]
        assert self.worker.dealer.send(codec._pack([67, *fields]), frames)
        deadline = now_ns() + PATIENCE_NS
        while (found := self.complaints(*kinds))[0] == before:
            assert now_ns() < deadline, "it came to nothing"
            if (answer := self.client.dealer.receive()) is not None:
                message = codec.decode(answer[0], messages.TO_CLIENT)
                if type(message) is messages.Failure:
                    # said in the step that complains: the next look finds the complaint
                    self.failures.add(message.text)
                elif message.request_id == number:
                    return ""
            self.client.wait(SECOND // 1000)
        return re.sub(r"fake\d+", "fake", found[1])

    def complaints(self, *kinds: str) -> tuple[int, str]:
        """Return how often a worker was complained of, and the last complaint."""
        kinds = kinds or ("worker fault", "worker malformed")

        def look() -> tuple[int, str]:
            counts = self.controller._complaints.counts()
            troubles = self.controller.troubles.describe(self.controller._context.now_ns)["open"]
            told = [one for one in troubles if one["subject"] in kinds]
            last = min(told, key=lambda one: one["last_ns"])["text"] if told else ""
            return sum(counts[kind] for kind in kinds), last

        found: tuple[int, str] = on_loop(self.controller, look)
        return found


def golden(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(GOLDEN.read_text())[kind] if GOLDEN.exists() else {}
    return found


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        yield Stage(stack, MODELS)


def test_each_request_gets_the_answer_that_it_always_got(stage: Stage) -> None:
    expected = golden("requests")
    cases = requests()
    assert list(cases) == list(expected)
    for name, (header, frames) in cases.items():
        assert stage.ask(header, frames) == expected[name], name


def test_a_request_in_use_is_named_and_its_twin_is_served(stage: Stage) -> None:
    header = codec._pack([2, 500, "m", 0, 0, [PLAIN]])
    stage.client.dealer.send(header, [ROW])
    found = stage.ask(header, [ROW], serves=False)
    assert found["text"] == "request 500 is in use"
    assert found["details"] == {"tensor": "", "expected": "", "got": ""}
    assert stage.ask(codec._pack([3, 501]), [])["id"] == 500, (
        "the twin's answer; a Cancel of nothing has none"
    )


def test_a_cancelled_request_is_answered_once(stage: Stage) -> None:
    stage.client.dealer.send(codec._pack([2, 600, "m", 0, 0, [PLAIN]]), [ROW])
    found = stage.ask(codec._pack([3, 600]), [], serves=False)
    assert (found["id"], found["status"]) == (600, "CANCELLED")


def test_each_result_is_found_wrong_for_the_reason_that_it_always_was() -> None:
    expected = golden("results")
    assert list(expected) == list(RESULTS)
    with contextlib.ExitStack() as stack:
        stage = Stage(stack, RESULT_MODELS)
        for number, (name, (model, change)) in enumerate(RESULTS.items(), 1000):
            assert stage.lie(model, change, number) == expected[name], name
            stage.replace_worker()
        stage.worker.close()


def test_a_defect_in_what_is_said_costs_its_sender_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise KeyError("no sentence")

    with contextlib.ExitStack() as stack:
        stage = Stage(stack, {"m": RESULT_MODELS["m"]})
        header = codec._pack([2, 700, "m", 0, 0, []])
        with monkeypatch.context() as patch:
            patch.setattr(clients, "request_error", fail)
            found = stage.ask(header, [])
            assert (found["id"], found["status"]) == (700, "INTERNAL")
            assert "failed at this InferRequest (KeyError)" in found["text"]
            patch.setattr(workers, "result_text", fail)
            stage.lie("m", RESULTS["another dtype"][1], 701, "worker failed")
        stage.worker.close()
        assert on_loop(stage.controller, lambda: list(stage.controller._links.workers)) == []
        said = stage.failures
        deadline = now_ns() + PATIENCE_NS
        while len(said) < 2:  # the answer to request 701 may come before, between or after the others
            assert now_ns() < deadline, f"only {said} was said"
            said.add(stage.ask(header, [], serves=False)["text"])
        assert said == {"the worker was lost", "input 'x' is missing"}


def main() -> int:
    """Write the golden answers anew."""
    with contextlib.ExitStack() as stack:
        stage = Stage(stack, MODELS)
        said = {name: stage.ask(header, frames) for name, (header, frames) in requests().items()}
    with contextlib.ExitStack() as stack:
        stage = Stage(stack, RESULT_MODELS)
        told = {}
        for number, (name, (model, change)) in enumerate(RESULTS.items(), 1000):
            told[name] = stage.lie(model, change, number)
            stage.replace_worker()
        stage.worker.close()
    lines = [
        f'{{"{kind}": {{\n' if place == 0 else f'}},\n"{kind}": {{\n'
        for place, kind in enumerate(("requests", "results"))
    ]
    text = ""
    for line, found in zip(lines, (said, told)):
        text += (
            line + ",\n".join(f"{json.dumps(name)}: {json.dumps(one)}" for name, one in found.items()) + "\n"
        )
    GOLDEN.write_text(text + "}}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
