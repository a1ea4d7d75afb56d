"""Reservations of a GPU for its worker itself: no execution runs meanwhile, and some calls are made only
then."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from clockwork.device.base import Reserve, TensorView
from clockwork.formats.prepared import WEIGHTS_FILE, PreparedModel
from clockwork.system.clock import MS, now_ns
from clockwork.wire.messages import NEVER_NS, Status
from clockwork.wire.messages import Reserve as ReserveAction
from tests.device.cuda_rig import CudaRig
from tests.device.rig import PAGE_BYTES, Driver, affine, array_of, expected_affine, view
from tests.patience import PATIENCE_S, eventually

RIGS = [CudaRig]

X = np.arange(8, dtype=np.float32).reshape(2, 4)
NEW = 77  # the model for which the device is reserved
STALLING = (
    "cuMemAlloc_v2", "cuMemFree_v2", "cuMemHostAlloc", "cuMemFreeHost", "cuModuleLoadData", "cuModuleUnload",
)  # fmt: skip


@pytest.fixture
def driver(make: Callable[..., Driver]) -> Driver:
    return make()


def order(driver: Driver, *starts: int, latest_ns: int = NEVER_NS, model_id: int = NEW) -> int:
    driver.last_id += 1
    action = ReserveAction(driver.last_id, 0, model_id, 0, list(starts), 0, latest_ns, MS)
    driver.device.start(action)
    return driver.last_id


def reserving(driver: Driver) -> Reserve:
    """RESERVEs that are ordered as they are asked for, with the first pages."""

    @contextlib.contextmanager
    def reserve(expected_ns: int, runs: Sequence[int]) -> Iterator[list[int]]:
        starts = [sum(runs[:index]) for index in range(len(runs))]
        with driver.device.reserved(NEW, lambda: order(driver, *starts) and None) as given:
            assert given == starts
            yield given

    return reserve


def test_nothing_executes_until_the_reservation_is_left(driver: Driver) -> None:
    one = affine()
    model = driver.prepare(one)
    assert driver.end(driver.load(model, 1, [3])).status == Status.OK
    before = driver.infer(model, 1, [X])
    asked: list[int] = []
    with driver.device.reserved(NEW, lambda: asked.append(order(driver, 8, 5))) as starts:
        assert starts == [8, 5]
        assert driver.end(before).status == Status.OK  # the INFER sent before has been executed
        after = driver.infer(model, 1, [X])
        other = driver.prepare(affine(1))
        # LOADs continue during a reservation
        assert driver.end(driver.load(other, 2, [4])).status == Status.OK
        assert driver.device.running() == asked[0]
        left_ns = now_ns()
    reserved, done = driver.wait(asked[0], after)
    assert reserved.status == done.status == Status.OK
    assert done.execute[0] >= left_ns
    np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(one, X), rtol=1e-4, atol=1e-4)


def test_one_that_nobody_wants_or_that_is_late_holds_nothing_up(driver: Driver) -> None:
    assert driver.end(order(driver)).status == Status.OK
    with contextlib.ExitStack() as stack:
        asked: list[int] = []
        stack.enter_context(driver.device.reserved(NEW, lambda: asked.append(order(driver))))
        late = order(driver, latest_ns=now_ns() + MS)
        threading.Event().wait(0.005)
    assert driver.end(late).status == Status.TOO_LATE
    with driver.device.reserved(NEW, driver.device.end_reserve) as starts:
        assert starts is None


def test_one_for_a_model_that_was_forgotten_is_not_given_to_the_next(driver: Driver) -> None:
    """Its pages are those of the first model's runs, and the second takes them at no cost."""
    orders: list[int] = []

    def ask() -> None:
        # the order was under way before the model was forgotten
        orders.append(order(driver, 3, model_id=NEW - 1))
        orders.append(order(driver, 5, 9))

    with driver.device.reserved(NEW, ask) as starts:
        assert starts == [5, 9]
    stale, given = driver.wait(*orders)
    assert (stale.status, given.status) == (Status.ACTION_CANCELLED, Status.OK)
    assert stale.text == "the device is wanted for model 77, not for 76"
    unwanted = order(driver, 3, model_id=NEW - 1)
    assert driver.end(unwanted).status == Status.OK


