"""Convert an ONNX graph to tinygrad's tensors, and find its constants, weights and 16-bit values.

Only the child process of clockwork.models.compile.lower imports this module.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, defs, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tinygrad import Tensor, dtypes
from tinygrad.dtype import DType
from tinygrad.engine.jit import JitError
from tinygrad.nn.onnx import (
    Domain,
    OnnxNode,
    OnnxRunner,
    OnnxValue,
    OpSetId,
    onnx_ops,
    required_input_python_consts,
)
from tinygrad.uop.ops import UOp

from clockwork.config.models import CONSTANT_INDICES_MAX, KNOWN_MAX
from clockwork.errors import ClockworkError, InvalidModel
from clockwork.models.compile.replaced import REPLACED
from clockwork.models.split import operator
from clockwork.wire.tensors import DTYPES, Array

DEVICE = "NULL"  # tinygrad's device without memory or execution


DTYPES_BY_CODE: dict[int, DType] = {
    1: dtypes.float32, 2: dtypes.uint8, 3: dtypes.int8, 4: dtypes.uint16, 5: dtypes.int16, 6: dtypes.int32,
    7: dtypes.int64, 9: dtypes.bool, 10: dtypes.float16, 11: dtypes.float64, 12: dtypes.uint32,
    13: dtypes.uint64, 16: dtypes.bfloat16,
}  # fmt: skip
"""The types that can be compiled: tinygrad's type by ONNX's code."""

CODES = {kind: code for code, kind in DTYPES_BY_CODE.items()}

_SUBGRAPHS = ("If", "Loop", "Scan", "SequenceMap")
"""Operators with a body, whose control flow depends on values."""


class Runner(OnnxRunner):
    """tinygrad's interpreter, fed from a parsed file: its own reader needs a device for constants."""

    def __init__(self, model: onnx.ModelProto, directory: Path, half: bool) -> None:
        """half: operands of matrix products are float16, and values that become operands are stored as
        float16."""
        graph = model.graph
        self._arrays = {
            initializer.name: numpy_helper.to_array(initializer, str(directory))
            for initializer in graph.initializer
        }
        self.weights: dict[UOp, str] = {}  # buffer: initializer
        opsets = {opset.domain or Domain.ONNX.value: opset.version for opset in model.opset_import}
        body = {
            "initializer": [
                {"name": name, "parsed_tensor": self._tensor(name, array)}
                for name, array in self._arrays.items()
            ],
            "input": [
                {"name": declared.name, "parsed_type": _declared(declared)}
                for declared in graph.input
                if declared.name not in self._arrays
            ],
            "output": [{"name": declared.name} for declared in graph.output],
            "node": [{"parsed_node": self._node(node, opsets)} for node in graph.node],
        }
        self._init_from_graph(body)
        read_as_values: set[str] = set()
        for node in reversed(self.graph_nodes):
            if node.op == "Cast" and read_as_values.intersection(node.outputs):
                read_as_values.update(node.inputs)
            read_as_values.update(
                name
                for at, name in enumerate(node.inputs)
                if at in required_input_python_consts.get(node.op, ())
            )
        self._known = {
            name: array
            for name, array in self._arrays.items()
            if array.size <= KNOWN_MAX
            and (array.dtype.kind in "iub" or array.shape == () or name in read_as_values)
        }
        for name, array in self._arrays.items():
            if name in read_as_values or name in self._known:
                self._python_const_cache[name] = (
                    array.tobytes() if array.dtype == np.uint8 else array.tolist()
                )
        self._halved = _operands(graph.node) if half else set()

    def _tensor(self, name: str, array: Array) -> Tensor:
        """Return an initializer's tensor. Scalars become constants in kernels; others are weights."""
        kind = DTYPES_BY_CODE.get(helper.np_dtype_to_tensor_dtype(array.dtype))
        if kind is None:
            raise InvalidModel(f"constant {name!r} is {array.dtype}, which cannot be compiled")
        if array.shape == () and kind is not dtypes.bfloat16:
            return Tensor(array.item(), dtype=kind, device=DEVICE)
        made = Tensor.empty(*array.shape, dtype=kind, device=DEVICE).realize()
        if array.size:
            self.weights[made.uop.base] = name
        return made

    def _node(self, node: onnx.NodeProto, opsets: dict[str, int]) -> OnnxNode:
        domain = Domain.from_onnx(node.domain)
        return OnnxNode(
            node.op_type,
            OpSetId(domain, opsets.get(domain.value, 1)),
            tuple(node.input),
            tuple(node.output),
            {attribute.name: self._attribute(attribute, node) for attribute in node.attribute},
        )

    def _attribute(self, attribute: AttributeProto, node: onnx.NodeProto) -> Any:
        value = helper.get_attribute_value(attribute)
        match attribute.type:
            case AttributeProto.STRING:
                return value.decode()
            case AttributeProto.STRINGS:
                return tuple(name.decode() for name in value)
            case AttributeProto.TENSOR:
                array = numpy_helper.to_array(value)
                if array.size == 1:
                    return self._tensor("", array.reshape(())).reshape(array.shape)
                name = f"{attribute.name} of {node.output[0]}"
                self._arrays[name] = array
                return self._tensor(name, array)
            case AttributeProto.INTS | AttributeProto.FLOATS:
                return tuple(value)
            case _:
                return value

    def data(self, buffer: UOp) -> Array:
        return self._arrays[self.weights[buffer]]

    def run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs by name, not yet computed. Raises InvalidModel for an unsupported operator."""
        values = self.graph_values
        values.update(inputs)
        for name in sorted(self._halved & {*inputs, *self._arrays}):
            value = values[name]
            if value.dtype == dtypes.float32:
                values[name] = value.cast(dtypes.float16)
                if name in self._arrays:
                    values[name] = values[name].contiguous()  # no cast at every inference
        for node in self.graph_nodes:
            try:
                results = self._run_node(node)
            except ClockworkError:
                raise
            except JitError:  # the implementation reads a tensor's values
                raise InvalidModel(
                    f"operator {node.op} cannot be compiled here: a value that decides its result's shape is "
                    "only known when it runs"
                ) from None
            except Exception as error:  # implementations of operators raise errors of many types
                text = " ".join(str(error).split())[:200] or type(error).__name__
                raise InvalidModel(f"operator {node.op} cannot be compiled: {text}") from error
            values.update(zip(node.outputs, results, strict=False))
        return {name: values[name] for name in self.graph_outputs}

    def _evaluate(self, node: OnnxNode) -> list[Array] | None:
        """Return the results of a node that computes shapes; None for other nodes.

        With fixed shapes, ONNX Runtime has folded most of these nodes already.
        """
        source = self.graph_values.get(node.inputs[0]) if node.inputs else None
        if node.op == "Shape" and isinstance(source, Tensor):
            shape = np.array(source.shape, np.int64)
            return [shape[slice(node.opts.get("start", 0), node.opts.get("end"))]]
        if node.op == "Size" and isinstance(source, Tensor):
            return [np.array(source.numel(), np.int64)]
        if node.op not in _COUNTING or not all(name in self._known for name in node.inputs if name):
            return None
        options = {name: option for name, option in node.opts.items() if not isinstance(option, Tensor)}
        if len(options) < len(node.opts):
            return None
        proto = helper.make_node(node.op, list(node.inputs), list(node.outputs), **options)
        values = {name: self._known[name] for name in node.inputs if name}
        found = ReferenceEvaluator(proto, opsets={"": node.opset_id.version}).run(None, values)
        results = [np.asarray(result) for result in found]
        return results if all(result.size <= KNOWN_MAX for result in results) else None

    def _run_node(self, node: OnnxNode) -> tuple[Any, ...]:
        evaluated = self._evaluate(node)
        if evaluated is not None:
            for name, array in zip(node.outputs, evaluated, strict=True):
                self._known[name] = array
                self._python_const_cache[name] = array.tolist()
            return tuple(Tensor(array.tolist(), dtype=_dtype(array), device=DEVICE) for array in evaluated)
        arguments = [self._get_python_const(name, node.op, at) for at, name in enumerate(node.inputs)]
        options = dict(node.opts)
        if node.op == "Split" and "num_outputs" not in options:
            options["num_outputs"] = len(node.outputs)
        if node.op == "Gather" and node.inputs[1] in self._known:
            indices = self._known[node.inputs[1]]
            if indices.ndim <= 1 and indices.size <= CONSTANT_INDICES_MAX:
                arguments[1] = indices.tolist()
        if self._halved and node.op not in _MATRIX and node.op not in _MOVING:
            arguments = [
                argument.cast(dtypes.float32)
                if isinstance(argument, Tensor) and argument.dtype == dtypes.float16
                else argument
                for argument in arguments
            ]
        implementation = self._select_op(node.op, node.opset_id)
        options = _without_defaults(node, options, implementation)
        if unknown := _unknown(options, implementation):
            raise InvalidModel(f"operator {node.op} cannot be compiled with attribute {', '.join(unknown)}")
        if node.op in REPLACED:
            implementation = REPLACED[node.op](implementation)
        found = implementation(*arguments, **options)
        results = found if isinstance(found, tuple) else (found,)
        results = tuple(
            Tensor(result, dtype=dtypes.int64, device=DEVICE) if isinstance(result, int) else result
            for result in results
        )
        return tuple(
            result.cast(dtypes.float16)
            if name in self._halved and isinstance(result, Tensor) and result.dtype == dtypes.float32
            else result
            for name, result in zip(node.outputs, results, strict=False)
        )


def _unknown(options: Collection[str], implementation: Callable[..., Any]) -> list[str]:
    """Return the attributes for which tinygrad's implementation has no parameter."""
    known = inspect.signature(implementation).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return []
    return sorted(name for name in options if name not in known)


