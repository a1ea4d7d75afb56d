"""Three thousand real models: fine-tunes of twenty architectures, made from seeds and kept in a cache."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from clockwork.models import zoo

SEED = 27
"""Seed of weights, inputs and arrivals; fine-tune i of an architecture has the seed SEED + i."""

CACHE = Path(__file__).resolve().parents[2] / "build" / "many"
"""Directory of everything that is kept from run to run; build/ is ignored by git."""


def oblivious_trees(
    *, seed: int = 0, trees: int = 512, depth: int = 6, features: int = 256, outputs: int = 8
) -> onnx.ModelProto:
    """An ensemble of trees that compare the same feature at all nodes of a level, as CatBoost makes them.

    `x` (N, features) to `y` (N, outputs): the mean of a leaf's values over all trees.
    """
    g = zoo.GraphBuilder(seed)
    rng = np.random.default_rng(seed)
    asked = g.constant(rng.integers(0, features, trees * depth).tolist())
    found = g.node("Gather", ["x", asked], axis=1)
    thresholds = g.weight("thresholds", g.normal((trees * depth,), 0.5))
    bits = g.node("Cast", [g.node("Greater", [found, thresholds])], to=onnx.TensorProto.INT64)
    places = g.node("Mul", [bits, g.constant([1 << level for _ in range(trees) for level in range(depth)])])
    by_tree = g.node("Reshape", [places, g.constant([0, trees, depth])])
    leaf = g.node("ReduceSum", [by_tree, g.constant([2])], keepdims=0)
    row = g.node("Add", [leaf, g.constant([tree << depth for tree in range(trees)])])
    values = g.weight("leaves", g.normal((trees << depth, outputs), 1.0))
    g.node("ReduceMean", [g.node("Gather", [values, row], axis=0)], "y", axes=[1], keepdims=0)
    return g.model("oblivious_trees", [zoo.tensor("x", [features])], zoo.tensor("y", [outputs]))


@dataclasses.dataclass(frozen=True, slots=True)
class Architecture:
    """A network whose fine-tunes are models, and the SLO of their requests."""

    name: str
    build: Callable[..., onnx.ModelProto]
    slo_s: float = 0.1


def _residual(name: str, widths: Sequence[int], blocks: Sequence[int], image: int) -> Architecture:
    build = functools.partial(zoo.residual_cnn, widths=tuple(widths), blocks=tuple(blocks), image=image)
    return Architecture(name, build)


def _encoder(name: str, layers: int, width: int, heads: int, sequence: int) -> Architecture:
    build = functools.partial(
        zoo.transformer, layers=layers, width=width, heads=heads, sequence=sequence, embedded=True
    )
    return Architecture(name, build)


LARGE = Architecture("resnet50", functools.partial(zoo.resnet50, image=64), slo_s=0.25)
"""The architecture of the few models of 100 MB."""

ARCHITECTURES: Sequence[Architecture] = (
    _residual("residual-0.7", (16, 32, 48, 64), (6, 4, 1, 1), 112),
    _residual("residual-0.8", (32, 32, 48, 64), (4, 3, 1, 1), 96),
    _residual("residual-1.5", (32, 48, 64, 96), (4, 3, 1, 1), 96),
    _residual("residual-1.8", (32, 48, 80, 112), (4, 2, 1, 1), 96),
    _residual("residual-2.8", (32, 64, 96, 144), (4, 3, 1, 1), 80),
    _residual("residual-3.3", (48, 64, 112, 160), (4, 2, 1, 1), 80),
    _residual("residual-4.4", (48, 80, 128, 176), (3, 2, 1, 1), 80),
    _residual("residual-9", (64, 112, 192, 256), (3, 2, 1, 1), 80),
    _encoder("encoder-0.4", 2, 64, 4, 192),
    _encoder("encoder-0.8", 1, 128, 4, 192),
    _encoder("encoder-1.6", 2, 128, 4, 192),
    _encoder("encoder-3.2", 4, 128, 4, 160),
    _encoder("encoder-3.6", 2, 192, 6, 128),
    Architecture("mlp-1.4", functools.partial(zoo.mlp, width=384, depth=3, inputs=128)),
    Architecture("mlp-1.6", functools.partial(zoo.mlp, width=384, depth=3, inputs=256)),
    Architecture("mlp-4", functools.partial(zoo.mlp, width=544, depth=4, inputs=256)),
    Architecture("cnn-0.7", functools.partial(zoo.cnn, image=48, channels=3, widths=(32, 64, 128, 64))),
    Architecture("trees-1", functools.partial(oblivious_trees, trees=512, depth=6)),
    Architecture("trees-2", functools.partial(oblivious_trees, trees=512, depth=7)),
    LARGE,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """A fine-tune of an architecture, and the shape of its requests."""

    name: str
    architecture: int  # index into ARCHITECTURES
    number: int  # among the fine-tunes of its architecture
    weights_bytes: int
    input: str
    shape: tuple[int, ...]  # of a request, with its batch of 1
    output: str
    outputs: int  # floats of an answer
    slo_ns: int

    def build(self) -> onnx.ModelProto:
        return zoo.fine_tune(base_of(self.architecture), seed=SEED + self.number)


@functools.cache
def base_of(architecture: int) -> onnx.ModelProto:
    """The model whose fine-tunes are those of an architecture."""
    return ARCHITECTURES[architecture].build(seed=SEED)


def families(models: int, large: int) -> list[int]:
    """For each model the index of its architecture: `large` of them are LARGE, the others take turns."""
    small = len(ARCHITECTURES) - 1
    every = models // large if large else models + 1
    found = [
        small if index % every == every - 1 and index // every < large else -1 for index in range(models)
    ]
    turn = 0
    for index, family in enumerate(found):
        if family < 0:
            found[index], turn = turn % small, turn + 1
    return found


def listed(models: int, large: int) -> list[Model]:
    """The models. A model is the same, however many there are."""
    made: dict[int, int] = {}
    found = []
    for family in families(models, large):
        number = made[family] = made.get(family, -1) + 1
        base = base_of(family)
        [given], [answer] = base.graph.input, base.graph.output
        found.append(
            Model(
                f"{ARCHITECTURES[family].name}-{number}", family, number, zoo.weights_bytes(base), given.name,
                _shape(given), answer.name, int(np.prod(_shape(answer))), round(ARCHITECTURES[family].slo_s * 1e9),
            )
        )  # fmt: skip
    return found


def optimised(models: Sequence[Model], directory: Path, say: Callable[[str], None]) -> list[Path]:
    """The files that the peers load: as ONNX Runtime has optimised them for this processor. Files that are
    missing are made.

    An operator of many models does so once for each: a session is made several times as fast, and executes
    the same.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{model.name}.onnx" for model in models]
    for index, (model, path) in enumerate(zip(models, paths, strict=True)):
        if path.exists():
            continue
        if index % 100 == 0:
            say(f"model {index} of {len(models)} is optimised")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        partial = path.with_suffix(".partial.onnx")
        options.optimized_model_filepath = str(partial)
        onnxruntime.InferenceSession(
            model.build().SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        partial.rename(path)
    return paths


def _shape(tensor: onnx.ValueInfoProto) -> tuple[int, ...]:
    return (1, *(dim.dim_value for dim in tensor.type.tensor_type.shape.dim[1:]))


def input_of(model: Model) -> np.ndarray:
    """The input of every request for this architecture."""
    return np.random.default_rng(SEED + model.architecture).standard_normal(model.shape).astype(np.float32)
