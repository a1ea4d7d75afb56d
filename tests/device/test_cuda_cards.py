"""Which launches and modules a card takes, and which of several cards a device uses."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from clockwork.device import numa
from clockwork.device.cuda_host import PinnedFiles
from clockwork.device.cuda_memory import cards, find_card, open_driver, open_memory
from clockwork.errors import ConfigError, InvalidModel
from clockwork.formats.prepared import PreparedModel
from clockwork.formats.program import PROGRAM_JSON, Argument, Launch, program_hash, read_program
from clockwork.wire.messages import Status
from clockwork.worker.devices import open_devices
from clockwork.worker.settings import WorkerSettings
from tests.device.cuda_rig import KERNELS, PAGE_BYTES, CudaRig, compiled_kernels
from tests.device.fake import FakeDriver, environment
from tests.device.rig import Driver, affine, array_of, case, expected_affine
from tests.device.test_cuda import X, loaded

RIGS = [CudaRig]


# ----- launches that a device refuses ----------------------------------------------------------------


def relaunched(driver: Driver, **changes: Any) -> str:
    """Make the directory of a model whose every launch is changed by a function, called anew for each.

    Launches with other arguments come before the usual ones, because a program is damaged whose outputs no
    launch writes.
    """
    driver.rig.tables = False
    directory = Path(driver.rig.build(affine()))
    place = directory.parent.parent / "programs" / PreparedModel.read(directory).program
    program = read_program(place)

    def changed(launch: Launch) -> Launch:
        return dataclasses.replace(
            launch, **{name: value() if callable(value) else value for name, value in changes.items()}
        )

    variants = tuple(
        dataclasses.replace(
            one, launches=(*map(changed, one.launches), *(one.launches if "args" in changes else ()))
        )
        for one in program.variants
    )
    program = dataclasses.replace(program, variants=variants)
    prepared = dataclasses.replace(PreparedModel.read(directory), program=program_hash(program))
    place.rename(place.with_name(prepared.program))
    (place.with_name(prepared.program) / PROGRAM_JSON).write_text(program.stripped().to_json())
    prepared.write(directory)
    return str(directory)


NEEDY = KERNELS.read_text().replace("CW_HOST_KERNEL(add)", "CW_HOST_KERNEL_WITH(add, 72, 8192, 1024)")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"block": (1024, 1, 1)},
            r"'add' is launched in blocks of 1024 threads; it takes 72 registers a thread, and runs in blocks of at most 896",
        ),
        (
            {"shared": 100_000},
            r"'add' takes 108192 bytes .*, 8192 of its own and 100000 by its launch; this device .* has 101376",
        ),
        ({"args": ()}, r"kernel 'matmul' has 6 parameters, and is launched with 0 arguments"),
        (
            {"args": (Argument("i32", 0, 1),) * 5},
            r"kernel 'matmul' has 6 parameters, and is launched with 5 arguments",
        ),
        (
            {"args": (Argument("i32", 0, 1),) * 6},
            r"parameter 0 of kernel 'matmul' has 8 bytes, and its argument is 'i32', of 4",
        ),
        (
            {"args": (Argument("workspace", 0, 0),) * 6},
            r"parameter 3 of kernel 'matmul' has 4 bytes, and its argument is 'workspace', of 8",
        ),
    ],
)
def test_a_launch_that_the_device_would_refuse_is_refused_when_the_model_is_prepared(
    make: Callable[..., Driver], fake: FakeDriver, changes: dict[str, object], said: str
) -> None:
    driver = make(capability=86)
    driver.rig.module = compiled_kernels(NEEDY)
    with pytest.raises(InvalidModel, match=said):
        driver.device.open(1, relaunched(driver, **changes))
    assert fake.live()["modules"] == driver.device.memory()["programs"] == 0


def test_shared_memory_is_asked_for_once_for_all_launches_of_a_kernel(
    make: Callable[..., Driver], fake: FakeDriver
) -> None:
    """The device reserves the largest counts, whichever kernel is launched last, including the memory of the
    kernel itself."""
    driver = make(capability=86)
    driver.rig.module = compiled_kernels(NEEDY)
    for shared in (
        0,
        40_960,
        40_961,
        93_184,
    ):  # with 8 KiB of the kernel's own: none, 48 KiB, a byte more, and all that there is
        asked = fake.calls("cuFuncSetAttribute")
        driver.device.open(driver.models + 1, relaunched(driver, shared=shared))
        driver.models += 1
        assert fake.calls("cuFuncSetAttribute") - asked == (0 if shared <= 40_960 else 1 + (shared > 49_152))
        assert driver.end(driver.load(driver.models, 1, [driver.models])).status == Status.OK
        assert driver.end(driver.infer(driver.models, 1, [X])).status == Status.OK


def test_the_largest_of_a_kernels_launches_may_come_before_a_small_one(
    make: Callable[..., Driver], fake: FakeDriver
) -> None:
    driver = make(capability=86)
    driver.rig.module = compiled_kernels(NEEDY)
    sizes = itertools.cycle([90_000, 90_000, 60_000, 60_000])  # shared memory of two kernels in turn
    directory = relaunched(driver, shared=lambda: next(sizes))
    driver.device.open(1, directory)
    assert driver.end(driver.load(1, 1, [0])).status == Status.OK
    for rows in (1, 2, 4, 8):
        assert driver.end(driver.infer(1, 1, [np.ones((rows, 4), np.float32)])).status == Status.OK


# ----- which modules a card runs -----------------------------------------------------------------------


def card_with_ptx(make: Callable[..., Driver], capability: int) -> Driver:
    """A card of an architecture newer than 8.0 runs programs that are compiled for 8.0 with PTX."""
    driver = make(capability=capability)
    driver.rig.target = "sm_80"
    driver.rig.module = compiled_kernels(target="sm_80")
    driver.rig.ptx = compiled_kernels(target="compute_80")
    return driver


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
def test_a_card_runs_cubins_of_its_major_version_and_else_ptx_that_is_compiled_when_a_model_is_prepared(
    make: Callable[..., Driver], fake: FakeDriver, capability: int
) -> None:
    driver = card_with_ptx(make, capability)
    assert driver.device.info.fingerprint == f"cuda-sm_{capability}-12"
    one, compiled = affine(), fake.calls("jit")
    model = loaded(driver, one)
    assert fake.calls("jit") - compiled == (capability >= 90)
    fake.fail("jit", 1)  # neither LOAD nor INFER compiles
    for _ in range(2):
        done = driver.end(driver.infer(model, 1, [X]))
        np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(one, X), rtol=1e-4, atol=1e-4)
    driver.device.forget(driver.prepare(affine(1)))  # a fine-tuned version of the model
    driver.end(driver.unload(model, 1))
    driver.device.forget(model)
    assert loaded(driver, one, load_id=2)  # the same LOAD as after a restart
    assert fake.live()["modules"] == 1


def test_what_was_compiled_of_ptx_is_kept_for_this_card_and_driver_and_made_anew_if_it_is_damaged(
    make: Callable[..., Driver], fake: FakeDriver
) -> None:
    driver = card_with_ptx(make, 90)

    def compilations() -> int:
        before = fake.calls("jit")
        driver.device.forget(driver.prepare(affine()))
        driver.device.tidy()
        return fake.calls("jit") - before

    assert [compilations(), compilations()] == [1, 0]
    (kept,) = driver.rig.store.glob("programs/*/modules/*.cubin")
    kept.write_bytes(kept.read_bytes()[:-1])
    assert [compilations(), compilations()] == [1, 0]
    fake.setup(version=12080)  # the version of a new driver
    driver.device._table = open_driver()
    assert [compilations(), compilations()] == [1, 0]
    assert len(list(driver.rig.store.glob("programs/*/modules/*.cubin"))) == 1


@pytest.mark.parametrize(
    ("capability", "changes", "said"),
    [
        (75, {}, "is compiled for sm_80 .and PTX.; this device is sm_75, which can run none of these"),
        (87, {"ptx": b""}, "is compiled for sm_80; this device is sm_87, which can run none of these"),
        (90, {"ptx_driver": 12090}, "the PTX of sm_80, which is all that runs on sm_90, needs a driver for CUDA 12.9, this"),
        (86, {"driver": 13000}, "it needs a driver for CUDA 13.0, this one is for 12.4"),
        (90, {"ptx": b"no PTX"}, "kernels.ptx: cuLinkAddData: CUDA_ERROR_INVALID_PTX: ptxas fatal"),
    ],
)  # fmt: skip
def test_a_card_that_runs_nothing_of_a_program_says_what_it_has(
    make: Callable[..., Driver], fake: FakeDriver, capability: int, changes: dict[str, Any], said: str
) -> None:
    driver = card_with_ptx(make, capability)
    for name, value in changes.items():
        setattr(driver.rig, name, value)
    with pytest.raises(InvalidModel, match=said):
        driver.prepare(affine())
    assert fake.live()["modules"] == driver.device.memory()["programs"] == 0


# ----- several devices ------------------------------------------------------------------------------


def test_devices_are_named_by_number_or_uuid(fake: FakeDriver) -> None:
    fake.setup(devices=3)
    table = open_driver()
    uuids = [card.uuid for card in cards(table)]
    assert len(set(uuids)) == 3
    assert find_card(table, "2").ordinal == 2
    for prefix in ("", "GPU-", "MIG-"):
        assert find_card(table, prefix + uuids[1]).ordinal == 1
    with pytest.raises(ConfigError, match="there is no CUDA device 3; the driver shows 3"):
        find_card(table, "3")
    with pytest.raises(ConfigError, match="there is no CUDA device 'MIG-0'; the driver shows GPU-fafafafa-"):
        find_card(table, "MIG-0")
    with pytest.raises(ConfigError, match="'GPU-fafa' may be any of 3; the driver shows GPU-fafafafa-"):
        find_card(table, "GPU-fafa")


CARDS = [f"GPU-fafafafa-fafa-fafa-fafa-fafafafafa{card:02x}" for card in range(3)]
PARTS = [f"MIG-fafafafa-fafa-fafa-fafa-fafafafa{part:02x}01" for part in range(2)]
"""The MIG instances of the second card."""


@pytest.mark.parametrize(
    ("visible", "mig", "shown"),
    [
        (None, False, CARDS),
        ("", False, []),
        ("2,0", False, [CARDS[2], CARDS[0]]),
        ("1,7,0", False, [CARDS[1]]),
        (f"{CARDS[1]},0", False, [CARDS[1], CARDS[0]]),
        ("GPU-fafa", False, []),  # a prefix of no card's UUID
        (None, True, [PARTS[0]]),  # one instance, and nothing beside it
        ("0,2", True, [CARDS[0], CARDS[2]]),
        ("0,1", True, [PARTS[0]]),
        (PARTS[1], True, [PARTS[1]]),
        (f"{PARTS[1]},{PARTS[0]}", True, [PARTS[1]]),
        (CARDS[1], True, [PARTS[0]]),
        (PARTS[0], False, []),
    ],
)  # fmt: skip
def test_devices_are_those_that_the_driver_shows_by_cuda_visible_devices(
    fake: FakeDriver, visible: str | None, mig: bool, shown: list[str]
) -> None:
    """The card behaves as NVIDIA's documentation describes; this was never run on a card."""
    fake.setup(devices=3)
    fake.mig(1, 2 if mig else 0)
    with environment(**{} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}):
        if not shown:
            with pytest.raises(
                ConfigError, match=f"cuInit: CUDA_ERROR_NO_DEVICE; CUDA_VISIBLE_DEVICES is '{visible}'"
            ):
                open_driver()
            return
        table = open_driver()
        found = cards(table)
        assert [card.full_uuid for card in found] == shown
        assert [card.ordinal for card in found] == list(range(len(shown)))
        for number, name in enumerate(shown):
            assert find_card(table, str(number)) == find_card(table, name) == found[number]
            assert found[number].bus == f"0000:{0x10 + int(name[-2:], 16):02x}:00.0"
        said = f"; CUDA_VISIBLE_DEVICES is '{visible}'" if visible is not None else "shows"
        with pytest.raises(ConfigError, match=said):
            find_card(table, "9")
    fake.mig(1)
    open_driver()