def _without_defaults(
    node: OnnxNode, options: dict[str, Any], implementation: Callable[..., Any]
) -> dict[str, Any]:
    """Return the attributes, less those with default values that the implementation does not know."""
    known = inspect.signature(implementation).parameters
    if not _unknown(options, implementation):
        return options
    try:
        schema = defs.get_schema(node.op, node.opset_id.version, "")
    except defs.SchemaError:
        return options
    defaults = {
        name: helper.get_attribute_value(attribute.default_value)
        for name, attribute in schema.attributes.items()
        if attribute.default_value.name
    }
    return {
        name: given
        for name, given in options.items()
        if name in known
        or name not in defaults
        or given != (defaults[name].decode() if isinstance(defaults[name], bytes) else defaults[name])
    }


def _dtype(array: Array) -> DType:
    return DTYPES_BY_CODE[helper.np_dtype_to_tensor_dtype(array.dtype)]


_COUNTING = (
    "Add", "Cast", "Ceil", "Concat", "Div", "Equal", "Floor", "Gather", "Greater", "Identity", "Less", "Max", "Min",
    "Mod", "Mul", "Neg", "Range", "ReduceProd", "ReduceSum", "Reshape", "Slice", "Squeeze", "Sub", "Unsqueeze",
    "Where",
)  # fmt: skip
"""Operators by which exporters compute shapes."""

