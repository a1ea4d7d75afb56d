"""The controller over real sockets, with peers that send exactly the messages that a test wants."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import msgpack
import pytest

from clockwork import Client
from clockwork.config.controller import CLOCK_LIMIT_NS, WORKER_FAULTS_MAX
from clockwork.controller.process import Controller
from clockwork.controller.views import queries
from clockwork.errors import ConfigError
from clockwork.formats.prepared import UNKNOWN_RANK, PreparedModel, TensorSpec
from clockwork.system.clock import MS, SECOND, now_ns
from clockwork.wire import codec, messages
from clockwork.wire.messages import Status
from tests.catalogues import records_of
from tests.patience import PATIENCE_NS, eventually
from tests.process.peers import (
    FakeWorker,
    RawClient,
    controller_settings,
    prepared_model,
    running_controller,
)

ROW = struct.pack("<2f", 1.5, -2.5)
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


@pytest.fixture
def served(tmp_path: Path) -> Any:
    """A controller with one worker and one model ``m`` that echoes [N, 2] floats."""
    with (
        running_controller(tmp_path) as controller,
        FakeWorker(controller) as worker,
        RawClient(controller) as client,
    ):
        client.send(messages.Register(1, "m", [["model.onnx", 5, "0" * 64]], {}))
        client.receive(messages.UploadNeed)  # the former upload was given up: this asks for another
        content = b"model"

        with worker.preparing():
            reply = client.register("m", content, request_id=2)
        assert type(reply) is messages.Reply, reply
        yield controller, worker, client


def test_a_request_crosses_client_controller_and_worker(served: Any) -> None:
    _, worker, client = served
    client.infer("m", 7, [1, 2], ROW)
    worker.serve_one()
    answer, frames = client.receive(messages.Answer)
    assert (answer.request_id, answer.model_version, answer.tensors) == (7, 1, [["y", 1, [1, 2], 0]])
    assert frames == [ROW]


def test_requests_that_wait_together_travel_in_one_batch_and_get_their_own_rows(served: Any) -> None:
    _, worker, client = served
    client.infer("m", 1, [1, 2], ROW)
    first = worker.next_action()
    assert type(first[0]) is messages.Load
    for request in range(2, 6):  # these arrive while the model is being loaded
        client.infer("m", request, [1, 2], struct.pack("<2f", request, 0))
    client.send(messages.Query(99, "status", ""))
    client.receive(messages.Reply)  # the reply shows that the requests have arrived
    worker.answer(*first)
    batched = worker.serve_one()
    assert len(batched.parts) == 5
    for request in range(1, 6):
        answer, frames = client.receive(messages.Answer)
        assert answer.request_id == request
        assert frames == [ROW if request == 1 else struct.pack("<2f", request, 0)]


@pytest.mark.parametrize(
    ("refs", "frames", "names"),
    [
        ([["z", 1, [1, 2], 0]], [ROW], ["'z'", "'x'"]),
        ([["z" * 1_000, 1, [1, 2], 0]], [ROW], ["m has no input 'z"]),
        ([["z" * 1_025, 1, [1, 2], 0]], [ROW], ["tensors[0].name", "at most 1024 bytes"]),
        ([["x", 11, [1, 2], 0]], [ROW], ["float32", "float64"]),
        ([["x", 1, [2], 0]], [ROW], ["[N, 2]", "[2]"]),
        ([["x", 1, [1, 3], 0]], [ROW], ["[N, 2]", "[1, 3]"]),
        ([["x", 1, [1, -2], 0]], [ROW], ["[1, -2]"]),
        ([["x", 1, [1 << 62, 2], 0]], [ROW], ["overflow"]),
        ([["x", 1, [2, 2], 0]], [ROW], ["16 bytes", "8"]),
        ([["x", 1, [0, 2], 0]], [b""], ["at least 1 row"]),
        ([["x", 1, [1, 2], 1]], [ROW], ["frame of this message"]),
        ([["x", 1, [1, 2], -1]], [ROW], ["tensors[0].frame", "-1"]),
        ([["x", "float", [1, 2], 0]], [ROW], ["dtype"]),
        ([["x", 1, [1, 2], 0]], [ROW, ROW], ["2 frames"]),
        ([["x", 1, [1, 2], 0]], [], ["0 frames"]),
        ([], [], ["'x' is missing"]),
        (["x"], [ROW], ["[name, dtype, shape"]),
    ],
)
def test_bad_tensors_are_named_and_harm_nobody(served: Any, refs: Any, frames: Any, names: list[str]) -> None:
    _, worker, client = served
    client.send(messages.InferRequest(1, "m", 0, 0, refs), *frames)
    failure, _ = client.receive(messages.Failure)
    assert failure.status == Status.INVALID_INPUT, failure
    for name in names:
        assert name in failure.text
    client.infer("m", 2, [1, 2], ROW)
    worker.serve_one()
    assert client.receive(messages.Answer)[0].request_id == 2


@pytest.mark.parametrize(
    "header",
    [
        b"\xc1",
        b"",
        b"\x93\x02",
        b"no msgpack at all",
        codec._pack([2, 1]),
        codec._pack([200]),
        codec._pack([67]),
        codec._pack({"a": 1}),
        codec._pack([2, "1", "m", 0, 0, []]),
        codec._pack([2, 1 << 63, "m", 0, 0, [[["x"] * 100] * 100]]),
        b"\x91" * 2000,
        b"\xdd\xff\xff\xff\xff",
    ],
)
def test_frames_that_are_no_message_get_an_error_and_the_connection_lives(served: Any, header: bytes) -> None:
    _, worker, client = served
    client.dealer.send(header)
    failure, _ = client.receive(messages.Failure)
    assert failure.status == Status.INVALID_INPUT
    client.infer("m", 2, [1, 2], ROW)
    worker.serve_one()
    assert client.receive(messages.Answer)[0].request_id == 2


def test_unknown_models_versions_slos_and_priorities(served: Any) -> None:
    _, _, client = served
    for name in ("nobody", "m@2", "m@", "m@x", "@", ""):
        client.infer(name, 1, [1, 2], ROW)
        assert client.receive(messages.Failure)[0].status == Status.MODEL_NOT_FOUND
    client.infer("m", 1, [1, 2], ROW, slo_ns=-5)
    assert "-5" in client.receive(messages.Failure)[0].text
    client.send(messages.InferRequest(1, "m", 0, 256, [["x", 1, [1, 2], 0]]), ROW)
    assert "256" in client.receive(messages.Failure)[0].text


def test_an_slo_below_the_execution_time_is_refused_with_a_feasible_one(served: Any) -> None:
    _, _, client = served
    client.infer("m", 1, [1, 2], ROW, slo_ns=100_000)
    failure, _ = client.receive(messages.Failure)
    assert failure.status == Status.REFUSED
    assert failure.details["reason"] == "infeasible"
    assert failure.details["feasible_slo_ns"] > 1_000_000


def test_a_shape_that_was_never_measured_is_measured_with_its_rows_when_a_device_is_idle(
    tmp_path: Path,
) -> None:
    words = [TensorSpec("w", 1, ("N", "K"))]
    with (
        running_controller(tmp_path) as controller,
        FakeWorker(controller) as worker,
        RawClient(controller) as client,
    ):
        with worker.preparing(inputs=words):
            client.register("m", b"one")
        ref = ["w", 1, [3, 5], 0]
        client.send(messages.InferRequest(7, "m", MS, 0, [ref]), bytes(60))
        failure, _ = client.receive(messages.Failure)
        assert (failure.status, failure.details["reason"]) == (Status.REFUSED, "unprofiled")
        load, _ = worker.next_action()
        assert type(load) is messages.Load
        worker.answer(load, [])
        profile, _ = worker.next_action()
        assert type(profile) is messages.Profile
        assert profile.shapes == [[3, 5]]
        assert (profile.model_id, profile.load_id, profile.device) == (
            load.model_id,
            load.load_id,
            load.device,
        )


def test_what_cannot_be_answered_in_time_is_answered_at_its_deadline(served: Any) -> None:
    _, worker, client = served
    client.infer("m", 3, [1, 2], ROW)
    worker.serve_one()  # so the model is loaded, and the next request's time is not spent on that
    assert client.receive(messages.Answer)[0].request_id == 3
    client.infer("m", 1, [1, 2], ROW, slo_ns=SECOND)
    infer, frames = worker.next_action()  # the worker does not answer the action
    failure, _ = client.receive(messages.Failure)
    assert failure.status == Status.DEADLINE_MISSED
    worker.answer(infer, frames)
    client.infer("m", 2, [1, 2], ROW)
    worker.serve_one()
    assert client.receive(messages.Answer)[0].request_id == 2  # the late answer was never delivered


def first_with_load(*workers: FakeWorker) -> FakeWorker:
    """Return the worker to which a LOAD was sent; until then all of them answer pings."""
    deadline = now_ns() + PATIENCE_NS
    while True:
        assert now_ns() < deadline, "no worker has a LOAD"
        for one in workers:
            while (frames := one.dealer.receive()) is not None:
                message = codec.decode(frames[0], messages.TO_WORKER)
                if type(message) is messages.Load:
                    return one
                if type(message) is messages.Ping:
                    one.pong(message)
            one.wait(MS)


def states(client: RawClient) -> dict[str, str]:
    """Return the state of the model ``m`` on each worker."""
    client.send(messages.Query(5, "model", "m"))
    workers: dict[str, str] = client.receive(messages.Reply)[0].body["workers"]
    return workers


def test_an_action_lost_with_its_worker_is_done_by_another(served: Any) -> None:
    controller, worker, client = served
    with FakeWorker(controller, epoch=2) as second:
        second.prepare()
        # Before the controller knows of it, the end of the first worker fails the request.
        eventually(lambda: states(client) == {"fake1": "ready", "fake2": "ready"}, "both workers have it")
        client.infer("m", 1, [1, 2], ROW)
        doomed = first_with_load(worker, second)
        other = second if doomed is worker else worker
        doomed.close()
        other.serve_one()
        assert client.receive(messages.Answer)[0].request_id == 1


def test_a_client_that_vanishes_takes_its_requests_along(served: Any) -> None:
    controller, worker, client = served
    with RawClient(controller) as other:
        other.infer("m", 1, [1, 2], ROW)
        load = worker.next_action()
    while True:  # the disconnect is noticed within a turn of the loop, not by a timeout
        client.send(messages.Query(5, "status", ""))
        body = client.receive(messages.Reply)[0].body
        if body["requests_held"] == 0:
            break
    assert body["counts"]["cancelled"] == 1
    worker.answer(*load)
    client.infer("m", 2, [1, 2], ROW)
    assert type(worker.serve_one()) is messages.Infer
    assert client.receive(messages.Answer)[0].request_id == 2


def test_a_late_result_of_an_earlier_worker_epoch_is_dropped(served: Any) -> None:
    controller, worker, client = served
    client.infer("m", 1, [1, 2], ROW)
    load, frames = worker.next_action()
    with FakeWorker(controller, epoch=1) as reborn:  # the same worker, reconnected
        reborn.prepare()
        worker.answer(load, frames)
        # No other worker could have done it, so it was answered when its worker was lost.
        assert client.receive(messages.Failure)[0].status == Status.UNAVAILABLE
        # Its Prepared and the client's request come by different sockets.
        eventually(lambda: "ready" in states(client).values(), "the model is ready")
        client.infer("m", 2, [1, 2], ROW)
        reborn.serve_one()
        assert client.receive(messages.Answer)[0].request_id == 2


def test_a_restarted_controller_finds_its_models(tmp_path: Path) -> None:
    with (
        running_controller(tmp_path) as controller,
        FakeWorker(controller) as worker,
        RawClient(controller) as client,
        worker.preparing(),
    ):
        assert type(client.register("kept", b"content", slo_ns=20 * SECOND)) is messages.Reply
    with running_controller(tmp_path) as controller, RawClient(controller) as client:
        client.infer("kept", 1, [1, 2], ROW)
        # the model is known, but no worker has joined yet
        assert client.receive(messages.Failure)[0].status == Status.UNAVAILABLE
        with FakeWorker(controller) as worker:
            assert worker.prepare().name == "kept"
            client.send(messages.Query(2, "model", "kept"))
            while (body := client.receive(messages.Reply)[0].body)["state"] != "ready":
                client.send(messages.Query(2, "model", "kept"))
            assert body["slo_ns"] == 20 * SECOND
            client.infer("kept", 3, [1, 2], ROW)
            worker.serve_one()
            assert client.receive(messages.Answer)[0].request_id == 3


def test_new_content_becomes_the_next_version_when_it_is_ready(served: Any) -> None:

    _, worker, client = served
    client.infer("m", 10, [1, 2], ROW)
    worker.serve_one()
    assert client.receive(messages.Answer)[0].model_version == 1
    with worker.preparing():
        reply = client.register("m", b"new content", request_id=11)
    assert reply.body["version"] == 2
    for name, version in (("m", 2), ("m@1", 1), ("m@2", 2)):
        client.infer(name, 12, [1, 2], ROW)
        worker.serve_one()
        assert client.receive(messages.Answer)[0].model_version == version


def test_a_model_that_no_worker_can_prepare_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        running_controller(tmp_path) as controller,
        FakeWorker(controller) as worker,
        RawClient(controller) as client,
    ):
        with worker.preparing(Status.INVALID_MODEL, "operator Frobnicate is unknown"):
            failure = client.register("bad", b"content")
        assert failure.status == Status.INVALID_MODEL
        assert "Frobnicate" in failure.text
        client.send(messages.Query(2, "models", ""))
        assert client.receive(messages.Reply)[0].body == {"models": [], "next": ""}
        eventually(lambda: not list((tmp_path / "packages").iterdir()), "its package is gone")
    assert records_of(tmp_path) == []


def test_an_slo_at_registration_below_the_execution_time_is_an_error(tmp_path: Path) -> None:
    with (
        running_controller(tmp_path) as controller,
        FakeWorker(controller) as worker,
        RawClient(controller) as client,
    ):
        with worker.preparing():
            failure = client.register("tight", b"content", slo_ns=1000)
        assert type(failure) is messages.Failure
        assert "SLO" in failure.text


@pytest.mark.parametrize(
    ("name", "files", "options", "text"),
    [
        ("a/b", [["model.onnx", 1, "0" * 64]], {}, "a/b"),
        ("", [["model.onnx", 1, "0" * 64]], {}, "name"),
        ("a", [], {}, "files"),
        ("a", [["model.onnx", 1, "0" * 64], ["../../etc/passwd", 1, "0" * 64]], {}, "leaves the package"),
        ("a", [["/model.onnx", 1, "0" * 64]], {}, "leaves"),
        ("a", [["model.onnx", -1, "0" * 64]], {}, "files[0].bytes"),
        ("a", [["model.onnx", 1 << 60, "0" * 64]], {}, "files[0].bytes"),
        ("a", [["model.onnx", 64 << 30, "0" * 64], ["x", 1, "0" * 64]], {}, "larger"),
        ("a", [["model.onnx", 1, "0" * 64]], {"slo_ns": -1}, "slo_ns"),
        ("a", [["model.onnx", 1, "0" * 64]], {"batching": "maybe"}, "maybe"),
        ("a", [["model.onnx", 1, "0" * 64]], {"colour": 1}, "colour"),
    ],
)
def test_registrations_that_make_no_sense(
    served: Any, name: str, files: Any, options: Any, text: str
) -> None:
    _, _, client = served
    client.send(messages.Register(50, name, files, options))
    failure, _ = client.receive(messages.Failure)
    assert failure.request_id == 50
    assert text in failure.text


def test_a_damaged_upload_is_refused_and_leaves_nothing(served: Any, tmp_path: Path) -> None:
    _, _, client = served
    before = sorted(path.name for path in (tmp_path / "packages").iterdir())
    client.send(messages.Register(50, "torn", [["model.onnx", 4, "0" * 64]], {}))
    client.receive(messages.UploadNeed)
    client.send(messages.UploadChunk(50, 0, 0), b"data")
    failure, _ = client.receive(messages.Failure)
    assert failure.status == Status.INVALID_MODEL
    assert "damaged" in failure.text
    after = sorted(
        path.name for path in (tmp_path / "packages").iterdir() if not path.name.startswith(".incoming")
    )
    assert after == [name for name in before if not name.startswith(".incoming")]


def test_unregistering_drains_first(served: Any, tmp_path: Path) -> None:
    _, worker, client = served
    client.infer("m", 1, [1, 2], ROW)
    load = worker.next_action()
    client.send(messages.Unregister(2, "m"))
    state = "ready"
    while state != "draining":  # the version serves until its removal is on disk
        client.send(messages.Query(5, "model", "m"))
        state = client.receive(messages.Reply)[0].body["state"]
    client.infer("m", 3, [1, 2], ROW)
    failure, _ = client.receive(messages.Failure)
    assert failure.request_id == 3
    worker.answer(*load)
    worker.serve_one()
    assert client.receive(messages.Answer)[0].request_id == 1
    unload, frames = worker.next_action()
    assert type(unload) is messages.Unload
    worker.answer(unload, frames)
    assert client.receive(messages.Reply)[0].request_id == 2
    assert type(worker.next_action()[0]) is messages.Forget
    client.infer("m", 4, [1, 2], ROW)
    assert client.receive(messages.Failure)[0].status == Status.MODEL_NOT_FOUND


def test_a_peer_of_a_later_release_is_spoken_to_in_this_release_s_version(served: Any) -> None:
    """Its hello has fields that are not known here; a request of an unknown kind is answered, and no more."""
    controller, _, _ = served
    hello = messages.ClientHello(messages.PROTOCOL_VERSION + 1, "9.9", "future")
    with RawClient(controller, hello=False) as client:
        client.dealer.send(msgpack.packb([1, *hello, {"a": [1, 2]}, "more"]), ())
        welcome, _ = client.receive(messages.ClientWelcome)
        assert welcome.protocol == messages.PROTOCOL_VERSION
        client.dealer.send(msgpack.packb([31, 7, "what is this"]), ())
        failure, _ = client.receive(messages.Failure)
        assert (failure.request_id, failure.status) == (7, Status.INVALID_INPUT)
        assert "message tag 31 is unknown" in failure.text
        client.send(messages.Query(8, "readiness", ""))
        assert client.receive(messages.Reply)[0].request_id == 8
    with RawClient(controller, hello=False) as client:
        client.dealer.send(msgpack.packb([1, *hello._replace(protocol=messages.PROTOCOL_OLDEST)[:3]]), ())
        assert client.receive(messages.ClientWelcome)[0].protocol == messages.PROTOCOL_OLDEST


def test_peers_of_another_protocol_version_are_told(served: Any) -> None:
    controller, _, _ = served
    with RawClient(controller, hello=False) as client:
        client.send(messages.ClientHello(0, "0.0", "past"))
        mismatch, _ = client.receive(messages.Mismatch)
        assert "speaks 0" in mismatch.text
        assert str(messages.PROTOCOL_VERSION) in mismatch.text
    with RawClient(controller, hello=False) as client:
        client.infer("m", 1, [1, 2], ROW)
        client.receive(messages.HelloNeeded)


def test_a_port_in_use_and_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    with running_controller(tmp_path / "a") as controller:
        settings = controller_settings(tmp_path / "b")
        settings.client_endpoint = controller.client_endpoint
        with pytest.raises(ConfigError, match="another cluster"):
            Controller(settings)
        with pytest.raises(ConfigError, match="in use by another controller"):
            Controller(controller_settings(tmp_path / "a"))
    (tmp_path / "a" / "format").write_text("999")
    with pytest.raises(ConfigError, match="999"):
        Controller(controller_settings(tmp_path / "a"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        Controller(controller_settings(tmp_path / "file" / "data"))


def test_listening_beyond_loopback_needs_keys_or_insistence(tmp_path: Path) -> None:
    settings = controller_settings(tmp_path)
    settings.client_endpoint = "tcp://0.0.0.0:0"
    with pytest.raises(ConfigError, match="--insecure"):
        Controller(settings)
    settings.insecure = True
    Controller(settings).close()


def test_symbols_that_disagree_between_inputs(tmp_path: Path) -> None:

    inputs = [TensorSpec("ids", 7, ("N", "S")), TensorSpec("mask", 7, ("N", "S"))]
    with (
        running_controller(tmp_path) as controller,
        FakeWorker(controller) as worker,
        RawClient(controller) as client,
    ):
        with worker.preparing(inputs=inputs, batches=False):
            client.register("bert", b"content")
        refs = [["ids", 7, [1, 4], 0], ["mask", 7, [1, 5], 1]]
        client.send(messages.InferRequest(2, "bert", 0, 0, refs), bytes(32), bytes(40))
        failure, _ = client.receive(messages.Failure)
        assert failure.details == {"tensor": "mask", "expected": "S = 4", "got": "S = 5"}


def test_a_prepared_model_survives_its_summary() -> None:

    model = prepared_model()
    again = PreparedModel.from_dict(codec.msgpack.unpackb(codec.msgpack.packb(model.summary())))
    assert again == model


def test_an_input_of_undeclared_rank_takes_any(tmp_path: Path) -> None:
    inputs = [TensorSpec("x", 1, UNKNOWN_RANK)]
    with (
        running_controller(tmp_path) as controller,
        FakeWorker(controller) as worker,
        RawClient(controller) as client,
    ):
        with worker.preparing(inputs=inputs, batches=False):
            client.register("any", b"content")
        for request, shape in enumerate(([2], [1, 2], [1, 1, 2]), start=2):
            client.infer("any", request, shape, ROW)
            worker.serve_one()
            assert client.receive(messages.Answer)[0].tensors == [["y", 1, shape, 0]]


def test_a_version_of_a_thousand_digits_is_no_version(served: Any) -> None:
    _, worker, client = served
    client.send(messages.Query(5, "model", "m@" + "1" * 1000))
    assert client.receive(messages.Failure)[0].status == Status.MODEL_NOT_FOUND
    client.infer("m", 2, [1, 2], ROW)
    worker.serve_one()
    assert client.receive(messages.Answer)[0].request_id == 2


def broken_summary(field: str, value: Any) -> dict[str, Any]:
    return prepared_model().summary() | {field: value}


@pytest.mark.parametrize(
    "nonsense",
    [
        messages.Prepared(1, Status.OK, "", {}),
        messages.Prepared(1, Status.OK, "", broken_summary("format_version", 999)),
        messages.Prepared(1, Status.OK, "", broken_summary("runs", ["x"])),
        messages.Prepared(1, Status.OK, "", broken_summary("profile", 5)),
        messages.Pong(-(2**63), 2**63 - 1, 2**63 - 1),
    ],
)
def test_a_worker_that_speaks_nonsense_is_let_go_and_the_controller_lives(
    tmp_path: Path, nonsense: Any
) -> None:
    with (
        running_controller(tmp_path) as controller,
        RawClient(controller) as client,
        FakeWorker(controller) as worker,
    ):
        client.send(messages.Register(1, "m", [["model.onnx", 0, EMPTY_SHA256]], {}))
        worker.receive(messages.Prepare)
        worker.send(nonsense)
        for _ in range(10_000):
            client.send(messages.Query(9, "status", ""))
            workers = client.receive(messages.Reply)[0].body["workers"]
            if not workers:
                break
        assert workers == []


def test_a_worker_that_answers_no_ping_is_named_until_it_does(tmp_path: Path) -> None:
    def troubles(client: RawClient) -> list[tuple[str, str]]:
        client.send(messages.Query(9, "status", ""))
        body = client.receive(messages.Reply)[0].body
        return [(one["kind"], one["subject"]) for one in body["troubles"]["open"]]

    with (
        running_controller(tmp_path) as controller,
        RawClient(controller) as client,
        FakeWorker(controller) as worker,
    ):
        stats: dict[str, object] = {}
        until_ns = now_ns() + CLOCK_LIMIT_NS + 20 * SECOND
        while troubles(client) != [("worker_clock", "fake1")]:
            assert now_ns() < until_ns, "the worker is not named"
            worker.send(messages.Heartbeat(now_ns(), 0, stats))
            worker.receive(messages.Ping)
        worker.pong(worker.receive(messages.Ping)[0])
        while troubles(client):
            assert now_ns() < until_ns, "the worker is still named"
            worker.pong(worker.receive(messages.Ping)[0])


@pytest.mark.parametrize(
    ("parts", "sent"),
    [
        ([5], 1),
        ([], WORKER_FAULTS_MAX),
        ([[]], WORKER_FAULTS_MAX),
        ([[["a", [1, 2], 0]]], 1),
        ([[[1, [1, 2], 7]]], WORKER_FAULTS_MAX),
    ],
)
def test_a_result_that_does_not_fit_its_batch_costs_the_worker_not_the_request(
    served: Any, parts: Any, sent: int
) -> None:
    """sent: wrong results after which the worker is closed.

    A message with a wrong form closes the worker at once.
    """
    _, worker, client = served
    client.infer("m", 1, [1, 2], ROW)
    load = worker.next_action()
    worker.answer(*load)
    stamps = [1, 2, 1]
    for _ in range(sent):
        infer, _ = worker.next_action()
        worker.send(messages.Result(infer.action_id, Status.OK, "", 1, stamps, stamps, stamps, parts), ROW)
    assert client.receive(messages.Failure)[0].status == Status.UNAVAILABLE
    client.send(messages.Query(9, "status", ""))
    assert client.receive(messages.Reply)[0].body["workers"] == []


def test_whoever_waits_for_a_registration_hears_that_it_was_removed(tmp_path: Path) -> None:
    with (
        running_controller(tmp_path) as controller,
        FakeWorker(controller) as worker,
        RawClient(controller) as client,
        RawClient(controller) as other,
    ):
        client.send(messages.Register(1, "m", [["model.onnx", 0, EMPTY_SHA256]], {}))
        worker.receive(messages.Prepare)
        other.send(messages.Unregister(2, "m"))
        assert other.receive(messages.Reply)[0].body == {"removed": "m"}
        failure, _ = client.receive(messages.Failure)
        assert (failure.request_id, failure.status) == (1, Status.UNAVAILABLE)


def test_a_version_number_is_not_given_twice(served: Any) -> None:
    _, worker, client = served
    for request, content in ((20, b"second"), (30, b"third")):
        with worker.preparing():
            version = client.register("m", content, request_id=request).body["version"]
        client.send(messages.Unregister(request + 1, f"m@{version}"))
        client.receive(messages.Reply)
    assert version == 3


def test_rows_of_a_scalar(tmp_path: Path) -> None:
    inputs = [TensorSpec("x", 1, UNKNOWN_RANK)]
    with (
        running_controller(tmp_path) as controller,
        FakeWorker(controller) as worker,
        RawClient(controller) as client,
    ):
        with worker.preparing(inputs=inputs):
            client.register("any", b"content")
        client.infer("any", 2, [], ROW[:4])
        assert "no axis of rows" in client.receive(messages.Failure)[0].text


def test_models_are_listed_page_by_page_those_out_of_service_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "LISTED_MODELS_PAGE", 2)
    names = [f"m{number}" for number in range(5)]
    with (
        running_controller(tmp_path) as controller,
        FakeWorker(controller, pages=16) as worker,
        RawClient(controller) as raw,
        Client(controller.client_endpoint) as client,
    ):
        for number, name in enumerate(names):
            with worker.preparing(program=f"program {number}"):
                raw.register(name, name.encode(), request_id=number + 1)
        for away in ((), ("m0", "m3"), ("m1", "m2"), ("m4",)):
            for name in away:
                client.unload(name)
            assert [model.name for model in client.models()] == names
        raw.send(messages.Query(9, "models", "m0"))
        assert "is no page" in raw.receive(messages.Failure)[0].text
        raw.send(messages.Query(10, "models", "#one"))
        assert "is no page" in raw.receive(messages.Failure)[0].text
