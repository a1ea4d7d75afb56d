"""ONNX Runtime's side, in every configuration that a user would choose from: TensorFloat-32 on and off, CUDA
graphs, an fp16 model, TensorRT where it is installed.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from bench.gpu_peers.beside import Fails, Registrations
from bench.gpu_peers.ours import WARM_UP, Times
from clockwork.models.runtime import SILENT

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"


STREAM = "user_compute_stream"
"""The option of a provider: the stream on which it executes."""


class Peer(NamedTuple):
    """A configuration, and the dtype of Clockwork's products that it is compared with."""

    name: str
    dtype: str
    provider: str
    options: dict[str, str]
    is_half: bool = False  # runs the model converted to fp16, with fp32 inputs and outputs


NHWC = {"prefer_nhwc": "1", "enable_cuda_graph": "1"}
"""Convolutions in the layout that tensor cores want: faster for some networks."""

PEERS = (
    Peer("ONNX Runtime, use_tf32=0", "fp32", CUDA, {"use_tf32": "0"}),
    Peer("ONNX Runtime, use_tf32=0, CUDA graph", "fp32", CUDA, {"use_tf32": "0", "enable_cuda_graph": "1"}),
    Peer("ONNX Runtime, use_tf32=1 (its default)", "tf32", CUDA, {"use_tf32": "1"}),
    Peer("ONNX Runtime, use_tf32=1, CUDA graph", "tf32", CUDA, {"use_tf32": "1", "enable_cuda_graph": "1"}),
    Peer("ONNX Runtime, use_tf32=1, NHWC, CUDA graph", "tf32", CUDA, {"use_tf32": "1", **NHWC}),
    Peer("ONNX Runtime, fp16", "fp16", CUDA, {}, is_half=True),
    Peer("ONNX Runtime, fp16, CUDA graph", "fp16", CUDA, {"enable_cuda_graph": "1"}, is_half=True),
    Peer("ONNX Runtime, fp16, NHWC, CUDA graph", "fp16", CUDA, NHWC, is_half=True),
    Peer("TensorRT", "tf32", TENSORRT, {}),
    Peer("TensorRT, CUDA graph", "tf32", TENSORRT, {"trt_cuda_graph_enable": "True"}),
    Peer("TensorRT, fp16", "fp16", TENSORRT, {"trt_fp16_enable": "True"}),
    Peer(
        "TensorRT, fp16, CUDA graph",
        "fp16",
        TENSORRT,
        {"trt_fp16_enable": "True", "trt_cuda_graph_enable": "True"},
    ),
)
"""TensorRT's provider accepts only True and False; any other word leaves it out of a session."""

ON_A_CPU = (
    Peer("ONNX Runtime, CPU", "fp32", "CPUExecutionProvider", {}),
    Peer("ONNX Runtime, CPU, fp16", "fp16", "CPUExecutionProvider", {}, is_half=True),
)
"""A peer that shows, without a card, that the comparison works."""


REMEDIES = {
    CUDA: "pip install 'onnxruntime-gpu[cuda,cudnn]' in the place of onnxruntime",
    TENSORRT: "pip install 'tensorrt<11': onnxruntime-gpu 1.31 is linked with libnvinfer.so.10",
}


UNSYNCHRONISED = "disable_synchronize_execution_providers"
"""An entry of a run's options: the run returns once all is launched.

Otherwise the event behind it would be recorded only after ONNX Runtime has noticed the end and Python has
gone on, and would count that time as the card's.
"""

SAID_MAX = 300
"""Characters that are shown of an error of ONNX Runtime."""


def available(peers: Sequence[Peer]) -> tuple[list[Peer], list[str]]:
    """The peers whose provider works here, and a sentence for each provider that does not."""
    lacks = {
        provider: why for provider in sorted({peer.provider for peer in peers}) if (why := _why_not(provider))
    }
    return [peer for peer in peers if peer.provider not in lacks], list(lacks.values())


def _why_not(provider: str) -> str:
    """The reason why a provider cannot be used, in a sentence; "" if it can.

    onnxruntime-gpu also lists providers whose libraries are missing, and falls back when a session is made.
    """
    built_for = getattr(onnxruntime, "cuda_version", "")
    version = f"onnxruntime {onnxruntime.__version__}" + (f", for CUDA {built_for}," if built_for else "")
    remedy = f" ({REMEDIES[provider]})" if provider in REMEDIES else ""
    if provider not in onnxruntime.get_available_providers():
        return f"{version} has no {provider}{remedy}"
    if provider == TENSORRT:
        with contextlib.suppress(ImportError):
            importlib.import_module("tensorrt")  # importing tensorrt loads its libraries from pip's folder
    if provider in REMEDIES:
        onnxruntime.preload_dlls()  # also finds the libraries of CUDA and cuDNN there
    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    try:
        session = onnxruntime.InferenceSession(
            _tiny_model(), options, providers=[provider], enable_fallback=0
        )
    except Exception as error:  # pybind11 raises one class per status
        return f"{version} cannot use {provider}: {_short(error)}{remedy}"
    if session.get_providers()[0] != provider:
        return f"{version} cannot load {provider} or what that needs{remedy}"
    return ""


def _short(error: Exception) -> str:
    """The text of an error of ONNX Runtime, in one line."""
    return " ".join(str(error).split())[:SAID_MAX]


