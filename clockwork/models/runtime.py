"""Run ONNX Runtime from Python: optimise a model, save it packed, run it to compare answers.

Only preparation uses this module; inference goes through a Device.
"""

from __future__ import annotations

import ctypes
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto

from clockwork.config import EXECUTION_GRACE_NS, preparation_run_ns
from clockwork.config.models import PREPARATION_LONG_RUN_NS
from clockwork.device._ort import without_source
from clockwork.device.operators import libraries_for
from clockwork.errors import InvalidModel
from clockwork.system.files import check_room
from clockwork.wire.packages import padded_strings
from clockwork.wire.tensors import INT2, UINT2, Array, decode_tensor, encode_array, tensor_bytes

SILENT = 4  # ONNX Runtime's severity "fatal": errors come as exceptions, not as lines on stderr

FOREVER_NS = 1 << 62

EXTERNAL_MIN_BYTES = 1024
"""Size below which tensors stay in the model file: external tensors prevent shape inference."""

_ELEMENT_TYPES = {
    "float": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int8": TensorProto.INT8,
    "uint16": TensorProto.UINT16, "int16": TensorProto.INT16, "int32": TensorProto.INT32,
    "int64": TensorProto.INT64, "string": TensorProto.STRING, "bool": TensorProto.BOOL,
    "float16": TensorProto.FLOAT16, "double": TensorProto.DOUBLE, "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64, "complex64": TensorProto.COMPLEX64, "complex128": TensorProto.COMPLEX128,
    "bfloat16": TensorProto.BFLOAT16, "float8e4m3fn": TensorProto.FLOAT8E4M3FN,
    "float8e4m3fnuz": TensorProto.FLOAT8E4M3FNUZ, "float8e5m2": TensorProto.FLOAT8E5M2,
    "float8e5m2fnuz": TensorProto.FLOAT8E5M2FNUZ, "uint4": TensorProto.UINT4, "int4": TensorProto.INT4,
    "float4e2m1": TensorProto.FLOAT4E2M1, "uint2": UINT2, "int2": INT2,
}  # fmt: skip


_GRAPH_CAPTURE, _NO_CAPTURE = "gpu_graph_id", "-1"  # ONNX Runtime's option of a run, and its value for none

_VALUE_DEPENDENT = ("ConstantSharing", "NoopElimination")
"""Optimisers that are switched off, because their result depends on the weights: models of equal architecture
would get different programs. The first merges small tensors of equal value; the second removes additions of 0
and products with 1."""


_UNWRITTEN = re.compile(r"Protobuf serialization failed|Failed to write|Failed to open file")
"""The texts in ONNX Runtime's messages about a file that it could not write. The first is also that about a
model beyond 2 GB."""


class RunError(Exception):
    """ONNX Runtime could not run a model on these inputs; the text is its message, in a single line."""


class RunsTooLong(InvalidModel):
    """An execution took longer than preparation_run_ns()."""

    def __init__(self) -> None:
        super().__init__(f"one execution of the model takes longer than {preparation_run_ns() / 1e9:g} s")


def on_long_run() -> None:
    """Called after PREPARATION_LONG_RUN_NS of an execution; replaced in the preparation process."""


def on_endless_run() -> None:
    """Called when a terminated execution does not end; in the preparation process, replaced to exit."""


class Limit:
    """A context that limits an execution to preparation_run_ns().

    After that time, a thread calls terminate(), and later on_endless_run() if the execution still runs. The
    context then raises RunsTooLong. Entering raises MemoryError if the thread cannot be started.
    """

    def __init__(self, terminate: Callable[[], None]) -> None:
        limit_ns = preparation_run_ns()
        long_ns = min(PREPARATION_LONG_RUN_NS, limit_ns)
        self._waits_ns = deque((long_ns, limit_ns - long_ns, EXECUTION_GRACE_NS))
        self._steps: deque[Callable[[], None]] = deque(
            (lambda: on_long_run(), self._end, lambda: on_endless_run())
        )
        self._terminate = terminate
        self._was_terminated = False
        self.due_ns = 0  # time of the next step

    def _end(self) -> None:
        self._was_terminated = True
        self._terminate()

    def advance(self, now_ns: int) -> None:
        """Take the steps that are due. Called with the watch's lock, so that none is taken after the
        execution."""
        while self._steps and now_ns >= self.due_ns:
            self._steps.popleft()()
            self.due_ns += self._waits_ns.popleft() if self._waits_ns else FOREVER_NS

    def __enter__(self) -> None:
        self.due_ns = time.monotonic_ns() + self._waits_ns.popleft()
        _WATCH.begin(self)

    def __exit__(self, *_: object) -> None:
        _WATCH.end(self)
        if self._was_terminated:
            raise RunsTooLong from None


