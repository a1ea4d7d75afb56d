"""The Open Inference Protocol's operations on a cluster, for the HTTP and the gRPC server.

The servers read requests and write answers in their own encodings; tensors pass unchanged. Between requests a
gateway keeps only the regions of shared memory (regions.py), so a cluster may have any number of gateways.
Each description of a model comes from the controller, because a name may soon refer to another version.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from clockwork.client.calls import AnswerFrames
from clockwork.client.loop import LoopClient
from clockwork.config import PRIORITY_MAX, SECONDS_MAX, VERSION, VERSION_DIGITS_MAX
from clockwork.config.gateway import ANSWER_LIMIT_NS, GRACE_NS, LOAD_LIMIT_S, QUERY_LIMIT_S, READY_LIMIT_S
from clockwork.errors import ClockworkError, InvalidInput, ModelNotFound, Refused, Unavailable
from clockwork.gateway.answers import AnswerMemory
from clockwork.gateway.aside import Aside
from clockwork.gateway.classification import check_classified, classify
from clockwork.gateway.errors import Unsupported
from clockwork.gateway.metrics import GatewayCounters
from clockwork.gateway.regions import OFF_HERE, Regions, Shared
from clockwork.gateway.tensors import check_size, name_of_dtype
from clockwork.gateway.tracing import Carrier, Tracing
from clockwork.repository.keeper import RepositoryKeeper
from clockwork.wire import tensors
from clockwork.wire.description import ModelInfo
from clockwork.wire.messages import Answer, NamedTensorRef, Reason
from clockwork.wire.references import model_reference, name_of
from clockwork.wire.telling import no_such_input
from clockwork.wire.transport import Frame

SERVER_NAME = "clockwork"

EXTENSIONS = (
    "binary_tensor_data", "classification", "model_configuration", "model_repository", "model_repository(unload_dependents)",
    "schedule_policy", "statistics",
)  # fmt: skip
"""Triton's extensions that every gateway has."""

SHARED_MEMORY = "system_shared_memory"  # Triton's extension that a gateway has where shared memory is on
PLATFORM = "clockwork_onnx"
TIMEOUT_US_MAX = SECONDS_MAX * 1_000_000

SEQUENCE_PARAMETERS = ("sequence_id", "sequence_start", "sequence_end")
"""The parameters of a request in a sequence; 0, false and "" mean that the request is in none."""

INDEX_STATES = {"ready": "READY", "preparing": "LOADING", "draining": "UNLOADING", "unloading": "UNLOADING"}
"""By the controller's state of a model: the word in the repository index; UNAVAILABLE for other states."""

TYPES = {"BYTES": "TYPE_STRING"}
"""Datatypes whose name in a configuration is not TYPE_ followed by the protocol's name."""


@dataclasses.dataclass(slots=True)
class Inference:
    """A request to infer, independent of its encoding. model: a name, or name@version."""

    model: str
    request_id: str
    references: list[NamedTensorRef]
    frames: list[Frame]
    outputs: list[str]  # the requested names; empty: all
    slo_ns: int  # SLO of the request; 0: the model's default
    priority: int
    # for each output, the number of classes that are wanted instead of values
    classes: dict[str, int] = dataclasses.field(default_factory=dict)


def reference_of(name: str, version: str) -> str:
    """Return the reference of a model or version. Raises ModelNotFound for text that is no version number."""
    if not version:
        return name
    if not (version.isascii() and version.isdigit() and len(version) <= VERSION_DIGITS_MAX):
        raise ModelNotFound(f"Request for unknown model: {name!r} version {version[:80]!r} is not found")
    return model_reference(name, version)


def timeout_of(value: Any, name: str) -> int:
    """Return a timeout of microseconds in nanoseconds; 0: none. Raises InvalidInput."""
    if type(value) is not int or not 0 <= value <= TIMEOUT_US_MAX:
        raise InvalidInput(
            f"{name} is a count of microseconds from 0 (none) to {TIMEOUT_US_MAX}, got {repr(value)[:80]}",
            expected=f"0 to {TIMEOUT_US_MAX}", got=repr(value)[:80],
        )  # fmt: skip
    return value * 1000


