"""Behaviour that every device must have. The suite runs on each device that tests/device/rig.py lists."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from clockwork.device.base import TensorView
from clockwork.errors import InvalidModel
from clockwork.system.clock import MS, SECOND, now_ns
from clockwork.wire.messages import NEVER_NS, Infer, Status
from tests.device.conftest import RIGS
from tests.device.cuda_rig import CardRig, why_no_card
from tests.device.rig import PAGE_BYTES, Driver, affine, array_of, case, expected_affine, repeated, view
from tests.patience import PATIENCE_NS, readable, windows_ns

X = np.arange(8, dtype=np.float32).reshape(2, 4)


def needs_numbers(driver: Driver) -> None:
    if not driver.rig.computes:
        pytest.skip(f"the {driver.rig.kind} device computes nothing")


def is_readable(driver: Driver) -> bool:
    return bool(readable(driver.device.fileno(), within_s=0))


def test_the_suite_runs_on_a_gpu_where_there_is_one() -> None:
    if reason := why_no_card():
        pytest.skip(reason)
    assert CardRig in RIGS


# ----- loading ------------------------------------------------------------------------------


def test_load_infer_unload_report_their_phases(driver: Driver) -> None:
    before_ns = now_ns()
    model = driver.prepare(affine())
    load = driver.end(driver.load(model, 1, [0]))
    infer = driver.end(driver.infer(model, 1, [X]))
    unload = driver.end(driver.unload(model, 1))
    assert [one.status for one in (load, infer, unload)] == [Status.OK] * 3
    assert load.copy_in == load.copy_out == [0, 0, 0]
    spans = [load.execute, infer.copy_in, infer.execute, infer.copy_out, unload.execute]
    times = [before_ns, *(time for begin, end, _ in spans for time in (begin, end)), now_ns()]
    assert times == sorted(times)
    assert load.parts == unload.parts == []


def test_weights_are_found_in_scattered_pages(driver: Driver) -> None:
    needs_numbers(driver)
    wide = affine(width=200)  # 160 kB of weights: a run of three pages, the last of which holds the bias, too
    assert driver.rig.computes
    other = affine(seed=3)
    first, second = driver.prepare(wide), driver.prepare(other)
    assert driver.end(driver.load(second, 1, [4])).status == Status.OK
    assert driver.end(driver.load(first, 2, [5])).status == Status.OK
    x = np.random.default_rng(0).standard_normal((3, 200)).astype(np.float32)
    done = driver.wait(driver.infer(first, 2, [x]), driver.infer(second, 1, [X]))
    np.testing.assert_allclose(array_of(done[0].parts[0][0]), expected_affine(wide, x), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(array_of(done[1].parts[0][0]), expected_affine(other, X), rtol=1e-5, atol=1e-5)


def test_pages_that_are_not_free_are_refused(make: Callable[..., Driver]) -> None:
    driver = make(pages=8)
    wide, small = driver.prepare(affine(width=200)), driver.prepare(affine())
    assert driver.end(driver.load(small, 1, [2])).status == Status.OK
    for starts in ([0], [1], [2], [6], [-1], [8], [2**40], [-(2**40)], [], [3, 5]):
        done = driver.end(driver.load(wide, 2, starts))
        assert done.status == Status.BAD_PAGES, starts
        assert done.text
    # No page of a refused LOAD is kept.
    assert driver.device.memory()["resident_bytes"] == PAGE_BYTES
    assert driver.end(driver.load(wide, 3, [3])).status == Status.OK
    assert driver.device.memory()["resident_bytes"] == 4 * PAGE_BYTES


def test_runs_may_not_overlap_each_other(driver: Driver) -> None:
    weights = {name: np.ones((20_000,), np.float32) for name in "abc"}  # each tensor is larger than a page
    nodes = [helper.make_node("Sum", ["x", "a", "b", "c"], ["y"])]
    model = driver.prepare(
        case(nodes, {"x": (1, [20_000])}, {"y": (1, [20_000])}, weights, batches=False),
    )
    assert driver.end(driver.load(model, 1, [0, 2, 3])).status == Status.BAD_PAGES
    assert driver.device.memory()["resident_bytes"] == 0
    assert driver.end(driver.load(model, 1, [9, 2, 5])).status == Status.OK
    done = driver.end(driver.infer(model, 1, [np.zeros(20_000, np.float32)]))
    if driver.rig.computes:
        assert (array_of(done.parts[0][0]) == 3).all()


def test_a_second_load_of_a_resident_model_changes_nothing(driver: Driver) -> None:
    model = driver.prepare(affine())
    driver.end(driver.load(model, 1, [0]))
    done = driver.end(driver.load(model, 2, [1]))
    assert done.status == Status.DEVICE_ERROR
    assert "resident" in done.text
    assert driver.end(driver.infer(model, 1, [X])).status == Status.OK
    assert driver.end(driver.infer(model, 2, [X])).status == Status.NOT_RESIDENT


def test_an_unknown_model_is_refused(driver: Driver) -> None:
    done = driver.wait(
        driver.load(9, 1, [0]), driver.unload(9, 1), driver.infer(9, 1, [X]), driver.profile(9, 1, [[1, 4]])
    )
    assert [one.status for one in done] == [Status.UNKNOWN_MODEL] * 4


def test_a_stale_residency_never_reads_the_next_models_weights(driver: Driver) -> None:
    first, second = driver.prepare(affine(1)), driver.prepare(affine(2))
    driver.end(driver.load(first, 1, [0]))
    driver.end(driver.unload(first, 1))
    driver.end(driver.load(second, 2, [0]))
    assert driver.end(driver.infer(first, 1, [X])).status == Status.NOT_RESIDENT
    driver.end(driver.load(first, 3, [1]))
    assert driver.end(driver.infer(first, 1, [X])).status == Status.NOT_RESIDENT
    assert driver.end(driver.unload(first, 1)).status == Status.NOT_RESIDENT
    assert driver.end(driver.infer(first, 3, [X])).status == Status.OK
    # A residency that ends while an INFER for it waits in the lane gives IN_USE, see below; a residency that
    # had ended before is stale even if the INFER is queued first.
    late = driver.infer(first, 1, [X], earliest_ns=now_ns() + 5 * MS)
    assert driver.end(late).status == Status.NOT_RESIDENT


def test_unload_is_refused_while_an_infer_is_queued_or_runs(driver: Driver) -> None:
    model = driver.prepare(affine())
    driver.end(driver.load(model, 1, [0]))
    queued = driver.infer(model, 1, [X], earliest_ns=now_ns() + 3600 * SECOND)
    assert driver.end(driver.unload(model, 1)).status == Status.IN_USE
    driver.device.revoke(queued)
    assert driver.end(queued).status == Status.ACTION_CANCELLED
    assert driver.end(driver.unload(model, 1)).status == Status.OK


def test_load_and_infer_overlap(driver: Driver) -> None:
    """Retry with a longer execution: on a busy machine it may end before the load's thread wakes."""
    needs_numbers(driver)
    slow, small = driver.prepare(repeated()), driver.prepare(affine())
    loads = itertools.count(1)
    at = next(loads)
    driver.end(driver.load(slow, at, [0]))
    rounds = np.array(1, np.int64)
    while driver.end(driver.infer(slow, at, [rounds])).execute[2] < 50 * MS:
        rounds = rounds * 2
    limit_ns = now_ns() + PATIENCE_NS
    while now_ns() < limit_ns:
        running, other = driver.infer(slow, at, [rounds]), next(loads)
        load = driver.end(driver.load(small, other, [10], earliest_ns=now_ns() + 10 * MS))
        used = driver.end(driver.unload(slow, at))
        done = driver.end(running)
        assert load.status == done.status == Status.OK
        times = [done.execute[0], load.execute[0], load.execute[1], done.execute[1]]
        if times == sorted(times) and used.status == Status.IN_USE:
            return
        if done.execute[2] < SECOND:
            rounds = rounds * 2
        driver.end(driver.unload(small, other))
        if used.status == Status.OK:
            at = next(loads)
            driver.end(driver.load(slow, at, [0]))
    pytest.fail("every load waited for the execution")


