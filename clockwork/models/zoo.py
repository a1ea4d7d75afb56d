"""Build well-known networks as ONNX, in about a second, from a seed and without any framework.

    model = build("resnet50", seed=3, image=160)       # an onnx.ModelProto
    other = fine_tune(model, seed=9)                   # the same architecture, every weight different

Shapes and parameter counts are those of the published networks; the weights are random, scaled so that
activations keep a moderate size. The same arguments give the same bytes. Every model has a symbolic batch,
"N".
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Floats = NDArray[np.float32]

OPSET = 17  # Opset of the models: the first with LayerNormalization, so that old runtimes support it
IR_VERSION = 8
BN_EPSILON = 1e-5

DIGITS_FILE = Path(__file__).parent / "data" / "digits.onnx"
"""The trained demo model, made by examples/train_digits.py."""


class Builder(Protocol):
    """Builds an architecture; the same seed gives the same bytes."""

    def __call__(self, *, seed: int = 0) -> onnx.ModelProto: ...


def build(name: str, *, seed: int = 0, **options: Any) -> onnx.ModelProto:
    """Build the model of a name. options: keyword arguments of its function in ARCHITECTURES.

    Raises ValueError for a name that is not in names(), TypeError for an unknown option.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"no architecture {name!r} in the zoo; it has {', '.join(names())}")
    return ARCHITECTURES[name](seed=seed, **options)


def names() -> list[str]:
    """Return the names that build() accepts."""
    return list(ARCHITECTURES)


def digits() -> onnx.ModelProto:
    """The trained demo model: `image` float32 (N, 1, 8, 8) in [0, 1] to `scores` (N, 10)."""
    return onnx.load(DIGITS_FILE)


