"""Recorded launches (CUDA graphs): one call for any number of kernels, shared by models, made when a model is
prepared."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from clockwork import config
from clockwork.device._cudriver import DriverTable
from clockwork.errors import ConfigError, InvalidModel
from clockwork.system.clock import MS
from clockwork.wire.messages import Status
from tests.device.cuda_rig import BATCHES, CudaRig
from tests.device.fake import LIBRARY, FakeDriver, environment
from tests.device.rig import Case, Driver, affine, array_of, case, expected_affine
from tests.device.test_cuda import X, loaded
from tests.device.test_reservations import reserving
from tests.patience import eventually

RIGS = [CudaRig]

SLOTS = config.RUN_AHEAD + 1
OF_A_PROGRAM = len(BATCHES) * SLOTS


def additions(count: int) -> Case:
    """A model that adds a weight to x so many times, with a kernel for each."""
    names = ["x", *(f"t{number}" for number in range(1, count)), "y"]
    nodes = [helper.make_node("Add", [a, "b"], [b]) for a, b in itertools.pairwise(names)]
    weights = {"b": np.arange(4, dtype=np.float32)}
    ends = {"x": (TensorProto.FLOAT, ["n", 4])}, {"y": (TensorProto.FLOAT, ["n", 4])}
    return case(nodes, *ends, weights)


def check(driver: Driver, one: Case, model: int, load_id: int = 1) -> None:
    done = driver.end(driver.infer(model, load_id, [X]))
    assert done.status == Status.OK, done.text
    np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(one, X), rtol=1e-4, atol=1e-4)


# ----- what an execution calls --------------------------------------------------------------------------


@pytest.mark.parametrize(("graphs", "calls"), [(True, [14, 14, 14]), (False, [15, 34, 214])])
def test_an_execution_makes_as_many_calls_whatever_it_launches(
    make: Callable[..., Driver], fake: FakeDriver, graphs: bool, calls: list[int]
) -> None:
    """The calls for an input and an output: two copies, five events, three marks, the time of each phase, a
    wait and the launch."""
    driver, made = make(graphs=graphs), []
    for count in (1, 20, 200):
        model = loaded(driver, additions(count), start=count % 32)
        before = {name: fake.calls(name) for name in ("", "cuGraphLaunch", "cuLaunchKernel", "kernel")}
        done = driver.end(driver.infer(model, 1, [X]))
        took = {name: fake.calls(name) - calls for name, calls in before.items()}
        np.testing.assert_allclose(array_of(done.parts[0][0]), X + count * np.arange(4), rtol=1e-4)
        made.append(took.pop(""))
        plain = 0 if graphs else count
        assert took == {"cuGraphLaunch": graphs, "cuLaunchKernel": plain, "kernel": count}
    assert made == calls


@pytest.mark.parametrize("graphs", [True, False])
def test_what_the_host_takes_to_launch_does_not_count_as_execution(
    make: Callable[..., Driver], fake: FakeDriver, graphs: bool
) -> None:
    driver = make(graphs=graphs)
    model = loaded(driver, additions(20))
    fake.engines(call_ns=2 * MS)

    def is_less_than_twenty_launches() -> bool:
        return driver.end(driver.infer(model, 1, [X])).execute[2] < 19 * 2 * MS

    if graphs:
        eventually(is_less_than_twenty_launches, "an execution takes less than its launches")
    else:
        assert not is_less_than_twenty_launches()
    fake.engines()


# ----- what is recorded ---------------------------------------------------------------------------------


def test_models_of_one_program_share_its_graphs(driver: Driver, fake: FakeDriver) -> None:
    tuned = [affine(seed) for seed in range(4)]
    models = [loaded(driver, one, start=index) for index, one in enumerate(tuned)]
    assert driver.device.memory()["programs"] == 1
    assert driver.device.memory()["graphs"] == fake.live()["graph_execs"] == OF_A_PROGRAM
    assert fake.live()["graphs"] == 0
    launches = fake.calls("cuGraphLaunch")
    for _ in range(2):
        for one, model in zip(tuned, models, strict=True):
            check(driver, one, model)
    assert fake.calls("cuGraphLaunch") - launches == 8
    for model in models[1:]:
        driver.end(driver.unload(model, 1))
        driver.device.forget(model)
        assert fake.live()["graph_execs"] == OF_A_PROGRAM
    check(driver, tuned[0], models[0])
    driver.end(driver.unload(models[0], 1))
    driver.device.forget(models[0])
    driver.device.tidy()
    assert driver.device.memory()["graphs"] == fake.live()["graph_execs"] == 0


def test_graphs_are_made_again_for_memory_that_has_grown(driver: Driver, fake: FakeDriver) -> None:
    one = affine()
    model = loaded(driver, one)
    fake.speed(kernel_ns=2 * MS)
    running = [driver.infer(model, 1, [X]), driver.infer(model, 1, [X])]
    wide = affine(2, width=300)
    large = loaded(driver, wide, start=4, load_id=2)
    for done in driver.wait(*running):
        np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(one, X), rtol=1e-4, atol=1e-4)
    fake.speed()
    assert driver.device.memory()["graphs"] == fake.live()["graph_execs"] == 2 * OF_A_PROGRAM
    launches = fake.calls("cuGraphLaunch")
    for _ in range(SLOTS):
        check(driver, one, model)
    x = np.random.default_rng(0).standard_normal((8, 300)).astype(np.float32)
    done = driver.end(driver.infer(large, 2, [x]))
    np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(wide, x), rtol=1e-3, atol=1e-3)
    assert fake.calls("cuGraphLaunch") - launches == SLOTS + 1


def test_a_reservation_makes_no_more_graphs_than_it_has_time_for(driver: Driver, fake: FakeDriver) -> None:
    """Launches that replace others take as long as those that are added."""
    loaded(driver, affine())
    made: list[int] = []

    @contextlib.contextmanager
    def counting(expected_ns: int, runs: Sequence[int]) -> Iterator[list[int]]:
        with reserving(driver)(expected_ns, runs) as given:
            before = fake.calls("cuGraphInstantiateWithFlags")
            yield given
            made.append(fake.calls("cuGraphInstantiateWithFlags") - before)

    directory = driver.rig.build(affine(2, width=300))  # slots and workspace grow for this model
    fake.engines(call_ns=config.TRIAL_RESERVE_NS // 4)  # a graph takes more than four calls
    driver.models += 1
    driver.device.open(driver.models, directory, counting)
    assert sum(made) == 2 * OF_A_PROGRAM
    assert max(made) == 1


def test_a_graph_of_memory_that_is_gone_is_not_launched(driver: Driver, fake: FakeDriver) -> None:
    """Slots and workspace have grown for a model that then could not be recorded."""
    one = affine()
    model = loaded(driver, one)
    fake.fail("cuGraphInstantiateWithFlags")
    with pytest.raises(InvalidModel, match="cuGraphInstantiate"):
        driver.prepare(affine(2, width=300))
    launches = fake.calls("cuLaunchKernel"), fake.calls("cuGraphLaunch")
    for _ in range(SLOTS):
        check(driver, one, model)
    assert (fake.calls("cuLaunchKernel"), fake.calls("cuGraphLaunch")) == (
        launches[0] + 2 * SLOTS,
        launches[1],
    )
    driver.prepare(affine(1))
    check(driver, one, model)
    assert fake.calls("cuGraphLaunch") == launches[1] + 1


def test_beyond_the_bound_kernels_are_launched_one_by_one(
    driver: Driver, fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clockwork.config.device.CUDA_GRAPHS_MAX", OF_A_PROGRAM + 1)
    first, second = affine(), additions(3)
    one, two = loaded(driver, first), loaded(driver, second, start=1)
    assert driver.device.memory()["graphs"] == fake.live()["graph_execs"] == OF_A_PROGRAM + 1
    assert driver.device.memory()["graphs_missing"] == OF_A_PROGRAM - 1
    kernels, launches = fake.calls("cuLaunchKernel"), fake.calls("cuGraphLaunch")
    check(driver, first, one)
    assert (fake.calls("cuLaunchKernel"), fake.calls("cuGraphLaunch")) == (kernels, launches + 1)
    done = driver.end(driver.infer(two, 1, [X]))
    np.testing.assert_allclose(array_of(done.parts[0][0]), X + 3 * np.arange(4), rtol=1e-4)
    assert (fake.calls("cuLaunchKernel"), fake.calls("cuGraphLaunch")) == (kernels + 3, launches + 1)
    driver.end(driver.unload(one, 1))
    driver.device.forget(one)
    driver.prepare(additions(3))
    assert driver.device.memory()["graphs"] == OF_A_PROGRAM
    assert driver.device.memory()["graphs_missing"] == 0


GRAPH_CALLS = ["cuGraphCreate", "cuGraphAddKernelNode", "cuGraphAddEventRecordNode", "cuGraphInstantiateWithFlags",
               "cuGraphUpload"]  # fmt: skip


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("function", GRAPH_CALLS)
def test_a_model_whose_launches_cannot_be_recorded_says_so(
    driver: Driver, fake: FakeDriver, function: str, nth: int
) -> None:
    fake.fail(function, nth)
    with pytest.raises(
        InvalidModel, match=f"{function.removesuffix('WithFlags')}: CUDA_ERROR_ILLEGAL_ADDRESS"
    ):
        driver.prepare(affine())
    memory = driver.device.memory()
    live = fake.live()
    assert memory["graphs"] == memory["programs"] == live["graphs"] == live["graph_execs"] == 0
    check(driver, affine(), loaded(driver))


# ----- without graphs -----------------------------------------------------------------------------------


def test_a_driver_without_graphs_launches_one_by_one_and_says_so(
    make: Callable[..., Driver], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A copy of the fake driver in which a function has another name."""
    old = tmp_path / "libold.so"
    old.write_bytes(LIBRARY.read_bytes().replace(b"cuGraphUpload\0", b"cuGraphUplaod\0"))
    with caplog.at_level(logging.WARNING):
        driver = make(table=DriverTable(str(old)))
    assert "has no graphs: kernels are launched one by one" in caplog.text
    check(driver, affine(), loaded(driver))
    assert driver.device.memory()["graphs"] == 0


def test_graphs_can_be_switched_off(make: Callable[..., Driver], fake: FakeDriver) -> None:
    with environment(CLOCKWORK_CUDA_GRAPHS="0"):
        driver = make(graphs=None)
    check(driver, affine(), loaded(driver))
    assert driver.device.memory()["graphs"] == fake.live()["graph_execs"] == 0
    with environment(CLOCKWORK_CUDA_GRAPHS="yes"), pytest.raises(ConfigError, match="'yes': it is 1 or 0"):
        make(graphs=None)
