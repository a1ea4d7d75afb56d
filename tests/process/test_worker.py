"""A real worker with a real CPU device; the test plays the controller."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from clockwork.config.worker import HELLO_PAUSE_NS
from clockwork.formats.package import rows_of
from clockwork.models import zoo
from clockwork.system.clock import MS, SECOND, now_ns
from clockwork.wire import codec
from clockwork.wire.keys import ControllerKeys, write_keys
from clockwork.wire.messages import (
    NEVER_NS,
    NO_LEASE,
    PROTOCOL_VERSION,
    Forget,
    Goodbye,
    Heartbeat,
    HelloNeeded,
    Infer,
    Load,
    Mismatch,
    Ping,
    Pong,
    Prepare,
    Prepared,
    Profile,
    Result,
    Revoke,
    Status,
    StillResident,
    Unload,
)
from clockwork.wire.roles import Role
from clockwork.wire.transport import new_key_pair
from tests.patience import PATIENCE_NS
from tests.process.fake_scheduler_side import (
    ALWAYS,
    Package,
    SchedulerSide,
    WorkerProcess,
    package,
    running_worker,
)

FLOAT = 1


@pytest.fixture(scope="module")
def model() -> Package:
    return package(zoo.build("mlp", seed=3).SerializeToString())


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared by the first test that needs it; found in the cache by the others."""
    return tmp_path_factory.mktemp("worker") / "store"


@pytest.fixture
def side() -> Iterator[SchedulerSide]:
    with SchedulerSide() as side:
        yield side


@pytest.fixture
def worker(side: SchedulerSide, shared_store: Path) -> Iterator[WorkerProcess]:
    with running_worker(side.endpoint, shared_store, drain_ns=2 * PATIENCE_NS) as worker:
        side.welcome()
        yield worker


def rows_of_input(side: SchedulerSide, summary: dict[str, list[dict[str, list[int]]]]) -> list[int]:
    return [1, *summary["inputs"][0]["shape"][1:]]


