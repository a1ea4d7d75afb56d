"""Split an optimised model into its program and its weights.

Weights leave the graph and become its inputs, after the model's own inputs. Constants that operators need as
constants (shapes, axes, scalars) stay in the program. The program is written canonically: nodes in the order
in which the outputs need them, values named by that order, and no names, documentation or metadata of the
exporter. Models of the same architecture then give the same bytes.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from clockwork.models.onnx_import import (
    bodies_of,
    external_entry,
    is_external,
    nodes_within,
    read_model,
    tensor_bytes,
)
from clockwork.wire.packages import external_path
from clockwork.wire.tensors import DTYPES

SMALL_INTEGERS = 64
"""Largest number of elements of integer and boolean tensors that count as shapes or axes, and stay."""

_FLOATS = ("FLOAT", "DOUBLE", "BFLOAT", "COMPLEX")
_NARROW = ("INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2", "INT16", "UINT16")
_WEIGHT_TYPES = frozenset(
    code for name, code in TensorProto.DataType.items() if name.startswith(_FLOATS) or name in _NARROW
)  # fmt: skip

_CONSTANT_INPUTS: dict[str, frozenset[int]] = {
    name: frozenset(positions)
    for name, positions in {
        "AffineGrid": (1,), "BlackmanWindow": (0,), "CenterCropPad": (1,), "Clip": (1, 2), "Col2Im": (1, 2),
        "ConstantOfShape": (0,), "CumSum": (1,), "DFT": (1, 2), "Dropout": (1, 2), "Expand": (1,),
        "HammingWindow": (0,), "HannWindow": (0,), "Loop": (0, 1), "MaxUnpool": (2,),
        "MelWeightMatrix": (0, 1, 2, 3, 4), "NonMaxSuppression": (2, 3, 4), "OneHot": (1,), "Pad": (1, 2, 3),
        "Range": (0, 1, 2), "Reshape": (1,), "Resize": (1, 2, 3), "STFT": (1, 3), "Slice": (1, 2, 3, 4),
        "Split": (1,), "SplitToSequence": (1,), "Squeeze": (1,), "Tile": (1,), "TopK": (1,), "Trilu": (1,),
        "Unsqueeze": (1,), "Upsample": (1,),
        "ReduceL1": (1,), "ReduceL2": (1,), "ReduceLogSum": (1,), "ReduceLogSumExp": (1,), "ReduceMax": (1,),
        "ReduceMean": (1,), "ReduceMin": (1,), "ReduceProd": (1,), "ReduceSum": (1,), "ReduceSumSquare": (1,),
    }.items()
}  # fmt: skip
"""By operator: positions of inputs that must be constants, or with which the operator is much faster."""

_QUANTISED = (
    "QLinear",
    "QGemm",
    "QAttention",
    "ConvInteger",
    "MatMulInteger",
    "DequantizeLinear",
    "DynamicQ",
)
"""Prefixes of operators whose small 32-bit integers are biases, not shapes."""


_STATISTICS = (3, 4)  # Positions of the running mean and variance among the inputs of BatchNormalization


def _is_written(node: NodeProto, position: int) -> bool:
    """Whether an execution of the operator writes to this input.

    ONNX Runtime updates running statistics in place, also those that a caller binds. Memory of weights is
    read-only, and shared by executions.
    """
    return (
        node.op_type == "BatchNormalization"
        and position in _STATISTICS
        and any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
    )


@dataclasses.dataclass(slots=True)
class ModelConstant:
    """A constant of the model: an initializer or a Constant node, in the main graph or a body."""

    tensor: TensorProto  # the tensor's data may be external
    directory: Path
    uses: list[tuple[NodeProto, int]]  # operator and input position
    is_sparse: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.dims)

    @property
    def size(self) -> int:
        return tensor_bytes(self.tensor.data_type, self.tensor.dims)

    def data(self) -> bytes | memoryview:
        """The elements as ONNX Runtime holds them in memory."""
        tensor = self.tensor
        if is_external(tensor):
            location, offset, _ = external_entry(tensor)
            with open(external_path(self.directory, location), "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return memoryview(mapped)[offset : offset + self.size]
        if tensor.HasField("raw_data"):
            return tensor.raw_data
        if DTYPES[tensor.data_type].bits < 8:
            return np.asarray(tensor.int32_data, dtype=np.uint8).tobytes()
        return numpy_helper.to_array(tensor).tobytes()

    def is_weight(self) -> bool:
        """Whether the constant is a weight, which leaves the graph. Other constants stay in it."""
        tensor = self.tensor
        kind = tensor.data_type
        if self.is_sparse or kind in (TensorProto.STRING, TensorProto.UNDEFINED) or not tensor.dims:
            return False
        count = math.prod(tensor.dims)
        if count == 0 or any(at in _CONSTANT_INPUTS.get(node.op_type, ()) for node, at in self.uses):
            return False
        if any(_is_written(node, at) for node, at in self.uses):
            return False
        if kind in _WEIGHT_TYPES or count > SMALL_INTEGERS:
            return True
        return kind == TensorProto.INT32 and any(node.op_type.startswith(_QUANTISED) for node, _ in self.uses)


@dataclasses.dataclass(slots=True)
class SplitModel:
    """The result of a split."""

    model: bytes  # the program as a canonical ONNX file
    weights: list[ModelConstant]  # weights in the order of the inputs that follow the model's own
    kept: list[ModelConstant]  # weights that had to stay inside the program

    @property
    def weights_bytes(self) -> int:
        return sum(constant.size for constant in self.weights)

    @property
    def kept_bytes(self) -> int:
        return sum(constant.size for constant in self.kept)


class Splitter:
    """An optimised model, read once, from which programs with different weights in the graph are made."""

    def __init__(self, path: Path) -> None:
        """path: an ONNX file saved by ONNX Runtime, with its external data beside it."""
        self._directory = path.parent
        self._model = read_model(path)
        self._shape_symbols: dict[str, str] = {}
        self._constants: dict[str, ModelConstant] = {}  # weights by unique name
        self._count = 0
        graph = self._model.graph
        self._graph = self._canonical(graph, {}, "x")
        for constant in self._constants.values():
            constant.uses.clear()
        self._find_uses(self._graph)

    @property
    def weights(self) -> list[ModelConstant]:
        return [constant for constant in self._constants.values() if constant.is_weight()]

    def weight_users(self) -> list[str]:
        """Return the distinct operators that read weights, in order of first use."""
        users: dict[str, None] = {}
        for constant in self.weights:
            for node, _ in constant.uses:
                users.setdefault(operator(node))
        return list(users)

    def operators(self) -> list[str]:
        """Return the distinct operators of the model."""
        return list(dict.fromkeys(operator(node) for node in nodes_within(self._graph.node)))

    def program(self, keep: Callable[[ModelConstant], bool] = lambda constant: False) -> SplitModel:
        """Make a program in whose graph those weights stay for which ``keep`` is true."""
        leaving: dict[str, ModelConstant] = {}
        kept: list[ModelConstant] = []
        for name, constant in self._constants.items():
            if constant.is_weight():
                if keep(constant):
                    kept.append(constant)
                else:
                    leaving[name] = constant
        model = onnx.ModelProto(ir_version=self._model.ir_version)
        model.graph.CopyFrom(self._graph)
        self._restore(model.graph, leaving)
        for name, constant in leaving.items():
            model.graph.input.append(
                helper.make_tensor_value_info(name, constant.tensor.data_type, constant.shape)
            )
        used = {node.domain for node in nodes_within(model.graph.node)} | {""}
        for opset in sorted(self._model.opset_import, key=lambda opset: opset.domain):
            if opset.domain in used:
                model.opset_import.append(helper.make_opsetid(opset.domain, opset.version))
        return SplitModel(model.SerializeToString(deterministic=True), list(leaving.values()), kept)

    def keeping(self, operators: Sequence[str]) -> SplitModel:
        """Make a program in whose graph the weights of these operators stay."""
        wanted = set(operators)
        return self.program(lambda constant: any(operator(node) in wanted for node, _ in constant.uses))

    # ----- splitting -------------------------------------------------------------------------

    def _name(self) -> str:
        self._count += 1
        return f"v{self._count}"

    def _canonical(self, graph: GraphProto, outer: Mapping[str, str], inputs: str = "") -> GraphProto:
        """Copy a graph without constants, with canonical order and names. outer: names around the graph."""
        result = GraphProto(name="g")
        names = dict(outer)
        constants: dict[str, ModelConstant] = {}
        for tensor in graph.initializer:
            constants[tensor.name] = ModelConstant(tensor, self._directory, [])
        for sparse in graph.sparse_initializer:
            tensor = TensorProto(name=sparse.values.name, data_type=sparse.values.data_type, dims=sparse.dims)
            constants[tensor.name] = ModelConstant(tensor, self._directory, [], is_sparse=True)
            copy = result.sparse_initializer.add()
            copy.CopyFrom(sparse)
        nodes: list[NodeProto] = []
        for node in graph.node:
            if (held := constant_tensor(node)) is not None:
                constants[node.output[0]] = ModelConstant(held, self._directory, [])
            else:
                nodes.append(node)
        for index, value in enumerate(declared for declared in graph.input if declared.name not in constants):
            names[value.name] = f"{inputs}{index}" if inputs else self._name()
            result.input.append(self._value(value, names[value.name]))
        producers = {name: node for node in nodes for name in node.output if name}
        local = set(producers) | set(constants)

        def define(name: str) -> str:
            """Return the canonical name of a value that is read. Constants are named at their first use."""
            if name in constants and name in local:
                local.discard(name)
                names[name] = self._name()
                self._constants[names[name]] = constants[name]
            return names[name]

        for node in in_order([value.name for value in graph.output], producers):
            copy_node = NodeProto(
                op_type=node.op_type, domain="" if node.domain == "ai.onnx" else node.domain
            )
            for name in node.input:
                copy_node.input.append(define(name) if name else "")
            for attribute in sorted(node.attribute, key=lambda attribute: attribute.name):
                # A body sees every value that was defined before it, and constants by name.
                for name in captured_by(attribute):
                    if name in local and name in constants:
                        define(name)
                copy_node.attribute.append(self._attribute(attribute, names))
            for name in node.output:
                if name:
                    names[name] = self._name()
                copy_node.output.append(names[name] if name else "")
            result.node.append(copy_node)
        for value in graph.output:
            name = define(value.name)
            if value.name in constants or (inputs and value.name not in producers):
                # A weight that becomes an input cannot be the graph's output directly.
                target = self._name()
                result.node.append(NodeProto(op_type="Identity", input=[name], output=[target]))
                name = target
            result.output.append(self._value(value, name))
        for copy in list(result.sparse_initializer):
            if copy.values.name in names and names[copy.values.name] in self._constants:
                copy.values.name = names[copy.values.name]
            else:
                result.sparse_initializer.remove(copy)
        # A placeholder for each constant, by name. _restore() fills the placeholders of constants that stay.
        for name in constants:
            if name not in local and not constants[name].is_sparse:
                result.initializer.append(TensorProto(name=names[name]))
        return result

    def _attribute(self, attribute: AttributeProto, names: Mapping[str, str]) -> AttributeProto:
        copy = AttributeProto()
        copy.CopyFrom(attribute)
        copy.doc_string = ""
        if attribute.HasField("g"):
            copy.g.CopyFrom(self._canonical(attribute.g, names))
        for index, body in enumerate(attribute.graphs):
            copy.graphs[index].CopyFrom(self._canonical(body, names))
        if attribute.HasField("t"):
            copy.t.name = copy.t.doc_string = ""
        return copy

    def _value(self, value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
        copy = onnx.ValueInfoProto(name=name)
        copy.type.CopyFrom(value.type)
        if copy.type.HasField("tensor_type"):
            for dim in copy.type.tensor_type.shape.dim:
                dim.ClearField("denotation")
                if dim.HasField("dim_param"):
                    symbols = self._shape_symbols
                    dim.dim_param = symbols.setdefault(dim.dim_param, f"d{len(symbols)}")
        copy.type.ClearField("denotation")
        return copy

    def _find_uses(self, graph: GraphProto) -> None:
        for node in nodes_within(graph.node):
            for position, name in enumerate(node.input):
                if name in self._constants:
                    self._constants[name].uses.append((node, position))

    def _restore(self, graph: GraphProto, leaving: Mapping[str, ModelConstant]) -> None:
        """Put the constants that stay back into the copy of their graph."""
        staying = [marker.name for marker in graph.initializer if marker.name not in leaving]
        del graph.initializer[:]
        for name in sorted(staying, key=lambda name: int(name[1:])):
            constant = self._constants[name]
            tensor = graph.initializer.add(name=name, data_type=constant.tensor.data_type)
            tensor.dims.extend(constant.tensor.dims)
            if tensor.data_type == TensorProto.STRING:
                tensor.string_data.extend(constant.tensor.string_data)
            else:
                tensor.raw_data = bytes(constant.data())
        for node in graph.node:
            for attribute in node.attribute:
                for body in bodies_of(attribute):
                    self._restore(body, leaving)


def operator(node: NodeProto) -> str:
    """Return the usual name of an operator: Conv, com.microsoft.FusedConv."""
    return f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type)


def constant_tensor(node: NodeProto) -> TensorProto | None:
    """Return the tensor of a Constant node with a dense tensor or numbers; None for other nodes."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    name = node.output[0]
    match attribute.name:
        case "value":
            tensor: TensorProto = attribute.t
            return tensor
        case "value_float":
            return helper.make_tensor(name, TensorProto.FLOAT, [], [attribute.f])
        case "value_floats":
            return helper.make_tensor(name, TensorProto.FLOAT, [len(attribute.floats)], attribute.floats)
        case "value_int":
            return helper.make_tensor(name, TensorProto.INT64, [], [attribute.i])
        case "value_ints":
            return helper.make_tensor(name, TensorProto.INT64, [len(attribute.ints)], attribute.ints)
        case _:
            return None