def parameter_count(model: onnx.ModelProto) -> int:
    """Count the trainable parameters, as papers do: without the running statistics of batch norms."""
    statistics = {
        name for node in model.graph.node if node.op_type == "BatchNormalization" for name in node.input[3:5]
    }
    return sum(
        math.prod(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in statistics
    )


def weights_bytes(model: onnx.ModelProto) -> int:
    """Return the bytes of all initializers of a model of this module."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def fine_tune(model: onnx.ModelProto, seed: int, amount: float = 0.05) -> onnx.ModelProto:
    """Return a copy in which all float weights and biases differ, by about ``amount`` of their magnitude.

    The architecture, names and everything that is not a float tensor of rank 1 or more stay as they are.
    """
    rng = np.random.default_rng(seed)
    tuned = onnx.ModelProto()
    tuned.CopyFrom(model)
    variances = {node.input[4] for node in tuned.graph.node if node.op_type == "BatchNormalization"}
    for tensor in tuned.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or not tensor.dims:
            continue
        weight = np.array(numpy_helper.to_array(tensor), np.float32)
        noise = rng.random(weight.shape, np.float32)
        noise -= 0.5
        if tensor.name in variances:  # a variance must stay positive
            weight *= 1 + amount * noise
        else:
            size = math.sqrt(float(np.vdot(weight, weight)) / max(weight.size, 1))
            noise *= amount * 4 * (size or 0.02)  # a bias of zeros gets noise, too
            weight += noise
        tensor.ClearField("float_data")
        tensor.raw_data = weight.tobytes()
    return tuned


class GraphBuilder:
    """Collects nodes and seeded weights, and names them as an exporter would."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def node(self, op: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Append a node with one output; returns the output's name."""
        label = f"{op}_{len(self._nodes)}"
        output = output or f"{label}_out"
        self._nodes.append(helper.make_node(op, inputs, [output], label, **attributes))
        return output

    def constant(self, value: float | list[int]) -> str:
        """Add a Constant node, for a constant that training does not change. Return its name."""
        array = np.array(value, np.int64 if isinstance(value, list) else np.float32)
        return self.node("Constant", [], value=numpy_helper.from_array(array))

    def weight(self, name: str, value: Floats) -> str:
        self._weights.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
        return name

    def normal(self, shape: Sequence[int], scale: float, mean: float = 0.0) -> Floats:
        value = self._rng.standard_normal(shape, np.float32)
        value *= np.float32(scale)
        if mean:
            value += np.float32(mean)
        return value

    def conv(
        self,
        name: str,
        x: str,
        channels: tuple[int, int],
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        gain: float = 2.0,
        norm: float | None = 1.0,
        fold: bool = False,
    ) -> str:
        """A convolution padded to "same", followed by batch norm.

        channels: of input and output. gain: variance of the output over the mean square of the input. norm:
        mean gamma of the batch norm; None: a bias instead of a batch norm. fold: fold the batch norm into the
        weights.
        """
        source, target = channels
        weight = self.normal(
            (target, source // groups, kernel, kernel), math.sqrt(gain / (source // groups * kernel**2))
        )
        attributes: dict[str, Any] = {
            "kernel_shape": [kernel, kernel],
            "strides": [stride, stride],
            "pads": [kernel // 2] * 4,
            "group": groups,
            "dilations": [1, 1],
        }
        if norm is None:
            bias = self.normal((target,), 0.05)
        else:
            gamma = self.normal((target,), 0.1 * norm, norm)
            beta = self.normal((target,), 0.1)
            mean = self.normal((target,), 0.1)
            variance = np.abs(self.normal((target,), 0.1, 1.0)) + np.float32(0.1)
            if not fold:
                y = self.node("Conv", [x, self.weight(f"{name}.weight", weight)], **attributes)
                parts = {"weight": gamma, "bias": beta, "running_mean": mean, "running_var": variance}
                inputs = [self.weight(f"{name}.bn.{part}", value) for part, value in parts.items()]
                return self.node("BatchNormalization", [y, *inputs], epsilon=BN_EPSILON)
            factor = gamma / np.sqrt(variance + np.float32(BN_EPSILON))
            weight *= factor[:, None, None, None]
            bias = beta - mean * factor
        return self.node(
            "Conv",
            [x, self.weight(f"{name}.weight", weight), self.weight(f"{name}.bias", bias)],
            **attributes,
        )

    def gemm(self, name: str, x: str, source: int, target: int, gain: float = 1.0, output: str = "") -> str:
        """A fully connected layer on a matrix, its weight (target, source) as exporters write it."""
        weight = self.weight(f"{name}.weight", self.normal((target, source), math.sqrt(gain / source)))
        return self.node(
            "Gemm", [x, weight, self.weight(f"{name}.bias", self.normal((target,), 0.05))], output, transB=1
        )

    def linear(self, name: str, x: str, source: int, target: int) -> str:
        """A fully connected layer on the last axis of x: MatMul and Add."""
        weight = self.weight(f"{name}.weight", self.normal((source, target), math.sqrt(1 / source)))
        y = self.node("MatMul", [x, weight])
        return self.node("Add", [self.weight(f"{name}.bias", self.normal((target,), 0.05)), y])

    def layer_norm(self, name: str, x: str, width: int) -> str:
        gamma = self.weight(f"{name}.weight", self.normal((width,), 0.05, 1.0))
        beta = self.weight(f"{name}.bias", self.normal((width,), 0.05))
        return self.node("LayerNormalization", [x, gamma, beta], axis=-1, epsilon=1e-5)

    def head(self, x: str, channels: int, classes: int) -> str:
        """Mean over the image, and a classifier whose output is the model's output."""
        y = self.node("Flatten", [self.node("GlobalAveragePool", [x])], axis=1)
        return self.gemm("fc", y, channels, classes, output="scores")

    def model(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], output: onnx.ValueInfoProto
    ) -> onnx.ModelProto:
        graph = helper.make_graph(self._nodes, name, inputs, [output], self._weights)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="clockwork.models.zoo",
        )


def tensor(name: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, ["N", *shape])


# ----- convolutional networks -----------------------------------------------------------------


def resnet18(
    *, seed: int = 0, image: int = 224, channels: int = 3, classes: int = 1000, fold: bool = False
) -> onnx.ModelProto:
    """ResNet-18 (He et al. 2015): `image` (N, channels, image, image) to `scores` (N, classes)."""
    g = GraphBuilder(seed)
    x, width = _resnet_stem(g, channels, fold), 64
    for stage, blocks in enumerate((2, 2, 2, 2)):
        target = 64 << stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            x = _basic_block(g, f"layer{stage + 1}.{block}", x, width, target, stride, fold)
            width = target
    g.head(x, width, classes)
    return g.model("resnet18", [tensor("image", [channels, image, image])], tensor("scores", [classes]))


def resnet50(
    *, seed: int = 0, image: int = 224, channels: int = 3, classes: int = 1000, fold: bool = False
) -> onnx.ModelProto:
    """ResNet-50 (v1.5: the 3x3 strides): `image` (N, channels, image, image) to `scores` (N, classes)."""
    g = GraphBuilder(seed)
    x, width = _resnet_stem(g, channels, fold), 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        middle = 64 << stage
        for block in range(blocks):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            y = g.node("Relu", [g.conv(f"{name}.conv1", x, (width, middle), 1, fold=fold)])
            y = g.node("Relu", [g.conv(f"{name}.conv2", y, (middle, middle), 3, stride=stride, fold=fold)])
            y = g.conv(f"{name}.conv3", y, (middle, 4 * middle), 1, norm=0.4, fold=fold)
            if not block:
                x = g.conv(
                    f"{name}.downsample", x, (width, 4 * middle), 1, stride=stride, gain=1.0, fold=fold
                )
            x, width = g.node("Relu", [g.node("Add", [y, x])]), 4 * middle
    g.head(x, width, classes)
    return g.model("resnet50", [tensor("image", [channels, image, image])], tensor("scores", [classes]))


def mobilenet_v2(
    *, seed: int = 0, image: int = 224, channels: int = 3, classes: int = 1000, fold: bool = False
) -> onnx.ModelProto:
    """MobileNetV2 (Sandler et al. 2018): `image` (N, channels, image, image) to `scores` (N, classes)."""
    g = GraphBuilder(seed)
    low, high = g.constant(0), g.constant(6)

    def clip(y: str) -> str:
        return g.node("Clip", [y, low, high])

    x, width = clip(g.conv("features.0", "image", (channels, 32), 3, stride=2, fold=fold)), 32
    index = 1
    stages = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    for expand, target, blocks, first_stride in stages:
        for block in range(blocks):
            name, stride, y, hidden = f"features.{index}", first_stride if not block else 1, x, width * expand
            if expand > 1:
                y = clip(g.conv(f"{name}.expand", y, (width, hidden), 1, gain=1.0, fold=fold))
            y = clip(
                g.conv(f"{name}.depthwise", y, (hidden, hidden), 3, stride=stride, groups=hidden, fold=fold)
            )
            y = g.conv(f"{name}.project", y, (hidden, target), 1, fold=fold)
            x = g.node("Add", [x, y]) if stride == 1 and width == target else y
            width, index = target, index + 1
    x = clip(g.conv(f"features.{index}", x, (width, 1280), 1, gain=1.0, fold=fold))
    g.head(x, 1280, classes)
    return g.model("mobilenet_v2", [tensor("image", [channels, image, image])], tensor("scores", [classes]))


def residual_cnn(
    *,
    seed: int = 0,
    image: int = 64,
    channels: int = 3,
    classes: int = 100,
    widths: Sequence[int] = (64, 128, 256, 256),
    blocks: Sequence[int] = (1, 1, 2, 1),
    fold: bool = True,
) -> onnx.ModelProto:
    """A small residual network: `image` (N, channels, image, image) to `scores` (N, classes).

    By default: 3x64x64 pixels, 15 MB of weights, about 5 ms on one core. Overload tests use it.
    """
    g = GraphBuilder(seed)
    width = widths[0]
    x = g.node("Relu", [g.conv("stem", "image", (channels, width), 3, stride=2, fold=fold)])
    for stage, (target, count) in enumerate(zip(widths, blocks, strict=True)):
        for block in range(count):
            stride = 2 if stage and not block else 1
            x = _basic_block(g, f"layer{stage + 1}.{block}", x, width, target, stride, fold)
            width = target
    g.head(x, width, classes)
    return g.model("residual_cnn", [tensor("image", [channels, image, image])], tensor("scores", [classes]))


def cnn(
    *, seed: int = 0, image: int = 16, channels: int = 1, widths: Sequence[int] = (32, 64), classes: int = 10
) -> onnx.ModelProto:
    """Convolutions that halve the image, without shortcuts: `image` to `scores` (N, classes)."""
    g = GraphBuilder(seed)
    x, width = "image", channels
    for index, target in enumerate(widths):
        x = g.node("Relu", [g.conv(f"conv{index + 1}", x, (width, target), 3, stride=2, norm=None)])
        width = target
    g.head(x, width, classes)
    return g.model("cnn", [tensor("image", [channels, image, image])], tensor("scores", [classes]))


def _resnet_stem(g: GraphBuilder, channels: int, fold: bool) -> str:
    x = g.node("Relu", [g.conv("conv1", "image", (channels, 64), 7, stride=2, fold=fold)])
    return g.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)