def test_forget_needs_a_model_that_nothing_uses(driver: Driver) -> None:
    model = driver.prepare(affine())
    driver.end(driver.load(model, 1, [0]))
    with pytest.raises(ValueError, match="resident"):
        driver.device.forget(model)
    driver.end(driver.unload(model, 1))
    waiting = driver.load(model, 2, [0], earliest_ns=now_ns() + 3600 * SECOND)
    with pytest.raises(ValueError, match="in use"):
        driver.device.forget(model)
    driver.device.revoke(waiting)
    driver.end(waiting)
    driver.device.forget(model)
    driver.device.forget(model)  # forgetting an unknown model has no effect
    assert driver.end(driver.load(model, 3, [0])).status == Status.UNKNOWN_MODEL


def test_an_id_is_prepared_once_and_garbage_never(driver: Driver, tmp_path: Any) -> None:
    model = driver.prepare(affine())
    directory = driver.rig.build(affine(1))
    with pytest.raises(ValueError, match="prepared already"):
        driver.device.open(model, directory)
    with pytest.raises(InvalidModel):
        driver.device.open(77, str(tmp_path / "nowhere"))
    (tmp_path / "prepared.json").write_text("{}")
    with pytest.raises(InvalidModel):
        driver.device.open(77, str(tmp_path))
    assert driver.end(driver.load(77, 1, [0])).status == Status.UNKNOWN_MODEL


