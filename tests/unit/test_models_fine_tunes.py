"""Fine-tunes that are prepared by what was learnt from an earlier model of their architecture: their files
are those of a full preparation, and whatever is not known to be alike is prepared in full.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import itertools
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from clockwork.config import models as bounds
from clockwork.device.cpu import fingerprint
from clockwork.errors import InvalidModel
from clockwork.formats import package as packages
from clockwork.formats.checksums import seal
from clockwork.formats.package import DamagedPackage, PackageFile, PackageStore
from clockwork.formats.prepared import PreparedModel, prepared_directory
from clockwork.models import fine_tunes, zoo
from clockwork.models import prepare as preparation
from clockwork.models.answers import difference
from clockwork.models.fine_tunes import Grid, Making, Padded, Recipe, Skeleton, Template, Templates
from clockwork.models.inputs import seeded
from clockwork.models.measure import Bench
from clockwork.models.onnx_import import pack_examples
from clockwork.models.prepare import prepare
from clockwork.models.runtime import ModelSession, RunsTooLong
from clockwork.system.records import fields_of
from tests.unit.models_onnx import initializer, model_of, value

PAGE_BYTES = 64 << 10
FINGERPRINT = fingerprint(1)
ROWS = 3


class Shop:
    """Stores and packages below one directory. ``tuned``: the fine-tunes that were prepared by a template."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root = root
        self._count = itertools.count()
        self.tuned: list[str] = []
        self.templates = Templates()
        monkeypatch.setattr(preparation, "_TEMPLATES", self.templates)
        whole = Template.prepare

        def prepared(template: Template, data: bytes, digest: str, directory: Path) -> PreparedModel | None:
            found = whole(template, data, digest, directory)
            if found is not None:
                self.tuned.append(digest)
            return found

        monkeypatch.setattr(Template, "prepare", prepared)

    def package(self, model: onnx.ModelProto, examples: Any = None) -> Path:
        contents = [("model.onnx", model.SerializeToString())]
        if examples is not None:
            contents.append(("examples.npz", pack_examples(model, examples)))
        packages = PackageStore(self._root / f"packages{next(self._count)}")
        writer = packages.writer(
            [PackageFile(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in contents]
        )
        for index, (_, data) in enumerate(contents):
            writer.write(index, 0, data)
        writer.commit()
        return packages.directory(writer.digest)

    def prepare(
        self, package: onnx.ModelProto | Path, store: str = "store", **options: Any
    ) -> tuple[PreparedModel, Path]:
        """Return the preparation, and its directory."""
        package = package if isinstance(package, Path) else self.package(package)
        prepared = prepare(package, self._root / store, FINGERPRINT, PAGE_BYTES, options)
        return prepared, prepared_directory(self._root / store, prepared.digest, FINGERPRINT, options)

    def learn(self, make: Callable[[int], onnx.ModelProto], store: str = "store", **options: Any) -> None:
        """Prepare two models of an architecture."""
        for seed in (101, 102):
            self.prepare(make(seed), store, **options)

    def check(self, model: onnx.ModelProto, store: str = "store", **options: Any) -> bool:
        """Prepare a model, and compare its answers with plain ONNX Runtime's. Return whether a template was
        used."""
        prepared, directory = self.prepare(model, store, **options)
        session = ModelSession(model.SerializeToString(), optimise=True)
        rng = np.random.default_rng(5)
        inputs = [
            seeded(spec.dtype, [ROWS if prepared.batches else shape[0], *shape[1:]], rng)
            for spec, shape in zip(prepared.inputs, prepared.example)
        ]
        bench = Bench(FINGERPRINT, PAGE_BYTES, [directory])
        try:
            bench.load(0)
            assert difference(bench.run(0, inputs)[0], session.run(inputs)) == ""
        finally:
            bench.close()
        return prepared.digest in self.tuned


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    return Shop(tmp_path, monkeypatch)


def tuned(base: onnx.ModelProto) -> Callable[[int], onnx.ModelProto]:
    return lambda seed: zoo.fine_tune(base, seed=seed)


def network(**changes: Any) -> onnx.ModelProto:
    """x [N, 6] -> Gemm -> Mul by a scalar -> Gemm. Every weight from the seed."""
    given = {"seed": 1, "scalar": 0.5, "bias": True, "negate": False, "dtype": TensorProto.FLOAT} | changes
    rng = np.random.default_rng(given["seed"])
    kind = helper.tensor_dtype_to_np_dtype(given["dtype"])
    weights = [
        initializer("w1", rng.standard_normal((6, 5)), kind),
        initializer("w2", rng.standard_normal((5, 1)), kind),
        initializer("b2", rng.standard_normal(1), kind),
        initializer("scalar", given["scalar"], kind),
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "w1"], ["h"]),
        helper.make_node("Neg" if given["negate"] else "Abs", ["h"], ["a"]),
        helper.make_node("Mul", ["a", "scalar"], ["m"]),
        helper.make_node("Gemm", ["m", "w2", "b2"], ["y"]),
    ]
    inputs, outputs = [value("x", ["N", 6], given["dtype"])], [value("y", ["N", 1], given["dtype"])]
    return model_of(nodes, inputs, outputs, weights)