def _basic_block(
    g: GraphBuilder, name: str, x: str, source: int, target: int, stride: int, fold: bool
) -> str:
    """Two 3x3 convolutions beside a shortcut. The branch is damped, because the sum would grow with depth."""
    y = g.node("Relu", [g.conv(f"{name}.conv1", x, (source, target), 3, stride=stride, fold=fold)])
    y = g.conv(f"{name}.conv2", y, (target, target), 3, norm=0.4, fold=fold)
    if stride != 1 or source != target:
        x = g.conv(f"{name}.downsample", x, (source, target), 1, stride=stride, gain=1.0, fold=fold)
    return g.node("Relu", [g.node("Add", [y, x])])


# ----- everything else ------------------------------------------------------------------------


def transformer(
    *,
    seed: int = 0,
    layers: int = 6,
    width: int = 384,
    heads: int = 12,
    sequence: int | None = 128,
    vocabulary: int = 30522,
    embedded: bool = False,
) -> onnx.ModelProto:
    """A BERT-like encoder, by default of the size of MiniLM-L6. Answers `embedding` (N, width).

    Takes `ids` int64 (N, sequence) below ``vocabulary`` and `mask` int64 (1: a token, 0: padding), or where
    ``embedded`` is set, `embeddings` float32 (N, sequence, width). sequence: None for a symbolic length "S"
    (at most 512 ids).
    """
    if width % heads:
        raise ValueError(f"width {width} is not divisible by {heads} heads")
    g = GraphBuilder(seed)
    length: int | str = sequence or "S"
    scale = g.constant(1 / math.sqrt(width // heads))
    bias = ""
    if embedded:
        inputs = [tensor("embeddings", [length, width])]
        x = "embeddings"
        tokens = ""
    else:
        inputs = [tensor("ids", [length], TensorProto.INT64), tensor("mask", [length], TensorProto.INT64)]
        words = g.node("Gather", [g.weight("embeddings.word", g.normal((vocabulary, width), 1.0)), "ids"])
        places = g.weight("embeddings.position", g.normal((sequence or 512, width), 0.3))
        if sequence is None:
            end = g.node("Shape", ["ids"], start=1, end=2)
            places = g.node("Slice", [places, g.constant([0]), end])
        x = g.layer_norm("embeddings.norm", g.node("Add", [words, places]), width)
        tokens = g.node("Cast", ["mask"], to=TensorProto.FLOAT)
        absent = g.node("Sub", [g.constant(1), tokens])
        far = g.node("Mul", [absent, g.constant(-10000)])
        bias = g.node("Unsqueeze", [far, g.constant([1, 2])])
    for layer in range(layers):
        x = _encoder_layer(g, f"layer.{layer}", x, width, heads, scale, bias)
    if tokens:  # pool by a mean over tokens, without the padding
        kept = g.node("Unsqueeze", [tokens, g.constant([2])])
        total = g.node("ReduceSum", [g.node("Mul", [x, kept]), g.constant([1])], keepdims=0)
        count = g.node("ReduceSum", [kept, g.constant([1])], keepdims=0)
        g.node("Div", [total, g.node("Max", [count, g.constant(1)])], "embedding")
    else:
        g.node("ReduceMean", [x], "embedding", axes=[1], keepdims=0)
    return g.model("transformer", inputs, tensor("embedding", [width]))


def _encoder_layer(g: GraphBuilder, name: str, x: str, width: int, heads: int, scale: str, bias: str) -> str:
    split = g.constant([0, 0, heads, width // heads])

    def head(part: str, order: list[int]) -> str:
        y = g.node("Reshape", [g.linear(f"{name}.{part}", x, width, width), split])
        return g.node("Transpose", [y], perm=order)

    query, key = head("query", [0, 2, 1, 3]), head("key", [0, 2, 3, 1])
    value = head("value", [0, 2, 1, 3])
    scores = g.node("Mul", [g.node("MatMul", [query, key]), scale])
    if bias:
        scores = g.node("Add", [scores, bias])
    mixed = g.node("MatMul", [g.node("Softmax", [scores], axis=-1), value])
    merged = g.node("Reshape", [g.node("Transpose", [mixed], perm=[0, 2, 1, 3]), g.constant([0, 0, width])])
    x = g.layer_norm(
        f"{name}.norm1", g.node("Add", [x, g.linear(f"{name}.out", merged, width, width)]), width
    )
    y = g.linear(f"{name}.up", x, width, 4 * width)  # then GELU, as exporters wrote it before opset 20
    erf = g.node("Erf", [g.node("Div", [y, g.constant(math.sqrt(2))])])
    y = g.node("Mul", [y, g.node("Add", [erf, g.constant(1)])])
    y = g.node("Mul", [y, g.constant(0.5)])
    return g.layer_norm(
        f"{name}.norm2", g.node("Add", [x, g.linear(f"{name}.down", y, 4 * width, width)]), width
    )


def mlp(
    *, seed: int = 0, width: int = 512, depth: int = 3, inputs: int = 64, outputs: int = 10
) -> onnx.ModelProto:
    """``depth`` hidden layers of ``width``: `x` (N, inputs) to `y` (N, outputs)."""
    g = GraphBuilder(seed)
    x, source = "x", inputs
    for index in range(depth):
        x = g.node("Relu", [g.gemm(f"fc{index + 1}", x, source, width, gain=2.0)])
        source = width
    g.gemm("out", x, source, outputs, output="y")
    return g.model("mlp", [tensor("x", [inputs])], tensor("y", [outputs]))


def wide_mlp(*, seed: int = 0, width: int = 2880, depth: int = 4) -> onnx.ModelProto:
    """An MLP of about 100 MB, as large as a resnet50: `x` (N, 256) to `y` (N, 100)."""
    return mlp(seed=seed, width=width, depth=depth, inputs=256, outputs=100)


def null(*, seed: int = 0, width: int = 4) -> onnx.ModelProto:
    """The identity: `x` (N, width) to `y`; it has no weights, so every seed gives the same model."""
    g = GraphBuilder(seed)
    g.node("Identity", ["x"], "y")
    return g.model("null", [tensor("x", [width])], tensor("y", [width]))


def _digits(*, seed: int = 0) -> onnx.ModelProto:
    return fine_tune(digits(), seed) if seed else digits()


def small_family() -> list[Builder]:
    """Twenty small architectures of 0.5 to 4 MB: ten MLPs and ten CNNs, no two alike."""
    layers = [
        (320, 2),
        (256, 3),
        (384, 2),
        (256, 4),
        (448, 3),
        (512, 3),
        (384, 5),
        (640, 2),
        (768, 2),
        (512, 4),
    ]
    stacks: list[tuple[int, ...]] = [
        (64, 224), (64, 256), (32, 64, 256), (96, 288), (64, 128, 256),
        (128, 320), (64, 192, 288), (64, 128, 192, 256), (128, 448), (96, 192, 384),
    ]  # fmt: skip
    family: list[Builder] = [functools.partial(mlp, width=width, depth=depth) for width, depth in layers]
    family += [functools.partial(cnn, widths=widths) for widths in stacks]
    return family


ARCHITECTURES: Mapping[str, Builder] = {
    "digits": _digits,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "mobilenet_v2": mobilenet_v2,
    "transformer": transformer,
    "mlp": mlp,
    "wide_mlp": wide_mlp,
    "residual_cnn": residual_cnn,
    "cnn": cnn,
    "null": null,
}