def captured_by(attribute: AttributeProto) -> Iterable[str]:
    """Return the names in enclosing graphs that an attribute's bodies read, in order of first use."""
    if not attribute.HasField("g") and not attribute.graphs:
        return ()
    found: dict[str, None] = {}

    def walk(graph: GraphProto, inner: frozenset[str]) -> None:
        own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        own |= {tensor.values.name for tensor in graph.sparse_initializer}
        for node in graph.node:
            own.update(node.output)
        scope = inner | own
        for node in graph.node:
            for name in node.input:
                if name and name not in scope:
                    found.setdefault(name)
            for attribute in node.attribute:
                for body in bodies_of(attribute):
                    walk(body, scope)
        for value in graph.output:
            if value.name not in scope:
                found.setdefault(value.name)

    for body in bodies_of(attribute):
        walk(body, frozenset())
    return found


def in_order(outputs: Iterable[str], producers: Mapping[str, NodeProto]) -> list[NodeProto]:
    """Return the nodes that the outputs need, each after the nodes whose outputs it reads.

    The order is depth first, with inputs in order. It depends on the computation alone, not on the order in
    the file.
    """
    ordered: list[NodeProto] = []
    done: set[int] = set()

    def reads(node: NodeProto) -> list[str]:
        names = [name for name in node.input if name]
        for attribute in sorted(node.attribute, key=lambda attribute: attribute.name):
            names.extend(captured_by(attribute))
        return names

    for output in outputs:
        stack: list[tuple[NodeProto, Iterator[str]]] = []
        root = producers.get(output)
        if root is not None and id(root) not in done:
            done.add(id(root))
            stack.append((root, iter(reads(root))))
        while stack:
            node, names = stack[-1]
            for name in names:
                child = producers.get(name)
                if child is not None and id(child) not in done:
                    done.add(id(child))
                    stack.append((child, iter(reads(child))))
                    break
            else:
                ordered.append(node)
                stack.pop()
    return ordered
