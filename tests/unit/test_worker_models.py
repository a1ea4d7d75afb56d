"""The models of a worker: what a check of stored bytes concerns, however many models there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clockwork.formats.package import PackageStore
from clockwork.wire.messages import Prepare
from clockwork.worker.checks import Checked
from clockwork.worker.models import WorkerModels
from clockwork.worker.opening import WorkerModel

SUMS = {"weights.bin": 1}


class Road:
    """The road's side: which models it was told of."""

    def __init__(self) -> None:
        self.whole: list[int] = []
        self.gone: list[int] = []

    def model_ready(
        self,
        model_id: int,
        outputs: Sequence[tuple[int, list[int] | None]],
        verified: bool,
        batches: bool,
        strings_max: int,
        output_bytes_max: int,
    ) -> None:
        pass

    def model_gone(self, model_id: int, absence: str = "") -> None:
        self.gone.append(model_id)

    def model_whole(self, model_id: int) -> None:
        self.whole.append(model_id)


class Sums(dict[Path, dict[str, int]]):
    """Checksums that count how often they are asked for a directory."""

    asked = 0

    def __contains__(self, directory: object) -> bool:
        Sums.asked += 1
        return super().__contains__(directory)


@pytest.fixture
def road() -> Road:
    return Road()


@pytest.fixture
def models(tmp_path: Path, road: Road) -> Iterator[WorkerModels]:
    def nothing(*_: Any) -> None:
        pass

    made = WorkerModels([], PackageStore(tmp_path), road, nothing, lambda: None, nothing, nothing)
    yield made
    made.close()


def enter(models: WorkerModels, model_id: int, *directories: Path, bundle: str = "") -> None:
    """Enter a model that was found prepared in these directories. bundle: its digest, if it has one."""
    model = WorkerModel(Prepare(model_id, "m", 1, "ab" * 32, [], {}, 0))
    model.layout = ([1], True, 1, "bound", "cafe")
    model.bundle = (bundle, ("prepared.json", "program.onnx") if bundle else ())
    model.checksums = Sums(dict.fromkeys(directories, SUMS))
    given: Any = SimpleNamespace(declared=lambda: ([], False, False, 0, 0))
    model.given = given
    models._enter(model)


def test_a_check_looks_at_the_models_of_its_directory_alone(
    models: WorkerModels, road: Road, tmp_path: Path
) -> None:
    for model_id in range(300):
        enter(models, model_id, tmp_path / str(model_id))
    Sums.asked = 0
    models._note_checked(Checked(tmp_path / "7", ""))
    models.forget(9)
    assert road.whole == [7]
    assert road.gone == [9]
    assert Sums.asked <= 2, "the other models were looked at"


def test_models_that_share_a_directory_are_whole_together(
    models: WorkerModels, road: Road, tmp_path: Path
) -> None:
    shared, own = tmp_path / "shared", tmp_path / "own"
    enter(models, 1, shared)
    enter(models, 2, shared, own)
    models.forget(1)
    models._note_checked(Checked(shared, ""))
    assert road.whole == []  # the other directory of model 2 was not checked
    models._note_checked(Checked(own, ""))
    assert road.whole == [2]
    enter(models, 3, shared)
    assert road.whole == [2, 3]  # the check of a directory holds while a model has it
    for model_id in (2, 3):
        models.forget(model_id)
    enter(models, 4, shared)
    assert road.whole == [2, 3]  # nobody had it meanwhile: it may have been written again


def test_a_damaged_directory_is_the_end_of_all_its_models(
    models: WorkerModels, road: Road, tmp_path: Path
) -> None:
    for model_id, name in ((1, "a"), (2, "b"), (3, "a")):
        enter(models, model_id, tmp_path / name)
    models._note_checked(Checked(tmp_path / "a", "weights.bin is damaged"))
    assert road.gone == [1, 3]
    assert set(models.ready) == {2}


def test_a_bundle_can_be_read_as_long_as_a_model_has_it(models: WorkerModels, tmp_path: Path) -> None:
    digest, place = "ef" * 32, tmp_path / "prepared" / "x"
    paths = [place / "prepared.json", tmp_path / "programs" / "cafe" / "program.onnx"]
    assert models._paths(digest) == []
    for model_id in (1, 2, 3):
        enter(models, model_id, place, bundle=digest)
    for model_id in (1, 3, 2):
        assert models._paths(digest) == paths
        models.forget(model_id)
    assert models._paths(digest) == []