# ----- windows, order, revoking ---------------------------------------------------------------


def test_an_action_whose_window_has_passed_does_nothing(driver: Driver) -> None:
    model = driver.prepare(affine())
    late = driver.end(driver.load(model, 1, [0], latest_ns=now_ns() - 1))
    assert (late.status, late.execute) == (Status.TOO_LATE, [0, 0, 0])
    assert driver.device.memory()["resident_bytes"] == 0
    driver.end(driver.load(model, 1, [0]))
    late = driver.end(driver.infer(model, 1, [X], latest_ns=now_ns() - 1))
    assert (late.status, late.execute, late.parts) == (Status.TOO_LATE, [0, 0, 0], [])
    assert driver.end(driver.unload(model, 1, latest_ns=now_ns() - 1)).status == Status.TOO_LATE
    assert driver.end(driver.infer(model, 1, [X])).status == Status.OK


def test_nothing_starts_before_its_window(driver: Driver) -> None:
    model = driver.prepare(affine())
    earliest_ns = now_ns() + 20 * MS
    load = driver.end(driver.load(model, 1, [0], earliest_ns=earliest_ns))
    assert load.execute[0] >= earliest_ns
    earliest_ns = now_ns() + 20 * MS
    infer = driver.end(
        driver.infer(model, 1, [X], earliest_ns=earliest_ns, latest_ns=earliest_ns + PATIENCE_NS)
    )
    begins = infer.execute[0] if driver.rig.brings_inputs_early else infer.copy_in[0]
    assert begins >= earliest_ns


def test_a_lane_is_first_in_first_out(driver: Driver) -> None:
    model = driver.prepare(affine())
    driver.end(driver.load(model, 1, [0]))
    for window_ns in windows_ns(200 * MS):
        earliest_ns = now_ns() + window_ns
        waiting = driver.infer(model, 1, [X], earliest_ns=earliest_ns)
        eager = driver.infer(model, 1, [X])
        first, second = driver.wait(waiting, eager)
        assert earliest_ns <= first.execute[0]
        if not driver.rig.brings_inputs_early:
            assert first.execute[0] < first.copy_out[1] <= second.copy_in[0]
            return
        assert first.copy_in[1] <= second.copy_in[0]
        assert first.execute[1] <= second.execute[0]
        assert first.copy_out[1] <= second.copy_out[1]
        if second.copy_in[0] < first.execute[0]:
            return


def test_a_lane_holds_as_many_actions_as_it_says(driver: Driver) -> None:
    model = driver.prepare(affine())
    driver.end(driver.load(model, 1, [0]))
    earliest_ns = now_ns() + 3600 * SECOND
    held = [
        driver.infer(model, 1, [X], [X], earliest_ns=earliest_ns) for _ in range(driver.device.info.run_ahead)
    ]
    over = driver.end(driver.infer(model, 1, [X], [X]))
    assert over.status == Status.DEVICE_ERROR
    for action_id in held:
        driver.device.revoke(action_id)
    assert {one.status for one in driver.wait(*held)} == {Status.ACTION_CANCELLED}


def test_a_lane_that_has_room_a_moment_later_runs_nothing_half_prepared(driver: Driver) -> None:
    """An order that is offered just while an action ends either runs, with its inputs in place, or is
    refused."""
    model = driver.prepare(affine())
    driver.end(driver.load(model, 1, [0]))
    parts = [[view(X)], [view(X)]]  # inputs to be joined in a slot
    ended: dict[Status, int] = {}
    count = 0
    while min(ended.get(Status.OK, 0), ended.get(Status.DEVICE_ERROR, 0)) < 3000:
        count += 1
        driver.device.start(Infer(10**6 + count, 0, model, 1, 0, NEVER_NS, 0, []), parts)
        for done in driver.device.poll():
            ended[done.status] = ended.get(done.status, 0) + 1
    assert ended.keys() == {Status.OK, Status.DEVICE_ERROR}