@pytest.mark.parametrize("visible", [None, ",".join(PARTS), PARTS[1]])
def test_a_worker_has_the_driver_show_the_instance_that_it_was_asked_for(
    fake: FakeDriver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, visible: str | None
) -> None:
    caplog.set_level("INFO", "clockwork.worker")
    fake.setup(device_bytes=1 << 30)
    fake.mig(1, 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")

    def settings(*devices: str) -> WorkerSettings:
        return WorkerSettings(
            devices=devices, arena_bytes=4 * PAGE_BYTES, page_bytes=PAGE_BYTES, pinned_bytes=PAGE_BYTES
        )

    # the form that device_names() accepts, too
    (device,) = open_devices(settings(f"cuda:{PARTS[1].lower()}"))
    assert device.info.name == "fake GPU 1 MIG 1g.1gb"
    device.close()
    assert f"GPU 0: fake GPU 1 MIG 1g.1gb, {PARTS[1]} at 0000:11:00.0, no NUMA node known" in caplog.text
    with pytest.raises(ConfigError, match=r"of MIG instances a process sees one alone.*CUDA_VISIBLE_DEVICES"):
        open_devices(settings(f"cuda:{PARTS[1]}", f"cuda:{PARTS[0]}"))
    fake.mig(1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    open_driver()


def test_pinned_memory_is_of_the_gpus_numa_node(
    make: Callable[..., Driver], fake: FakeDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not numa.set_policy(0):
        pytest.skip("the kernel does not let this process choose memory's node")
    numa.set_policy(numa.UNKNOWN)
    monkeypatch.setenv("CLOCKWORK_SYSFS", str(tmp_path / "sys"))
    place = tmp_path / "sys/bus/pci/devices/0000:10:00.0"
    place.mkdir(parents=True)
    (place / "numa_node").write_text("0\n")
    near = make()
    assert (near.device.card.numa_node, fake.pinned_node()) == (0, 0)
    assert not numa.has_policy()
    far = make(which="1")
    assert (far.device.card.numa_node, fake.pinned_node()) == (-1, -1)
    near.prepare(affine(width=300))  # this model's larger slots are pinned, too
    assert fake.pinned_node() == 0


def test_two_devices_share_a_store_and_a_link(make: Callable[..., Driver], fake: FakeDriver) -> None:
    store = PinnedFiles([open_memory(table := open_driver(), cards(table)[0])], PAGE_BYTES, 8 * PAGE_BYTES)
    first, second = (make(which=which, store=store) for which in ("0", "1"))
    wide = affine(width=120)  # a model of 58 kB
    directory = first.rig.build(wide)
    for driver in (first, second):
        driver.device.open(1, directory)
        assert driver.device.memory()["store_bytes"] == PAGE_BYTES
    fake.speed(link_rate=500_000)  # a LOAD takes 116 ms
    alone = first.end(first.load(1, 1, [0]))
    first.end(first.unload(1, 1))
    both = [driver.load(1, 2, [5]) for driver in (first, second)]
    together = [driver.end(action) for driver, action in zip((first, second), both, strict=True)]
    fake.speed()
    # The loads run in sequence, so that each takes as long as alone, and the controller can predict the ends.
    assert max(one.execute[2] for one in together) < 1.5 * alone.execute[2]
    early, late = sorted(together, key=lambda one: one.execute[0])
    assert late.execute[0] >= early.execute[1]
    x = np.random.default_rng(0).standard_normal((2, 120)).astype(np.float32)
    for driver in (second, first):
        done = driver.end(driver.infer(1, 2, [x]))
        np.testing.assert_allclose(array_of(done.parts[0][0]), expected_affine(wide, x), rtol=1e-4, atol=1e-4)
        driver.end(driver.unload(1, 2))
        driver.device.forget(1)
    assert first.device.memory()["store_bytes"] == 0


def test_types_without_a_fixed_size_have_no_program(driver: Driver, tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    good = Path(driver.rig.build(case([node], {"x": (1, ["n", 4])}, {"y": (1, ["n", 4])})))
    (program,) = (good.parent.parent / "programs").glob("*/program.json")
    text = program.read_text()
    text = text.replace('"dtype": 1', f'"dtype": {int(TensorProto.STRING)}')
    program.write_text(text)
    prepared = PreparedModel.read(good)
    prepared.program = hashlib.sha256(text.encode()).hexdigest()
    prepared.write(good)
    program.parent.rename(program.parent.with_name(prepared.program))
    with pytest.raises(InvalidModel, match="no kernel can take"):
        driver.device.open(1, str(good))
    assert driver.device.memory()["models"] == 0


def test_weights_that_are_not_the_programs_are_refused(driver: Driver) -> None:
    """A kernel with this count would read beyond the inputs."""
    small, large = Path(driver.rig.build(affine())), Path(driver.rig.build(affine(width=8)))
    prepared = PreparedModel.read(small)
    prepared.program = PreparedModel.read(large).program
    prepared.write(small)
    with pytest.raises(InvalidModel, match="not those of its program"):
        driver.device.open(1, str(small))
    assert driver.device.memory()["programs"] == 0