class Served:
    """A model that is prepared and loaded as load 1."""

    def __init__(self, side: SchedulerSide, package: Package, model_id: int = 5) -> None:
        self.side, self.model_id, self.package = side, model_id, package
        self.worker_id = 0  # the process of a worker that tests share
        self.summary = side.prepare(model_id, package)
        starts, page = [], 0
        for pages in self.summary["runs"]:
            starts.append(page)
            page += pages
        self.starts = starts
        result = side.load(model_id, 1, starts)
        assert (result.status, result.text) == (Status.OK, "")
        self.shape = [1, *self.summary["inputs"][0]["shape"][1:]]

    def x(self, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal(self.shape, dtype=np.float32)

    def send(self, *arrays: np.ndarray, window: tuple[int, int] = ALWAYS) -> int:
        parts = [[[FLOAT, list(x.shape), index]] for index, x in enumerate(arrays)]
        return self.side.send_infer(self.model_id, 1, parts, [x.tobytes() for x in arrays], window)

    def expected(self, x: np.ndarray) -> np.ndarray:
        import onnxruntime

        session = onnxruntime.InferenceSession(self.package.contents[0], providers=["CPUExecutionProvider"])
        (y,) = session.run(None, {session.get_inputs()[0].name: x})
        return np.asarray(y)


@pytest.fixture
def served(worker: WorkerProcess, side: SchedulerSide, model: Package) -> Served:
    return Served(side, model)


@pytest.fixture(scope="module")
def standing(shared_store: Path, model: Package) -> Iterator[Served]:
    """The served model of one worker, for tests that leave it as it was."""
    with SchedulerSide() as side, running_worker(side.endpoint, shared_store) as worker:
        side.welcome()
        served = Served(side, model)
        served.worker_id = worker.process.pid
        yield served


def test_a_model_is_fetched_prepared_loaded_run_and_unloaded(tmp_path: Path, side: SchedulerSide) -> None:
    digits = package(zoo.build("digits").SerializeToString())
    with running_worker(side.endpoint, tmp_path / "store") as worker:
        hello = side.welcome()
        assert (hello.protocol, hello.name) == (PROTOCOL_VERSION, "w")
        assert hello.devices[0]["kind"] == "cpu"
        assert hello.devices[0]["page_count"] * hello.devices[0]["page_bytes"] == 64 << 20
        served = Served(side, digits)
        assert side.fetched_bytes == len(digits.contents[0])
        arrays = [served.x(seed) for seed in range(3)]
        count = 3 if served.summary["batches"] else 1
        result, frames = side.result_frames(served.send(*arrays[:count]))
        assert (result.status, result.text) == (Status.OK, "")
        assert 0 < result.received_ns <= result.execute[0] < result.execute[1] <= now_ns()
        for x, (ref,) in zip(arrays, result.parts, strict=False):
            dtype, shape, frame = ref
            y = np.frombuffer(frames[frame], np.float32).reshape(shape)
            assert dtype == FLOAT
            np.testing.assert_allclose(y, served.expected(x), rtol=1e-4, atol=1e-5)
        assert side.unload(5, 1).status == Status.OK
        assert side.result(served.send(arrays[0])).status == Status.NOT_RESIDENT
        side.send(Forget(5))
        assert side.result(served.send(arrays[0])).status == Status.UNKNOWN_MODEL
        assert worker.process.poll() is None


def test_executors_are_devices_and_a_model_is_loaded_once(
    side: SchedulerSide, shared_store: Path, model: Package
) -> None:
    with running_worker(side.endpoint, shared_store, devices=["cpu", "cpu"], executors=2):
        hello = side.welcome()
        assert [device.get("arena", -1) for device in hello.devices] == [-1, 0, -1, 2]
        assert {device["page_count"] * device["page_bytes"] for device in hello.devices} == {64 << 20}
        served = Served(side, model)
        arrays = [served.x(seed) for seed in range(4)]
        statuses = []
        for device, x in enumerate(arrays):
            parts = [[[FLOAT, list(x.shape), 0]]]
            result, frames = side.result_frames(side.send_infer(5, 1, parts, [x.tobytes()], device=device))
            statuses.append(Status(result.status))
            if result.status == Status.OK:
                y = np.frombuffer(frames[0], np.float32)
                np.testing.assert_allclose(y, served.expected(x).ravel(), rtol=1e-4, atol=1e-5)
        assert statuses == [Status.OK, Status.OK, Status.NOT_RESIDENT, Status.NOT_RESIDENT]
        heartbeat = side.expect(Heartbeat)
        assert ["arena_bytes" in device for device in heartbeat.stats["devices"]] == [
            True,
            False,
            True,
            False,
        ]


def test_a_worker_that_starts_again_finds_its_models(
    side: SchedulerSide, shared_store: Path, model: Package
) -> None:
    written: list[int] = []
    for epoch in (1, 2):
        side.fetched_bytes = 0
        with running_worker(side.endpoint, shared_store):
            side.welcome(epoch)
            side.prepare(epoch, model)
            if epoch == 2:
                assert side.fetched_bytes == 0
            (described,) = (shared_store / "prepared").glob(f"{model.digest}-*/prepared.json")
            written.append(described.stat().st_ino)
    assert written[0] == written[1]  # the prepared files were not written again


def test_a_profile_run_returns_no_output(standing: Served) -> None:
    action_id = standing.side.next_action()
    standing.side.send(Profile(action_id, 0, 5, 1, 0, NEVER_NS, 0, [standing.shape]))
    result = standing.side.result(action_id)
    assert (result.status, result.parts) == (Status.OK, [])
    assert result.execute[2] > 0


def test_an_action_whose_window_has_closed_is_too_late_and_does_nothing(
    served: Served, side: SchedulerSide
) -> None:
    assert side.unload(5, 1).status == Status.OK
    late = side.load(5, 2, served.starts, latest_ns=now_ns() - MS)
    assert (late.status, late.execute) == (Status.TOO_LATE, [0, 0, 0])
    assert side.result(served.send(served.x(0), window=(0, now_ns() - MS))).status == Status.TOO_LATE
    assert side.load(5, 3, served.starts).status == Status.OK  # the pages are still free


def test_an_action_waits_for_its_window(standing: Served) -> None:
    earliest_ns = now_ns() + 50 * MS
    result = standing.side.result(
        standing.send(standing.x(0), window=(earliest_ns, earliest_ns + PATIENCE_NS))
    )
    assert result.status == Status.OK
    assert result.execute[0] >= earliest_ns


def test_a_revoked_action_is_cancelled(standing: Served) -> None:
    action_id = standing.send(standing.x(0), window=(now_ns() + PATIENCE_NS, NEVER_NS))
    standing.side.send(Revoke(action_id))
    assert standing.side.result(action_id).status == Status.ACTION_CANCELLED
    standing.side.send(Revoke(999))  # an action of the past: no answer


@pytest.mark.parametrize(
    ("change", "status", "text"),
    [
        ({"device": 1}, Status.DEVICE_ERROR, "device 1 of 1"),
        ({"device": -1}, Status.INVALID_INPUT, "Infer.device is an integer from 0 to 1023, got -1"),
        ({"model_id": 6}, Status.UNKNOWN_MODEL, "model id 6"),
        ({"latest_ns": 2**64 - 1}, Status.INVALID_INPUT, "Infer.latest_ns"),
        ({"load_id": 2**64 - 1}, Status.INVALID_INPUT, "Infer.load_id"),
        ({"parts": [[[FLOAT, [1], 1]]]}, Status.INVALID_INPUT, "frame 1 of a message with 1"),
        ({"parts": [[[FLOAT, [1], -1]]]}, Status.INVALID_INPUT, "parts[0][0].frame"),
        ({"parts": [[[FLOAT, [1]]]]}, Status.INVALID_INPUT, "[dtype, shape, frame]"),
        ({"parts": [[[FLOAT, 1, 0]]]}, Status.INVALID_INPUT, "parts[0][0].shape"),
        ({"parts": [[[FLOAT, ["a"], 0]]]}, Status.INVALID_INPUT, "parts[0][0].shape[0]"),
        ({"parts": [[[None, [1], 0]]]}, Status.INVALID_INPUT, "parts[0][0].dtype"),
        ({"parts": [7]}, Status.INVALID_INPUT, "parts[0] is a list"),
        ({"parts": [[[FLOAT, [1] * 33, 0]]]}, Status.INVALID_INPUT, "a list of 33"),
        ({"parts": [[[FLOAT, [2**40, 2**40], 0]]]}, Status.INVALID_INPUT, ""),
        ({"parts": []}, Status.INVALID_INPUT, ""),
    ],
)
def test_an_action_that_makes_no_sense_is_answered(
    standing: Served, change: dict[str, Any], status: Status, text: str
) -> None:
    x = standing.x(0)
    action = Infer(standing.side.next_action(), 0, 5, 1, 0, NEVER_NS, 0, [[[FLOAT, standing.shape, 0]]])
    standing.side.send(action._replace(**change), [x.tobytes()])
    result = standing.side.result(action.action_id)
    assert Status(result.status) == status
    assert text in result.text
    assert standing.side.result(standing.send(x)).status == Status.OK


def test_actions_of_other_kinds_that_make_no_sense_are_answered(standing: Served) -> None:
    for action in (
        Load(901, 0, 5, 2, [None], 0, NEVER_NS, 0),  # type: ignore[list-item]
        Load(902, 0, 5, 2, [2**70 % 2**64] * len(standing.starts), 0, NEVER_NS, 0),
        Unload(903, 0, 5, 77, 0, NEVER_NS, 0),
        Profile(904, 0, 5, 1, 0, NEVER_NS, 0, [None]),  # type: ignore[list-item]
    ):
        standing.side.send(action)
        assert standing.side.result(action.action_id).status != Status.OK
    assert standing.side.result(standing.send(standing.x(0))).status == Status.OK


def test_messages_that_are_none_are_dropped(standing: Served) -> None:
    for header in (
        b"",
        b"\xff",
        b"\x91",
        os.urandom(100),
        msgpack.packb([12345]),
        msgpack.packb([97]),  # a Ping without its field
        msgpack.packb([97, "now"]),
        msgpack.packb([64, 1, "", "", 1, []]),  # a message of the other direction
        msgpack.packb({"tag": 97}),
    ):
        standing.side.send_raw(header, [b"frame"])
    assert standing.side.result(standing.send(standing.x(0))).status == Status.OK


def test_a_ping_is_answered_with_two_stamps(standing: Served) -> None:
    sent_ns = now_ns()
    standing.side.send(Ping(sent_ns))
    pong = standing.side.expect(Pong)
    assert sent_ns <= pong.received_ns <= pong.returned_ns <= now_ns()
    assert pong.sent_ns == sent_ns


def test_heartbeats_tell_how_the_worker_is(standing: Served) -> None:
    message, _ = standing.side.receive()
    assert isinstance(message, Heartbeat)
    assert message.stats["models"] == 1
    assert message.stats["rss_bytes"] > 1 << 20
    assert message.stats["devices"][0]["arena_bytes"] == 64 << 20
    assert message.jitter_ns >= 0


def test_a_worker_whose_clock_is_off_keeps_its_windows(
    shared_store: Path, side: SchedulerSide, model: Package
) -> None:
    offset_ns = -(
        now_ns() + 3600 * SECOND
    )  # it reads less than 0, like a clock an hour behind on a fresh machine
    with running_worker(side.endpoint, shared_store, clock_offset_ns=offset_ns, clock_drift_ppm=100.0):
        side.welcome()
        served = Served(side, model)
        sent_ns = now_ns()
        side.send(Ping(sent_ns))
        pong = side.expect(Pong)
        theirs_ns = pong.received_ns - offset_ns
        assert sent_ns - SECOND < theirs_ns < now_ns() + SECOND
        earliest_ns = pong.returned_ns + 20 * MS
        window = (earliest_ns, earliest_ns + 10 * SECOND)
        result = side.result(served.send(served.x(0), window=window))
        assert result.status == Status.OK
        assert result.received_ns < earliest_ns <= result.execute[0] < result.execute[1] < window[1]
        late = side.result(served.send(served.x(0), window=(-NEVER_NS, pong.returned_ns)))
        assert late.status == Status.TOO_LATE


def test_a_new_controller_numbers_models_anew_and_finds_them_where_they_were(
    shared_store: Path, model: Package
) -> None:
    with SchedulerSide() as first:
        endpoint = first.endpoint
        with running_worker(endpoint, shared_store) as worker:
            hello = first.welcome()
            served = Served(first, model)
            held = served.send(served.x(0), window=(now_ns() + 3600 * SECOND, NEVER_NS))
            assert held
            first.close()
            with SchedulerSide(endpoint) as second:
                again = second.welcome(epoch=2)
                assert again.worker_epoch == hello.worker_epoch
                action_id = second.send_infer(
                    5, 1, [[[FLOAT, served.shape, 0]]], [served.x(0).tobytes()]
                )  # models of the first controller
                assert second.result(action_id).status == Status.UNKNOWN_MODEL
                second.send(Prepare(6, "model5", 1, model.digest, rows_of(model.files), {}, 0))
                prepared = second.expect(Prepared)
                assert (prepared.model_id, prepared.summary) == (6, served.summary)
                served.side, served.model_id = second, 6
                assert second.result(served.send(served.x(0))).status == Status.OK
                assert second.residents == [StillResident(6, 0, 1, served.starts)]
                second.send(HelloNeeded(3))
                third = second.welcome(epoch=3)
                assert third.worker_epoch == hello.worker_epoch
                served = Served(second, model)  # which loads it all the same
                assert second.result(served.send(served.x(0))).status == Status.OK
            assert "lost" in worker.log_text()


def test_a_worker_obeys_no_controller_that_was_taken_over(shared_store: Path, side: SchedulerSide) -> None:
    """As one does not know that was stopped meanwhile: it lets workers in with the epoch that it had."""
    with running_worker(side.endpoint, shared_store) as worker:
        side.welcome(1, (5, "new/1", "ours"))
        side.send(HelloNeeded(2))
        side.welcome(2, (4, "stopped/1", "ours"))
        side.send(Ping(1))  # what it sends now is not heard
        side.send(Load(1, 0, 1, 1, [0], 0, NEVER_NS, 1))
        side.let_in(3, (5, "new/1", "ours"))
        side.send(Ping(2))
        assert side.expect(Pong).sent_ns == 2
        # Epochs of another cluster are its own, and a controller without a lease is no former one.
        for epoch, lease in ((4, (1, "new/1", "another")), (5, NO_LEASE)):
            side.let_in(epoch, lease)
            side.send(Ping(epoch))
            assert side.expect(Pong).sent_ns == epoch
        assert "stopped/1" in worker.log_text()
        assert "its epoch is 4, and new/1 has epoch 5" in worker.log_text()


def test_a_worker_may_start_before_the_controller(shared_store: Path) -> None:
    with SchedulerSide() as side:
        endpoint = side.endpoint
    with running_worker(endpoint, shared_store), SchedulerSide(endpoint) as side:
        assert side.welcome().name == "w"


def test_another_protocol_ends_the_worker_with_a_sentence(worker: WorkerProcess, side: SchedulerSide) -> None:
    side.send(Mismatch(2, "the controller speaks 2, the worker speaks 1"))
    assert worker.wait() == 1
    assert "the controller speaks 2, the worker speaks 1" in worker.log_text()


def test_keys_let_a_worker_in_or_end_it(tmp_path: Path, shared_store: Path) -> None:
    ours, theirs = new_key_pair(), new_key_pair()
    _, peer_file, _ = write_keys(tmp_path / "right", ours, {Role.WORKER: theirs})
    _, stranger_file, _ = write_keys(tmp_path / "stranger", ours, {Role.WORKER: new_key_pair()})
    _, misled_file, _ = write_keys(tmp_path / "misled", new_key_pair(), {Role.WORKER: theirs})
    keys = ControllerKeys(*ours, (theirs[0],))
    with SchedulerSide(keys=keys) as side:
        with running_worker(side.endpoint, shared_store, key=str(peer_file)):
            side.welcome()
        for number, file in enumerate((stranger_file, misled_file, None)):
            store = tmp_path / str(number) / "store"
            with running_worker(side.endpoint, store, key=file and str(file)) as worker:
                assert worker.wait() == 1
                assert "refused the connection: are the keys right (--key)?" in worker.log_text()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"devices": ["tpu:0"]}, "no worker can have the devices ['tpu:0']"),
        ({"page_bytes": 1000}, "page_bytes is 1000"),
        ({"key": "/nonexistent/key"}, "key file /nonexistent/key cannot be read"),
        ({"endpoint": "nonsense"}, "'nonsense' is no endpoint: Invalid argument; one is tcp://HOST:PORT"),
        ({"store": "/dev/null/store"}, "the store /dev/null/store cannot be used: Not a directory"),
    ],
)
def test_wrong_settings_end_the_worker_with_a_sentence(
    shared_store: Path, settings: dict[str, Any], text: str
) -> None:
    arguments = {"endpoint": "tcp://127.0.0.1:1", "store": shared_store, **settings}
    with running_worker(**arguments) as worker:
        assert worker.wait() == 1
        assert text in worker.log_text()
        assert "Traceback" not in worker.log_text()