def test_revoking_what_is_not_queued_does_nothing(driver: Driver) -> None:
    model = driver.prepare(affine())
    driver.device.revoke(12345)
    load = driver.load(model, 1, [0])
    assert driver.end(load).status == Status.OK
    driver.device.revoke(load)
    assert driver.device.poll() == []
    second = driver.unload(model, 1, earliest_ns=now_ns() + 3600 * SECOND)
    third = driver.load(model, 2, [0], earliest_ns=now_ns() + 3600 * SECOND)
    driver.device.revoke(third)  # the action is not at the head of the lane
    driver.device.revoke(second)
    assert [one.status for one in driver.wait(second, third)] == [Status.ACTION_CANCELLED] * 2
    assert driver.end(driver.unload(model, 1)).status == Status.OK


def test_the_descriptor_is_readable_while_there_are_completions(driver: Driver) -> None:
    model = driver.prepare(affine())
    assert not is_readable(driver)
    driver.load(model, 1, [0])
    assert readable(driver.device.fileno())
    assert is_readable(driver)
    assert [one.status for one in driver.device.poll()] == [Status.OK]
    assert not is_readable(driver)
    assert driver.device.poll() == []


def test_reset_drops_queues_and_residencies(driver: Driver) -> None:
    model, other = driver.prepare(affine()), driver.prepare(affine(1))
    driver.end(driver.load(model, 1, [0]))
    driver.infer(model, 1, [X])  # the execution may have ended or not: not polled
    driver.infer(model, 1, [X], earliest_ns=now_ns() + 3600 * SECOND)
    driver.load(other, 2, [1], earliest_ns=now_ns() + 3600 * SECOND)
    driver.device.reset()
    assert not is_readable(driver)
    assert driver.device.poll() == []
    assert driver.device.memory()["resident_bytes"] == 0
    assert driver.end(driver.infer(model, 1, [X])).status == Status.NOT_RESIDENT
    assert driver.end(driver.load(other, 3, [0])).status == Status.OK
    assert driver.end(driver.infer(other, 3, [X])).status == Status.OK
    driver.device.forget(model)


def needs_keeping(driver: Driver) -> None:
    if not driver.device.keeps:
        pytest.skip(f"the {driver.rig.kind} device keeps nothing from one session to the next")


def test_a_session_finds_what_the_last_one_has_loaded(driver: Driver) -> None:
    needs_keeping(driver)
    cases = [affine(seed) for seed in range(3)]
    model, other, waiting = (driver.prepare(one) for one in cases)
    driver.end(driver.load(model, 5, [2]))
    driver.end(driver.load(other, 6, [0]))
    driver.infer(model, 5, [X])  # the execution may have ended or not: not polled
    driver.infer(model, 5, [X], earliest_ns=now_ns() + 3600 * SECOND)
    driver.load(waiting, 7, [1], earliest_ns=now_ns() + 3600 * SECOND)
    assert sorted(driver.device.keep()) == [(model, 5, [2]), (other, 6, [0])]
    assert not is_readable(driver)
    assert driver.device.poll() == []
    assert driver.device.memory()["resident_bytes"] == 2 * PAGE_BYTES
    # The new session knows them by other ids, which may have been other models' before.
    for known, by in ((model, -1), (other, -2), (-1, other), (-2, model)):
        driver.device.rename(known, by)
    assert sorted(driver.device.keep()) == [(model, 6, [0]), (other, 5, [2])]
    done = driver.wait(driver.infer(other, 5, [X]), driver.infer(model, 6, [X]))
    assert [one.status for one in done] == [Status.OK] * 2
    assert driver.end(driver.infer(model, 5, [X])).status == Status.NOT_RESIDENT
    if driver.rig.computes:
        for one, known in zip(done, cases, strict=False):
            np.testing.assert_allclose(
                array_of(one.parts[0][0]), expected_affine(known, X), rtol=1e-5, atol=1e-5
            )
    assert driver.end(driver.unload(other, 5)).status == Status.OK
    driver.device.forget(other)
    with pytest.raises(ValueError, match="prepared already"):
        driver.device.rename(model, waiting)


