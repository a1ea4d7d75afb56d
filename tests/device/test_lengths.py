"""Requests of different length in one batch: models are prepared as at registration, and executed on a CPU
device."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from clockwork.device.base import Completion, TensorView
from clockwork.device.cpu import CpuArena, fingerprint
from clockwork.device.machine import ArenaPlace
from clockwork.formats.prepared import prepared_directory
from clockwork.models import zoo
from clockwork.models.answers import difference
from clockwork.models.prepare import prepare
from clockwork.models.runtime import ModelSession
from clockwork.wire.messages import NEVER_NS, Infer, Load, Profile, Status
from clockwork.wire.tensors import Array, decode_tensor, encode_array
from tests.unit.models_onnx import initializer, model_of, normal, save_package, value

PAGE_BYTES = 64 << 10
FINGERPRINT = fingerprint(1)
WIDTH = 4


def token_encoder() -> onnx.ModelProto:
    """A vector for each sentence, of ids and a mask."""
    return zoo.build("transformer", layers=2, width=16, heads=2, sequence=None, vocabulary=50)


def attention() -> onnx.ModelProto:
    """x [N, S, 4] to y [N, S, 4], a value for each position that depends on all of them; and to z, [N, 4,
    S]."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "t"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "x"], ["mixed"]),
        helper.make_node("MatMul", ["mixed", "w"], ["y"]),
        helper.make_node("Transpose", ["y"], ["z"], perm=[0, 2, 1]),
    ]
    given = [value("y", ["N", "S", WIDTH]), value("z", ["N", WIDTH, "S"])]
    weights = [initializer("w", normal(WIDTH, WIDTH))]
    return model_of(nodes, [value("x", ["N", "S", WIDTH])], given, weights, opset=18)


def two_lengths() -> onnx.ModelProto:
    """A model in which x [N, S, 4] attends to c [N, T, 4], which has another length."""
    nodes = [
        helper.make_node("Transpose", ["c"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "t"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "c"], ["y"]),
    ]
    inputs = [value("x", ["N", "S", WIDTH]), value("c", ["N", "T", WIDTH])]
    return model_of(nodes, inputs, [value("y", ["N", "S", WIDTH])], [], opset=18)


class Served:
    """A model, prepared and loaded on a CPU device of its own."""

    def __init__(
        self, folder: Path, model: onnx.ModelProto, holding: str = "auto", executors: int = 1
    ) -> None:
        options = {"holding": holding, "batch_max": 4}
        package = save_package(model, folder / "package")
        self.prepared = prepare(package, folder / "store", FINGERPRINT, PAGE_BYTES, options)
        directory = prepared_directory(folder / "store", self.prepared.digest, FINGERPRINT, options)
        runs = self.prepared.runs
        arena = CpuArena(max(1, sum(runs)) * PAGE_BYTES, PAGE_BYTES, place=ArenaPlace(executors))
        self.devices = arena.devices
        self.device = self.devices[0]
        self._ids = itertools.count(1)
        self._alone = ModelSession(model.SerializeToString(), optimise=True)
        self.device.open(0, str(directory))
        starts = list(itertools.accumulate(runs, initial=0))[:-1]
        self.device.start(Load(next(self._ids), 0, 0, 1, starts, 0, NEVER_NS, 0))
        assert self._end().status == Status.OK

    def _end(self) -> Completion:
        (done,) = self.device.wait([next(self._ids) - 1], 30.0)
        self._ids = itertools.count(done.action_id + 1)
        return done

    def run(self, *parts: Sequence[Array]) -> Completion:
        """Execute these requests in one batch."""
        action = Infer(next(self._ids), 0, 0, 1, 0, NEVER_NS, 0, [])
        views = [[TensorView(dtype, tuple(shape), data) for dtype, shape, data in map(encode_array, part)]
                 for part in parts]  # fmt: skip
        self.device.start(action, views)
        return self._end()

    def answers(self, *parts: Sequence[Array]) -> list[list[Array]]:
        done = self.run(*parts)
        assert done.status == Status.OK, done.text
        return [[decode_tensor(one.dtype, one.shape, one.data) for one in part] for part in done.parts]

    def check(self, *parts: Sequence[Array]) -> list[list[Array]]:
        """Check that each request is answered as ONNX Runtime answers it alone."""
        found = self.answers(*parts)
        for answer, part in zip(found, parts, strict=True):
            assert difference(answer, self._alone.run(part)) == ""
        return found

    def profile(self, *shapes: Sequence[int]) -> Completion:
        self.device.start(Profile(next(self._ids), 0, 0, 1, 0, NEVER_NS, 0, [list(one) for one in shapes]))
        return self._end()