ALIKE: dict[str, onnx.ModelProto] = {
    "convolutions": zoo.build("residual_cnn", seed=1, widths=(8, 16, 16, 24), image=16),
    "products": zoo.build("mlp", seed=1, width=40, depth=2),
    "with a scalar": network(),
}


@pytest.mark.parametrize("holding", ["bound", "packed"])
@pytest.mark.parametrize("name", ALIKE)
def test_a_fine_tune_is_prepared_as_in_full(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, name: str, holding: str
) -> None:
    monkeypatch.setattr(preparation.measure, "overall", lambda _: 2.0 if holding == "packed" else 1.0)
    make = tuned(ALIKE[name])
    shop.learn(make)
    assert not shop.tuned
    monkeypatch.setattr(preparation, "optimise", lambda *_: pytest.fail("prepared in full"))
    third, directory = shop.prepare(make(3))
    monkeypatch.undo()
    assert shop.tuned == [third.digest]
    assert PreparedModel.read(directory) == third
    assert (directory / "prepared.json").read_bytes() == seal(fields_of(third))
    monkeypatch.setattr(preparation.measure, "overall", lambda _: 2.0 if holding == "packed" else 1.0)
    whole, other = shop.prepare(make(3), "other store")
    assert (third.holding, whole.holding) == (holding, holding)
    assert sorted(os.listdir(directory)) == sorted(os.listdir(other))
    measured = ["profile", "load_ns", "workspace_bytes", "batch_max", "resident_bytes", "runs"]
    if holding == "packed":
        # the operators of packed.onnx have other names each time
        measured += ["checksums", "contents"]
    else:
        assert (directory / "weights.bin").read_bytes() == (other / "weights.bin").read_bytes()
    unmeasured: Any = dict.fromkeys(measured)
    assert dataclasses.replace(third, **unmeasured) == dataclasses.replace(whole, **unmeasured)


@pytest.mark.parametrize("holding", ["bound", "packed"])
@pytest.mark.parametrize("name", ALIKE)
def test_a_fine_tune_answers_as_plain_onnx_runtime(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, name: str, holding: str
) -> None:
    monkeypatch.setattr(preparation.measure, "overall", lambda _: 2.0 if holding == "packed" else 1.0)
    make = tuned(ALIKE[name])
    shop.learn(make)
    assert shop.check(make(3))
    assert shop.check(make(4))