def test_a_load_evicts_what_an_earlier_session_has_left_in_its_way(make: Callable[..., Driver]) -> None:
    """Its controller does not count on that; what was loaded since is never in the way."""
    driver = make(pages=8)
    needs_keeping(driver)
    wide = affine(width=200)  # three pages
    first, second, third, new = (driver.prepare(one) for one in (affine(1), wide, affine(3), wide))
    for model, load_id, page in ((first, 1, 0), (second, 2, 1), (third, 3, 4)):
        assert driver.end(driver.load(model, load_id, [page])).status == Status.OK
    assert len(driver.device.keep()) == 3
    assert driver.end(driver.load(new, 4, [2])).status == Status.OK, (
        "in the way of its pages: second and third"
    )
    for model, load_id in ((second, 2), (third, 3)):
        assert driver.end(driver.unload(model, load_id)).status == Status.NOT_RESIDENT
    assert driver.end(driver.load(first, 5, [1])).status == Status.OK, "in the way of itself, at another page"
    assert driver.end(driver.infer(first, 1, [np.ones((1, 4), np.float32)])).status == Status.NOT_RESIDENT
    assert driver.end(driver.infer(first, 5, [np.ones((1, 4), np.float32)])).status == Status.OK
    assert driver.device.memory()["resident_bytes"] == 4 * PAGE_BYTES
    done = driver.end(driver.load(third, 6, [2]))
    assert done.status == Status.BAD_PAGES, "these pages were taken in this session"
    assert driver.end(driver.load(first, 7, [7])).status == Status.DEVICE_ERROR, "loaded in this session"


def test_a_kept_model_that_nobody_asks_for_is_forgotten_with_its_pages(driver: Driver) -> None:
    needs_keeping(driver)
    model = driver.prepare(affine())
    driver.end(driver.load(model, 1, [3]))
    with pytest.raises(ValueError, match="resident"):
        driver.device.forget(model)
    driver.device.keep()
    driver.device.forget(model)
    assert driver.device.memory()["resident_bytes"] == driver.device.memory()["models"] == 0
    assert driver.device.keep() == []


def test_close_with_work_queued(driver: Driver) -> None:
    model = driver.prepare(affine())
    driver.end(driver.load(model, 1, [0]))
    driver.infer(model, 1, [X], earliest_ns=now_ns() + 3600 * SECOND)
    driver.load(model, 2, [1], earliest_ns=now_ns() + 3600 * SECOND)
    started_ns = now_ns()
    driver.device.close()
    assert now_ns() - started_ns < PATIENCE_NS


# ----- tensors --------------------------------------------------------------------------------


def test_parts_are_joined_and_split_again(driver: Driver) -> None:
    needs_numbers(driver)
    one = affine()
    model = driver.prepare(one)
    driver.end(driver.load(model, 1, [0]))
    x = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    parts = [x[:1], x[1:4], x[4:4], x[4:]]
    done = driver.end(driver.infer(model, 1, *[[part] for part in parts]))
    assert done.status == Status.OK
    assert [part[0].shape for part in done.parts] == [(1, 4), (3, 4), (0, 4), (2, 4)]
    for part, outputs in zip(parts, done.parts, strict=True):
        np.testing.assert_allclose(array_of(outputs[0]), expected_affine(one, part), rtol=1e-5, atol=1e-5)


def test_outputs_stay_valid_after_later_actions(driver: Driver) -> None:
    needs_numbers(driver)
    one = affine()
    model = driver.prepare(one)
    driver.end(driver.load(model, 1, [0]))
    kept = driver.end(driver.infer(model, 1, [X])).parts[0][0]
    for _ in range(20):
        driver.end(driver.infer(model, 1, [-X], [X * 3]))
    np.testing.assert_allclose(array_of(kept), expected_affine(one, X), rtol=1e-5, atol=1e-5)


def test_several_inputs_and_outputs_of_different_types(driver: Driver) -> None:
    needs_numbers(driver)
    model = driver.prepare(
        case(
            [
                helper.make_node("Add", ["x", "x"], ["x2"]),
                helper.make_node("Cast", ["k"], ["kf"], to=TensorProto.DOUBLE),
            ],
            {"x": (TensorProto.FLOAT, ["n", 3]), "k": (TensorProto.INT64, ["n"])},
            {"kf": (TensorProto.DOUBLE, ["n"]), "x2": (TensorProto.FLOAT, ["n", 3])},
        )
    )
    assert driver.end(driver.load(model, 1, [])).status == Status.OK
    x, k = np.arange(9, dtype=np.float32).reshape(3, 3), np.array([4, 5, 6])
    done = driver.end(driver.infer(model, 1, [x[:2], k[:2]], [x[2:], k[2:]]))
    assert [array_of(one).tolist() for one in done.parts[1]] == [[6.0], [[12.0, 14.0, 16.0]]]
    assert [array_of(one).tolist() for one in done.parts[0]] == [[4.0, 5.0], (2 * x[:2]).tolist()]


def test_outputs_that_cannot_be_split_are_an_error(driver: Driver) -> None:
    needs_numbers(driver)
    nodes = [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1)]
    model = driver.prepare(case(nodes, {"x": (1, ["n", 4])}, {"y": (1, None)}))
    driver.end(driver.load(model, 1, []))
    assert driver.end(driver.infer(model, 1, [X])).status == Status.OK
    done = driver.end(driver.infer(model, 1, [X], [X]))
    assert done.status == Status.DEVICE_ERROR
    assert "'y' has 1 rows for a batch of 4" in done.text
    assert done.parts == []