# ----- preparation -----------------------------------------------------------------------------


def test_models_that_cannot_be_served_are_answered(tmp_path: Path, side: SchedulerSide) -> None:
    garbage = package(b"this is no model")
    large = package(zoo.build("mlp", seed=3).SerializeToString())
    with running_worker(side.endpoint, tmp_path / "store", arena_bytes=1 << 16) as worker:
        side.welcome()
        side.announce(1, garbage)
        prepared = side.expect(Prepared)
        assert (prepared.model_id, prepared.status) == (1, Status.INVALID_MODEL)
        assert "Traceback" not in prepared.text
        side.announce(2, large)
        prepared = side.expect(Prepared)
        assert (prepared.model_id, prepared.status) == (2, Status.INVALID_MODEL)
        assert prepared.text.endswith("has 1")  # the arena's number of pages
        side.send(Prepare(3, "m", 1, "0" * 64, rows_of(large.files), {}, 0))
        assert "not those of package" in side.expect(Prepared).text
        side.send(Prepare(4, "m", 1, large.digest, [["../escape", 1, "0" * 64]], {}, 0))
        assert "leaves the package" in side.expect(Prepared).text
        side.announce(5, large, batching="../../etc")
        assert "no way to batch" in side.expect(Prepared).text
        assert worker.process.poll() is None


