"""Versions as users release them: a share of the traffic, a shadow, all of it, and back.

First with peers whose messages a test chooses, then a real cluster under load.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import shlex
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from clockwork import AsyncClient
from clockwork.cli import root as cli
from clockwork.config import SHARE_WHOLE
from clockwork.controller.catalog.records import Change
from clockwork.controller.catalog.routes import NameRoute
from clockwork.controller.process import Controller
from clockwork.errors import ClockworkError, InvalidInput
from clockwork.formats.prepared import TensorSpec
from clockwork.models import zoo
from clockwork.system.clock import SECOND, now_ns
from clockwork.wire import codec, messages
from clockwork.wire.messages import Status
from tests.catalogues import apply, open_catalog, sql
from tests.patience import PATIENCE_NS, eventually
from tests.process.cluster import ROOT, Cluster, Reference, running_cluster, same
from tests.process.peers import FakeWorker, RawClient, prepared_model, running_controller

ROW = struct.pack("<2f", 1.5, -2.5)
ALL = SHARE_WHOLE
TENTH = SHARE_WHOLE // 10


class Stage:
    """A controller, a worker that does its actions, and a client; all on this thread but the controller."""

    def __init__(self, stack: ExitStack, data: Path) -> None:
        self.controller: Controller = stack.enter_context(running_controller(data))
        self.worker = stack.enter_context(FakeWorker(self.controller, pages=16))
        self.client = stack.enter_context(RawClient(self.controller))
        # answers of each model id; None: it never answers
        self.answers: dict[int, Callable[[list[bytes]], list[bytes] | None]] = {}
        self.numbered = 100
        self.ids: list[int] = []  # ids of models, by the order of preparation

    def register(self, content: bytes, name: str = "m", ready: bool = True, **changes: Any) -> int:
        """Register a version and return it; ready: the worker has prepared it."""
        changes = {"program": content.decode(), **changes}

        def prepare() -> None:
            self.ids.append(self.worker.prepare(**changes).model_id)

        preparing = threading.Thread(target=prepare)
        preparing.start()
        reply = self.client.register(name, content, request_id=self.number())
        preparing.join()
        assert type(reply) is messages.Reply, reply
        return int(reply.body["version"])

    def number(self) -> int:
        self.numbered += 1
        return self.numbered

    def serve(self) -> None:
        """Do the controller's orders so far."""
        while (frames := self.worker.dealer.receive()) is not None:
            message = codec.decode(frames[0], messages.TO_WORKER)
            if type(message) is messages.Ping:
                self.worker.pong(message)
            elif isinstance(message, messages.Load | messages.Unload | messages.Infer | messages.Profile):
                sent: list[bytes] | None = [bytes(frame) for frame in frames[1:]]
                if type(message) is messages.Infer:
                    sent = self.answers.get(message.model_id, lambda frames: frames)(sent or [])
                if sent is not None:
                    self.worker.answer(message, sent)

    def call(self, message: Any, *frames: bytes) -> Any:
        """Return the answer to a message, while the worker does its orders."""
        self.client.send(message, *frames)
        return self.answer(message.request_id)[0]

    def answer(self, request_id: int) -> tuple[Any, list[bytes]]:
        deadline = now_ns() + PATIENCE_NS
        while True:
            self.serve()
            frames = self.client.dealer.receive()
            if frames is not None:
                message = codec.decode(frames[0], messages.TO_CLIENT)
                if getattr(message, "request_id", None) == request_id:
                    return message, [bytes(frame) for frame in frames[1:]]
                continue
            assert now_ns() < deadline, "no answer came"
            self.client.wait(SECOND // 1000)

    def infer(self, model: str = "m", slo_ns: int = 0) -> int:
        """Return the version that answered."""
        request = messages.InferRequest(self.number(), model, slo_ns, 0, [["x", 1, [1, 2], 0]])
        answer = self.call(request, ROW)
        assert type(answer) is messages.Answer, answer
        return int(answer.model_version)

    def count(self, requests: int) -> dict[int, int]:
        return dict(Counter(self.infer() for _ in range(requests)))

    def route(self, *shares: list[int], shadow: list[Any] | None = None, name: str = "m") -> Any:
        return self.call(messages.Route(self.number(), name, list(shares), shadow or []))

    def promote(self, version: int, name: str = "m") -> Any:
        return self.call(messages.Promote(self.number(), name, version))

    def rollback(self, name: str = "m") -> Any:
        return self.call(messages.Rollback(self.number(), name))

    def model(self, name: str) -> Any:
        reply = self.call(messages.Query(self.number(), "model", name))
        return reply.body

    def shadow(self, **expected: int) -> Any:
        """Return the outcome of the copies, once it equals this."""

        def look() -> Any:
            found = self.model("m")["route"]["shadow"]
            return found if all(found[key] == value for key, value in expected.items()) else None

        try:
            return eventually(look, f"shadow results {expected}")
        except AssertionError as error:
            raise AssertionError(f"{error}; they are {self.model('m')['route']['shadow']}") from None


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """Two versions of m, the first of which has the traffic, because the route was set."""
    with ExitStack() as stack:
        stage = Stage(stack, tmp_path)
        assert stage.register(b"one") == 1
        assert type(stage.promote(1)) is messages.Reply
        assert stage.register(b"two") == 2
        yield stage


# ----- shares ------------------------------------------------------------------------------------


def test_a_share_is_exact_and_all_of_it_goes_over_and_back_at_once(stage: Stage) -> None:
    assert stage.count(5) == {1: 5}  # a route was set: the new version takes nothing by itself
    body = stage.route([2, TENTH]).body
    assert (body["automatic"], body["shares"]) == (False, [[1, 9 * TENTH], [2, TENTH]])
    served = []
    for turn in range(40):
        served.append(stage.infer())
        if turn % 7 == 0:
            assert [stage.infer("m@1"), stage.infer("m@2")] == [1, 2]  # requests by version take no turn
    assert all(Counter(served[start : start + 10])[2] == 1 for start in range(30))
    assert [(stage.model(name)["share"], stage.model(name)["current"]) for name in ("m@1", "m@2")] == [
        (9 * TENTH, True),
        (TENTH, False),
    ]
    assert stage.promote(2).body["shares"] == [[2, ALL]]
    assert stage.count(5) == {2: 5}
    assert stage.rollback().body["serving"] == [[1, 9 * TENTH], [2, TENTH]]
    assert stage.count(20) == {1: 18, 2: 2}
    assert stage.rollback().body["shares"] == [[1, ALL]]
    assert stage.count(5) == {1: 5}
    failure = stage.rollback()
    assert (failure.status, "no earlier route of m" in failure.text) == (Status.INVALID_INPUT, True)
    answered = [stage.model(f"m@{version}")["counts"]["answered"] for version in (1, 2)]
    assert answered == [5 + 36 + 6 + 18 + 5, 4 + 6 + 5 + 2]


def test_without_a_route_the_newest_has_it_and_again_once_it_is_promoted_as_such(stage: Stage) -> None:
    assert stage.promote(0).body["automatic"]
    assert stage.count(3) == {2: 3}
    assert stage.register(b"three") == 3
    assert stage.count(3) == {3: 3}
    assert stage.rollback().body["shares"] == [[2, ALL]]  # version 2 had the traffic before the third
    assert stage.count(3) == {2: 3}
    assert stage.rollback().body["shares"] == [[1, ALL]]
    assert stage.register(b"four") == 4
    assert stage.count(3) == {1: 3}


def test_a_rollback_finds_who_served_after_a_restart_too(tmp_path: Path) -> None:
    with ExitStack() as stack:
        stage = Stage(stack, tmp_path)
        for content in (b"one", b"two", b"three"):
            stage.register(content)
    with ExitStack() as stack:
        stage = Stage(stack, tmp_path)
        for _ in range(3):
            stage.worker.prepare()
        eventually(lambda: stage.model("m@3")["current"], "the newest has the traffic")
        assert [stage.rollback().body["shares"] for _ in range(2)] == [[[2, ALL]], [[1, ALL]]]
        assert stage.count(3) == {1: 3}


def test_what_is_not_there_not_ready_or_not_alike_gets_nothing(stage: Stage) -> None:
    stage.register(b"three", inputs=[TensorSpec("z", 1, ("N", 2))])
    for asked, status, sentence in [
        (stage.route([9, TENTH]), Status.MODEL_NOT_FOUND, "m has no version 9; it has 1, 2, 3"),
        (stage.promote(9), Status.MODEL_NOT_FOUND, "m has no version 9"),
        (stage.route([2, TENTH], name="n"), Status.MODEL_NOT_FOUND, "no model 'n' is registered"),
        (stage.promote(1, name="n"), Status.MODEL_NOT_FOUND, "no model 'n' is registered"),
        (stage.rollback(name="n"), Status.MODEL_NOT_FOUND, "no model 'n' is registered"),
        (stage.route([1, 6000], [2, 6000]), Status.INVALID_INPUT, "add up to 120 %"),
        (stage.route([3, TENTH]), Status.INVALID_INPUT, r"m@3 takes z float32 [?, 2], m@1 takes x float32 [?, 2]"),
        (stage.route(shadow=[3, ALL, 0.0]), Status.INVALID_INPUT, "m@3 takes z"),
        (stage.route(shadow=[9, ALL, 0.0]), Status.MODEL_NOT_FOUND, "m has no version 9"),
        (stage.route([2, "1"]), Status.INVALID_INPUT, "Route.shares[0].parts is an integer"),
    ]:  # fmt: skip
        assert (asked.status, sentence in asked.text) == (status, True), asked
    assert stage.count(3) == {1: 3}
    assert stage.promote(3).body["shares"] == [[3, ALL]]  # without other versions it may take any inputs


def test_a_version_that_is_being_prepared_cannot_be_routed_to(tmp_path: Path) -> None:
    with ExitStack() as stack:
        stage = Stage(stack, tmp_path)
        stage.register(b"one")
        other = stack.enter_context(RawClient(stage.controller))
        registering = threading.Thread(target=other.register, args=("m", b"two"))
        registering.start()
        prepare, _ = stage.worker.receive(messages.Prepare)
        for failure in (stage.route([2, TENTH]), stage.promote(2), stage.route(shadow=[2, ALL, 0.0])):
            assert (failure.status, failure.text) == (
                Status.UNAVAILABLE,
                "m@2 is not ready but preparing",
            )
        text = "operator Frobnicate is unknown"
        stage.worker.send(messages.Prepared(prepare.model_id, Status.INVALID_MODEL, text, {}))
        registering.join()
        assert "has no version 2" in stage.promote(2).text


def test_what_has_a_part_in_a_route_is_not_removed_before_that_changes(stage: Stage, tmp_path: Path) -> None:
    stage.route([2, TENTH], shadow=[2, ALL, 0.0])
    assert sql(tmp_path, "SELECT name FROM routes") == [("m",)]
    for version in (1, 2):
        failure = stage.call(messages.Unregister(stage.number(), f"m@{version}"))
        assert (failure.status, "has a part in the route of m" in failure.text) == (
            Status.INVALID_INPUT,
            True,
        )
    stage.promote(2)
    assert len(stage.model("m")["route"]["earlier"]) == 2
    assert type(stage.call(messages.Unregister(stage.number(), "m@1"))) is messages.Reply
    assert stage.count(3) == {2: 3}
    assert stage.model("m")["route"]["earlier"] == []  # a removed version is no target of a rollback
    assert stage.rollback().status == Status.INVALID_INPUT
    assert type(stage.call(messages.Unregister(stage.number(), "m"))) is messages.Reply
    assert sql(tmp_path, "SELECT name FROM routes") == []
    assert stage.register(b"five") == 3
    assert stage.model("m")["route"]["automatic"]


def test_a_name_that_is_unloaded_has_its_route_when_it_is_loaded_again(stage: Stage) -> None:
    stage.route([2, TENTH])

    def offer(model: str, offered: bool) -> Any:
        return stage.call(messages.Offer(stage.number(), model, offered))

    failure = offer("m@2", False)
    assert (failure.status, "before it is unloaded" in failure.text) == (Status.INVALID_INPUT, True)
    assert type(offer("m", False)) is messages.Reply
    assert stage.promote(2).text == "model 'm' is unloaded"
    request = messages.InferRequest(stage.number(), "m", 0, 0, [["x", 1, [1, 2], 0]])
    assert stage.call(request, ROW).text == "model 'm' is unloaded"

    def prepare() -> None:
        for _ in range(2):
            stage.worker.prepare()

    preparing = threading.Thread(target=prepare)
    preparing.start()
    stage.client.send(messages.Offer(stage.number(), "m", True))
    loaded = stage.numbered
    preparing.join()
    assert type(stage.answer(loaded)[0]) is messages.Reply
    assert stage.count(20) == {1: 18, 2: 2}
    assert stage.rollback().body["shares"] == [[1, ALL]]  # the former split is still known


# ----- restarts ----------------------------------------------------------------------------------


def test_a_route_survives_a_restart_and_is_whole_when_its_versions_are_ready(tmp_path: Path) -> None:
    with ExitStack() as stack:
        stage = Stage(stack, tmp_path)
        stage.register(b"one")
        stage.promote(1)
        stage.register(b"two")
        stage.register(b"three")
        stage.route([2, TENTH], shadow=[3, ALL, 0.5])
    with open_catalog(tmp_path) as catalog:
        apply(catalog, Change(route=NameRoute("gone")))
    sql(tmp_path, "INSERT INTO routes SELECT 'other', split, earlier, changed_by, 1, 7 FROM routes LIMIT 1")
    with ExitStack() as stack:
        stage = Stage(stack, tmp_path)
        eventually(
            lambda: sql(tmp_path, "SELECT name FROM routes") == [("m",)],
            "neither the damaged route is there, nor that of no model",
        )
        found = {}
        for _ in range(3):
            message, _ = stage.worker.receive(messages.Prepare)
            found[message.version] = message

        def ready(version: int) -> None:
            summary = prepared_model(program=str(version), digest=found[version].digest).summary()
            stage.worker.send(messages.Prepared(found[version].model_id, Status.OK, "", summary))
            eventually(lambda: stage.model(f"m@{version}")["state"] == "ready", f"version {version} is ready")

        ready(3)  # a version without a share
        failure = stage.call(messages.InferRequest(7, "m", 0, 0, [["x", 1, [1, 2], 0]]), ROW)
        assert (failure.status, failure.text) == (Status.UNAVAILABLE, "m@1 is being prepared")
        ready(2)
        assert stage.model("m")["route"]["serving"] == [[2, ALL]]
        assert stage.count(3) == {2: 3}
        ready(1)
        assert stage.count(20) == {1: 18, 2: 2}
        route = stage.model("m")["route"]
        assert (route["shadow"]["version"], route["shadow"]["tolerance"]) == (3, 0.5)
        assert stage.rollback().body["shares"] == [[1, ALL]]


# ----- shadows -----------------------------------------------------------------------------------


def test_copies_ask_for_no_device(stage: Stage) -> None:
    def wanted() -> float:
        return float(stage.call(messages.Query(stage.number(), "metrics", "")).body["devices_wanted"])

    for _ in range(3):
        stage.infer("m@2")  # this request loads the model
    stage.count(20)
    before = wanted()
    stage.route(shadow=[2, ALL, 0.1])
    stage.count(20)
    stage.shadow(compared=20)
    assert 0 < wanted() < 2.2 * before, "with the copies it would be 2.7 times as much"


def test_the_shadow_answers_beside_the_one_that_serves_and_is_compared(stage: Stage) -> None:
    body = stage.route(shadow=[2, ALL, 0.1]).body
    assert (body["shares"], body["shadow"]["copied"]) == ([[1, ALL]], 0)
    for _ in range(10):
        stage.infer("m@2")  # this request loads the model, without a copy
    assert stage.count(10) == {1: 10}
    stage.shadow(copied=10, compared=10, beyond=0, differing=0, unanswered=0, dropped=0, moot=0)

    def off(by: float) -> Callable[[list[bytes]], list[bytes]]:
        return lambda frames: [struct.pack("<2f", 1.5, -2.5 + by)] * len(frames)

    stage.answers[stage.ids[1]] = off(0.125)
    assert stage.count(3) == {1: 3}
    found = stage.shadow(compared=13)
    assert (found["beyond"], found["absolute_max"], found["relative_max"]) == (0, 0.125, 0.05)
    stage.answers[stage.ids[1]] = off(-0.5)
    assert stage.count(2) == {1: 2}
    found = stage.shadow(compared=15)
    assert (found["beyond"], found["differing"], found["relative_max"]) == (2, 0, 0.2)
    # Only requests to the shadowed version count.
    assert stage.model("m@2")["counts"] == {
        "answered": 10, "refused": 0, "missed": 0, "cancelled": 0, "failed": 0, "invalid_input": 0,
    }  # fmt: skip
    assert stage.model("m@1")["counts"]["answered"] == 15
    assert stage.controller.queries.status()["requests_held"] == 0
    rows = {
        row["version"]: row
        for row in stage.call(messages.Query(stage.number(), "metrics", "")).body["models"]
    }
    assert [(rows[version]["share"], rows[version]["outcomes"]["success"]) for version in (1, 2)] == [
        (ALL, 15),
        (0, 10),
    ]
    assert rows[1]["shadow"] is None
    assert (rows[2]["shadow"]["compared"], rows[2]["shadow"]["beyond"]) == (15, 2)
    # The shadow continues while shares change, gets copies only of other versions' requests, and ends when a
    # version is promoted.
    stage.route([2, ALL // 2])
    assert stage.count(10) == {1: 5, 2: 5}
    stage.shadow(copied=20)
    assert stage.promote(2).body["shadow"] is None
    stage.rollback()
    assert stage.model("m")["route"]["shadow"]["copied"] == 0
    assert stage.route(shadow=[0, 0, 0.0]).body["shadow"] is None


def test_a_part_of_the_requests_is_copied_exactly(stage: Stage) -> None:
    stage.route(shadow=[2, ALL // 5, 0.0])
    stage.infer("m@2")
    assert stage.count(25) == {1: 25}
    stage.shadow(copied=5, compared=5)


def test_answers_of_other_shapes_and_types_differ(stage: Stage) -> None:
    outputs = [TensorSpec("z", 1, ("N", 2))]
    stage.register(b"three", outputs=outputs)
    stage.route(shadow=[3, ALL, 0.0])
    stage.infer("m@3")
    assert stage.count(4) == {1: 4}
    stage.shadow(compared=4, differing=4, beyond=4)


def deaf_shadow(stack: ExitStack, data: Path) -> Stage:
    """The first version is on a worker that serves, the second on a worker that has stopped reading."""
    stage = Stage(stack, data)
    stage.register(b"one")
    stage.promote(1)
    deaf = stack.enter_context(FakeWorker(stage.controller, epoch=2))
    deaf.prepare(Status.INVALID_MODEL, "not here")
    preparing = threading.Thread(target=deaf.prepare, kwargs={"program": "two"})
    refusing = threading.Thread(target=stage.worker.prepare, args=(Status.INVALID_MODEL, "not here"))
    for thread in (preparing, refusing):
        thread.start()
    assert type(stage.client.register("m", b"two", request_id=stage.number())) is messages.Reply
    for thread in (preparing, refusing):
        thread.join()
    stage.route(shadow=[2, ALL, 0.0])
    return stage


def test_a_shadow_that_does_not_answer_holds_up_nobody_and_is_given_up(
    tmp_path: Path,
) -> None:
    with ExitStack() as stack:
        stage = deaf_shadow(stack, tmp_path)
        for slo_ns in (60 * SECOND, 0):
            assert stage.infer(slo_ns=slo_ns) == 1
        stage.shadow(copied=2, unanswered=2, moot=0)
        assert stage.controller.queries.status()["requests_held"] == 0


def test_copies_are_bounded_and_what_is_more_is_counted(tmp_path: Path) -> None:
    with ExitStack() as stack:
        stage = deaf_shadow(stack, tmp_path)
        for _ in range(300):
            stage.client.send(messages.InferRequest(stage.number(), "m", 0, 0, [["x", 1, [1, 2], 0]]), ROW)
        assert type(stage.answer(stage.numbered)[0]) is messages.Answer
        found = stage.model("m")["route"]["shadow"]
        assert (found["copied"], found["dropped"]) == (256, 44)
        body = stage.call(messages.Query(stage.number(), "metrics", "")).body
        # no copy is pending
        assert ([row["pending"] for row in body["models"]], body["requests_open"]) == ([0, 0], 0)
        assert stage.controller.queries.status()["requests_held"] > 0
        # the controller ends with copies under way


def test_a_copy_of_a_request_that_is_not_answered_is_moot(stage: Stage) -> None:
    stage.infer("m@2")
    for one in stage.ids[:2]:
        stage.answers[one] = lambda frames: None
    stage.route(shadow=[2, ALL, 0.0])
    request = messages.InferRequest(stage.number(), "m", 60 * SECOND, 0, [["x", 1, [1, 2], 0]])
    stage.client.send(request, ROW)
    failure = stage.call(messages.Cancel(request.request_id))
    assert failure.status == Status.CANCELLED
    stage.shadow(copied=1, moot=1, unanswered=0)
    with RawClient(stage.controller) as other:  # a client that leaves without a word
        other.infer("m", 1, [1, 2], ROW)
        stage.shadow(copied=2)
    stage.shadow(copied=2, moot=2, unanswered=0)
    assert stage.controller.queries.status()["requests_held"] == 0


def test_a_request_that_the_shadow_cannot_take_is_not_copied(tmp_path: Path) -> None:
    """Versions are compatible when the route is set; a worker's different report later changes nothing for
    the version."""
    with ExitStack() as stack:
        stage = Stage(stack, tmp_path)
        inputs = [TensorSpec("w", 8, ("N",))]
        strings = {"inputs": inputs, "outputs": inputs, "profile": [], "batches": False}
        stage.register(b"one", name="words", **strings)
        stage.register(b"two", name="words", **strings)
        stage.call(messages.Promote(stage.number(), "words", 1))
        stage.route(shadow=[2, ALL, 0.0], name="words")
        word = (2).to_bytes(4, "little") + b"ab"
        answer = stage.call(messages.InferRequest(5, "words", 0, 0, [["w", 8, [1], 0]]), word)
        assert (type(answer), answer.model_version) == (messages.Answer, 1)
        eventually(
            lambda: (stage.serve(), stage.model("words")["route"]["shadow"]["compared"])[1] == 1,
            "strings are copied and compared, too",
        )


# ----- a cluster under load ----------------------------------------------------------------------

ASKERS = 3
"""Threads that ask without a pause."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("routes")) as cluster:
        yield cluster


def test_a_release_from_the_first_request_to_the_last_without_one_that_fails(cluster: Cluster) -> None:
    models = [zoo.fine_tune(zoo.build("mlp", seed=4), seed) for seed in range(2)]
    x = np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32)
    expected = [Reference(model)(x) for model in models]
    stop, going = threading.Event(), threading.Event()
    going.set()
    under_way = threading.Semaphore(ASKERS)
    served: Counter[int] = Counter()
    lock = threading.Lock()

    def ask() -> None:
        with cluster.client() as own:
            while not stop.is_set():
                going.wait()
                with under_way:
                    answer = own.infer("m", x)  # any failure raises here
                version = next(place for place, one in enumerate(expected, 1) if same(answer, one))
                with lock:
                    served[version] += 1

    with cluster.client() as client, concurrent.futures.ThreadPoolExecutor(ASKERS) as pool:

        def answered(version: int) -> int:
            return client.model(f"m@{version}").counts["answered"]

        def counted() -> dict[int, int]:
            """Return the number of answers of each version; none is under way meanwhile, so that both numbers
            are of one moment."""
            going.clear()
            for _ in range(ASKERS):
                under_way.acquire()
            try:
                return {version: answered(version) for version in (1, 2)}
            finally:
                under_way.release(ASKERS)
                going.set()

        def during(requests: int) -> dict[int, int]:
            """Return the number of answers of each version while so many requests were answered."""
            before = counted()
            eventually(lambda: sum(answered(one) - before[one] for one in (1, 2)) >= requests, "requests")
            return {version: count - before[version] for version, count in counted().items()}

        client.register("m", models[0])
        client.promote("m", 1)
        tasks = [pool.submit(ask) for _ in range(ASKERS)]
        try:
            assert client.register("m", models[1]).version == 2
            assert during(100)[2] == 0
            client.route("m", {2: 0.1})
            seen = during(500)
            assert seen[2] == pytest.approx(sum(seen.values()) / 10, abs=1)
            client.route("m", {2: 0.0}, shadow={2: 1.0})
            shadow = eventually(
                lambda: (one := client.model("m").raw["route"]["shadow"])["compared"] >= 20 and one,
                "answers of the shadow are compared",
            )
            assert shadow["beyond"] == shadow["compared"]  # the answers differ because the weights do
            assert shadow["relative_max"] > 0.01
            client.promote("m", 2)
            assert during(100)[1] == 0
            client.rollback("m")
            client.rollback("m")
            seen = during(100)
            assert seen[2] == pytest.approx(sum(seen.values()) / 10, abs=1)
            client.promote("m", 2)
            with pytest.raises(InvalidInput):
                client.unregister("m@2")
            client.unregister("m@1")
            requests = served.total() + 50
            eventually(lambda: served.total() >= requests, "requests after the old version is gone")
        finally:
            stop.set()
        for task in tasks:
            task.result()
        counts = client.status()["counts"]
        assert {key: counts[key] for key in ("refused", "missed", "cancelled", "failed")} == dict.fromkeys(
            ("refused", "missed", "cancelled", "failed"), 0
        )
        assert counts["answered"] == served.total()  # every request was answered once, and no copy counts
        client.unregister("m")


def test_the_same_by_command(cluster: Cluster, tmp_path: Path) -> None:
    models = [zoo.fine_tune(zoo.build("mlp", seed=8), seed) for seed in range(2)]
    with cluster.client() as client:
        for model in models:
            client.register("cli", model)
    for arguments, status, words in [
        (("promote", "cli", "1"), 0, "cli: 100 % to 1"),
        (("route", "cli", "2=12.5%"), 0, "cli: 87.5 % to 1, 12.5 % to 2"),
        (("route", "cli", "--shadow", "2", "--tolerance", "0.25"), 0, "shadow: 100 % of the others' to 2"),
        (("route", "cli"), 0, "0 beyond the tolerance of 0.25"),
        (("show", "cli@2"), 0, "12.5 %, shadow 100 %; cli: 87.5 % to 1, 12.5 % to 2"),
        (("list",), 0, "12.5 %, shadow 100 %"),
        (("route", "cli", "--no-shadow"), 0, "cli: 87.5 % to 1, 12.5 % to 2"),
        (("promote", "cli", "newest"), 0, "cli: 100 % to 2 (the newest version)"),
        (("rollback", "cli"), 0, "cli: 87.5 % to 1, 12.5 % to 2"),
        (("remove", "cli@1"), 1, "clockwork: cli@1 has a part in the route of cli"),
        (("route", "cli", "2=120%"), 2, "'2=120%' is not like 2=10%"),
        (("route", "cli", "2=10%", "2=20%"), 2, "version 2 is named twice"),
        (("promote", "cli", "latest"), 2, "neither the number of a version nor `newest`"),
        (("route", "cli", "9=10%"), 1, "clockwork: cli has no version 9; it has 1, 2"),
    ]:
        found = CliRunner().invoke(cli.cli, ["models", *arguments, "--endpoint", cluster.endpoint])
        assert found.exit_code == status, found.output
        assert words in " ".join(found.output.split()), found.output


def command(cluster: Cluster, *arguments: str | Path) -> tuple[int, str]:
    """Return the exit status of `clockwork models`, and its output, in one line."""
    given = ["models", *map(str, arguments), "--endpoint", cluster.endpoint]
    found = CliRunner().invoke(cli.cli, given)
    return found.exit_code, " ".join(found.output.split())


def test_an_upgrade_keeps_what_is_not_said_and_takes_only_what_fits(cluster: Cluster, tmp_path: Path) -> None:
    files = []
    for seed in range(5):
        files.append(tmp_path / f"{seed}.onnx")
        onnx.save(zoo.fine_tune(zoo.build("mlp", seed=12), seed), files[-1])
    other = tmp_path / "other.onnx"
    onnx.save(zoo.build("mlp", seed=12, inputs=32), other)
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"kind {index}" for index in range(10)))
    x = np.zeros((1, 64), np.float32)
    expected = [Reference(onnx.load(file))(x) for file in files]
    with cluster.client() as client:

        def served() -> int:
            """Return the version that has all of the traffic, by its answer."""
            answer = client.infer("up", x)
            (version,) = [place for place, one in enumerate(expected, 1) if same(answer, one)]
            return version

        def kept(version: int) -> tuple[float | None, bool, int, str]:
            info = client.model(f"up@{version}")
            options = info.raw["options"]
            return (
                info.slo,
                info.batches,
                options["batch_max"],
                info.metadata.get("clockwork.labels", "")[:11],
            )

        said = ("--slo", "5s", "--batching", "off", "--batch-max", "3", "--labels", labels)
        assert command(cluster, "add", "up", files[0], *said)[0] == 0
        assert kept(1) == (5.0, False, 3, '["kind 0", ')
        assert command(cluster, "add", "up", files[1])[0] == 0
        assert kept(2) == kept(1)
        assert served() == 2
        status, told = command(cluster, "add", "up", files[1])
        assert (status, "up@2 is ready" in told) == (0, True), "the same file is the same version"

        status, told = command(cluster, "add", "up", other)
        assert status == 1
        assert (
            "the requests that up@2 serves would not fit this model: its input 'x' is ['N', 32], not ['N', 64]"
            in told
        )
        for share in (None, 0.1):
            with pytest.raises(InvalidInput, match="would not fit this model"):
                client.register("up", other, share=share)
        assert [info.version for info in client.models() if info.name == "up"] == [1, 2]

        status, told = command(cluster, "add", "up", files[2], "--no-route", "--slo", "0")
        assert (status, "up has a route, so that it gets no traffic" in told) == (0, True)
        assert kept(3) == (None, *kept(2)[1:])
        assert served() == 2
        status, told = command(cluster, "add", "up", files[3], "--canary", "10%", "--batching", "auto")
        assert (status, "up: 90 % to 2, 10 % to 4" in told) == (0, True), told
        assert kept(4) == (5.0, True, 3, kept(1)[3])
        assert client.rollback("up").shares == {2: 1.0}
        assert served() == 2
        info = client.register("up", files[4], share=0.25, slo=1.0)
        assert (info.share, client.model("up").raw["route"]["earlier"][-1]["shares"]) == (0.25, [[2, ALL]])
        assert command(cluster, "rollback", "up") == (0, "up: 100 % to 2")
        assert command(cluster, "rollback", "up") == (0, "up: 100 % to 1")
        assert served() == 1

        for wrong, words in [
            (("--canary", "0%"), "'0%' is not like 10%"),
            (("--canary", "10%", "--no-route"), "exclude each other"),
        ]:
            status, told = command(cluster, "add", "up", files[0], *wrong)
            assert (status, words in told) == (2, True), told
        status, told = command(cluster, "add", "new", files[0], "--canary", "10%")
        assert (status, "no version of new serves that its traffic could stay with" in told) == (1, True), (
            told
        )


def test_a_forced_upgrade_takes_the_traffic_and_a_rollback_gives_it_back(cluster: Cluster) -> None:
    x = np.zeros((1, 64), np.float32)
    with cluster.client() as client:
        client.register("forced", zoo.build("mlp", seed=13))
        client.register("forced", zoo.build("mlp", seed=13, inputs=32), force=True)
        with pytest.raises(InvalidInput, match="32"):
            client.infer("forced", x)
        assert client.rollback("forced").shares == {1: 1.0}
        client.infer("forced", x)


def test_the_same_from_asyncio(cluster: Cluster) -> None:
    async def story() -> None:
        async with AsyncClient(cluster.endpoint) as client:
            for seed in range(2):
                await client.register("aio", zoo.fine_tune(zoo.build("mlp", seed=9), seed))
            canary = await client.register("aio", zoo.fine_tune(zoo.build("mlp", seed=9), 2), share=0.5)
            assert canary.share == 0.5
            await client.promote("aio", 2)
            await client.unregister("aio@3")
            assert (await client.promote("aio", 1)).shares == {1: 1.0}
            info = await client.route("aio", {2: 0.25}, shadow={2: 0.5}, tolerance=0.1)
            assert (info.shares, info.earlier, info.automatic) == (
                {1: 0.75, 2: 0.25},
                ({1: 1.0}, {2: 1.0}, {1: 1.0}),
                False,
            )
            assert info.shadow is not None
            assert (info.shadow.version, info.shadow.share, info.shadow.tolerance) == (2, 0.5, 0.1)
            assert (await client.rollback("aio")).shares == {1: 1.0}
            assert [info.share for info in await client.models() if info.name == "aio"] == [1.0, 0.0]
            for wrong in ({2: 1.5}, {2: -0.1}, {2: 1e-9}, {"2": 0.1}, {2: float("nan")}):
                with pytest.raises(InvalidInput):
                    await client.route("aio", wrong)  # type: ignore[arg-type]
            with pytest.raises(ClockworkError, match="a route is shares, a shadow, or both"):
                await client.route("aio")
            with pytest.raises(ClockworkError, match="shadow 2: a version and its part"):
                await client.route("aio", shadow=2)  # type: ignore[arg-type]

    asyncio.run(story())


@pytest.mark.slow
def test_the_release_in_the_docs_runs_as_it_is_written(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        line.strip()
        for line in (ROOT / "docs" / "releasing.md").read_text().splitlines()
        if line[:4] == "    "
    ]
    assert len(lines) > 10
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    with cluster.client() as client:
        client.register("digits", zoo.digits())
        said: dict[str, list[str]] = {}
        for line in lines:
            program, *arguments = shlex.split(line)
            if program == "python":
                subprocess.run(
                    [sys.executable, *arguments], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
                )
                continue
            assert program == "clockwork"
            found = CliRunner().invoke(cli.cli, [*arguments, "--endpoint", cluster.endpoint])
            assert found.exit_code == 0, (line, found.output)
            said.setdefault(" ".join(arguments[:2]), []).append(found.output)
        assert " copied, " in said["models show"][0]
        assert [text.splitlines()[0] for text in said["models promote"]] == [
            "digits: 100 % to 1",
            "digits: 100 % to 2",
            "digits: 100 % to 2",
            "digits: 100 % to 2 (the newest version)",
        ]
        assert "digits@2 is ready" in said["models add"][0]
        assert "digits: 90 % to 2, 10 % to 3" in said["models add"][1]
        assert said["models rollback"][-1].splitlines()[0] == "digits: 100 % to 2"
        assert "gets no traffic until" in said["models add"][0]
        assert said["models rollback"][0].startswith("digits: 90 % to 1, 10 % to 2")
        assert [info.version for info in client.models() if info.name == "digits"] == [2, 3]
        client.unregister("digits")