_MATRIX = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that are matrix products of their first two inputs."""

_MOVING = (
    "Concat", "Expand", "Flatten", "GlobalMaxPool", "Identity", "MaxPool", "Relu", "Reshape", "Slice", "Split",
    "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
"""Operators whose results are elements of their first input. Rounding may come before or after them."""


def _operands(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    """Return the values that are operands of matrix products, directly or after being moved."""
    found: set[str] = set()
    for node in reversed(nodes):
        if node.op_type in _MATRIX:
            found.update(node.input[:2])
        elif node.op_type in _MOVING and found.intersection(node.output):
            found.update(node.input if node.op_type == "Concat" else node.input[:1])
    return found


def use_half() -> None:
    """Make every matrix product of this process take float16 operands and accumulate in float32."""

    def halved(tensor: Tensor) -> Tensor:
        return tensor.cast(dtypes.float16) if tensor.dtype == dtypes.float32 else tensor

    def product(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(self: Tensor, other: Tensor, *args: Any, **options: Any) -> Tensor:
            if self.dtype in (dtypes.float32, dtypes.float16):
                self, other = halved(self), halved(other)
                options["dtype"] = dtypes.float32
            return original(self, other, *args, **options)

        return run

    Tensor.conv2d = product(Tensor.conv2d)
    Tensor.dot = product(Tensor.dot)


def _declared(value: onnx.ValueInfoProto) -> OnnxValue:
    kind = value.type.tensor_type
    dtype = DTYPES_BY_CODE.get(kind.elem_type)
    if dtype is None:
        name = DTYPES[kind.elem_type].name if kind.elem_type in DTYPES else str(kind.elem_type)
        raise InvalidModel(f"input {value.name!r} is {name}, which cannot be compiled")
    return OnnxValue(tuple(dim.dim_value for dim in kind.shape.dim), dtype, False, False)


def check_operators(model: onnx.ModelProto) -> None:
    """Raise InvalidModel if operators cannot be compiled; the text names all of them."""
    domains = {domain.value for domain in Domain} | {""}
    unknown: dict[str, None] = {}
    for node in model.graph.node:
        if node.op_type not in onnx_ops or node.domain not in domains or node.op_type in _SUBGRAPHS:
            unknown.setdefault(operator(node))
    if unknown:
        raise InvalidModel(f"cannot be compiled: no kernels are known for {', '.join(unknown)}")