def priority_of(parameters: Mapping[str, Any]) -> int:
    """Return the parameter priority; 0: the default level. Raises InvalidInput."""
    value = parameters.get("priority", 0)
    if type(value) is not int or not 0 <= value <= PRIORITY_MAX:
        raise InvalidInput(
            f"parameter priority is an integer from 0 (the default) to {PRIORITY_MAX}, got {repr(value)[:80]}",
            expected=f"0 to {PRIORITY_MAX}", got=repr(value)[:80],
        )  # fmt: skip
    return value


def refuse_sequences(parameters: Mapping[str, Any]) -> None:
    """Raise Unsupported for a request in a sequence, a feature of Triton's stateful models."""
    for name in SEQUENCE_PARAMETERS:
        if value := parameters.get(name):
            raise Unsupported(
                f"parameter {name} is {repr(value)[:80]}, and sequences are not supported: each request is answered by "
                "itself; leave the parameter out"
            )


def least(*limits_ns: int) -> int:
    """Return the smallest limit; 0 stands for no limit."""
    return min((limit for limit in limits_ns if limit), default=0)


class InferenceService:
    """A gateway's operations, and its bounds on requests under way. Everything runs on one event loop."""

    def __init__(
        self,
        client: LoopClient,
        answers: AnswerMemory,
        requests_max: int,
        bytes_max: int,
        tracing: Tracing | None = None,
        keeper: RepositoryKeeper | None = None,
        operator: LoopClient | None = None,
        regions: Regions | None = None,
    ) -> None:
        """operator: the client for changes of the served models; None: ``client`` makes them.

        regions: shared memory of callers on this machine; None: it is off.
        """
        self._keeper = keeper
        self.is_leaving = False  # whether the gateway is told to stop; load balancers are to send no more
        self._regions = regions
        self.answers = answers
        self._client = client
        self._operator = operator or client
        self._requests_max = requests_max
        self._bytes_max = bytes_max
        self.requests = 0  # requests under way, of all kinds
        self.request_bytes = 0  # bytes received of these requests
        self.counters = GatewayCounters()
        self._tracing = tracing
        # Both work in pieces that hold the interpreter's lock for some milliseconds at most. Reading may take
        # seconds, which must not delay answers.
        self.reading = Aside("reading")
        self.writing = Aside("writing")

    def close(self) -> None:
        """End the threads beside the loop. To be called after the servers were closed."""
        self.reading.close()
        self.writing.close()

    # ----- bounds ------------------------------------------------------------------------------

    @contextmanager
    def admitted(self, size: int = 0) -> Iterator[None]:
        """Count a request and the ``size`` bytes that came of it inside the context. Raises Refused."""
        if self.requests >= self._requests_max:
            raise Refused(
                f"the gateway has {self._requests_max} requests under way, which is the most",
                Reason.OVERLOADED.value,
            )
        self.hold(size)
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1
            self.hold(-size)

    def hold(self, count: int) -> None:
        """Count bytes of requests that came (negative: bytes that were released).

        Raises Refused past the bound.
        """
        if count > 0 and self.request_bytes + count > self._bytes_max:
            raise Refused(
                f"the gateway holds {self._bytes_max} bytes of requests, which is the most",
                Reason.OVERLOADED.value,
            )
        self.request_bytes += count

    # ----- inference ---------------------------------------------------------------------------

    def infer(self, inference: Inference, protocol: str, carrier: Carrier) -> Awaitable[AnswerFrames]:
        """Return the controller's Answer and its frames. Cancelling the awaitable cancels the request.

        protocol: http or grpc. carrier: the request's headers, or its call's metadata, which may name a
        trace.
        """
        if self._tracing is None:
            return self._submit(inference)
        return self._tracing.followed(protocol, carrier, inference.model, lambda: self._submit(inference))

    def _submit(self, inference: Inference) -> asyncio.Future[AnswerFrames]:
        slo_ns, priority = inference.slo_ns, inference.priority
        if self._keeper is not None and (queueing := self._keeper.queueing.get(name_of(inference.model))):
            priority = queueing.level(priority)
            slo_ns = slo_ns or queueing.timeout_ns(priority)
        limit_ns = slo_ns + GRACE_NS if slo_ns else ANSWER_LIMIT_NS
        return self._client.infer_frames(
            inference.model, inference.references, inference.frames, slo_ns, priority, limit_ns
        )

    @staticmethod
    def chosen(inference: Inference, answer: Answer) -> list[NamedTensorRef]:
        """Return the requested outputs, in the request's order. Raises InvalidInput for an unknown name."""
        if not inference.outputs:
            return answer.tensors
        found = {tensor[0]: tensor for tensor in answer.tensors}
        for name in inference.outputs:
            if name not in found:
                raise InvalidInput(
                    f"unexpected inference output {name!r} for model {inference.model!r}; its outputs are "
                    + ", ".join(map(repr, found)),
                    name, ", ".join(found), name,
                )  # fmt: skip
        return [found[name] for name in inference.outputs]

    async def classified(
        self, inference: Inference, chosen: list[NamedTensorRef], answer: Answer, frames: list[Frame]
    ) -> tuple[list[NamedTensorRef], list[Frame]]:
        """Return outputs, with classes instead of values where the request asks for them.

        Raises InvalidInput.
        """
        if not inference.classes:
            return chosen, frames
        name = name_of(inference.model)
        info = await self.describe(name, str(answer.model_version))
        labels = self._keeper.labels.get((name, info.version), {}) if self._keeper is not None else {}
        frames, found = list(frames), list(chosen)
        for place, (output, code, shape, index) in enumerate(chosen):
            if (count := inference.classes.get(output, 0)) > 0:
                check_classified(code, output)
                frame = frames[index]
                work = (code, shape, frame, count, info.batches, labels.get(output, ()))
                new_shape, strings = await self.writing.run(len(frame), classify, *work)
                found[place] = [output, tensors.STRING, new_shape, len(frames)]
                frames.append(strings)
        return found, frames

    # ----- the server --------------------------------------------------------------------------

    def server(self) -> dict[str, Any]:
        extensions = [*EXTENSIONS, *([SHARED_MEMORY] if self._regions is not None else [])]
        return {"name": SERVER_NAME, "version": VERSION, "extensions": extensions}

    async def why_not_ready(self) -> str:
        """Return the reason why the cluster is not ready; "" if it is. See Versions.readiness() of the
        controller.

        A gateway with model repositories also waits for the models that it found in them at its start. A
        gateway that is about to stop is not ready.
        """
        if self.is_leaving:
            return "this gateway is about to stop"
        try:
            why = await self._client.why_not_ready(timeout=READY_LIMIT_S)
        except ClockworkError as error:
            return f"the controller does not answer: {error}"
        return why or (self._keeper.why_not_ready() if self._keeper is not None else "")

    # ----- shared memory -----------------------------------------------------------------------

    def shared(self, find_owner: Callable[[], int], limit: int) -> Shared:
        """Return the record of a request's tensors in shared memory. Its release() must be called."""
        return Shared(self._regions, find_owner, self.hold, limit)

    def regions(self) -> Regions:
        """Return the regions that callers have registered. Raises Unsupported where shared memory is off."""
        if self._regions is None:
            raise Unsupported(OFF_HERE)
        return self._regions

    # ----- models ------------------------------------------------------------------------------

    async def describe(self, name: str, version: str) -> ModelInfo:
        """Return the controller's description of a model.

        Raises ModelNotFound, and Unavailable for an unloaded model.
        """
        info = await self._client.model(reference_of(name, version), timeout=QUERY_LIMIT_S)
        if info.state == "set_aside":
            raise Unavailable(f"{name} is set aside: {info.text}")
        if info.state == "unloaded":
            raise ModelNotFound(f"Request for unknown model: {name!r} is unloaded")
        return info

    async def model_ready(self, name: str, version: str) -> bool:
        """Whether a worker serves the model. Raises ModelNotFound, and Unavailable for an unloaded model."""
        return (await self.describe(name, version)).state == "ready"

    async def metadata(self, name: str, version: str) -> dict[str, Any]:
        """Return the answer of ``GET /v2/models/NAME``."""
        info = _require_known(await self.describe(name, version))
        versions = [version] if version else info.raw.get("versions") or [info.version]
        return {
            "name": info.name,
            "versions": [str(number) for number in versions],
            "platform": PLATFORM,
            "inputs": [_tensor_metadata(tensor) | _optional(tensor) for tensor in info.inputs],
            "outputs": [_tensor_metadata(tensor) for tensor in info.outputs],
        }

    async def config(self, name: str, version: str) -> dict[str, Any]:
        """Return the answer of ``GET /v2/models/NAME/config``."""
        info = _require_known(await self.describe(name, version))
        batch_max = info.batch_max if info.batches else 0
        config: dict[str, Any] = {
            "name": info.name,
            "platform": PLATFORM,
            "backend": SERVER_NAME,
            "version_policy": {"all": {}},
            "max_batch_size": batch_max,
            "input": [
                _tensor_config(tensor, batch_max > 0 and not tensor.optional) | _optional(tensor)
                for tensor in info.inputs
            ],
            "output": [_tensor_config(tensor, batch_max > 0) for tensor in info.outputs],
            "default_model_filename": "model.onnx",
            "parameters": {
                "clockwork_version": {"string_value": str(info.version)},
                "clockwork_weights_bytes": {"string_value": str(info.weights_bytes)},
            },
        }
        if info.slo is not None:
            config["parameters"]["clockwork_slo_us"] = {"string_value": str(round(info.slo * 1_000_000))}
        if batch_max:
            config["dynamic_batching"] = {}
        return config

    async def blame(self, name: str, version: str, error: InvalidInput) -> InvalidInput:
        """Return the error for a request that could not be read: a wrong input name precedes any other fault.

        Raises the errors of describe() and _require_known().
        """
        if not error.tensor:
            return error
        info = _require_known(await self.describe(name, version))
        names = [tensor.name for tensor in info.inputs]
        if error.tensor in names:
            return error
        return no_such_input(info.reference, error.tensor, names)

    async def only_input(self, name: str, version: str, size: int) -> tuple[str, int, list[int]]:
        """Return name, dtype and shape of a model's only input, which has ``size`` raw bytes or is a single
        string.

        Raises InvalidInput.
        """
        info = _require_known(await self.describe(name, version))
        required = [tensor for tensor in info.inputs if not tensor.optional]
        if len(required) != 1:
            raise InvalidInput(
                f"raw bytes alone are for models of one input; {name!r} has {len(info.inputs)}"
            )
        (tensor,) = required
        code, shape = tensors.code_of(tensor.dtype), _dimensions(tensor.shape)
        unknown = [axis for axis, dimension in enumerate(shape) if dimension < 0]
        if code == tensors.STRING and all(dimension in (1, -1) for dimension in shape):
            return tensor.name, code, [1] * len(shape)
        if code == tensors.STRING or len(unknown) > 1:
            raise InvalidInput(
                f"raw bytes alone do not say the shape of input {tensor.name!r} of {name!r}: {shape}",
                tensor.name,
            )
        if unknown:
            shape[unknown[0]] = 1
            shape[unknown[0]] = size // max(1, tensors.tensor_bytes(code, shape))
        check_size(code, shape, size, tensor.name)
        return tensor.name, code, shape

    async def statistics(self, name: str, version: str) -> list[dict[str, Any]]:
        """Return the answer of ``GET /v2/models/NAME/stats``; without a name, for every model."""
        wanted = reference_of((await self.describe(name, version)).name, version) if name else ""
        body = await self.metrics(wanted)
        now_ns, wall_ns = body["now_ns"], time.time_ns()
        return [_measured(model, wall_ns - now_ns) for model in body["models"]]

    async def metrics(self, name: str = "") -> dict[str, Any]:
        """Return the controller's metrics. name: only those of this model's versions."""
        return await self._client.metrics(name, timeout=QUERY_LIMIT_S)

    # ----- the repository ----------------------------------------------------------------------

    async def index(self, only_ready: bool) -> list[dict[str, str]]:
        """Return the answer of ``POST /v2/repository/index``."""
        found = []
        for info in await self._client.models(timeout=QUERY_LIMIT_S):
            state = INDEX_STATES.get(info.state, "UNAVAILABLE")
            if state == "READY" or not only_ready:
                reason = info.text or ("" if state != "UNAVAILABLE" else info.state)
                found.append(
                    {"name": info.name, "version": str(info.version), "state": state, "reason": reason}
                )
        if self._keeper is not None and not only_ready:
            there = {(row["name"], row["version"]) for row in found}
            found += [row for row in self._keeper.missing() if (row["name"], row["version"]) not in there]
        return found

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Load a model that is registered, or that a repository in explicit mode has.

        A loaded model stays unchanged. parameters: see Keeper.load(). Raises ModelNotFound, InvalidModel
        where the repository's files are broken, and InvalidInput.
        """
        if self._keeper is not None:
            keeper = self._keeper
            await asyncio.get_running_loop().run_in_executor(keeper.loads, keeper.load, name, parameters)
        elif parameters:
            raise InvalidInput(
                f"load of {name!r} has the parameter {next(iter(parameters))[:80]!r}, which takes a gateway with a "
                "--model-repository; without one, a model's files and configuration are given when it is registered "
                "(clockwork models add)",
                expected="no parameters",
            )
        await self._operator.load(name, timeout=LOAD_LIMIT_S)

    @property
    def takes_models(self) -> bool:
        """Whether a load may bring a model's files."""
        return self._keeper is not None

    async def unload(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Unload a model: it takes no requests and no memory until it is loaded again.

        Raises ModelNotFound, and InvalidInput for parameters other than unload_dependents. That parameter has
        no effect, because without ensembles no model depends on another.
        """
        for key, value in parameters.items():
            if key != "unload_dependents" or type(value) is not bool:
                raise InvalidInput(
                    f"unload of {name!r} has the parameter {key[:80]!r} {repr(value)[:80]}; there is unload_dependents, true or "
                    "false",
                    expected="unload_dependents",
                )
        await self._operator.unload(name, timeout=LOAD_LIMIT_S)


def _require_known(info: ModelInfo) -> ModelInfo:
    if not info.inputs and not info.outputs:
        raise Unavailable(f"{info.reference} is {info.state}: {info.text or 'nothing is known of it yet'}")
    return info


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _dimensions(shape: Sequence[int | str]) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in shape]


def _tensor_metadata(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": name_of_dtype(tensor.dtype), "shape": _dimensions(tensor.shape)}


def _optional(tensor: Any) -> dict[str, bool]:
    """Return the additional field of an optional input's description."""
    return {"optional": True} if tensor.optional else {}


def _tensor_config(tensor: Any, batched: bool) -> dict[str, Any]:
    datatype = name_of_dtype(tensor.dtype)
    dimensions = _dimensions(tensor.shape)
    return {
        "name": tensor.name,
        "data_type": TYPES.get(datatype, f"TYPE_{datatype}"),
        "dims": dimensions[1:] if batched else dimensions,
    }


def _duration(count: int = 0, ns: int = 0) -> dict[str, int]:
    return {"count": count, "ns": ns}


def _measured(model: Mapping[str, Any], wall_offset_ns: int) -> dict[str, Any]:
    """Return a model's statistics in Triton's form, from the controller's metrics."""
    outcomes, times = _mapping(model.get("outcomes")), _mapping(model.get("times"))
    success = int(outcomes.get("success", 0))
    failures = [value for key, value in outcomes.items() if key not in ("success", "refused")]
    failures += list(_mapping(outcomes.get("refused")).values())
    last_ns = int(model.get("last_ns", 0))
    batches = [(int(size), int(row[0]), int(row[1])) for size, row in _mapping(model.get("batches")).items()]

    def spent(*phases: str) -> dict[str, int]:
        rows = [_mapping(times.get(phase)) for phase in phases]
        count = max((int(row.get("count", 0)) for row in rows), default=0)
        return _duration(count, sum(int(row.get("sum_ns", 0)) for row in rows))

    return {
        "name": str(model["name"]),
        "version": str(int(model["version"])),
        "last_inference": (last_ns + wall_offset_ns) // 1_000_000 if last_ns else 0,
        "inference_count": int(model.get("inferences", 0)),
        "execution_count": int(model.get("executions", 0)),
        "inference_stats": {
            "success": _duration(success, int(_mapping(times.get("total")).get("sum_ns", 0))),
            "fail": _duration(sum(map(int, failures))),
            "queue": spent("queue", "load"),
            "compute_input": spent("copy_in"),
            "compute_infer": spent("execute"),
            "compute_output": spent("copy_out"),
            "cache_hit": _duration(),
            "cache_miss": _duration(),
        },
        "response_stats": {},
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": _duration(count),
                "compute_infer": _duration(count, ns),
                "compute_output": _duration(count),
            }
            for size, count, ns in sorted(batches)
        ],
        "memory_usage": [],
    }