def test_inputs_that_are_not_what_the_model_takes(driver: Driver) -> None:
    model = driver.prepare(affine())
    driver.end(driver.load(model, 1, [0]))
    short = TensorView(TensorProto.FLOAT, (2, 4), b"\0" * 31)
    negative = TensorView(TensorProto.FLOAT, (-1, 4), b"")
    huge = TensorView(TensorProto.FLOAT, (2**62, 4), b"")
    deep = TensorView(TensorProto.FLOAT, (1,) * 33, b"\0" * 4)
    wrong: list[list[list[Any]]] = [
        [],
        [[]],
        [[X, X]],
        [[X.astype(np.float64)]],
        [[short]],
        [[negative]],
        [[huge]],
        [[deep]],
        [[X], [X[:, :3]]],
        [[X], [X[0]]],
        [[np.float32(1)], [np.float32(1)]],
    ]
    for parts in wrong:
        done = driver.end(driver.infer(model, 1, *parts))
        assert done.status == Status.INVALID_INPUT, parts
        assert done.text
    assert driver.end(driver.infer(model, 1, [X])).status == Status.OK


def test_a_buffer_that_is_not_aligned(driver: Driver) -> None:
    needs_numbers(driver)
    one = affine()
    model = driver.prepare(one)
    driver.end(driver.load(model, 1, [0]))
    for shift in range(1, 17):
        data = memoryview(b"\0" * shift + X.tobytes())[shift:]
        done = driver.end(driver.infer(model, 1, [TensorView(1, (2, 4), data)]))
        np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(one, X), rtol=1e-5, atol=1e-5)


STRINGS = [np.array([["a", "bc"], ["", "päge"]], object), np.array([["\0x", "z" * 300]], object)]


def test_strings_in_and_out(driver: Driver) -> None:
    needs_numbers(driver)
    node = helper.make_node("Concat", ["s", "s"], ["y"], axis=1)
    model = driver.prepare(case([node], {"s": (8, ["n", 2])}, {"y": (8, ["n", 4])}))
    driver.end(driver.load(model, 1, []))
    done = driver.end(driver.infer(model, 1, [STRINGS[0]], [STRINGS[1]]))
    assert done.status == Status.OK, done.text
    for given, outputs in zip(STRINGS, done.parts, strict=True):
        assert array_of(outputs[0]).tolist() == np.concatenate([given, given], axis=1).tolist()
    alone = driver.end(driver.infer(model, 1, [STRINGS[0]]))
    assert array_of(alone.parts[0][0]).tolist() == np.concatenate([STRINGS[0]] * 2, axis=1).tolist()


@pytest.mark.parametrize(
    "data", [b"", b"\x01\0\0", b"\x05\0\0\0ab", b"\xff\xff\xff\xffab", b"\x01\0\0\0a\x01\0\0\0b\0"]
)
def test_strings_whose_lengths_lie(driver: Driver, data: bytes) -> None:
    needs_numbers(driver)
    model = driver.prepare(
        case([helper.make_node("Identity", ["s"], ["y"])], {"s": (8, ["n"])}, {"y": (8, ["n"])})
    )
    driver.end(driver.load(model, 1, []))
    done = driver.end(driver.infer(model, 1, [TensorView(8, (2,), data)]))
    assert done.status == Status.INVALID_INPUT
    assert "string" in done.text


def test_what_is_returned_is_trusted_over_what_is_declared(driver: Driver) -> None:
    needs_numbers(driver)
    node = helper.make_node("NonZero", ["x"], ["y"])
    model = driver.prepare(case([node], {"x": (1, ["n", 4])}, {"y": (7, ["rank", "found"])}, batches=False))
    driver.end(driver.load(model, 1, []))
    for x in (X, np.zeros_like(X), np.ones((5, 4), np.float32)):
        done = driver.end(driver.infer(model, 1, [x]))
        assert array_of(done.parts[0][0]).tolist() == np.array(np.nonzero(x)).tolist()


def test_a_model_that_fails_says_why_and_harms_nothing(driver: Driver) -> None:
    needs_numbers(driver)
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    node = helper.make_node("Gather", ["table", "ids"], ["y"])
    model = driver.prepare(case([node], {"ids": (7, ["n"])}, {"y": (1, ["n", 4])}, {"table": table}))
    driver.end(driver.load(model, 1, [0]))
    for _ in range(3):
        done = driver.end(driver.infer(model, 1, [np.array([1, 99])]))
        assert done.status == Status.EXECUTION_FAILED
        assert "99" in done.text
        assert len(done.text) < 500
        assert done.parts == []
        good = driver.end(driver.infer(model, 1, [np.array([2, 0])]))
        assert array_of(good.parts[0][0]).tolist() == table[[2, 0]].tolist()