DIFFERENT: dict[str, Callable[[int], onnx.ModelProto]] = {
    "another scalar": lambda seed: network(seed=seed, scalar=0.5 + seed),
    "a batch norm that is folded": tuned(
        zoo.build("residual_cnn", seed=1, widths=(8, 16, 16, 24), image=16, fold=False)
    ),
    "weights of 64 bits": lambda seed: network(seed=seed, dtype=TensorProto.DOUBLE),
    "an open length": tuned(
        model_of(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            [value("x", ["N", "length", 4])],
            [value("y", ["N", "length", 3])],
            [initializer("w", np.ones((4, 3)))],
        )
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_may_differ_in_more_than_weights_is_prepared_in_full(shop: Shop, name: str) -> None:
    make = DIFFERENT[name]
    shop.learn(make)
    assert not shop.check(make(3))


def test_another_operator_in_a_file_of_equal_size_is_noticed(shop: Shop) -> None:
    shop.learn(lambda seed: network(seed=seed))
    other = network(seed=3, negate=True)
    assert len(other.SerializeToString()) == len(network(seed=3).SerializeToString())
    assert not shop.check(other)
    assert shop.check(network(seed=4))


def test_other_options_are_learnt_anew(shop: Shop) -> None:
    shop.learn(lambda seed: network(seed=seed))
    assert not shop.check(network(seed=3), batching="off")
    assert not shop.check(network(seed=4), batching="off")
    assert shop.check(network(seed=5), batching="off")
    assert shop.check(network(seed=6))


def test_fine_tunes_share_their_examples(shop: Shop) -> None:
    examples = {"x": np.linspace(0, 1, 12, dtype=np.float32).reshape(2, 6)}
    for seed in (1, 2, 3):
        third, _ = shop.prepare(shop.package(network(seed=seed), examples))
    assert shop.tuned == [third.digest]
    assert third.example == [[1, 6]]
    other, _ = shop.prepare(shop.package(network(seed=4), {"x": np.ones((3, 6), np.float32)}))
    assert other.digest not in shop.tuned


def test_weights_that_are_no_numbers_are_prepared_all_the_same(shop: Shop) -> None:
    shop.learn(lambda seed: network(seed=seed))
    model = network(seed=3)
    model.graph.initializer[0].raw_data = np.full((6, 5), np.nan, np.float32).tobytes()
    assert shop.check(model)


def test_a_recipe_that_makes_something_else_is_found_out(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.learn(lambda seed: network(seed=seed))
    make = Making.make

    def wrong(making: Making) -> None:
        make(making)
        making.content[4 * 10 :] = 0

    monkeypatch.setattr(Making, "make", wrong)
    assert not shop.check(network(seed=3))


def test_a_damaged_fine_tune_is_not_prepared(shop: Shop) -> None:
    shop.learn(lambda seed: network(seed=seed))
    package = shop.package(network(seed=3))
    path = package / "model.onnx"
    data = bytearray(path.read_bytes())
    data[data.index(network(seed=3).graph.initializer[0].raw_data) + 5] ^= 1
    path.write_bytes(data)
    while path.stat().st_ctime_ns <= (package / "package.json").stat().st_ctime_ns:
        os.utime(path)  # the file system's clock may have stood still
    with pytest.raises(DamagedPackage, match=f"package {package.name} is damaged"):
        shop.prepare(package)


def test_a_package_is_hashed_again_once_it_is_not_fresh(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.learn(lambda seed: network(seed=seed))
    assert shop.check(network(seed=3))
    monkeypatch.setattr(packages, "PACKAGE_FRESH_NS", 0)
    assert shop.check(network(seed=4))
    package = shop.package(network(seed=5))
    path = package / "model.onnx"
    data = bytearray(path.read_bytes())
    data[data.index(network(seed=5).graph.initializer[0].raw_data) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedPackage, match=f"package {package.name} is damaged"):
        shop.prepare(package)


@pytest.mark.parametrize("error", [RunsTooLong, MemoryError])
def test_a_template_that_fails_is_used_no_more(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    shop.learn(lambda seed: network(seed=seed))

    def fail(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(fine_tunes.Originals, "words_of", fail)
        assert not shop.check(network(seed=3))
    assert not shop.check(network(seed=4))


@pytest.mark.parametrize("error", [MemoryError, OSError, InvalidModel])
def test_a_model_is_prepared_even_if_nothing_can_be_learnt_from_it(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Template, "_learn", fail)
        shop.learn(lambda seed: network(seed=seed))
        assert not shop.check(network(seed=3))


def test_what_a_full_disk_kept_from_being_learnt_is_learnt_later(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, make = fine_tunes.optimise, tuned(network())

    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fine_tunes, "optimise", fail)
    shop.learn(make)
    monkeypatch.setattr(fine_tunes, "optimise", whole)
    assert not shop.check(make(103))
    assert shop.check(make(104))


def test_weights_that_cannot_be_written_are_the_disks_fault(shop: Shop) -> None:
    """Another thread writes them, or ONNX Runtime, as the measurement has chosen. The template is as good as
    before."""
    make = tuned(network())
    shop.learn(make)

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Template, "_write", fail)
        patched.setattr(fine_tunes, "build_packed", fail)
        with pytest.raises(OSError, match="No space left"):
            shop.prepare(make(103))
    assert shop.check(make(103))


def test_without_a_thread_to_write_its_weights_a_fine_tune_is_prepared_in_full(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing:
        def submit(self, *_: Any) -> None:
            raise RuntimeError("can't start new thread")

    make = tuned(network())
    shop.learn(make)
    monkeypatch.setattr(fine_tunes._Beside, "_threads", Refusing())
    assert not shop.check(make(103))


@pytest.mark.parametrize("error", [None, RunsTooLong()])
def test_what_runs_beside_a_block_ends_with_it_and_in_order(error: Exception | None) -> None:
    begun, done = threading.Event(), []
    with contextlib.suppress(RunsTooLong), fine_tunes._Beside() as beside:
        beside.run(begun.wait)
        last = beside.run(done.append, "last")
        begun.set()
        if error is not None:
            raise error
    assert done == ["last"]
    assert last.done()


def test_a_graph_that_is_slow_without_optimisation_is_no_reference(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "REFERENCE_NS_MAX", 0)
    shop.learn(lambda seed: network(seed=seed))
    assert not shop.check(network(seed=3))


def test_what_is_remembered_is_bounded(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "TEMPLATES_MAX", 2)
    monkeypatch.setattr(bounds, "ARCHITECTURES_MAX", 3)
    makes = [tuned(zoo.build("mlp", seed=1, width=width, depth=1)) for width in (8, 9, 10, 11)]
    for make in makes:
        shop.learn(make)
    assert [shop.check(make(3)) for make in makes[2:]] == [True, True]
    assert not shop.check(makes[0](3))
    assert sum(map(len, shop.templates._entries.values())) <= 3
    monkeypatch.setattr(bounds, "TEMPLATES_BYTES_MAX", 1)
    shop.learn(makes[1], "other store")
    assert not shop.check(makes[3](4))
    assert len(shop.templates._entries) == 1


def test_a_skeleton_is_all_but_the_holes() -> None:
    skeleton = Skeleton.of(b"abcdefgh", [range(5, 7), range(1, 3)])
    assert skeleton.fits(b"aXXdeYYh")
    assert not skeleton.fits(b"aXXdeYYi")
    assert not skeleton.fits(b"aXXdeYYhh")
    assert not skeleton.fits(b"XXXdeYYh")


def blocked(*shape: int, order: tuple[int, ...]) -> Any:
    """The indices of a tensor of this shape whose axes are reordered."""
    return np.arange(3, 3 + math.prod(shape), dtype=np.int32).reshape(shape).transpose(order).ravel()


@pytest.mark.parametrize(
    ("indices", "axes"),
    [
        (np.array([7], np.int32), 0),
        (np.arange(5, 99, dtype=np.int32), 1),
        (np.full(9, 4, np.int32), 1),
        (np.arange(9, 2, -1, dtype=np.int32), 1),
        (blocked(4, 6, order=(1, 0)), 2),
        (blocked(2, 4, 3, 5, 2, order=(2, 0, 4, 1, 3)), 5),
    ],
)
def test_indices_in_regular_steps_are_a_grid(indices: Any, axes: int) -> None:
    grid = Grid.of(indices)
    assert grid is not None
    assert len(grid.shape) == axes
    source = np.arange(1000, 1300, dtype=np.uint32)
    content = np.zeros(4 * len(indices) + 8, np.uint8)
    for how in (grid, indices):
        content[:] = 0
        Making(Recipe(b"", [(range(4, len(content) - 4), how)]), source, content).make()
        assert content.view(np.uint32).tolist() == [0, *source[indices], 0]


@pytest.mark.parametrize("indices", [[], [1, 2, 3, 9, 10], [0, 1, 4, 5, 7, 8], [0, 1, 2, 5, 6, 8]])
def test_other_indices_are_no_grid(indices: list[int]) -> None:
    assert Grid.of(np.array(indices, np.int32)) is None


def padded(size: int, block: int, order: tuple[int, ...], constant: int) -> Any:
    """Return indices of a square matrix in square blocks, the last of which are padded with a constant."""
    whole = -(-size // block) * block
    places = np.full((whole, whole), constant)
    places[:size, :size] = np.arange(size * size).reshape(size, size)
    blocks = places.reshape(whole // block, block, whole // block, block)
    return blocks.transpose(order).reshape(-1).astype(np.int32)


@pytest.mark.parametrize(
    ("indices", "count", "pieces"),
    [
        (padded(6, 4, (0, 2, 3, 1), 40), 36, 2),
        (padded(9, 4, (0, 2, 1, 3), 81), 81, 4),
        (padded(8, 4, (2, 0, 3, 1), 64), 64, 1),
        (np.array([0, 1, 2, 3, 9, 9], np.int32), 9, 1),
        (np.array([0, 1, 9, 2, 3, 9], np.int32), 9, 1),
        (np.array([9, 9, 0, 1], np.int32), 9, 0),
        (np.array([0, 1, 9, 9], np.int32), 9, 1),
        (np.array([0, 1, 2, 3, 4, 9, 6, 7], np.int32), 9, 2),
        (np.array([0, 9, 2, 3], np.int32), 9, 0),
        (np.array([0, 1, 2, 3, 4, 9, 6, 2], np.int32), 9, 0),
    ],
)
def test_indices_in_regular_steps_between_constants_are_copied_in_pieces(
    indices: Any, count: int, pieces: int
) -> None:
    how = Padded.of(indices, count)
    assert (how is None) if not pieces else (how is not None and len(how.pieces) == pieces)
    if how is not None:
        source = np.arange(1000, 1300, dtype=np.uint32)
        before = np.full(len(indices), 7, np.uint32)
        making = Making(
            Recipe(before.tobytes(), [(range(4 * len(indices)), how)]), source, before.view(np.uint8)
        )
        making.make()
        assert before.tolist() == np.where(indices < count, source[indices], 7).tolist()


def test_a_weight_in_many_pieces_is_no_padded_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    indices = padded(6, 4, (0, 2, 3, 1), 40)
    monkeypatch.setattr(bounds, "PIECES_MAX", 1)
    assert Padded.of(indices, 36) is None


def test_a_computed_word_has_no_source() -> None:
    own = np.array([1.5, 2.5, 0.0], np.float32).view(np.uint32)
    up, down = (np.array(marks, np.float32).view(np.uint32) for marks in ([2, 1, 0], [-1, -2, 0]))
    words = np.array([2.5, 1.5], np.float32).view(np.uint32)
    indices, constants = fine_tunes._sources([own, up, down], words, 2, 2)
    assert indices.tolist() == [1, 0, 2]
    assert constants.tolist() == [0]
    for computed in ([4, 1, 0], [2.5, 1, 0], [np.nan, 1, 0], [2, 1, 7]):
        other = np.array(computed, np.float32).view(np.uint32)
        with pytest.raises(fine_tunes.Unlike):
            fine_tunes._sources([own, other, down], words, 2, 2)
