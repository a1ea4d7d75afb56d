"""The conformance suite's interface to a device: how to make a device, and how to prepare a model for it.

Prepared directories are written by hand here, so that a device is tested against the format and not against
the pipeline that usually writes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from clockwork.device.base import Completion, TensorView
from clockwork.device.cpu import CpuArena
from clockwork.device.emulated import EmulatedDevice, EmulatedGroup
from clockwork.device.machine import ArenaPlace
from clockwork.formats.prepared import (
    FORMAT_VERSION,
    PACKED_DATA_FILE,
    PACKED_FILE,
    PROGRAM_FILE,
    WEIGHTS_FILE,
    PreparedModel,
    TensorSpec,
    WeightSpec,
    program_name,
)
from clockwork.models.layout import lay_out, write_weights
from clockwork.scheduler.types import ProfilePoint
from clockwork.system.clock import SECOND, now_ns
from clockwork.wire.messages import NEVER_NS, HostDrop, HostFetch, Infer, Load, Profile, Unload
from clockwork.wire.tensors import DTYPES
from tests.patience import PATIENCE_NS, readable

PAGE_BYTES = 65_536
STEP_NS = 20_000


@dataclasses.dataclass
class Case:
    """A model with its weights as initializers, and whether it batches."""

    model: onnx.ModelProto
    batches: bool = True


def case(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, Sequence[Any]]],
    outputs: Mapping[str, tuple[int, Sequence[Any] | None]],
    weights: Mapping[str, np.ndarray] | None = None,
    batches: bool = True,
    opset: int = 21,
) -> Case:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return Case(helper.make_model(graph, opset_imports=opsets, ir_version=13 if opset > 21 else 10), batches)


class CpuRig:
    """The CPU device."""

    kind = "cpu"
    lane = "cw-execute"  # the name of the thread that executes
    computes = True
    strings = True
    brings_inputs_early = False

    def __init__(self, store: Path) -> None:
        self.store = store
        self.count = 0

    def make(self, pages: int = 32, **options: Any) -> Any:
        (device,) = CpuArena(pages * PAGE_BYTES, PAGE_BYTES, **options).devices
        self.fingerprint = device.info.fingerprint
        return device

    def check_released(self) -> None:
        """Check resources other than threads and files once every device is closed."""

    def build(self, one: Case, holding: str = "bound") -> str:
        """Write the directories that the device's open() reads; return the model's."""
        model = onnx.ModelProto()
        model.CopyFrom(one.model)
        graph = model.graph
        arrays = [numpy_helper.to_array(weight) for weight in graph.initializer]
        inputs, outputs = _specs(graph.input), _specs(graph.output)
        layout = lay_out([array.nbytes for array in arrays], PAGE_BYTES)
        self.count += 1
        place = self.store / "prepared" / f"{self.count:04d}-{self.fingerprint}"
        place.mkdir(parents=True)
        weights: list[WeightSpec] = []
        program = ""
        if holding == "packed":
            _write_packed(model, place)
        else:
            for array, proto, (run, offset) in zip(arrays, graph.initializer, layout.places):
                graph.input.append(helper.make_tensor_value_info(proto.name, proto.data_type, array.shape))
                weights.append(WeightSpec(proto.data_type, array.shape, run, offset, array.nbytes))
            del graph.initializer[:]
            body = model.SerializeToString()
            program = program_name(body, self.fingerprint)
            path = self.store / "programs" / program / PROGRAM_FILE
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
            if arrays:
                write_weights(
                    place / WEIGHTS_FILE, layout, [np.ascontiguousarray(one) for one in arrays], PAGE_BYTES
                )
        prepared = PreparedModel(
            format_version=FORMAT_VERSION,
            digest=place.name,
            fingerprint=self.fingerprint,
            program=program,
            holding=holding if arrays else "none",
            inputs=inputs,
            outputs=outputs,
            batches=one.batches,
            batching_note="",
            batch_max=8,
            page_bytes=PAGE_BYTES,
            runs=layout.runs,
            weights=weights,
            weights_bytes=sum(array.nbytes for array in arrays),
            resident_bytes=sum(layout.runs) * PAGE_BYTES,
            load_ns=0,
            profile=[],
            constants_note="",
            metadata={},
            example=[],
        )
        prepared.write(place)
        return str(place)


class SecondExecutor:
    """A CPU device with two executors: the second executes, and the first, the owner, does the rest."""

    def __init__(self, arena: CpuArena) -> None:
        self.owner, self.second = arena.devices
        self.info = arena.info

    def __getattr__(self, name: str) -> Any:
        return getattr(self.owner, name)

    def start(self, action: Any, parts: Sequence[Sequence[TensorView]] = ()) -> None:
        (self.second if isinstance(action, Infer | Profile) else self.owner).start(action, parts)

    def revoke(self, action_id: int) -> None:
        for device in (self.owner, self.second):
            device.revoke(action_id)

    def running(self) -> int:
        return self.second.running()

    def end_run(self, action_id: int) -> None:
        self.second.end_run(action_id)

    def poll(self) -> list[Completion]:
        return [*self.owner.poll(), *self.second.poll()]

    @property
    def workspace_peak_bytes(self) -> int:
        return self.second.workspace_peak_bytes

    def close(self) -> None:
        for device in (self.owner, self.second):
            device.close()


class SecondExecutorRig(CpuRig):
    """A CPU device whose second executor executes."""

    kind = "cpu-second"
    lane = "cw-execute-1"

    def make(self, pages: int = 32, **options: Any) -> Any:
        arena = CpuArena(pages * PAGE_BYTES, PAGE_BYTES, place=ArenaPlace(2), **options)
        self.fingerprint = arena.info.fingerprint
        return SecondExecutor(arena)


class EmulatedRig:
    """An emulated device: every model takes 20 us to load, and as much for each row of a batch."""

    kind = "emulated"
    computes = False
    strings = True
    brings_inputs_early = False

    def __init__(self, store: Path) -> None:
        self.store = store
        self.count = 0

    def make(self, pages: int = 32, host_pages: int = 0, **options: Any) -> EmulatedDevice:
        options["host_bytes"] = host_pages * PAGE_BYTES
        (device,) = EmulatedGroup(1, pages * PAGE_BYTES, PAGE_BYTES, **options).devices
        self.fingerprint = device.info.fingerprint
        return device

    def check_released(self) -> None:
        """Check nothing beyond the resources of every device."""

    def build(self, one: Case, holding: str = "") -> str:
        """Write the directory that the device's open() reads: the model's layout, with invented times."""
        graph = one.model.graph
        layout = lay_out([numpy_helper.to_array(weight).nbytes for weight in graph.initializer], PAGE_BYTES)
        self.count += 1
        place = self.store / "prepared" / f"{self.count:04d}-{self.fingerprint}"
        place.mkdir(parents=True)
        inputs = _specs(graph.input)
        shape = tuple(tuple(int(n) for n in spec.shape[1:] if isinstance(n, int)) for spec in inputs)
        PreparedModel(
            format_version=FORMAT_VERSION,
            digest=place.name,
            fingerprint=self.fingerprint,
            program="",
            holding="emulated",
            inputs=inputs,
            outputs=_specs(graph.output),
            batches=one.batches,
            batching_note="",
            batch_max=8,
            page_bytes=PAGE_BYTES,
            runs=layout.runs,
            weights=[],
            weights_bytes=0,
            resident_bytes=sum(layout.runs) * PAGE_BYTES,
            load_ns=STEP_NS,
            profile=[ProfilePoint(shape, batch, batch * STEP_NS) for batch in (1, 2, 4, 8)],
            constants_note="",
            metadata={},
            example=[],
        ).write(place)
        return str(place)


def _specs(values: Any) -> list[TensorSpec]:
    return [
        TensorSpec(
            value.name,
            value.type.tensor_type.elem_type,
            tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in values
    ]


def _write_packed(model: onnx.ModelProto, place: Path) -> None:
    options = onnxruntime.SessionOptions()
    # silences the warning that the result is for this machine only, which is intended
    options.log_severity_level = 3
    options.optimized_model_filepath = str(place / PACKED_FILE)
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", PACKED_DATA_FILE
    )
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1")
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Driver:
    """Gives a device single orders: counts ids, and keeps every window open unless told otherwise."""

    def __init__(self, device: Any, rig: Any) -> None:
        self.device = device
        self.rig = rig
        self.last_id = 0
        self.models = 0
        self.backlog: dict[int, Completion] = {}  # completions polled while others were waited for

    def prepare(self, one: Case, holding: str = "bound") -> int:
        self.models += 1
        self.device.open(self.models, self.rig.build(one, holding))
        return self.models

    def _id(self) -> int:
        self.last_id += 1
        return self.last_id

    def load(
        self, model: int, load_id: int, starts: Sequence[int], earliest_ns: int = 0, latest_ns: int = NEVER_NS
    ) -> int:
        action_id = self._id()
        self.device.start(Load(action_id, 0, model, load_id, list(starts), earliest_ns, latest_ns, 0))
        return action_id

    def unload(self, model: int, load_id: int, earliest_ns: int = 0, latest_ns: int = NEVER_NS) -> int:
        action_id = self._id()
        self.device.start(Unload(action_id, 0, model, load_id, earliest_ns, latest_ns, 0))
        return action_id

    def fetch(self, model: int, earliest_ns: int = 0, latest_ns: int = NEVER_NS) -> int:
        action_id = self._id()
        self.device.start(HostFetch(action_id, 0, model, 0, earliest_ns, latest_ns, 0))
        return action_id

    def drop(self, model: int, earliest_ns: int = 0, latest_ns: int = NEVER_NS) -> int:
        action_id = self._id()
        self.device.start(HostDrop(action_id, 0, model, 0, earliest_ns, latest_ns, 0))
        return action_id

    def infer(
        self,
        model: int,
        load_id: int,
        *parts: Sequence[Any],
        earliest_ns: int = 0,
        latest_ns: int = NEVER_NS,
        expected_ns: int = 0,
    ) -> int:
        """parts: the inputs of each request, arrays or TensorViews."""
        action_id = self._id()
        views = [[one if isinstance(one, TensorView) else view(one) for one in part] for part in parts]
        action = Infer(action_id, 0, model, load_id, earliest_ns, latest_ns, expected_ns, [])
        self.device.start(action, views)
        return action_id

    def profile(self, model: int, load_id: int, shapes: list[list[int]]) -> int:
        action_id = self._id()
        self.device.start(Profile(action_id, 0, model, load_id, 0, NEVER_NS, 0, shapes))
        return action_id

    def wait(self, *action_ids: int) -> list[Completion]:
        """Return the completions of these actions, in the order given."""
        deadline_ns = now_ns() + PATIENCE_NS
        while True:
            self.backlog.update((done.action_id, done) for done in self.device.poll())
            if all(action_id in self.backlog for action_id in action_ids):
                return [self.backlog.pop(action_id) for action_id in action_ids]
            left_s = (deadline_ns - now_ns()) / SECOND
            assert left_s > 0, f"of {action_ids} only {list(self.backlog)} ended"
            readable(self.device.fileno(), within_s=left_s)

    def end(self, action_id: int) -> Completion:
        return self.wait(action_id)[0]


def lane_time_ns(name: str) -> int:
    """Return the processor time of this process's lane of this name."""
    (lane,) = (one for one in Path("/proc/self/task").iterdir() if (one / "comm").read_text() == f"{name}\n")
    return int((lane / "schedstat").read_text().split()[0])