@pytest.fixture
def made() -> Iterator[list[Served]]:
    all_made: list[Served] = []
    yield all_made
    for served in all_made:
        for device in served.devices:
            device.close()


def serve(made: list[Served], *arguments: object) -> Served:
    made.append(Served(*arguments))  # type: ignore[arg-type]
    return made[-1]


def sentence(length: int, seed: int = 0, rows: int = 1) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 50, (rows, length)), np.ones((rows, length), np.int64)]


def numbers(length: int, seed: int = 0, rows: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, length, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("holding", ["bound", "packed"])
def test_sentences_of_different_length_are_answered_as_alone(
    made: list[Served], holding: str, tmp_path: Path
) -> None:
    served = serve(made, tmp_path, token_encoder(), holding)
    assert (served.prepared.holding, served.prepared.lengths) == (holding, {"S": 512})
    served.check(sentence(5), sentence(30), sentence(1))
    served.check(sentence(1), sentence(512, 1))
    served.check(sentence(7, 1, rows=3), sentence(9, 2), sentence(8, 3, rows=2))  # requests of several rows
    served.check(sentence(20))
    served.check(sentence(20), sentence(20, 1))


def test_answers_with_a_value_for_each_position_are_cut_back(made: list[Served], tmp_path: Path) -> None:
    served = serve(made, tmp_path, attention())
    assert served.prepared.output_lengths == [["", "S", ""], ["", "", "S"]], served.prepared.lengths_note
    found = served.check([numbers(3)], [numbers(7, 1, rows=2)], [numbers(1, 2)])
    assert [[one.shape for one in part] for part in found] == [
        [(1, 3, 4), (1, 4, 3)], [(2, 7, 4), (2, 4, 7)], [(1, 1, 4), (1, 4, 1)]
    ]  # fmt: skip


def test_two_lengths_are_padded_each_by_itself(made: list[Served], tmp_path: Path) -> None:
    served = serve(made, tmp_path, two_lengths())
    assert served.prepared.lengths == {"S": 0, "T": 0}
    served.check([numbers(3), numbers(9, 1)], [numbers(8, 2), numbers(2, 3)], [numbers(8, 4), numbers(9, 5)])


@pytest.mark.parametrize("kind", ["tokens", "positions", "two lengths"])
def test_random_batches_are_answered_as_alone(made: list[Served], kind: str, tmp_path: Path) -> None:
    models = {"tokens": token_encoder, "positions": attention, "two lengths": two_lengths}
    served = serve(made, tmp_path, models[kind]())
    rng = np.random.default_rng(0)
    for seed in range(0, 200, 10):
        parts = []
        for part in range(int(rng.integers(1, 6))):
            rows, length, other = (int(one) for one in rng.integers((1, 1, 1), (4, 40, 40)))
            if kind == "tokens":
                parts.append(sentence(length, seed + part, rows))
            else:
                parts.append([numbers(length, seed + part, rows)])
            if kind == "two lengths":
                parts[-1].append(numbers(other, seed + part + 5, rows))
        served.check(*parts)


def test_padded_batches_run_at_once_on_two_executors(made: list[Served], tmp_path: Path) -> None:
    served = serve(made, tmp_path, attention(), "auto", 2)
    batches = [
        ([numbers(3)], [numbers(7, 1, rows=2)], [numbers(1, 2)]),
        ([numbers(12, 3)], [numbers(2, 4)]),
        ([numbers(5, 5, rows=3)], [numbers(9, 6)], [numbers(8, 7)], [numbers(30, 8)]),
    ]
    alone = [served.check(*batch) for batch in batches]
    for round_ in range(60):
        asked = []
        for place, device in enumerate(served.devices):
            which = (round_ + place) % len(batches)
            action = Infer(1_000 + 2 * round_ + place, place, 0, 1, 0, NEVER_NS, 0, [])
            views = [[TensorView(dtype, tuple(shape), data) for dtype, shape, data in map(encode_array, part)]
                     for part in batches[which]]  # fmt: skip
            device.start(action, views)
            asked.append((device, action.action_id, which))
        for device, action_id, which in asked:
            (done,) = device.wait([action_id], 30.0)
            assert done.status == Status.OK, done.text
            for part, expected in zip(done.parts, alone[which], strict=True):
                for one, other in zip(part, expected, strict=True):
                    np.testing.assert_array_equal(decode_tensor(one.dtype, one.shape, one.data), other)


@pytest.mark.parametrize("what", [np.nan, np.inf, 3e38])
def test_nothing_of_a_request_reaches_another_whatever_it_holds(
    made: list[Served], what: float, tmp_path: Path
) -> None:
    served = serve(made, tmp_path, attention())
    plain = served.answers([numbers(5)], [numbers(9, 1)], [numbers(2, 2)])
    beside = served.answers([numbers(5)], [np.full((1, 9, WIDTH), what, np.float32)], [numbers(2, 2)])
    for number in (0, 2):
        for one, other in zip(plain[number], beside[number], strict=True):
            np.testing.assert_array_equal(one, other)


def test_what_a_slot_held_before_does_not_reach_an_answer(made: list[Served], tmp_path: Path) -> None:
    served = serve(made, tmp_path, token_encoder())
    before = served.check(sentence(5), sentence(9, 1))
    no_ids = [np.full((2, 9), 1 << 40), np.full((2, 9), -1)]
    for _ in range(8):  # an execution for every slot
        assert served.run(no_ids, no_ids).status == Status.EXECUTION_FAILED
    after = served.answers(sentence(5), sentence(9, 1))
    for ours, theirs in zip(after, before, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])


