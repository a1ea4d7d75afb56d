"""Behaviour of the CUDA device alone: streams that overlap, noticed ends, pools, and failures of the
driver."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from clockwork.device.base import Completion, DeviceBroken
from clockwork.device.cuda import CudaDevice
from clockwork.errors import ConfigError, InvalidModel
from clockwork.formats.prepared import PreparedModel
from clockwork.system.clock import MS, SECOND, now_ns
from clockwork.wire.messages import NEVER_NS, Status
from tests.device.cuda_rig import PAGE_BYTES, CudaRig
from tests.device.fake import ALLOCATING, NOT_SUPPORTED, OUT_OF_MEMORY, FakeDriver, environment
from tests.device.rig import Case, Driver, affine, array_of, case, expected_affine, lane_time_ns
from tests.patience import PATIENCE_NS, PATIENCE_S, eventually, windows_ns

RIGS = [CudaRig]

LOOK_NS = 5 * MS
"""Interval at which a lane asks the driver for errors while it waits for a word; csrc/device/notice.h."""

X = np.arange(12, dtype=np.float32).reshape(3, 4)


def loaded(driver: Driver, one: Case | None = None, start: int = 0, load_id: int = 1) -> int:
    model = driver.prepare(one or affine())
    assert driver.end(driver.load(model, load_id, [start])).status == Status.OK
    return model


# ----- streams ------------------------------------------------------------------------------------


def two_with_inputs_copied(driver: Driver, fake: FakeDriver, model: int) -> tuple[int, int]:
    """Start two executions whose inputs are both in place, the first of which runs until kernels are
    released."""
    before = fake.copied_in()
    driver.end(driver.infer(model, 1, [X]))
    input_bytes = fake.copied_in() - before
    fake.keep_kernels()
    first, second = (driver.infer(model, 1, [x], expected_ns=60 * SECOND) for x in (X, 2 * X))
    eventually(lambda: fake.copied_in() == before + 3 * input_bytes, "the inputs of both are there")
    return first, second


def test_inputs_are_copied_while_the_one_before_executes(driver: Driver, fake: FakeDriver) -> None:
    model = loaded(driver)
    fake.speed(kernel_ns=10 * MS)
    both = two_with_inputs_copied(driver, fake, model)
    fake.keep_kernels(False)
    first, second = driver.wait(*both)
    assert second.copy_in[1] < first.execute[1] <= second.execute[0]
    assert first.execute[2] >= 20 * MS  # two kernels, by the device's own clock
    one = affine()
    for done, x in ((first, X), (second, 2 * X)):
        np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(one, x), rtol=1e-4, atol=1e-4)


def test_outputs_are_copied_while_the_next_one_executes(driver: Driver, fake: FakeDriver) -> None:
    model = loaded(driver)
    for copy_ns in windows_ns(320 * MS):
        both = two_with_inputs_copied(driver, fake, model)
        fake.speed(copy_rate=X.nbytes * SECOND // copy_ns)
        fake.keep_kernels(False)
        first, second = driver.wait(*both)
        fake.speed()
        assert first.copy_out[2] >= copy_ns
        assert first.copy_out[1] <= second.copy_out[1]
        if second.execute[0] < first.copy_out[1]:
            return


def test_a_load_overlaps_an_execution(driver: Driver, fake: FakeDriver) -> None:
    model, other = loaded(driver), driver.prepare(affine(1, width=100))
    fake.speed(copy_rate=2_000_000)  # a copy of 40 kB takes 20 ms
    fake.keep_kernels()
    before = fake.calls("cuGraphLaunch")
    action = driver.infer(model, 1, [X], expected_ns=60 * SECOND)
    eventually(lambda: fake.calls("cuGraphLaunch") == before + 1, "it executes")
    load = driver.end(driver.load(other, 2, [4]))
    fake.keep_kernels(False)
    running = driver.end(action)
    assert load.status == running.status == Status.OK
    assert running.execute[0] < load.execute[1] < running.execute[1]
    assert load.execute[2] > 15 * MS


def test_one_copy_engine_does_one_copy_at_a_time_and_a_locked_driver_one_call(
    driver: Driver, fake: FakeDriver
) -> None:
    """The fake driver behaves as the tests below assume."""
    model, other = loaded(driver), driver.prepare(affine(1, width=100))
    fake.speed(copy_rate=4_000_000)  # a copy of 40 kB takes 10 ms
    fake.engines(1, call_ns=MS)
    fake.steps()
    before_ns = now_ns()
    driver.wait(driver.load(other, 2, [4]), driver.infer(model, 1, [X]), driver.infer(model, 1, [X]))
    steps = fake.steps()
    copies = [step for step in steps if step.kind.startswith("copy")]
    assert [step.kind for step in copies].count("copy out") == 2
    assert all(one.end_ns <= next.begin_ns for one, next in itertools.pairwise(copies))
    kernels = [step for step in steps if step.kind == "kernel"]
    assert len(kernels) == 4
    assert kernels[-1].begin_ns > before_ns + 10 * MS  # behind more than ten calls


# ----- noticing an end ----------------------------------------------------------------------------


def test_an_end_is_noticed_by_a_word_without_asking_the_driver(driver: Driver, fake: FakeDriver) -> None:
    model = loaded(driver)
    fake.speed(kernel_ns=10 * MS)
    for expected_ns in (20 * MS, 25 * MS, 10 * MS):  # predictions: right, too long, too short
        asked, spent_ns = fake.calls("cuEventQuery"), lane_time_ns("cw-execute")
        fake.steps()
        done = driver.end(driver.infer(model, 1, [X], expected_ns=expected_ns))
        written_ns = next(
            step.end_ns for step in fake.steps() if step.kind == "write" and step.end_ns > done.execute[0]
        )
        assert fake.calls("cuEventQuery") - asked <= (done.execute[1] - done.execute[0]) / LOOK_NS
        assert written_ns < done.execute[1]
        # Too little for a thread that polls without a pause, or naps only for moments.
        assert lane_time_ns("cw-execute") - spent_ns < 5 * MS


def test_what_a_wrong_prediction_costs_is_bounded(driver: Driver, fake: FakeDriver) -> None:
    model = loaded(driver)
    fake.speed(kernel_ns=20 * MS)
    done = driver.end(driver.infer(model, 1, [X], expected_ns=PATIENCE_NS))
    assert done.execute[1] - done.execute[0] < PATIENCE_NS
    fake.speed(kernel_ns=150 * MS)
    spent_ns = lane_time_ns("cw-execute")
    done = driver.end(driver.infer(model, 1, [X], expected_ns=MS))
    assert done.execute[2] > 300 * MS
    assert lane_time_ns("cw-execute") - spent_ns < 100 * MS  # a wait without an end takes no core


def test_a_context_that_breaks_long_before_the_predicted_end_is_noticed(
    driver: Driver, fake: FakeDriver
) -> None:
    model = loaded(driver)
    fake.speed(kernel_ns=10 * MS)
    fake.fail("kernel", 2)
    begun_ns = now_ns()
    done = driver.end(driver.infer(model, 1, [X], expected_ns=PATIENCE_NS))
    assert (done.status, done.text) == (Status.DEVICE_ERROR, "cuEventQuery: CUDA_ERROR_ILLEGAL_ADDRESS")
    assert now_ns() - begun_ns < PATIENCE_NS


@pytest.mark.parametrize("why", ["the driver is old", "the device cannot"])
def test_a_driver_that_writes_no_words_is_asked_about_events(
    make: Callable[..., Driver], fake: FakeDriver, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    driver = make()
    driver.device.close()
    if why == "the driver is old":
        fake.setup(version=11080)
    else:
        fake.fail("cuStreamWriteValue32_v2", error=NOT_SUPPORTED)
    driver.device = driver.rig.make()
    assert "lanes ask the driver about events" in caplog.text
    one, written = affine(), fake.calls("cuStreamWriteValue32_v2")
    asked = fake.calls("cuEventQuery")
    model = loaded(driver, one)
    fake.speed(kernel_ns=5 * MS)
    for expected_ns in (0, 10 * MS):
        done = driver.end(driver.infer(model, 1, [X], expected_ns=expected_ns))
        np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(one, X), rtol=1e-4, atol=1e-4)
    assert fake.calls("cuStreamWriteValue32_v2") == written
    assert fake.calls("cuEventQuery") >= asked + 7  # the driver is asked at least once for each wait
    fake.fail("cuEventQuery", 2)
    failed = driver.end(driver.infer(model, 1, [X]))
    assert (failed.status, failed.text) == (Status.DEVICE_ERROR, "cuEventQuery: CUDA_ERROR_ILLEGAL_ADDRESS")
    assert driver.end(driver.infer(model, 1, [X])).status == Status.OK


# ----- loads in pieces ----------------------------------------------------------------------------

PIECES = 12
PIECE_NS = 16 * MS
LOAD_AHEAD = 3  # equals LOAD_AHEAD of csrc/device/cuda_model.h


@pytest.mark.parametrize("version", [12040, 11040])
def test_an_input_waits_for_a_few_pieces_of_a_load_and_not_for_a_model(
    make: Callable[..., Driver], fake: FakeDriver, version: int
) -> None:
    """A single copy engine does copies in the order in which they were issued."""
    driver = make()
    driver.device.close()
    fake.setup(version=version)
    driver.device = driver.rig.make(load_piece_bytes=PAGE_BYTES // 2)
    one = affine(1, width=313)  # a model of 12 pieces, in 6 pages
    model, other = loaded(driver), driver.prepare(one)
    size = 4 * (313 * 313 + 313)
    assert PIECES - 1 < size / (PAGE_BYTES // 2) <= PIECES
    fake.speed(copy_rate=PAGE_BYTES // 2 * SECOND // PIECE_NS)
    fake.engines(1)
    copied = fake.copied_in()
    fake.steps()
    loading = driver.load(other, 2, [8])
    eventually(lambda: fake.copied_in() > copied, "the load is on its way")
    done = driver.end(driver.infer(model, 1, [X]))
    driver.end(loading)
    copies = [step for step in fake.steps() if step.kind == "copy in"]
    place = next(index for index, step in enumerate(copies) if step.bytes < PAGE_BYTES // 4)
    before = [step for step in copies if step.issued_ns < copies[place].issued_ns < step.end_ns]
    assert len(before) <= LOAD_AHEAD
    # The input and each piece of the load were copied once.
    assert len(copies) == PIECES + 1 + (copies[-1].bytes < PAGE_BYTES // 4)
    fake.speed()
    x = np.random.default_rng(0).standard_normal((2, 313)).astype(np.float32)
    done = driver.end(driver.infer(other, 2, [x]))
    np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(one, x), rtol=1e-3, atol=1e-3)


def test_pages_smaller_than_a_piece_are_copied_without_a_wait_for_each(
    make: Callable[..., Driver], fake: FakeDriver
) -> None:
    driver = make(load_piece_bytes=8 * PAGE_BYTES)
    other = driver.prepare(affine(1, width=313))
    written = fake.calls("cuStreamWriteValue32_v2")
    assert driver.end(driver.load(other, 2, [8])).status == Status.OK
    assert fake.calls("cuStreamWriteValue32_v2") == written + 1


@pytest.mark.parametrize(
    ("function", "nth"), [("cuEventRecord", 3), ("cuMemcpyHtoDAsync_v2", 5), ("cuStreamWriteValue32_v2", 4)]
)
def test_a_load_that_fails_among_its_pieces_keeps_nothing(
    make: Callable[..., Driver], fake: FakeDriver, function: str, nth: int
) -> None:
    driver = make(load_piece_bytes=PAGE_BYTES // 2)
    model = driver.prepare(affine(1, width=313))
    fake.fail(function, nth)
    done = driver.end(driver.load(model, 1, [3]))
    assert (done.status, done.text) == (
        Status.DEVICE_ERROR,
        f"{name_of(function)}: CUDA_ERROR_ILLEGAL_ADDRESS",
    )
    assert driver.device.memory()["resident_bytes"] == 0
    assert driver.end(driver.load(model, 2, [3])).status == Status.OK


# ----- one behind another -------------------------------------------------------------------------

LOOKING_NS = 40 * MS
"""How long a test watches that something does not happen."""


MARKS = 3
"""Words that streams write for an execution: at the ends of its inputs, its kernels and its outputs."""


def executing(driver: Driver, fake: FakeDriver, model: int) -> int:
    """An execution that runs until kernels are let go of.

    Nobody knows how long it takes, so nothing is queued behind it.
    """
    before = fake.calls("cuGraphLaunch")
    fake.keep_kernels()
    action = driver.infer(model, 1, [X], expected_ns=0)
    eventually(lambda: fake.calls("cuGraphLaunch") == before + 1, "it executes")
    return action


class Pair:
    """An execution that runs until let_go(), and launches counted from before it."""

    def __init__(self, driver: Driver, fake: FakeDriver, expected_ns: int = 60 * SECOND) -> None:
        self.driver, self.fake = driver, fake
        self.one = affine()
        self.model = loaded(driver, self.one)
        self.before = fake.calls("cuGraphLaunch")
        marks = fake.calls("cuStreamWriteValue32_v2")
        fake.keep_kernels()
        self.begun_ns = now_ns()
        self.first = driver.infer(self.model, 1, [X], expected_ns=expected_ns)
        eventually(lambda: self.launched() == 1, "the first is launched")
        # The last call of the execution marks the end of its outputs. A call that is to fail from now on
        # belongs to the next execution.
        eventually(
            lambda: fake.calls("cuStreamWriteValue32_v2") == marks + MARKS, "the first's outputs are queued"
        )

    def launched(self) -> int:
        return self.fake.calls("cuGraphLaunch") - self.before

    def follow(self, earliest_ns: int = 0, latest_ns: int = NEVER_NS) -> int:
        return self.driver.infer(self.model, 1, [2 * X], earliest_ns=earliest_ns, latest_ns=latest_ns)

    def behind(self, **window: int) -> int:
        """Launch a second execution while the first runs."""
        action = self.follow(**window)
        eventually(lambda: self.launched() == 2, "the next is launched")
        assert self.driver.device.poll() == []
        return action

    def look_on(self, launched: int) -> None:
        """Check that no further execution is launched."""
        until_ns = now_ns() + LOOKING_NS
        eventually(lambda: now_ns() > until_ns, "nothing is launched")
        assert self.launched() == launched

    def let_go(self) -> None:
        self.fake.keep_kernels(False)

    def check(self, done: Completion, factor: int = 2) -> None:
        assert done.status == Status.OK, done.text
        np.testing.assert_allclose(
            array_of(done.parts[0][0]), expected_affine(self.one, factor * X), rtol=1e-4, atol=1e-4
        )


def test_the_next_batch_is_on_the_device_before_the_last_has_ended(driver: Driver, fake: FakeDriver) -> None:
    pair = Pair(driver, fake)
    assert driver.device.running() == pair.first
    second = pair.behind()
    assert driver.device.running() == pair.first
    driver.device.revoke(second)  # a launched action cannot be revoked
    pair.look_on(2)
    fake.steps()
    pair.let_go()
    one, two = driver.wait(pair.first, second)
    kernels = [step for step in fake.steps() if step.kind == "kernel"]
    pair.check(one, 1)
    pair.check(two)
    assert one.execute[1] <= two.execute[0] <= two.execute[1]
    # The wait for the first execution is not part of the second's duration.
    assert one.execute[2] > LOOKING_NS
    assert two.execute[2] <= two.execute[1] - kernels[len(kernels) // 2 - 1].end_ns
    assert driver.device.running() == 0


@pytest.mark.parametrize(
    ("earliest_ns", "latest_ns", "expected_ns"),
    [
        (PATIENCE_NS, 2 * PATIENCE_NS, 60 * SECOND),
        (0, 40 * MS, 60 * SECOND),
        (0, PATIENCE_NS, 0),
        (0, PATIENCE_NS, 1),
    ],
    ids=["opens later", "closes before", "nobody knows", "overdue"],
)
def test_what_may_not_begin_yet_is_not_queued_behind(
    driver: Driver, fake: FakeDriver, earliest_ns: int, latest_ns: int, expected_ns: int
) -> None:
    pair = Pair(driver, fake, expected_ns)
    begun_ns = now_ns()
    action = pair.follow(begun_ns + earliest_ns, begun_ns + latest_ns)
    pair.look_on(1)
    if earliest_ns:
        driver.device.revoke(action)
    pair.let_go()
    done = driver.end(pair.first)
    second = driver.end(action)
    if earliest_ns:
        assert (second.status, pair.launched()) == (Status.ACTION_CANCELLED, 1)
        return
    if latest_ns == 40 * MS:
        assert (second.status, pair.launched()) == (Status.TOO_LATE, 1)
        return
    pair.check(second)
    assert second.execute[0] >= done.execute[1]


def test_a_window_that_opens_meanwhile_lets_it_begin(driver: Driver, fake: FakeDriver) -> None:
    pair = Pair(driver, fake)
    earliest_ns = now_ns() + LOOKING_NS
    second = pair.behind(earliest_ns=earliest_ns)
    assert now_ns() >= earliest_ns
    pair.let_go()
    pair.check(driver.end(second))


def test_what_is_behind_one_that_takes_too_long_still_runs_and_says_when(
    driver: Driver, fake: FakeDriver
) -> None:
    """The window was judged by the prediction; work on the device cannot be revoked."""
    for expected_ns in windows_ns(SECOND // 2):  # time for two executions to be queued
        pair = Pair(driver, fake, expected_ns)
        latest_ns = pair.begun_ns + expected_ns * 3 // 2
        second = pair.follow(latest_ns=latest_ns)
        eventually(lambda: pair.launched() == 2 or now_ns() > latest_ns, "the next is launched, or too late")  # noqa: B023
        if pair.launched() == 2:
            break
        pair.let_go()
        driver.wait(pair.first, second)
        driver.end(driver.unload(pair.model, 1))
    eventually(lambda: now_ns() > latest_ns, "its window has closed")
    pair.let_go()
    done = driver.end(second)
    pair.check(done)
    assert done.execute[0] > latest_ns


def test_only_one_is_queued_behind_another(make: Callable[..., Driver], fake: FakeDriver) -> None:
    driver = make(run_ahead=3)
    pair = Pair(driver, fake)
    second, third = pair.behind(), pair.follow()
    pair.look_on(2)
    pair.let_go()
    one, *done = driver.wait(pair.first, second, third)
    for completion in done:
        pair.check(completion)
    assert one.execute[1] <= done[0].execute[0] <= done[0].execute[1] <= done[1].execute[0]


def test_a_model_stays_while_it_is_behind_another(driver: Driver, fake: FakeDriver) -> None:
    pair = Pair(driver, fake)
    other = driver.prepare(affine(1))
    assert driver.end(driver.load(other, 2, [1])).status == Status.OK
    action = driver.infer(other, 2, [X])
    eventually(lambda: pair.launched() == 2, "the next is launched")
    assert driver.end(driver.unload(other, 2)).status == Status.IN_USE
    pair.let_go()
    done = driver.end(action)
    np.testing.assert_allclose(
        array_of(done.parts[0][0]), expected_affine(affine(1), X), rtol=1e-4, atol=1e-4
    )
    assert driver.end(driver.unload(other, 2)).status == Status.OK


@pytest.mark.parametrize(
    ("function", "nth"),
    [
        ("cuGraphLaunch", 1),
        ("cuStreamWaitEvent", 1),
        ("cuMemcpyDtoHAsync_v2", 1),
        ("cuStreamWriteValue32_v2", 2),
    ],
)
def test_what_fails_behind_another_fails_alone(
    driver: Driver, fake: FakeDriver, function: str, nth: int
) -> None:
    pair = Pair(driver, fake)
    called = fake.calls(function)
    fake.fail(function, nth)
    second = pair.follow()
    eventually(lambda: fake.calls(function) >= called + nth, "the next is launched, or nearly")
    pair.let_go()
    one, two = driver.wait(pair.first, second)
    pair.check(one, 1)
    assert two.execute[0] <= two.execute[1]
    assert (two.status, two.text) == (
        Status.DEVICE_ERROR,
        f"{name_of(function)}: CUDA_ERROR_ILLEGAL_ADDRESS",
    )
    pair.check(driver.end(pair.follow()))
    assert driver.device.fault == ""


CRASHING = """
import os, select, signal, sys
from pathlib import Path
from clockwork.device import _crash
from tests.device.cuda_rig import CudaRig
from tests.device.fake import FakeDriver
from tests.device.rig import Driver
from tests.device.test_cuda import Pair