class _Watch:
    """The thread that watches all limits. A thread for each execution would cost more than a small model's
    execution."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._limits: dict[int, Limit] = {}
        self._wakes_ns = 0  # time at which the thread looks again
        self._thread: threading.Thread | None = None

    def begin(self, limit: Limit) -> None:
        with self._changed:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="limit", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # the system has no memory for the thread's stack
                    raise MemoryError(str(error)) from None
                self._thread = thread
            self._limits[id(limit)] = limit
            if limit.due_ns < self._wakes_ns:
                self._changed.notify()

    def end(self, limit: Limit) -> None:
        with self._changed:
            del self._limits[id(limit)]

    def _run(self) -> None:
        with self._changed:
            while True:
                now_ns = time.monotonic_ns()
                for limit in list(self._limits.values()):
                    limit.advance(now_ns)
                # Also without a limit the thread wakes up now and then: to wake it for each would cost more.
                due = [limit.due_ns for limit in self._limits.values()]
                self._wakes_ns = min(due, default=now_ns + PREPARATION_LONG_RUN_NS)
                self._changed.wait((self._wakes_ns - now_ns) / 1e9)


_WATCH = _Watch()


class ModelSession:
    """A model that runs on a single thread of this process."""

    def __init__(
        self,
        model: Path | bytes,
        *,
        optimise: bool,
        save_to: Path | None = None,
        packed_data: str = "",
        external_data: str = "",
        portable: bool = False,
        libraries: Sequence[str] | None = None,
    ) -> None:
        """Raises RunError if ONNX Runtime rejects the model, and OSError if ``save_to`` cannot be written.

        libraries: of the model's operators; None: as libraries_for() finds them in the model.

        save_to: path to which the optimised model is written. packed_data: name of a file beside it for
        prepacked weights. external_data: name of a file beside it for weights that are not prepacked (for
        models near protobuf's 2 GB). portable: only optimisations with the same result on every machine.
        Constants are folded and operators merged, but no processor-specific layout is chosen.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = SILENT
        levels = ort.GraphOptimizationLevel
        if optimise:
            options.graph_optimization_level = levels.ORT_ENABLE_BASIC if portable else levels.ORT_ENABLE_ALL
        else:
            options.graph_optimization_level = levels.ORT_DISABLE_ALL
        if save_to is not None:
            options.optimized_model_filepath = str(save_to)
            name = packed_data or external_data
            if name:
                prefix = "session.optimized_model_external_initializers"
                options.add_session_config_entry(f"{prefix}_file_name", name)
                options.add_session_config_entry(f"{prefix}_min_size_in_bytes", str(EXTERNAL_MIN_BYTES))
            if packed_data:
                options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
        try:
            for library in libraries_for(model) if libraries is None else libraries:
                options.register_custom_ops_library(library)
            self.session = _session(model, options, save_to)
        except InvalidModel as error:
            raise RunError(str(error)) from None
        self.run_options = ort.RunOptions()
        self.run_options.log_severity_level = SILENT
        # Without a value, each run raises and catches an exception of C++ in search of it.
        self.run_options.add_run_config_entry(_GRAPH_CAPTURE, _NO_CAPTURE)
        self.inputs = [
            (tensor.name, _dtype(tensor.type), _shape(tensor.shape)) for tensor in self.session.get_inputs()
        ]
        self.outputs = [
            (output.name, _dtype(output.type), _shape(output.shape)) for output in self.session.get_outputs()
        ]

    def run(
        self, inputs: Sequence[Array], weights: Sequence[tuple[int, Sequence[int], int]] = ()
    ) -> list[Array]:
        """Return the outputs for inputs in the session's order. Raises RunError; RunsTooLong, after which the
        session is unusable.

        weights: (dtype, shape, address) of the inputs that follow; the caller owns the memory.
        """
        return self.bound(inputs, weights).run()

    def bound(
        self, inputs: Sequence[Array], weights: Sequence[tuple[int, Sequence[int], int]] = ()
    ) -> BoundRun:
        """Bind a run's inputs and weights, for any number of runs. Raises RunError. See run()."""
        return BoundRun(self, inputs, weights)

    def end(self) -> None:
        """End the run that is under way. The session is unusable from then on."""
        self.run_options.terminate = True

    def run_strings(
        self, inputs: Sequence[Array], weights: Sequence[tuple[int, Sequence[int], int]]
    ) -> list[Array]:
        """Run a model with inputs of strings, which cannot be bound."""
        feed: dict[str, Any] = {name: _feedable(array) for (name, _, _), array in zip(self.inputs, inputs)}
        for (name, _, _), (dtype, shape, address) in zip(self.inputs[len(inputs) :], weights):
            feed[name] = _memory(address, dtype, shape)
        return [np.asarray(output) for output in self.session.run(None, feed, self.run_options)]


def _session(model: Path | bytes, options: ort.SessionOptions, save_to: Path | None) -> ort.InferenceSession:
    """Return a session, whose model is written to ``save_to``. Raises RunError, OSError."""
    has_failed = False
    while True:
        try:
            return ort.InferenceSession(
                model if isinstance(model, bytes) else str(model),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=list(_VALUE_DEPENDENT),
            )
        except Exception as error:  # pybind11 raises one class per status, and RuntimeError
            if save_to is not None:
                check_room(save_to.parent)
            # Room that there is now may have been made by another preparation that failed at the same time.
            if save_to is None or has_failed or not _UNWRITTEN.search(str(error)):
                raise RunError(_one_line(error)) from None
            has_failed = True


class BoundRun:
    """A run of a session over memory that may change between runs: the caller owns that of weights."""

    def __init__(
        self,
        session: ModelSession,
        inputs: Sequence[Array],
        weights: Sequence[tuple[int, Sequence[int], int]],
    ) -> None:
        self._session = session
        self._strings: tuple[Any, ...] = ()
        if any(dtype == TensorProto.STRING for _, dtype, _ in session.inputs):
            self._strings = (inputs, weights)
            return
        self._held: list[Array] = []
        self._binding = session.session.io_binding()
        try:
            for (name, dtype, _), array in zip(session.inputs, inputs):
                _, dims, frame = encode_array(array)
                self._held.append(np.frombuffer(frame, np.uint8))
                self._binding.bind_input(name, "cpu", 0, dtype, dims, self._held[-1].ctypes.data)
            for (name, _, _), (dtype, shape, address) in zip(session.inputs[len(inputs) :], weights):
                self._binding.bind_input(name, "cpu", 0, dtype, list(shape), address)
        except Exception as error:  # pybind11 raises one class per status, and RuntimeError
            raise RunError(_one_line(error)) from None

    def run(self) -> list[Array]:
        """Return the outputs. Raises RunError; RunsTooLong, after which the session is unusable."""
        with Limit(self._session.end):
            return self._run()

    def _run(self) -> list[Array]:
        try:
            if self._strings:
                return self._session.run_strings(*self._strings)
            self._binding.clear_binding_outputs()
            for name, _, _ in self._session.outputs:
                self._binding.bind_output(name, "cpu")
            self._session.session.run_with_iobinding(self._binding, self._session.run_options)
            return [_from_value(value) for value in self._binding.get_outputs()]
        except RunError:
            raise
        except Exception as error:  # as above
            raise RunError(_one_line(error)) from None


def _feedable(array: Array) -> Array:
    """Convert strings given as bytes, of which ONNX Runtime's binding would take the repr()."""
    if array.dtype.kind != "O" or not any(isinstance(text, bytes) for text in array.flat):
        return array
    return padded_strings(array)


def optimise(model: Path, target: Path, external_data: str = "") -> ModelSession:
    """Write the optimised model to ``target``. Return a session with the original. Raises InvalidModel,
    OSError."""
    try:
        return ModelSession(model, optimise=True, save_to=target, external_data=external_data)
    except RunError as error:
        raise InvalidModel(explain(str(error), model.name)) from None


def explain(text: str, name: str) -> str:
    """Turn ONNX Runtime's message about a rejected model into a sentence for the user."""
    newer = re.search(
        r"Unsupported model IR version: (?P<found>\d+), max supported IR version: (?P<most>\d+)", text
    )
    if newer:
        return f"{name} has IR version {newer['found']}; ONNX Runtime takes up to {newer['most']}"
    lacking = re.search(r"Failed to construct locale with name:(?P<locale>[\w.@-]{1,64})", text)
    if lacking:
        locale = lacking["locale"]
        language, _, charset = locale.partition(".")
        return (
            f"{name} changes the case of strings by the locale {locale} (operator StringNormalizer), which is not installed on "
            f"the worker's machine: on Debian and Ubuntu, install the package locales and run "
            f"`localedef -i {language} -f {charset or 'UTF-8'} {locale}`"
        )
    for pattern in (
        r"Could not find an implementation for (?P<op>\S+?)\((?P<version>\d+)\)",
        r"(?P<op>\S+?)\((?P<version>-?\d+)\) is not a registered function/op",
        r"No [Oo]p registered for (?P<op>\S+) with domain_version of (?P<version>\d+)",
    ):
        found = re.search(pattern, text)
        if found:
            op, version = found["op"].replace(":", ".").lstrip("."), found["version"]
            of = f" (version {version})" if not version.startswith("-") else ""
            return f"{name} uses operator {op}{of}, which ONNX Runtime cannot execute here: {text}"
    return f"ONNX Runtime rejects {name}: {text}"


def _memory(address: int, dtype: int, shape: Sequence[int]) -> Array:
    """Return a copy of a tensor at an address."""
    size = tensor_bytes(dtype, shape)
    return decode_tensor(dtype, shape, ctypes.string_at(address, size) if size else b"")


def _from_value(value: Any) -> Array:
    if not value.is_tensor():
        raise RunError(f"an output is a {value.data_type()}, not a tensor")
    dtype = value.element_type()
    if dtype == TensorProto.STRING:
        return np.asarray(value.numpy())
    return _memory(value.data_ptr(), dtype, value.shape())


def _dtype(text: str) -> int:
    """Return the dtype code of a type such as "tensor(float)". Raises RunError for other types."""
    found = re.fullmatch(r"tensor\((\w+)\)", text)
    if not found or found[1] not in _ELEMENT_TYPES:
        raise RunError(f"type {text} is not a tensor")
    return int(_ELEMENT_TYPES[found[1]])


def _shape(dims: Sequence[int | str | None] | None) -> tuple[int | str, ...]:
    return tuple("" if dim is None else dim for dim in dims or ())


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return without_source(re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text))[:1000]