def test_what_cannot_be_joined_is_refused(made: list[Served], tmp_path: Path) -> None:
    served = serve(made, tmp_path, token_encoder())
    ids, mask = sentence(5)
    done = served.run([ids, mask[:, :4]], [ids, mask])
    assert (done.status, done.text) == (
        Status.INVALID_INPUT, "input 1 has the size 4 along axis 1 and another input 5"
    )  # fmt: skip
    empty = np.zeros((1 << 30, 0), np.int64)
    done = served.run([empty, empty])
    assert done.status == Status.INVALID_INPUT
    assert done.text == "inputs of 1073741824 rows and 0 bytes; at most 65536 rows may be empty"
    done = served.run(
        sentence(3), [np.zeros((1, 1 << 20), np.int64)] * 2
    )  # positions beyond the model's table
    assert done.status == Status.EXECUTION_FAILED
    served.check(sentence(4), sentence(6))


def test_a_profile_runs_at_a_class(made: list[Served], tmp_path: Path) -> None:
    served = serve(made, tmp_path, token_encoder())
    done = served.profile((4, 12), (4, 12))
    assert (done.status, done.parts) == (Status.OK, [])


def test_a_model_that_is_not_proven_takes_requests_of_one_length(made: list[Served], tmp_path: Path) -> None:
    nodes = [helper.make_node("Gather", ["x", "last"], ["y"], axis=1)]
    model = model_of(nodes, [value("x", ["N", "S", WIDTH])], [value("y", ["N", WIDTH])],
                     [initializer("last", np.array(-1), np.int64)], opset=18)  # fmt: skip
    served = serve(made, tmp_path, model)
    assert served.prepared.batches
    assert served.prepared.lengths == {}
    assert (
        served.prepared.lengths_note
        == "one length in a batch: operator Gather picks positions of an open axis"
    )
    served.check([numbers(5)], [numbers(5, 1)])
    done = served.run([numbers(5)], [numbers(6)])
    assert (done.status, done.text) == (
        Status.INVALID_INPUT, "input 0 has the shape [1, 6, 4] in one part and another elsewhere"
    )  # fmt: skip