def _tiny_model() -> bytes:
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "tiny", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(model.SerializeToString())


class Side:
    """A session, with inputs and outputs bound on the card.

    Making it, and run(), raise Fails. On a card the session executes on a stream of CuPy's, so that the
    card's events time it as they time Clockwork.
    """

    def __init__(self, model: Path, peer: Peer, scratch: Path, profile: Path | None = None) -> None:
        self._path = _halved(model, scratch) if peer.is_half else model
        self._peer = peer
        self._device = "cpu" if peer.provider == "CPUExecutionProvider" else "cuda"
        self._cupy: Any = None
        options = dict(peer.options)
        if self._device == "cuda":
            import cupy

            self._cupy, self._stream = cupy, cupy.cuda.Stream(non_blocking=True)
            options[STREAM] = str(self._stream.ptr)
        self.session = self._open(options, profile)
        self._run_options = onnxruntime.RunOptions()
        self._run_options.add_run_config_entry(UNSYNCHRONISED, "1")

    def _open(self, given: Mapping[str, str], profile: Path | None = None) -> Any:
        """Open a session. given: options of the provider."""
        options = onnxruntime.SessionOptions()
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        # Nodes that the provider does not take are executed by CUDA, and the rest by the CPU, as in a user's
        # session.
        order = [(self._peer.provider, dict(given))]
        if self._peer.provider == TENSORRT:
            # The stream is the same; otherwise the events would not see the work of CUDA's provider.
            order.append((CUDA, {name: value for name, value in given.items() if name == STREAM}))
        try:
            session = onnxruntime.InferenceSession(
                str(self._path), options, providers=order, enable_fallback=0
            )
        except Exception as error:  # pybind11 raises one class per status
            raise Fails(f"{self._peer.name}: {_short(error)}") from None
        if session.get_providers()[0] != self._peer.provider:
            raise Fails(f"{self._peer.name}: ONNX Runtime fell back to {session.get_providers()}")
        return session

    def run(
        self, inputs: Sequence[np.ndarray], right: Sequence[np.ndarray], runs: int, beside: str = "alone"
    ) -> tuple[list[Any], Times]:
        """The answers, and the times of ``runs`` executions.

        right: expected outputs, for whose shapes and types memory is bound once, as a CUDA graph needs it.
        beside: "alone", or "registrations": sessions of the same file are made and dropped meanwhile, on a
        thread.
        """
        binding = self.session.io_binding()
        for spec, array in zip(self.session.get_inputs(), inputs, strict=True):
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array, self._device, 0)
            binding.bind_ortvalue_input(spec.name, value)
        for spec, array in zip(self.session.get_outputs(), right, strict=True):
            value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                array.shape, array.dtype, self._device, 0
            )
            binding.bind_ortvalue_output(spec.name, value)
        times = Times([], [])
        for _ in range(WARM_UP):
            self._run(binding, Times([], []))
        register = self._register if beside == "registrations" else None
        with Registrations(register, self._peer.name) as registering:
            while len(times.event) < runs or not registering.has_one:
                self._run(binding, times)
        return binding.copy_outputs_to_cpu(), times._replace(registered_s=registering.took_s)

    def _register(self) -> None:
        """Open and drop a session on streams of its own, as another model's session has them."""
        self._open(self._peer.options)

    def _run(self, binding: Any, times: Times) -> None:
        if self._cupy is not None:
            begin, end = self._cupy.cuda.Event(), self._cupy.cuda.Event()
        begin_ns = time.perf_counter_ns()
        if self._cupy is not None:
            begin.record(self._stream)
        try:
            self.session.run_with_iobinding(binding, self._run_options)
        except Exception as error:
            raise Fails(f"{self._peer.name}: {_short(error)}") from None
        if self._cupy is not None:
            end.record(self._stream)
            end.synchronize()
        times.host.append(time.perf_counter_ns() - begin_ns)
        if self._cupy is not None:
            times.event.append(round(self._cupy.cuda.get_elapsed_time(begin, end) * 1e6))
        else:
            times.event.append(times.host[-1])

    def kernels(
        self, inputs: Sequence[np.ndarray], right: Sequence[np.ndarray], batch: int, runs: int
    ) -> list[dict[str, Any]]:
        """The time of each node by the session's profile, the longest first. Needs a side with a profile."""
        self.run(inputs, right, runs)
        total: dict[str, float] = collections.defaultdict(float)
        for event in json.loads(Path(self.session.end_profiling()).read_text()):
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                total[event["name"].removesuffix("_kernel_time")] += event["dur"]
        count = WARM_UP + runs
        rows = [
            {"side": self._peer.name, "batch": batch, "kernel": name, "place": place, "us": us / count}
            for place, (name, us) in enumerate(total.items())
        ]
        return sorted(rows, key=lambda row: -row["us"])


def _halved(model: Path, scratch: Path) -> Path:
    """The model in fp16, by ONNX Runtime's own converter; inputs and outputs stay as they are."""
    from onnxruntime.transformers import float16

    path = scratch / f"{model.stem}-fp16.onnx"
    if not path.exists():
        onnx.save(float16.convert_float_to_float16(onnx.load(model), keep_io_types=True), path)
    return path