def test_a_profile_runs_and_returns_nothing(driver: Driver) -> None:
    for dtype in (
        TensorProto.FLOAT,
        TensorProto.INT64,
        TensorProto.FLOAT16,
        TensorProto.BOOL,
        *([TensorProto.STRING] if driver.rig.strings else []),
    ):
        node = helper.make_node("Identity", ["x"], ["y"])
        model = driver.prepare(case([node], {"x": (dtype, ["n", 5])}, {"y": (dtype, ["n", 5])}))
        driver.end(driver.load(model, 1, []))
        size = [16] if dtype == TensorProto.STRING else []  # a PROFILE gives the bytes of each string
        done = driver.end(driver.profile(model, 1, [[3, 5, *size]]))
        assert (done.status, done.parts) == (Status.OK, []), done.text
        assert done.execute[2] > 0
        assert driver.end(driver.profile(model, 1, [])).status == Status.INVALID_INPUT
        assert driver.end(driver.profile(model, 1, [[-1, 5]])).status == Status.INVALID_INPUT


DTYPES_SERVED = [
    np.float32, np.uint8, np.int8, np.uint16, np.int16, np.int32, np.int64, np.bool_, np.float16, np.float64,
    np.uint32, np.uint64,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES_SERVED, ids=lambda dtype: dtype.__name__)
def test_every_common_type_passes_unchanged(driver: Driver, dtype: Any) -> None:
    needs_numbers(driver)
    code = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    model = driver.prepare(
        case(nodes, {"x": (code, ["n", 3])}, {"y": (code, ["n", 3, 1])}, {"shape": np.array([0, 3, 1])})
    )
    driver.end(driver.load(model, 1, [0]))
    x = np.arange(6).reshape(2, 3).astype(dtype)
    done = driver.end(driver.infer(model, 1, [x], [x[:1]]))
    assert done.status == Status.OK, done.text
    assert [part[0].dtype for part in done.parts] == [code, code]
    assert array_of(done.parts[0][0]).tolist() == x[:, :, None].tolist()
    assert array_of(done.parts[1][0]).tolist() == x[:1, :, None].tolist()


@pytest.mark.parametrize("code", [16, 17, 18, 19, 20], ids=lambda code: TensorProto.DataType.Name(code))
def test_types_that_numpy_lacks_pass_unchanged(driver: Driver, code: int) -> None:
    needs_numbers(driver)
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    model = driver.prepare(case(nodes, {"x": (code, ["n", 4])}, {"y": (code, ["n", 4])}))
    driver.end(driver.load(model, 1, []))
    row = 8 if code == TensorProto.BFLOAT16 else 4
    data = bytes(range(2 * row))
    done = driver.end(
        driver.infer(model, 1, [TensorView(code, (2, 4), data)], [TensorView(code, (1, 4), data[:row])])
    )
    assert done.status == Status.OK, done.text
    assert [bytes(part[0].data) for part in done.parts] == [data, data[:row]]
    assert [part[0].dtype for part in done.parts] == [code, code]


@pytest.mark.parametrize("byte", [2, 255])
def test_a_bool_that_is_neither_0_nor_1_is_an_error_of_its_batch(driver: Driver, byte: int) -> None:
    """Operators add up the bytes of bools and use the sum as a count, by which they then release memory."""
    needs_numbers(driver)
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    code, width = TensorProto.BOOL, 1_000
    model = driver.prepare(case(nodes, {"x": (code, ["n", width])}, {"y": (code, ["n", width])}))
    driver.end(driver.load(model, 1, []))
    good = TensorView(code, (2, width), bytes([1, 0]) * width)
    for place in (0, 7, 8, width + 1, 2 * width - 1):
        wrong = bytearray(good.data)
        wrong[place] = byte
        for parts in ([[good], [good._replace(data=wrong)]], [[good._replace(data=wrong)]]):
            done = driver.end(driver.infer(model, 1, *parts))
            assert (done.status, done.parts) == (Status.INVALID_INPUT, [])
            assert done.text == f"input 0 is of bools and has a byte {byte}; a bool is 0 or 1"
    done = driver.end(driver.infer(model, 1, [good]))
    assert done.status == Status.OK
    assert bytes(done.parts[0][0].data) == good.data