def test_a_preparation_that_crashes_is_answered_and_the_next_one_succeeds(
    tmp_path: Path, side: SchedulerSide, model: Package
) -> None:
    store = tmp_path / "store"
    (store / "prepared").mkdir(parents=True)
    with open(store / "prepared" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # no preparation gets beyond its start
        with running_worker(side.endpoint, store) as worker:
            side.welcome()
            side.announce(1, model)
            pid = None
            while pid is None:
                side.receive()  # heartbeats; the package is fetched meanwhile
                pid = next(iter(worker.children()), None)
            os.kill(pid, signal.SIGSEGV)
            prepared = side.expect(Prepared)
            assert prepared.status == Status.INVALID_MODEL
            assert prepared.text == "preparation crashed (signal 11)"
            fcntl.flock(lock, fcntl.LOCK_UN)
            Served(side, model, model_id=2)


def test_forgetting_a_model_ends_its_preparation(tmp_path: Path, side: SchedulerSide, model: Package) -> None:
    store = tmp_path / "store"
    (store / "prepared").mkdir(parents=True)
    other = package(zoo.build("null").SerializeToString())
    with open(store / "prepared" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with running_worker(side.endpoint, store) as worker:
            side.welcome()
            side.announce(1, model)
            while not worker.children():
                side.receive()
            side.announce(2, other)
            side.send(Forget(1))
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert side.expect(Prepared).model_id == 2  # and no further message is about model 1


def test_a_damaged_cache_is_prepared_again(tmp_path: Path, side: SchedulerSide, model: Package) -> None:
    store = tmp_path / "store"
    with running_worker(side.endpoint, store):
        side.welcome()
        side.prepare(1, model)
        side.send(Forget(1))
        (weights,) = (store / "prepared").glob("*/prepared.json")
        weights.write_bytes(b"{")
        (program,) = (store / "programs").glob("*/program.onnx")
        program.write_bytes(b"")
        side.prepare(2, model)
        assert json.loads(weights.read_bytes())
        assert program.stat().st_size > 0


def test_the_worker_itself_imports_neither_onnx_nor_onnxruntime(standing: Served) -> None:
    mapped = Path(f"/proc/{standing.worker_id}/maps").read_text()
    assert "libonnxruntime.so" in mapped  # the C library: the device's
    assert "onnx_cpp2py_export" not in mapped
    assert "onnxruntime_pybind11_state" not in mapped


def test_a_worker_drives_several_devices(side: SchedulerSide, shared_store: Path, model: Package) -> None:
    with running_worker(side.endpoint, shared_store, devices=["cpu", "cpu"]):
        assert len(side.welcome().devices) == 2
        served = Served(side, model)  # a model on the first device
        x = served.x(0)
        parts = [[[FLOAT, list(x.shape), 0]]]
        second = side.send_infer(5, 1, parts, [x.tobytes()], device=1)
        assert side.result(second).status == Status.NOT_RESIDENT
        action_id = side.next_action()
        side.send(Load(action_id, 1, 5, 9, served.starts, 0, NEVER_NS, 0))
        assert side.result(action_id).status == Status.OK
        second = side.send_infer(5, 9, parts, [x.tobytes()], device=1)
        assert side.result(second).status == Status.OK


def test_registering_forgetting_and_reconnecting_leaks_no_descriptor(
    shared_store: Path, side: SchedulerSide, model: Package
) -> None:
    with running_worker(side.endpoint, shared_store) as worker:
        side.welcome()
        counts = []
        for epoch in range(2, 5):
            Served(side, model, model_id=epoch)
            side.unload(epoch, 1)
            side.send(Forget(epoch))
            side.send(HelloNeeded(epoch))
            side.welcome(epoch)
            side.send(Ping(0))
            side.expect(Pong)
            counts.append(len(os.listdir(f"/proc/{worker.process.pid}/fd")))
        assert counts[0] == counts[-1]


def test_a_worker_that_is_let_go_again_and_again_waits_longer_each_time(
    shared_store: Path, side: SchedulerSide
) -> None:
    with running_worker(side.endpoint, shared_store) as worker:
        side.welcome()
        pauses_ns = []
        for epoch in range(2, 5):
            side.send(HelloNeeded(epoch))
            asked_ns = now_ns()
            side.welcome(epoch)
            pauses_ns.append(now_ns() - asked_ns)
        expected_ns = [HELLO_PAUSE_NS, 2 * HELLO_PAUSE_NS, 4 * HELLO_PAUSE_NS]
        assert all(pause >= least for pause, least in zip(pauses_ns, expected_ns, strict=True)), pauses_ns
        assert "the controller let go of this worker" in worker.log_text()


# ----- leaving ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_what_the_worker_holds(
    worker: WorkerProcess, served: Served, side: SchedulerSide, number: int
) -> None:
    action_id = served.send(served.x(0), window=(now_ns() + 800 * MS, NEVER_NS))
    side.send(Ping(0))
    side.expect(Pong)  # the Pong shows that the worker has the action
    os.kill(worker.process.pid, number)
    side.expect(Goodbye)
    late_id = served.send(served.x(1))  # an action that was on its way when the worker stopped
    side.send(Goodbye())  # no action is sent after this
    results = [side.expect(Result) for _ in range(2)]
    assert sorted(result.action_id for result in results) == [action_id, late_id]
    assert {result.status for result in results} == {Status.OK}
    assert worker.wait() == 0, "it does not wait for the end of its drain"


def test_an_idle_worker_waits_for_the_word_that_nothing_comes_but_not_forever(
    worker: WorkerProcess, served: Served, side: SchedulerSide
) -> None:
    """The controller may be busy: its orders from before it hears are done, if they come within a second."""
    stopped_ns = now_ns()
    os.kill(worker.process.pid, signal.SIGTERM)
    side.expect(Goodbye)
    while now_ns() < stopped_ns + SECOND // 5:
        side.send(Ping(0))
        side.expect(Pong)
    assert side.result(served.send(served.x(1))).status == Status.OK
    assert worker.wait() == 0
    assert now_ns() - stopped_ns >= SECOND


def test_an_action_that_would_take_too_long_does_not_keep_the_worker(
    shared_store: Path, side: SchedulerSide, model: Package
) -> None:
    with running_worker(side.endpoint, shared_store, drain_ns=SECOND // 2) as worker:
        side.welcome()
        served = Served(side, model)
        served.send(served.x(0), window=(now_ns() + 3600 * SECOND, NEVER_NS))
        side.send(Ping(0))
        side.expect(Pong)
        stopped_ns = now_ns()
        os.kill(worker.process.pid, signal.SIGTERM)
        side.expect(Goodbye)
        side.send(Goodbye())
        assert worker.wait() == 0
        assert now_ns() - stopped_ns >= SECOND // 2
        assert "leaves with 1 actions unfinished" in worker.log_text()


def test_a_second_signal_ends_it_at_once(worker: WorkerProcess, served: Served, side: SchedulerSide) -> None:
    served.send(served.x(0), window=(now_ns() + 3600 * SECOND, NEVER_NS))
    side.send(Ping(0))
    side.expect(Pong)
    os.kill(worker.process.pid, signal.SIGTERM)
    side.expect(Goodbye)
    os.kill(worker.process.pid, signal.SIGTERM)
    assert worker.wait() == 0, "it does not wait for the end of its drain"


def test_a_worker_without_a_controller_leaves_at_once(shared_store: Path) -> None:
    with running_worker("tcp://127.0.0.1:1", shared_store) as worker:
        while "waits for the controller" not in worker.log_text():
            os.sched_yield()
        os.kill(worker.process.pid, signal.SIGTERM)
        assert worker.wait() == 0


def test_the_preparation_process_dies_with_a_worker_that_is_killed(
    tmp_path: Path, side: SchedulerSide, model: Package
) -> None:
    with running_worker(side.endpoint, tmp_path / "store") as worker:
        side.welcome()
        side.prepare(1, model)
        assert len(worker.children()) == 1
        worker.process.kill()  # running_worker() waits for the child to go


def test_a_malformed_header_alone_is_no_result(standing: Served) -> None:
    standing.side.send_raw(codec.encode(Result(1, 0, "", 0, [], [], [], [])))
    standing.side.send(Ping(1))
    assert standing.side.expect(Pong).sent_ns == 1
