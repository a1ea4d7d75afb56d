"""A host store with a budget: the behaviour of every device that has a store, and of devices that read
files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clockwork.device.cuda_host import BudgetedHost
from clockwork.device.cuda_memory import find_card, open_driver, open_memory
from clockwork.errors import ConfigError
from clockwork.formats.prepared import WEIGHTS_FILE
from clockwork.system.clock import MS, now_ns
from clockwork.wire.messages import Status
from tests.device.cuda_rig import CardRig, CudaRig, why_no_card
from tests.device.fake import DRIVER, OUT_OF_MEMORY, environment
from tests.device.rig import PAGE_BYTES, Driver, EmulatedRig, affine, array_of, expected_affine
from tests.patience import PATIENCE_NS, readable

RIGS = [EmulatedRig, CudaRig, *([] if why_no_card() else [CardRig])]

X = np.arange(8, dtype=np.float32).reshape(2, 4)
WIDE = affine(width=200)  # a model of three pages


def needs_files(driver: Driver) -> None:
    if not driver.rig.computes:
        pytest.skip(f"the {driver.rig.kind} device reads no files")


def statuses(driver: Driver, *actions: int) -> list[Status]:
    return [one.status for one in driver.wait(*actions)]


def test_a_model_is_loaded_from_the_host_store_after_its_fetch(make: Callable[..., Driver]) -> None:
    driver = make(host_pages=4)
    assert driver.device.info.host_bytes == 4 * PAGE_BYTES
    model = driver.prepare(WIDE)
    done = driver.end(driver.load(model, 1, [0]))
    assert (done.status, done.text) == (Status.NOT_RESIDENT, "the model is not in the host store")
    before_ns = now_ns()
    done = driver.end(driver.fetch(model))
    begin_ns, end_ns, took_ns = done.execute
    assert (done.status, done.text) == (Status.OK, "")
    assert before_ns <= begin_ns <= end_ns <= now_ns()
    assert took_ns == end_ns - begin_ns
    assert driver.device.memory()["host_bytes"] == 3 * PAGE_BYTES
    assert driver.end(driver.load(model, 2, [1])).status == Status.OK
    x = np.random.default_rng(0).standard_normal((3, 200)).astype(np.float32)
    done = driver.end(driver.infer(model, 2, [x]))
    assert done.status == Status.OK
    if driver.rig.computes:
        np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(WIDE, x), rtol=1e-4, atol=1e-4)


def test_what_is_dropped_stays_on_the_device(make: Callable[..., Driver]) -> None:
    driver = make(host_pages=1)
    first, second = driver.prepare(affine(1)), driver.prepare(affine(2))
    assert statuses(driver, driver.fetch(first)) == [Status.OK]
    assert statuses(driver, driver.load(first, 1, [0])) == [Status.OK]
    assert statuses(driver, driver.drop(first), driver.fetch(second)) == [Status.OK] * 2
    assert driver.end(driver.load(second, 2, [1])).status == Status.OK
    for model, seed in ((first, 1), (second, 2)):
        done = driver.end(driver.infer(model, seed, [X]))
        assert done.status == Status.OK
        if driver.rig.computes:
            np.testing.assert_allclose(
                array_of(done.parts[0][0]), expected_affine(affine(seed), X), rtol=1e-5, atol=1e-5
            )


def test_the_budget_is_never_exceeded_whatever_is_asked(make: Callable[..., Driver]) -> None:
    driver = make(host_pages=4)
    wide, small, other = driver.prepare(WIDE), driver.prepare(affine(1)), driver.prepare(affine(2))
    assert statuses(driver, driver.fetch(wide), driver.fetch(small)) == [Status.OK] * 2
    done = driver.end(driver.fetch(other))
    assert done.status == Status.BAD_PAGES
    assert "left" in done.text
    assert driver.end(driver.fetch(wide)).status == Status.DEVICE_ERROR
    assert statuses(driver, driver.drop(small), driver.drop(small)) == [Status.OK, Status.NOT_RESIDENT]
    assert driver.end(driver.fetch(other)).status == Status.OK
    assert driver.device.memory()["host_bytes"] == 4 * PAGE_BYTES
    assert statuses(driver, driver.fetch(99), driver.drop(99)) == [Status.UNKNOWN_MODEL] * 2


def test_scattered_pages_of_the_host_store_are_as_good_as_any(make: Callable[..., Driver]) -> None:
    driver = make(host_pages=5)
    small = [driver.prepare(affine(seed)) for seed in range(5)]
    wide = driver.prepare(WIDE)
    for model in small:
        driver.end(driver.fetch(model))
    for model in small[0::2]:  # pages 0, 2 and 4 are free then
        driver.end(driver.drop(model))
    assert statuses(driver, driver.fetch(wide)) == [Status.OK]
    assert statuses(driver, driver.load(wide, 1, [0])) == [Status.OK]
    needs_files(driver)
    x = np.random.default_rng(0).standard_normal((2, 200)).astype(np.float32)
    done = driver.end(driver.infer(wide, 1, [x]))
    np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(WIDE, x), rtol=1e-4, atol=1e-4)


def test_what_a_load_waits_for_is_not_dropped(make: Callable[..., Driver]) -> None:
    driver = make(host_pages=4)
    model = driver.prepare(affine())
    driver.end(driver.fetch(model))
    waiting = driver.load(model, 1, [0], earliest_ns=now_ns() + PATIENCE_NS)
    assert statuses(driver, driver.drop(model)) == [Status.IN_USE]
    driver.device.revoke(waiting)
    assert statuses(driver, waiting) == [Status.ACTION_CANCELLED]
    assert statuses(driver, driver.drop(model)) == [Status.OK]  # a revoked LOAD holds no page
    driver.end(driver.fetch(model))
    assert statuses(driver, driver.load(model, 2, [1])) == [Status.OK]
    assert statuses(driver, driver.drop(model)) == [Status.OK]


def test_fetches_have_windows_and_can_be_revoked(make: Callable[..., Driver]) -> None:
    driver = make(host_pages=4)
    model = driver.prepare(affine())
    assert statuses(driver, driver.fetch(model, latest_ns=now_ns() - 1)) == [Status.TOO_LATE]
    later = driver.fetch(model, earliest_ns=now_ns() + PATIENCE_NS)
    driver.device.revoke(later)
    assert statuses(driver, later) == [Status.ACTION_CANCELLED]
    opens_ns = now_ns() + 20 * MS
    done = driver.end(driver.fetch(model, earliest_ns=opens_ns))
    assert done.status == Status.OK
    assert done.execute[0] >= opens_ns


def test_a_model_in_the_host_store_is_not_forgotten_until_it_is_dropped(make: Callable[..., Driver]) -> None:
    driver = make(host_pages=4)
    model = driver.prepare(affine())
    driver.end(driver.fetch(model))
    with pytest.raises(ValueError, match=f"model {model} is in"):
        driver.device.forget(model)
    driver.end(driver.drop(model))
    driver.device.forget(model)
    assert statuses(driver, driver.fetch(model)) == [Status.UNKNOWN_MODEL]


def test_a_reset_empties_the_host_store(make: Callable[..., Driver]) -> None:
    driver = make(host_pages=4)
    model, other = driver.prepare(WIDE), driver.prepare(affine())
    driver.end(driver.fetch(model))
    driver.end(driver.load(model, 1, [0]))
    driver.fetch(other, earliest_ns=now_ns() + PATIENCE_NS)
    driver.device.reset()
    assert not readable(driver.device.fileno(), within_s=0)
    assert driver.device.memory()["host_bytes"] == 0
    assert statuses(driver, driver.load(model, 2, [0])) == [Status.NOT_RESIDENT]
    assert statuses(driver, driver.fetch(model), driver.fetch(other)) == [Status.OK] * 2


def test_devices_without_a_budget_say_so(driver: Driver) -> None:
    model = driver.prepare(affine())
    assert driver.device.info.host_bytes == 0
    for order in (driver.fetch, driver.drop):
        (done,) = driver.wait(order(model))
        assert done.status is Status.DEVICE_ERROR
        assert "no host tier" in done.text or "no budget" in done.text
    assert statuses(driver, driver.load(model, 1, [0])) == [Status.OK]


# ----- files and pinned memory --------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["gone", "short", "a directory"])
def test_a_file_that_cannot_be_read_fails_its_fetch_and_nothing_else(
    make: Callable[..., Driver], harm: str
) -> None:
    driver = make(host_pages=4)
    needs_files(driver)
    directory = Path(driver.rig.build(WIDE))
    driver.device.open(1, str(directory))
    driver.models = 1
    weights = directory / WEIGHTS_FILE
    content = weights.read_bytes()
    weights.unlink()
    if harm == "short":
        weights.write_bytes(content[: PAGE_BYTES + 4096])
    elif harm == "a directory":
        weights.mkdir()
    done = driver.end(driver.fetch(1))
    assert done.status == Status.DEVICE_ERROR
    assert str(weights) in done.text
    assert driver.device.memory()["host_bytes"] == 0
    other = driver.prepare(affine())
    assert statuses(driver, driver.fetch(other)) == [Status.OK]
    if harm == "a directory":
        weights.rmdir()
    weights.write_bytes(content)
    assert statuses(driver, driver.fetch(1)) == [Status.OK]


def test_two_devices_load_from_one_host_store(make: Callable[..., Driver]) -> None:
    rig_driver = make()
    needs_files(rig_driver)
    if rig_driver.rig.kind == "card":
        pytest.skip("one GPU is enough for the other tests")
    with environment(**DRIVER):
        options = rig_driver.rig.host_store("0", 3)
    first, second = (make(which=which, **options) for which in ("0", "1"))
    directory = first.rig.build(WIDE)
    for driver in (first, second):
        driver.device.open(1, directory)
    assert statuses(first, first.fetch(1)) == [Status.OK]
    x = np.random.default_rng(0).standard_normal((2, 200)).astype(np.float32)
    for driver in (first, second):
        assert driver.device.memory()["host_bytes"] == 3 * PAGE_BYTES
        assert statuses(driver, driver.load(1, 1, [0])) == [Status.OK]
        done = driver.end(driver.infer(1, 1, [x]))
        np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(WIDE, x), rtol=1e-4, atol=1e-4)
    waiting = second.load(1, 2, [5], earliest_ns=now_ns() + PATIENCE_NS)
    assert statuses(first, first.drop(1)) == [Status.IN_USE]
    second.device.revoke(waiting)
    assert statuses(second, waiting) == [Status.ACTION_CANCELLED]
    assert statuses(first, first.drop(1)) == [Status.OK]
    assert second.device.memory()["host_bytes"] == 0


def test_a_budget_that_cannot_be_had_is_named(driver: Driver) -> None:
    needs_files(driver)
    if driver.rig.kind == "card":
        pytest.skip("how much memory can be pinned is the machine's")
    with environment(**DRIVER):
        table = open_driver()
        memory = open_memory(table, find_card(table, "0"))
    with pytest.raises(ConfigError, match=f"{PAGE_BYTES - 1} bytes has no room for one page of {PAGE_BYTES}"):
        BudgetedHost([memory], PAGE_BYTES, PAGE_BYTES - 1)
    driver.rig.fake.fail("cuMemHostAlloc", error=OUT_OF_MEMORY)
    with pytest.raises(ConfigError, match=f"cannot pin a host store of {PAGE_BYTES} bytes"):
        BudgetedHost([memory], PAGE_BYTES, PAGE_BYTES)
    driver.rig.fake.mend()
    memory.close()