def test_who_waits_when_the_device_begins_anew_is_told(driver: Driver) -> None:
    given: list[list[int] | None] = []
    waits = threading.Event()

    def wait() -> None:
        with driver.device.reserved(NEW, waits.set) as starts:
            given.append(starts)

    thread = threading.Thread(target=wait)
    thread.start()
    assert waits.wait(PATIENCE_S)
    driver.device.end_reserve()
    thread.join(PATIENCE_S)
    assert given == [None]
    with driver.device.reserved(NEW, lambda: order(driver) and None):
        reset = threading.Thread(target=driver.device.reset)
        reset.start()
    reset.join(PATIENCE_S)  # reset() waits for the holder of the reservation
    assert not reset.is_alive()
    assert driver.end(order(driver)).status == Status.OK


def test_the_driver_stalls_only_within_reservations(driver: Driver) -> None:
    """Modules, larger slots and a larger workspace come and are released; a model is in use in every slot
    meanwhile."""
    fake = driver.rig.fake
    serving = driver.prepare(affine())
    assert driver.end(driver.load(serving, 1, [31])).status == Status.OK
    inside = [0]

    def calls() -> int:
        return sum(fake.calls(name) for name in STALLING)

    @contextlib.contextmanager
    def counting(expected_ns: int, runs: Sequence[int]) -> Iterator[list[int]]:
        with reserving(driver)(expected_ns, runs) as given:
            begun = calls()
            yield given
            inside[0] += calls() - begun

    driver.rig.module = driver.rig.module[:-1] + b"\x01"  # a module that differs makes another program
    for width in (4, 300, 8):
        before, inside[0] = calls(), 0
        driver.models += 1
        directory = driver.rig.build(affine(width, width=width))
        driver.device.open(driver.models, directory, counting)
        driver.device.tidy(counting)
        assert calls() - before == inside[0] > 0
        assert driver.end(driver.infer(serving, 1, [X])).status == Status.OK
    before = calls()
    driver.device.forget(driver.models)
    assert calls() == before
    assert driver.device.is_untidy
    driver.models += 1
    driver.device.open(driver.models, directory, counting)  # the modules are still loaded
    assert not driver.device.is_untidy
    assert calls() == before


def test_what_the_host_takes_to_launch_does_not_count_as_what_is_measured(driver: Driver) -> None:
    """Unlike the preparation of a serving model, this predicts by the registration's times at first."""
    directory = Path(driver.rig.build(affine()))
    driver.device.open(1, str(directory))
    trial = driver.device.trial(1)
    with reserving(driver)(MS, [1]) as starts:
        assert trial.claim(starts) == ""
        trial.copy(0)
        trial.settle()
        driver.rig.fake.engines(call_ns=20 * MS)
        eventually(lambda: trial.time([(1, 4)], 0) < 20 * MS, "what is measured is less than one call")
        driver.rig.fake.engines()
    trial.close()


@pytest.mark.parametrize("host_pages", [0, 4])
def test_a_model_is_loaded_checked_and_timed_beside_one_that_serves(
    make: Callable[..., Driver], host_pages: int
) -> None:
    driver = make(host_pages=host_pages) if host_pages else make()
    wide = affine(3, width=200)  # a model of three pages
    directory = Path(driver.rig.build(wide))
    driver.device.open(1, str(directory))
    serving = Driver(driver.device, driver.rig)
    serving.models = 1
    other = serving.prepare(affine())
    if host_pages:
        serving.end(serving.fetch(other))
    assert serving.end(serving.load(other, 1, [6])).status == Status.OK
    driver.last_id = serving.last_id
    trial = driver.device.trial(1)
    x = np.random.default_rng(0).standard_normal((3, 200)).astype(np.float32)
    runs = PreparedModel.read(directory).runs
    with reserving(driver)(MS, runs) as starts:
        assert "is held by another" in trial.claim([start + 5 for start in starts])
        assert trial.claim(starts) == ""
        for page in range(sum(runs)):
            trial.stage(directory / WEIGHTS_FILE, page, PAGE_BYTES)
            assert trial.copy(page) > 0
        trial.settle()
        done = trial.run([view(x)], 0)
        assert trial.time([(8, 200)], 0) > 0
        with pytest.raises(Exception, match="was not compiled for inputs of the shapes"):
            trial.run([view(x[:, :3])], 0)
    np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(wide, x), rtol=1e-4, atol=1e-3)
    assert isinstance(done.parts[0][0], TensorView)
    assert driver.device.memory()["resident_bytes"] == 4 * PAGE_BYTES
    trial.close()
    assert driver.device.memory()["resident_bytes"] == PAGE_BYTES
    driver.device.forget(1)
