"""A disk that takes no more is not a model's fault, whichever library failed to write there."""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest

from clockwork.device.cpu import fingerprint
from clockwork.models import runtime, zoo
from clockwork.models.compile import compiler, host
from clockwork.models.compile.compiler import CompileOptions, compile_model
from clockwork.models.prepare import prepare
from clockwork.models.runtime import ModelSession, RunError
from clockwork.system.files import check_room
from clockwork.wire.messages import Status
from clockwork.worker.preparation import PreparationProcess
from tests.disks import mount, small_disk, small_files
from tests.patience import PATIENCE_S
from tests.unit.models_onnx import save_package, small_net
from tests.unit.test_compile import needs_compiler

KIB = 1 << 10
PAGE_BYTES = 64 << 10


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A model of 171 KB, of which a preparation writes several copies."""
    return save_package(zoo.build("mlp", width=128, depth=3), tmp_path / "package")


@pytest.mark.parametrize(
    ("holding", "rooms"),
    [("bound", (8, 100, 176, 300)), ("packed", (8, 100, 176, 300, 352, 380, 420, 500, 560, 610))],
)
def test_wherever_the_disk_ends_a_preparation_says_that_it_is_full(
    package: Path, tmp_path: Path, holding: str, rooms: Sequence[int]
) -> None:
    """First the optimised model finds no room, then the weights, which Python writes, then the packed
    model."""

    def prepare_on(store: Path) -> str:
        return prepare(package, store, fingerprint(1), PAGE_BYTES, {"holding": holding}).holding

    for room in rooms:
        with small_disk(tmp_path / f"disk{room}", room * KIB) as store:
            with pytest.raises(OSError, match="No space left") as failure:
                prepare_on(store)
            assert failure.value.errno == errno.ENOSPC
            assert not [*(store / "prepared").glob(".preparing-*")]
    with small_disk(tmp_path / "large", 4096 * KIB) as store:
        assert prepare_on(store) == holding


def test_a_worker_blames_its_disk(package: Path, tmp_path: Path) -> None:
    is_over = threading.Event()
    process = PreparationProcess(is_over.set)
    try:
        with small_disk(tmp_path / "disk", 100 * KIB) as store:
            job = {
                "package": str(package), "store": str(store), "fingerprints": [fingerprint(1)],
                "page_bytes": PAGE_BYTES, "options": {},
            }  # fmt: skip
            process.submit(1, job)
            assert is_over.wait(PATIENCE_S)
            (done,) = process.poll()
        assert done.status == Status.INTERNAL
        assert "cannot be stored" in done.text
        assert "No space left" in done.text
    finally:
        process.close()


def test_a_directory_that_can_only_be_read_is_not_a_models_fault(package: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4096 * KIB) as place:
        ModelSession(package / "model.onnx", optimise=True, save_to=place / "first.onnx")
        mount(place, "remount,ro")
        with pytest.raises(OSError, match="Read-only") as failure:
            ModelSession(package / "model.onnx", optimise=True, save_to=place / "second.onnx")
        assert failure.value.errno == errno.EROFS


@pytest.mark.parametrize("packed", ["", "packed.data"])
def test_onnx_runtime_does_not_say_why_it_cannot_write(package: Path, tmp_path: Path, packed: str) -> None:
    model, target = package / "model.onnx", tmp_path / "optimised.onnx"
    with small_files(64 * KIB), pytest.raises(OSError, match="too large") as failure:
        ModelSession(model, optimise=True, save_to=target, packed_data=packed)
    assert failure.value.errno == errno.EFBIG
    ModelSession(model, optimise=True, save_to=target, packed_data=packed)


def test_room_that_is_made_meanwhile_is_used(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another preparation that failed removes its files before this one looks whether there is room."""
    target = tmp_path / "optimised.onnx"
    with small_files(64 * KIB) as lift:

        def look(directory: Path) -> None:
            lift()
            check_room(directory)

        monkeypatch.setattr(runtime, "check_room", look)
        ModelSession(package / "model.onnx", optimise=True, save_to=target)
    assert ModelSession(target, optimise=False).inputs


def test_a_model_that_is_wrong_is_wrong_on_a_disk_with_room(tmp_path: Path) -> None:
    looked: list[Path] = []
    with pytest.raises(RunError):
        ModelSession(b"no model", optimise=True, save_to=tmp_path / "optimised.onnx", libraries=())
    with pytest.MonkeyPatch.context() as patched:  # as a model beyond protobuf's 2 GB: it is tried once more
        patched.setattr(runtime, "_UNWRITTEN", runtime.re.compile(""))
        patched.setattr(runtime, "check_room", looked.append)
        with pytest.raises(RunError):
            ModelSession(b"no model", optimise=True, save_to=tmp_path / "optimised.onnx", libraries=())
    assert looked == [tmp_path, tmp_path]


def test_room_is_looked_for_without_a_trace(tmp_path: Path) -> None:
    check_room(tmp_path)
    assert not [*tmp_path.iterdir()]
    with small_files(4 * KIB), pytest.raises(OSError, match="too large"):
        check_room(tmp_path)
    with pytest.raises(FileNotFoundError):
        check_room(tmp_path / "none")


@needs_compiler
def test_a_compiler_without_room_is_not_a_models_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel's module takes 15 KB, and what is written before it less."""
    monkeypatch.setitem(compiler.CHILD_ENVIRONMENT, "PYTHONDONTWRITEBYTECODE", "1")
    with small_files(12 * KIB), pytest.raises(OSError, match="too large"):
        host.build([], [])
    path = tmp_path / "model.onnx"
    onnx.save(small_net(1), path)
    options = CompileOptions(("host",), (1,), verify=False)
    with small_files(12 * KIB), pytest.raises(OSError, match="too large") as failure:
        compile_model(path, tmp_path / "package", options)
    assert failure.value.errno == errno.EFBIG
    assert [*tmp_path.iterdir()] == [path]
    compile_model(path, tmp_path / "package", options)