rig = CudaRig(Path(sys.argv[1]))
pair = Pair(Driver(rig.make(), rig), FakeDriver())
read, write = os.pipe2(os.O_NONBLOCK)
_crash.install(write)
pair.fake.fail("cuGraphLaunch", error=-signal.SIGSEGV)
second = pair.follow()
assert select.select([read], [], [], 30)[0]
print(_crash.crashed() == (signal.SIGSEGV, second), flush=True)
_crash.told()
"""


@pytest.mark.slow
def test_a_crash_in_a_launch_behind_another_names_what_was_launched(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CRASHING, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (ended.stdout, ended.returncode) == ("True\n", -signal.SIGSEGV), ended.stderr


@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_device_ends_with_one_behind_another(driver: Driver, fake: FakeDriver, how: str) -> None:
    pair = Pair(driver, fake)
    pair.behind()
    ending = threading.Thread(target=getattr(driver.device, how))
    ending.start()
    pair.look_on(2)
    assert ending.is_alive()
    pair.let_go()
    ending.join()
    if how == "reset":
        assert driver.device.poll() == []
        assert driver.end(driver.load(pair.model, 9, [3])).status == Status.OK
        assert driver.end(driver.infer(pair.model, 9, [X])).status == Status.OK


def test_a_workspace_is_exchanged_with_one_behind_another(driver: Driver, fake: FakeDriver) -> None:
    pair = Pair(driver, fake)
    second = pair.behind()
    before = driver.device.memory()["workspace_bytes"]
    wide, large = affine(2, width=300), 2
    preparing = threading.Thread(target=driver.prepare, args=(wide,))
    preparing.start()
    pair.look_on(2)
    assert preparing.is_alive()
    pair.let_go()
    preparing.join()
    assert driver.device.memory()["workspace_bytes"] > before
    for done, factor in zip(driver.wait(pair.first, second), (1, 2), strict=True):
        pair.check(done, factor)
    driver.end(driver.load(large, 2, [4]))
    x = np.random.default_rng(0).standard_normal((8, 300)).astype(np.float32)
    done = driver.end(driver.infer(large, 2, [x]))
    np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(wide, x), rtol=1e-3, atol=1e-3)


# ----- windows ------------------------------------------------------------------------------------


def test_the_window_is_that_of_the_execution(driver: Driver) -> None:
    model = loaded(driver)
    for window_ns in windows_ns(100 * MS):
        earliest_ns = now_ns() + window_ns
        done = driver.end(driver.infer(model, 1, [X], earliest_ns=earliest_ns))
        assert earliest_ns <= done.execute[0]
        if done.copy_in[1] < earliest_ns:
            return


def test_what_is_revoked_after_its_inputs_came_never_runs(driver: Driver, fake: FakeDriver) -> None:
    model, copy = loaded(driver), "cuMemcpyHtoDAsync_v2"
    kernels = fake.calls("kernel")
    fake.speed(latency_ns=60 * MS)

    def revoke_when(stage: str) -> None:
        begun, copied = fake.calls(copy), fake.copied_in()
        waiting = driver.infer(model, 1, [X], earliest_ns=now_ns() + PATIENCE_NS)
        if stage != "it waits":
            eventually(lambda: fake.calls(copy) > begun, "the copy of the inputs is asked for")
        if stage == "its inputs are there":
            eventually(lambda: fake.copied_in() > copied, "the inputs arrive")
        driver.device.revoke(waiting)
        assert driver.end(waiting).status == Status.ACTION_CANCELLED

    for stage in ("it waits", "its inputs are on their way", "its inputs are there"):
        revoke_when(stage)
    assert fake.calls("kernel") == kernels
    assert driver.end(driver.unload(model, 1)).status == Status.OK


def test_lanes_go_on_while_somebody_keeps_the_interpreter(driver: Driver, fake: FakeDriver) -> None:
    """Whole actions from the first copy to the last run without taking the GIL."""
    model, other = loaded(driver), driver.prepare(affine(1))
    fake.speed(kernel_ns=2 * MS)
    interval = sys.getswitchinterval()
    for window_ns in windows_ns(500 * MS):
        try:
            sys.setswitchinterval(1000)
            actions = [driver.infer(model, 1, [X]), driver.infer(model, 1, [X]), driver.load(other, 2, [1])]
            until_ns = now_ns() + window_ns
            while now_ns() < until_ns:
                pass
            ended = {one.action_id: one for one in driver.device.poll()}
        finally:
            sys.setswitchinterval(interval)
        if len(ended) == len(actions):
            break
        driver.wait(*(action for action in actions if action not in ended))
        driver.end(driver.unload(other, 2))
    assert sorted(ended) == actions
    assert max(one.copy_out[1] for one in ended.values()) < until_ns


def test_actions_allocate_and_synchronise_nothing(driver: Driver, fake: FakeDriver) -> None:
    models = [driver.prepare(affine(seed)) for seed in range(3)]
    before = {name: fake.calls(name) for name in ALLOCATING}
    live = fake.live()
    for load_id in range(1, 20):
        model = models[load_id % 3]
        assert driver.end(driver.load(model, load_id, [load_id % 5])).status == Status.OK
        done = driver.wait(driver.infer(model, load_id, [X]), driver.infer(model, load_id, [X[:1]], [X[1:]]))
        assert [one.status for one in done] == [Status.OK] * 2
        assert driver.end(driver.profile(model, load_id, [[4, 4]])).status == Status.OK
        assert driver.end(driver.unload(model, load_id)).status == Status.OK
    assert {name: fake.calls(name) for name in ALLOCATING} == before
    assert fake.live() == live


# ----- tables -----------------------------------------------------------------------------------------


def test_weights_that_come_after_the_inputs_to_another_place_are_found(
    driver: Driver, fake: FakeDriver
) -> None:
    """The table was sent with the inputs, and named the pages of a LOAD that another LOAD has replaced."""
    one = affine()
    model, other = loaded(driver, one, load_id=1), driver.prepare(affine(1))
    busy = loaded(driver, affine(2), start=8)
    for starts in ([3], [5]):
        load_id = starts[0]
        running = executing(driver, fake, busy)
        copied = fake.copied_in()
        waiting = driver.infer(model, load_id, [X])
        eventually(lambda: fake.copied_in() > copied, "the inputs and the table arrive")  # noqa: B023
        assert driver.end(driver.unload(model, 1)).status == Status.OK
        driver.end(driver.load(other, 2, [0]))
        assert driver.end(driver.load(model, load_id, starts)).status == Status.OK
        fake.keep_kernels(False)
        _, done = driver.wait(running, waiting)
        assert done.status == Status.OK
        np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(one, X), rtol=1e-4, atol=1e-4)
        for known, old in ((model, load_id), (other, 2)):
            assert driver.end(driver.unload(known, old)).status == Status.OK
        driver.end(driver.load(model, 1, [0]))


def test_a_table_names_the_pages_of_a_load_that_has_not_begun(driver: Driver, fake: FakeDriver) -> None:
    """The table need not be sent again: inputs are copied before the weights that they wait for."""
    one = affine(width=60)
    other, model = driver.prepare(affine(1, width=60)), driver.prepare(one)
    weights, x = 4 * (60 * 60 + 60), np.ones((1, 60), np.float32)
    running = executing(driver, fake, loaded(driver, affine(2), start=12))
    before = fake.copied_in()
    opens_ns = now_ns() + PATIENCE_NS
    first, second = driver.load(other, 1, [2], earliest_ns=opens_ns), driver.load(model, 2, [7])
    infer = driver.infer(model, 2, [x])
    eventually(lambda: fake.copied_in() - before == x.nbytes + 2 * 8, "the inputs and the table arrive")
    driver.device.revoke(first)  # loads are done in their order: the second begins now
    assert driver.end(second).status == Status.OK
    fake.keep_kernels(False)
    _, done = driver.wait(running, infer)
    assert done.status == Status.OK
    assert fake.copied_in() - before == weights + x.nbytes + 2 * 8
    np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(one, x), rtol=1e-3, atol=1e-3)


# ----- batches ------------------------------------------------------------------------------------


def test_a_batch_runs_on_the_smallest_variant_that_holds_it(driver: Driver) -> None:
    one = affine()
    model = loaded(driver, one)
    for rows in range(1, 9):
        x = np.random.default_rng(rows).standard_normal((rows, 4)).astype(np.float32)
        (output,) = driver.end(driver.infer(model, 1, [x])).parts[0]
        assert output.shape == (rows, 4)
        np.testing.assert_allclose(array_of(output), expected_affine(one, x), rtol=1e-4, atol=1e-4)
    done = driver.end(driver.infer(model, 1, [np.ones((9, 4), np.float32)]))
    assert done.status == Status.INVALID_INPUT
    assert "[9, 4]" in done.text


def test_rows_that_pad_a_batch_of_indices_are_indices_too(driver: Driver, fake: FakeDriver) -> None:
    """The variant of eight rows uses the ninth byte of the padding rows as an index, so they must be
    filled."""
    node = helper.make_node("Identity", ["k"], ["y"])
    model = driver.prepare(case([node], {"k": (7, ["n"])}, {"y": (7, ["n"])}))
    driver.end(driver.load(model, 1, []))
    copied = fake.copied_in()
    assert array_of(driver.end(driver.infer(model, 1, [np.array([5, 6, 7])])).parts[0][0]).tolist() == [
        5,
        6,
        7,
    ]
    assert fake.copied_in() - copied == 4 * 8  # includes the row of padding


# ----- pools --------------------------------------------------------------------------------------


def test_pools_grow_when_a_model_needs_more_even_while_others_run(driver: Driver, fake: FakeDriver) -> None:
    one = affine()
    model = loaded(driver, one)
    before = driver.device.memory()
    fake.speed(kernel_ns=2 * MS)
    running = [driver.infer(model, 1, [X]), driver.infer(model, 1, [X])]
    wide = affine(2, width=300)
    large = driver.prepare(wide)
    after = driver.device.memory()
    assert after["io_bytes"] > before["io_bytes"]
    assert after["workspace_bytes"] > before["workspace_bytes"]
    for done in driver.wait(*running):
        np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(one, X), rtol=1e-4, atol=1e-4)
    driver.end(driver.load(large, 2, [4]))
    x = np.random.default_rng(0).standard_normal((8, 300)).astype(np.float32)
    done = driver.end(driver.infer(large, 2, [x]))
    np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(wide, x), rtol=1e-3, atol=1e-3)
    assert fake.live()["allocations"] == 5  # arena, workspace and three slots: outgrown memory is released


def test_preparing_pins_nothing_and_weights_beyond_what_is_pinned_are_refused(
    make: Callable[..., Driver], fake: FakeDriver
) -> None:
    driver = make(pinned_bytes=3 * PAGE_BYTES, io_slot_bytes=1 << 16, workspace_bytes=1 << 16)
    before = fake.calls("cuMemHostAlloc"), fake.calls("cuMemFreeHost")
    models = [driver.prepare(affine(seed, width=100)) for seed in range(3)]
    assert driver.device.memory()["store_bytes"] == driver.device.memory()["pinned_bytes"] == 3 * PAGE_BYTES
    with pytest.raises(MemoryError, match="65536 bytes of pinned memory, of which 0 of 196608 are free"):
        driver.prepare(affine(4, width=100))
    assert driver.device.memory()["models"] == 3
    driver.device.forget(models[0])
    driver.prepare(affine(5, width=100))
    assert (fake.calls("cuMemHostAlloc"), fake.calls("cuMemFreeHost")) == before


def test_memory_that_does_not_suffice_is_said_when_a_model_is_prepared(
    driver: Driver, fake: FakeDriver
) -> None:
    fake.setup(device_bytes=33 * PAGE_BYTES)  # one page more than the arena of 32 pages
    with pytest.raises(MemoryError, match="cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY"):
        driver.prepare(affine(width=1000))
    assert driver.device.memory()["models"] == driver.device.memory()["programs"] == 0
    assert driver.device.memory()["store_bytes"] == 0
    assert driver.end(driver.infer(loaded(driver), 1, [X])).status == Status.OK
    with pytest.raises(ConfigError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        CudaDevice("1", 34 * PAGE_BYTES, PAGE_BYTES)


# ----- a driver that fails --------------------------------------------------------------------------

LOADING = [
    ("cuEventRecord", 1), ("cuEventRecord", 2), ("cuMemcpyHtoDAsync_v2", 1), ("cuStreamWriteValue32_v2", 1),
    ("cuEventElapsedTime", 1),
]  # fmt: skip
INFERRING = [
    *((("cuEventRecord", nth)) for nth in range(1, 5)),
    ("cuMemcpyHtoDAsync_v2", 1), ("cuStreamWaitEvent", 1), ("cuMemcpyDtoHAsync_v2", 1),
    ("cuEventElapsedTime", 1), ("cuEventElapsedTime", 2), ("cuEventElapsedTime", 3),
    *((("cuStreamWriteValue32_v2", nth)) for nth in range(1, 4)),
]  # fmt: skip
RECORDED = [("cuGraphLaunch", 1)]
ONE_BY_ONE = [("cuEventRecord", 5), ("cuLaunchKernel", 1), ("cuLaunchKernel", 2)]


def name_of(function: str) -> str:
    return function.removesuffix("_v2")


@pytest.mark.parametrize(("function", "nth"), LOADING)
def test_a_load_that_fails_names_the_call_and_keeps_nothing(
    driver: Driver, fake: FakeDriver, function: str, nth: int
) -> None:
    model = driver.prepare(affine())
    fake.fail(function, nth)
    done = driver.end(driver.load(model, 1, [3]))
    assert (done.status, done.text) == (
        Status.DEVICE_ERROR,
        f"{name_of(function)}: CUDA_ERROR_ILLEGAL_ADDRESS",
    )
    assert driver.device.memory()["resident_bytes"] == 0
    assert driver.end(driver.infer(model, 1, [X])).status == Status.NOT_RESIDENT
    assert driver.end(driver.load(model, 2, [3])).status == Status.OK
    assert driver.device.fault == ""


@pytest.mark.parametrize(
    ("graphs", "function", "nth"),
    [*((True, *one) for one in INFERRING + RECORDED), *((False, *one) for one in INFERRING + ONE_BY_ONE)],
)
def test_an_inference_that_fails_names_the_call_and_harms_nothing(
    make: Callable[..., Driver], fake: FakeDriver, graphs: bool, function: str, nth: int
) -> None:
    driver, one = make(graphs=graphs), affine()
    model = loaded(driver, one)
    fake.fail(function, nth)
    done = driver.end(driver.infer(model, 1, [X]))
    assert (done.status, done.text) == (
        Status.DEVICE_ERROR,
        f"{name_of(function)}: CUDA_ERROR_ILLEGAL_ADDRESS",
    )
    assert done.parts == []
    for _ in range(3):  # an execution for each slot
        done = driver.end(driver.infer(model, 1, [X]))
        np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(one, X), rtol=1e-4, atol=1e-4)
    assert driver.device.fault == ""


@pytest.mark.parametrize("what", ["kernel", "copy", "cuGraphLaunch"])
def test_a_context_that_breaks_is_told_and_every_action_fails(
    driver: Driver, fake: FakeDriver, what: str
) -> None:
    model = loaded(driver)
    fake.fail(what, sticky=True)
    done = driver.end(driver.infer(model, 1, [X]))
    assert done.status == Status.DEVICE_ERROR
    assert done.text.endswith(": CUDA_ERROR_ILLEGAL_ADDRESS")
    assert driver.device.fault == done.text
    for again in (driver.infer(model, 1, [X]), driver.load(driver.models + 1, 9, [1])):
        assert driver.end(again).status in (Status.DEVICE_ERROR, Status.UNKNOWN_MODEL)
    with pytest.raises(DeviceBroken, match="CUDA_ERROR_ILLEGAL_ADDRESS"):  # a fault that is not the model's
        driver.prepare(affine(1))
    driver.device.reset()  # at its end the test checks that everything was released


STARTING = [
    "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGetName", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent",
    "cuMemAlloc_v2", "cuMemHostAlloc", "cuStreamCreate", "cuEventCreate", "cuStreamWriteValue32_v2",
]  # fmt: skip


@pytest.mark.parametrize("function", STARTING)
def test_a_device_that_cannot_be_had_says_so_at_start(fake: FakeDriver, function: str) -> None:
    for nth in (1, 2):
        fake.fail(function, nth, OUT_OF_MEMORY)
        text = ""
        try:
            CudaDevice("0", 4 * PAGE_BYTES, PAGE_BYTES, workspace_bytes=4096, io_slot_bytes=4096).close()
        except ConfigError as error:
            text = str(error)
        assert f"{name_of(function)}: CUDA_ERROR_OUT_OF_MEMORY" in text or (nth, text) == (2, "")
        fake.mend()
        assert set(fake.live().values()) == {0}


@pytest.mark.parametrize("function", ["cuModuleLoadData", "cuModuleGetFunction"])
def test_a_model_that_cannot_be_prepared_says_so(driver: Driver, fake: FakeDriver, function: str) -> None:
    fake.fail(function)
    with pytest.raises(InvalidModel, match=f"{function}: CUDA_ERROR_ILLEGAL_ADDRESS"):
        driver.prepare(affine())
    memory = driver.device.memory()
    assert memory["models"] == memory["programs"] == memory["store_bytes"] == fake.live()["modules"] == 0
    assert driver.end(driver.infer(loaded(driver), 1, [X])).status == Status.OK


def test_a_driver_that_is_missing_or_too_old_is_named(fake: FakeDriver) -> None:
    for library, said in (
        ("libcuda_nowhere.so.1", "no CUDA driver: libcuda_nowhere"),
        ("libc.so.6", "it has no cuInit"),
    ):
        with environment(CLOCKWORK_CUDA_DRIVER=library), pytest.raises(ConfigError, match=said):
            CudaDevice()
    fake.setup(version=11020)
    with pytest.raises(ConfigError, match=r"is for CUDA 11\.2, at least 11\.4 is needed"):
        CudaDevice()


def test_a_module_that_is_none_is_refused(driver: Driver) -> None:
    whole = Path(driver.rig.build(affine()))
    driver.rig.module = b"no ELF file"
    directory = Path(driver.rig.build(affine()))
    with pytest.raises(InvalidModel, match=r"kernels.so: cuModuleLoadData: CUDA_ERROR_INVALID_IMAGE"):
        driver.device.open(1, str(directory))
    for name in ("*.so", "program.json"):
        path = next((whole.parent.parent / "programs" / PreparedModel.read(whole).program).rglob(name))
        path.write_bytes(path.read_bytes() + b" ")
        with pytest.raises(InvalidModel, match="is damaged"):
            driver.device.open(1, str(whole))