SMALL_TYPES = {
    TensorProto.UINT4: b"\x21\x03",
    TensorProto.INT4: b"\x21\x03",
    TensorProto.FLOAT8E8M0: b"\x7f\x80\x81\x82",
    TensorProto.UINT2: b"\x39",
    TensorProto.INT2: b"\x39",
}


@pytest.mark.parametrize("code", SMALL_TYPES, ids=lambda code: TensorProto.DataType.Name(code))
def test_small_types_keep_their_packing_and_their_code(driver: Driver, code: int) -> None:
    needs_numbers(driver)
    nodes = [
        helper.make_node("Cast", ["x"], ["t"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["t"], ["y"], to=code),
    ]
    try:
        model = driver.prepare(
            case(nodes, {"x": (code, ["n", 4])}, {"y": (code, ["n", 4]), "t": (1, ["n", 4])}, opset=25)
        )
    except InvalidModel as error:
        pytest.skip(f"this runtime has no Cast of it: {str(error)[-150:]}")
    driver.end(driver.load(model, 1, []))
    data = SMALL_TYPES[code]
    done = driver.end(
        driver.infer(model, 1, [TensorView(code, (1, 4), data)], [TensorView(code, (1, 4), data)])
    )
    assert done.status == Status.OK, done.text
    assert [(part[0].dtype, part[0].shape, bytes(part[0].data)) for part in done.parts] == [
        (code, (1, 4), data)
    ] * 2
    if code in (TensorProto.UINT2, TensorProto.INT2):
        half = TensorView(code, (1, 2), b"\x09")
        assert driver.end(driver.infer(model, 1, [half], [half])).status == Status.INVALID_INPUT


def test_a_program_is_shared_and_its_weights_are_not(driver: Driver) -> None:
    needs_numbers(driver)
    cases = [affine(seed) for seed in range(10)]
    models = [driver.prepare(one) for one in cases]
    assert driver.device.memory()["programs"] == 1
    for index, model in enumerate(models):
        assert driver.end(driver.load(model, index, [index])).status == Status.OK
    for index, (one, model) in enumerate(zip(cases, models, strict=True)):
        done = driver.end(driver.infer(model, index, [X]))
        np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(one, X), rtol=1e-5, atol=1e-5)
    driver.device.reset()
    for model in models:
        driver.device.forget(model)
    assert driver.device.memory()["programs"] == driver.device.memory()["models"] == 0


def test_more_models_than_memory(make: Callable[..., Driver]) -> None:
    """Random loads, unloads and inferences: every answer is its model's own, and the arena never
    overflows."""
    driver = make(pages=8)
    needs_numbers(driver)
    random = np.random.default_rng(5)
    cases = [affine(seed) for seed in range(40)]
    models = [driver.prepare(one) for one in cases]
    resident: dict[int, tuple[int, int]] = {}  # resident models, by case: (load id, page)
    for load_id in range(1, 600):
        index = int(random.integers(40))
        if index not in resident:
            page = next((page for page in range(8) if page not in {one[1] for one in resident.values()}), -1)
            if page < 0:
                victim = list(resident)[int(random.integers(8))]
                old_id, page = resident.pop(victim)
                assert driver.end(driver.unload(models[victim], old_id)).status == Status.OK
            assert driver.end(driver.load(models[index], load_id, [page])).status == Status.OK
            resident[index] = (load_id, page)
        x = random.standard_normal((1, 4)).astype(np.float32)
        done = driver.end(driver.infer(models[index], resident[index][0], [x]))
        np.testing.assert_allclose(
            array_of(done.parts[0][0]), expected_affine(cases[index], x), rtol=1e-4, atol=1e-5
        )
        assert driver.device.memory()["resident_bytes"] <= 8 * PAGE_BYTES


def test_a_view_of_the_helper_is_what_the_wire_carries() -> None:
    assert bytes(view(np.array(["a", "bc"], object)).data) == b"\x01\0\0\0a\x02\0\0\0bc"


def test_what_runs_is_known_and_nothing_else_can_be_ended(driver: Driver) -> None:
    model = driver.prepare(affine())
    driver.end(driver.load(model, 1, [0]))
    assert driver.device.running() == 0
    driver.device.end_run(4711)
    x = np.zeros((1, 4), np.float32)
    first = driver.infer(model, 1, [x], earliest_ns=now_ns() + 50_000_000)
    driver.device.end_run(first + 1)
    assert driver.end(first).status == Status.OK
    driver.device.end_run(first)
    assert driver.end(driver.infer(model, 1, [x])).status == Status.OK
    assert driver.device.running() == 0