def view(array: Any) -> TensorView:
    array = np.asarray(array)
    if array.dtype.kind in "OU":
        items = [str(one).encode() for one in array.ravel()]
        return TensorView(8, array.shape, b"".join(len(one).to_bytes(4, "little") + one for one in items))
    return TensorView(helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, array.tobytes())


def array_of(one: TensorView) -> np.ndarray:
    if one.dtype == 8:
        items, data, at = [], bytes(one.data), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 4], "little")
            items.append(data[at + 4 : at + 4 + size].decode())
            at += 4 + size
        return np.array(items, dtype=object).reshape(one.shape)
    return np.frombuffer(one.data, DTYPES[one.dtype].name).reshape(one.shape)


# ----- models whose answers are known ---------------------------------------------------------


def affine(seed: int = 0, width: int = 4, scale: float = 1.0) -> Case:
    """y = x @ w + b."""
    random = np.random.default_rng(seed)
    weights = {
        "w": (scale * random.standard_normal((width, width))).astype(np.float32),
        "b": random.standard_normal(width).astype(np.float32),
    }
    return case(
        [helper.make_node("MatMul", ["x", "w"], ["t"]), helper.make_node("Add", ["t", "b"], ["y"])],
        {"x": (TensorProto.FLOAT, ["n", width])},
        {"y": (TensorProto.FLOAT, ["n", width])},
        weights,
    )


def expected_affine(one: Case, x: np.ndarray) -> np.ndarray:
    w, b = (numpy_helper.to_array(weight) for weight in one.model.graph.initializer)
    return np.asarray(x @ w + b)


def repeated(width: int = 32) -> Case:
    """As many matrix products as its input ``n`` says, so that a test sets the duration.

    The matrix is small: a GPU computes it in a single thread, and a GPU with a display ends kernels after two
    seconds.
    """
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("MatMul", ["state", "w"], ["state_next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [width, width]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_next", TensorProto.FLOAT, [width, width]),
        ],
    )
    return case(
        [helper.make_node("Loop", ["n", "", "w"], ["y"], body=body)],
        {"n": (TensorProto.INT64, [])},
        {"y": (TensorProto.FLOAT, [width, width])},
        {"w": np.eye(width, dtype=np.float32)},
        batches=False,
    )
