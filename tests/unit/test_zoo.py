"""The zoo builds the networks that the papers describe; they run in ONNX Runtime, and are the same for the
same seed."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from clockwork.models import zoo

ROOT = Path(__file__).resolve().parents[2]


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def inputs(model: onnx.ModelProto, rows: int, length: int = 9) -> dict[str, NDArray[Any]]:
    """Seeded values for every input; symbolic dimensions after the first get ``length``."""
    rng = np.random.default_rng(5)
    feed: dict[str, NDArray[Any]] = {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        assert dims[0].dim_param == "N"
        shape = [rows, *(dim.dim_value or length for dim in dims[1:])]
        if value.name == "mask":
            feed[value.name] = np.ones(shape, np.int64)
        elif value.name == "ids":
            feed[value.name] = rng.integers(0, 50, shape)
        else:
            feed[value.name] = rng.standard_normal(shape, np.float32)
    return feed


SMALL: dict[str, dict[str, Any]] = {
    "resnet18": {"image": 64},
    "resnet50": {"image": 64},
    "mobilenet_v2": {"image": 64},
    "transformer": {"layers": 2, "width": 96, "heads": 4, "sequence": 16, "vocabulary": 50},
    "wide_mlp": {"width": 256},
}


@pytest.mark.parametrize("name", zoo.names())
def test_it_runs_at_any_batch_and_its_answers_are_sane(name: str) -> None:
    model = zoo.build(name, seed=3, **SMALL.get(name, {}))
    onnx.checker.check_model(model, full_check=True)
    run = session(model)
    declared = [dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim][1:]
    feed = inputs(model, 3)
    (three,) = run.run(None, feed)
    assert list(three.shape) == [3, *declared]
    assert 1e-2 < three.std() < 50
    assert not np.allclose(three[0], three[1], rtol=1e-3, atol=0)
    (one,) = run.run(None, {key: value[1:2] for key, value in feed.items()})
    np.testing.assert_allclose(one[0], three[1], rtol=1e-3, atol=1e-4 * np.abs(three).max())


@pytest.mark.parametrize(
    ("name", "published"), [("resnet18", 11_689_512), ("resnet50", 25_557_032), ("mobilenet_v2", 3_504_872)]
)
def test_parameter_counts_are_the_published_ones(name: str, published: int) -> None:
    assert zoo.parameter_count(zoo.build(name)) == published


def test_the_overload_model_has_15_megabytes() -> None:
    assert 14e6 < zoo.weights_bytes(zoo.build("residual_cnn")) < 16e6


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name == "resnet50" else []) for name in zoo.names()],
)
def test_one_seed_is_one_sequence_of_bytes(name: str) -> None:
    options = SMALL.get(name, {})

    def digest(seed: int) -> str:
        return hashlib.sha256(
            zoo.build(name, seed=seed, **options).SerializeToString(deterministic=True)
        ).hexdigest()

    assert digest(1) == digest(1)
    if name != "null":
        assert digest(1) != digest(2)


def test_folded_batch_norms_compute_the_same() -> None:
    nodes = zoo.build("resnet18", seed=4, image=64)
    folded = zoo.build("resnet18", seed=4, image=64, fold=True)
    assert any(node.op_type == "BatchNormalization" for node in nodes.graph.node)
    assert not any(node.op_type == "BatchNormalization" for node in folded.graph.node)
    feed = inputs(nodes, 2)
    (expected,), (got,) = session(nodes).run(None, feed), session(folded).run(None, feed)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["resnet18", "residual_cnn", "transformer", "mlp", "digits"])
def test_a_fine_tune_keeps_the_architecture_and_changes_every_weight(name: str) -> None:
    model = zoo.build(name, **SMALL.get(name, {}))
    tuned = zoo.fine_tune(model, 8)
    assert [n.SerializeToString() for n in tuned.graph.node] == [
        n.SerializeToString() for n in model.graph.node
    ]
    for before, after in zip(model.graph.initializer, tuned.graph.initializer, strict=True):
        assert (before.name, before.dims) == (after.name, after.dims)
        old, new = onnx.numpy_helper.to_array(before), onnx.numpy_helper.to_array(after)
        assert np.mean(old != new) > 0.99, before.name
    feed = inputs(model, 2)
    (old,), (new,) = session(model).run(None, feed), session(tuned).run(None, feed)
    assert np.isfinite(new).all()
    assert not np.allclose(old, new, rtol=1e-3, atol=0)
    again = zoo.fine_tune(model, 8)
    assert again.SerializeToString(deterministic=True) == tuned.SerializeToString(deterministic=True)


def test_a_transformer_ignores_what_the_mask_hides() -> None:
    model = zoo.build("transformer", **SMALL["transformer"])
    feed = inputs(model, 1)
    feed["mask"][:, 10:] = 0
    run = session(model)
    (first,) = run.run(None, feed)
    feed["ids"][:, 10:] = 7
    (second,) = run.run(None, feed)
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("embedded", [True, False])
def test_a_transformer_may_leave_its_length_open(embedded: bool) -> None:
    model = zoo.build(
        "transformer", layers=1, width=32, heads=2, sequence=None, vocabulary=50, embedded=embedded
    )
    run = session(model)
    for length in (3, 8):
        (answer,) = run.run(None, inputs(model, 2, length))
        assert answer.shape == (2, 32)


def test_the_small_family_is_twenty_architectures_of_half_to_four_megabytes() -> None:
    models = [build(seed=6) for build in zoo.small_family()]
    assert len(models) == 20
    assert all(0.5e6 <= zoo.weights_bytes(model) <= 4e6 for model in models)
    shapes = {tuple(tuple(weight.dims) for weight in model.graph.initializer) for model in models}
    assert len(shapes) == 20
    for model in models:
        (answer,) = session(model).run(None, inputs(model, 2))
        assert np.isfinite(answer).all()
        assert answer.std() > 1e-2


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"resnet19.*resnet18"):
        zoo.build("resnet19")
    with pytest.raises(ValueError, match="heads"):
        zoo.build("transformer", width=100, heads=3)


# ----- digits ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def training() -> Any:
    """The training script as a module: its split is the one by which the accuracy was measured."""
    pytest.importorskip("sklearn")
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import train_digits
    finally:
        sys.path.pop(0)
    return train_digits


@pytest.mark.slow
def test_digits_is_right_on_99_of_100_held_out_images(training: Any) -> None:
    _, _, images, labels = training.split()
    (scores,) = session(zoo.digits()).run(None, {"image": images})
    assert scores.shape == (450, 10)
    assert np.mean(scores.argmax(1) == labels) >= 0.99


def test_digits_suits_old_runtimes_and_is_small() -> None:
    model = zoo.digits()
    assert zoo.DIGITS_FILE.stat().st_size < 300_000
    assert model.ir_version <= 10
    assert all(opset.version <= 21 for opset in model.opset_import)
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == ["scores"]


def test_the_gradients_of_the_training_script_are_those_of_its_loss(training: Any) -> None:
    """Compared with finite differences, in double precision, at one random weight of each tensor."""
    rng = np.random.default_rng(2)
    parameters = {name: value.astype(np.float64) for name, value in training.initial(rng).items()}
    images, labels = rng.random((4, 1, 8, 8)), np.array([3, 1, 4, 1])
    computed = training.gradients(parameters, images, labels, np.ones((4, training.DEEP * 4)))

    def loss() -> float:
        return float(-np.log(training.predict(parameters, images)[np.arange(4), labels]).mean())

    for name, value in parameters.items():
        place = tuple(rng.integers(0, size) for size in value.shape)
        step = 1e-5
        value[place] += step
        up = loss()
        value[place] -= 2 * step
        down = loss()
        value[place] += step
        assert computed[name][place] == pytest.approx((up - down) / (2 * step), rel=1e-3, abs=1e-7), name
