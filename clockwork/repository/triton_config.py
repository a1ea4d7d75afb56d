"""Reads ``config.pbtxt`` of a Triton model repository: the fields that are used here, and notes on the others.

Source: the model configuration of Triton Inference Server's documentation.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import json_format, text_format

from clockwork.config import PRIORITY_MAX, REGISTER_BATCH_MAX, SECONDS_MAX
from clockwork.config.repository import CONFIG_BYTES_MAX, NESTING_MAX
from clockwork.errors import InvalidModel
from clockwork.protocol import inference_pb2 as pb
from clockwork.system.clock import to_seconds
from clockwork.wire.packages import MODEL_FILE

BACKENDS = ("", "onnxruntime", "clockwork")
"""The backends that a model may name; each of them means the worker's own."""

PLATFORMS = ("", "onnxruntime_onnx", "clockwork_onnx")

SLO_PARAMETER = "clockwork_slo_ms"
"""A parameter of our own: the SLO of requests that bring none, in milliseconds."""

NOTES = {
    "model_warmup": "every model is run at every batch size before it takes requests",
    "instance_group": "the controller decides which devices have a model",
    "optimization": "workers choose what is fastest on their devices",
}
"""Reasons why fields are ignored, for the notes."""

USED = {
    "name", "platform", "backend", "version_policy", "max_batch_size", "input", "output", "dynamic_batching",
    "default_model_filename", "parameters",
}  # fmt: skip

REFUSED = ("ensemble_scheduling", "sequence_batching")
"""Fields without which a model would answer something else."""

PASSED_OVER = (
    "runtime", "optimization", "instance_group", "cc_model_filenames", "metric_tags", "model_warmup", "batch_input",
    "batch_output", "model_operations", "model_transaction_policy", "model_repository_agents", "response_cache",
    "model_metrics",
)  # fmt: skip
"""The other fields of Triton's ModelConfig."""

TRITON_TYPES = {
    number: "BYTES" if name == "TYPE_STRING" else name.removeprefix("TYPE_")
    for name, number in pb.DataType.items()
}
"""The protocol's datatypes, by Triton's DataType."""


@dataclasses.dataclass(frozen=True, slots=True)
class TensorDemand:
    """An input or output as a configuration declares it; dims without the batch where the model batches."""

    name: str
    dtype: int  # Triton's DataType; 0: not said
    dims: tuple[int, ...]
    reshape: tuple[int, ...] | None = None  # the model's own shape of it, as dims; None: the same


@dataclasses.dataclass(frozen=True, slots=True)
class Queueing:
    """What a configuration says of requests that bring no priority or no timeout."""

    levels: int = 0  # priorities that there are, 1 the highest; 0: not said
    default_level: int = 0  # of requests without one of them; 0: the cluster's default
    timeouts_ns: Mapping[int, int] = dataclasses.field(default_factory=dict)  # by level; 0: of all others

    def level(self, asked: int) -> int:
        """The priority of a request that asks for this one; 0 is none."""
        return asked if not self.levels or 1 <= asked <= self.levels else self.default_level

    def timeout_ns(self, level: int) -> int:
        """Of a request without one, by its priority; 0 is none."""
        return self.timeouts_ns.get(level, self.timeouts_ns.get(0, 0))


@dataclasses.dataclass(frozen=True, slots=True)
class FolderConfig:
    """How the files of one folder of a repository are served."""

    filename: str = MODEL_FILE
    batch_max: int | None = None  # None: not said; 0: no batching
    newest: int = 1  # versions to serve, counted from the highest number; 0: all of them
    versions: tuple[int, ...] = ()  # these alone
    slo_s: float | None = None
    inputs: tuple[TensorDemand, ...] = ()
    outputs: tuple[TensorDemand, ...] = ()
    queueing: Queueing = Queueing()
    labels: tuple[tuple[str, str], ...] = ()  # outputs, and the files with the names of their classes
    notes: tuple[str, ...] = ()  # for a person

    def chosen(self, found: Sequence[int]) -> list[int]:
        """The versions to serve among those found, smallest first."""
        ordered = sorted(found)
        if self.versions:
            return [number for number in ordered if number in self.versions]
        return ordered[-self.newest :] if self.newest else ordered


def read_config(text: str, folder: str) -> FolderConfig:
    """The configuration of a folder of that name. Raises InvalidModel, naming the field."""
    if len(text) > CONFIG_BYTES_MAX:
        raise InvalidModel(f"config.pbtxt has {len(text)} characters; at most {CONFIG_BYTES_MAX} are read")
    parts = split_fields(text)
    fields = list(dict.fromkeys(field for field, _ in parts))
    _check_fields(fields, "config.pbtxt")
    # What is passed over becomes blank, so that errors have the line and the column of the file.
    used = "".join(part if field in USED else re.sub(r"[^\n]", " ", part) for field, part in parts)
    try:
        config = text_format.Parse(
            text[: len(text) - sum(len(part) for _, part in parts)] + used, pb.ModelConfig()
        )
    except text_format.ParseError as error:
        raise InvalidModel(f"config.pbtxt: {error}") from None
    if config.name not in ("", folder):
        raise InvalidModel(f"config.pbtxt: name {config.name!r} in the folder {folder!r}")
    if config.backend not in BACKENDS or config.platform not in PLATFORMS:
        wrong = (
            f"backend {config.backend!r}"
            if config.backend not in BACKENDS
            else f"platform {config.platform!r}"
        )
        raise InvalidModel(
            f"config.pbtxt: {wrong} is not served here; ONNX models are (backend 'onnxruntime')"
        )
    if config.max_batch_size < 0:
        raise InvalidModel(f"config.pbtxt: max_batch_size {config.max_batch_size} is below 0")
    filename = config.default_model_filename or MODEL_FILE
    _check_filename("default_model_filename", filename)
    labels = tuple((tensor.name, tensor.label_filename) for tensor in config.output if tensor.label_filename)
    for _, file in labels:
        _check_filename("label_filename", file)
    newest, versions = _policy(config.version_policy)
    queueing, notes = _queueing(config.dynamic_batching)
    slo_s = _slo(config)
    if slo_s is not None:  # our own parameter counts before the timeouts of requests without a priority
        own = {0, queueing.default_level}
        timeouts_ns = {level: ns for level, ns in queueing.timeouts_ns.items() if level not in own}
        queueing = dataclasses.replace(queueing, timeouts_ns=timeouts_ns)
    elif timeout_ns := queueing.timeout_ns(queueing.default_level):
        slo_s = to_seconds(timeout_ns)
    return FolderConfig(
        filename=filename,
        batch_max=min(config.max_batch_size, REGISTER_BATCH_MAX) if "max_batch_size" in fields else None,
        newest=newest,
        versions=versions,
        slo_s=slo_s,
        inputs=tuple(_demand("input", tensor) for tensor in config.input),
        outputs=tuple(_demand("output", tensor) for tensor in config.output),
        queueing=queueing,
        labels=labels,
        notes=(
            *(
                f"{field} is passed over" + (f": {NOTES[field]}" if field in NOTES else "")
                for field in fields
                if field not in USED
            ),
            *notes,
        ),
    )


def _check_filename(field: str, filename: str) -> None:
    if "/" in filename or "\0" in filename or filename in (".", ".."):
        raise InvalidModel(f"config.pbtxt: {field} {filename!r} is no file's name")


def _queueing(batching: pb.ModelDynamicBatching) -> tuple[Queueing, list[str]]:
    """What a configuration says of priorities and timeouts, and notes on what is passed over. Raises InvalidModel."""
    levels, default = batching.priority_levels, batching.default_priority_level
    if levels > PRIORITY_MAX:
        raise InvalidModel(f"config.pbtxt: priority_levels {levels}; there are at most {PRIORITY_MAX}")
    if levels and not 1 <= default <= levels:
        raise InvalidModel(f"config.pbtxt: default_priority_level {default} is not from 1 to {levels}")
    policies = {0: batching.default_queue_policy, **batching.priority_queue_policy}
    timeouts_ns: dict[int, int] = {}
    notes: list[str] = []
    for level, policy in sorted(policies.items()):
        name = f"priority_queue_policy {level}" if level else "default_queue_policy"
        if level > levels:
            raise InvalidModel(f"config.pbtxt: {name}: priority_levels is {levels}")
        timeout_us = policy.default_timeout_microseconds
        if timeout_us > SECONDS_MAX * 1_000_000:
            raise InvalidModel(
                f"config.pbtxt: {name}: a timeout of {timeout_us} us; at most {SECONDS_MAX} s are waited"
            )
        if policy.timeout_action == pb.ModelQueuePolicy.DELAY and timeout_us:
            notes.append(f"the timeout of {name} is passed over: nothing is answered after its deadline")
        elif timeout_us or level:
            timeouts_ns[level] = timeout_us * 1000
        if policy.max_queue_size:
            notes.append(f"max_queue_size of {name} is passed over: what would not be in time is refused")
    return Queueing(levels, default, timeouts_ns), notes


def text_of_json(text: str) -> str:
    """A configuration as text, of one in JSON, as loads of the repository API bring it. Raises InvalidModel."""
    if len(text) > CONFIG_BYTES_MAX:
        raise InvalidModel(
            f"the configuration has {len(text)} characters; at most {CONFIG_BYTES_MAX} are read"
        )
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidModel(f"the configuration is no JSON: {str(error)[:200]}") from None
    if type(body) is not dict:
        raise InvalidModel("the configuration is no JSON object")
    named = {re.sub("[A-Z]", lambda capital: "_" + capital[0].lower(), key): body[key] for key in body}
    # Whoever writes a whole configuration as JSON also writes what is empty of it.
    given = [key for key, value in named.items() if value not in (None, {}, [], "")]
    _check_fields([key for key in named if key in given or key not in REFUSED], "the configuration")
    try:
        config = json_format.ParseDict(
            {key: value for key, value in named.items() if key in USED}, pb.ModelConfig()
        )
    except (json_format.ParseError, RecursionError) as error:
        raise InvalidModel(f"the configuration: {str(error)[:500]}") from None
    # 0 would not be written, and means that the model does not batch, while silence leaves that to be found out.
    silent = "max_batch_size: 0\n" if "max_batch_size" in named and not config.max_batch_size else ""
    passed_over = "".join(f"{field} {{ }}\n" for field in given if field not in USED)
    return str(text_format.MessageToString(config, as_utf8=True)) + silent + passed_over


def _check_fields(fields: Sequence[str], subject: str) -> None:
    for field in fields:
        if field in REFUSED:
            raise InvalidModel(f"{subject}: {field} is not served here")
        if field not in USED and field not in PASSED_OVER:
            raise InvalidModel(f"{subject}: there is no field {field[:80]}{_did_you_mean(field[:80])}")


def _did_you_mean(field: str) -> str:
    near = difflib.get_close_matches(field, [*USED, *REFUSED, *PASSED_OVER], 1)
    return f"; did you mean {near[0]}?" if near else " in Triton's model configuration"


def _demand(side: str, tensor: Any) -> TensorDemand:
    """What a ModelInput or ModelOutput declares. Raises InvalidModel."""
    dims = tuple(tensor.dims)
    if not tensor.HasField("reshape"):
        return TensorDemand(tensor.name, tensor.data_type, dims)
    inner = tuple(tensor.reshape.shape)
    if any(size < 1 and size != -1 for size in (*dims, *inner)):
        raise InvalidModel(
            f"config.pbtxt: {side} {tensor.name!r} has dims {list(dims)} and the reshape {list(inner)}: sizes are above 0, or -1"
        )
    if dims.count(-1) != inner.count(-1):
        raise InvalidModel(
            f"config.pbtxt: {side} {tensor.name!r} has dims {list(dims)} and the reshape {list(inner)}, which have not as many "
            "open sizes (-1)"
        )
    if -1 not in dims and math.prod(dims) != math.prod(inner):
        raise InvalidModel(
            f"config.pbtxt: {side} {tensor.name!r} has {math.prod(dims)} elements by its dims {list(dims)} and "
            f"{math.prod(inner)} by its reshape {list(inner)}"
        )
    return TensorDemand(tensor.name, tensor.data_type, dims, inner)


_TOKEN = re.compile(
    r"""\s+|\#[^\n]*|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|[A-Za-z_][A-Za-z0-9_]*|[-+.0-9][-+.0-9A-Za-z_]*|[][{}<>:;,]"""
)


def split_fields(text: str) -> list[tuple[str, str]]:
    """The top-level fields of a text message, in order: (name, the field's text). Raises InvalidModel.

    Protobuf's own reader stumbles over fields that it does not know.
    """
    found: list[tuple[str, str]] = []
    name, start, at, depth = "", 0, 0, 0
    complete = True  # a value has come for the last name
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            line = text.count("\n", 0, at) + 1
            raise InvalidModel(f"config.pbtxt: line {line}: {text[at : at + 20]!r} makes no sense")
        word = token.group()
        if word in ("{", "[", "<"):
            depth += 1
            if depth > NESTING_MAX:
                raise InvalidModel(f"config.pbtxt: more than {NESTING_MAX} brackets within each other")
        elif word in ("}", "]", ">"):
            depth -= 1
            complete = True
        elif depth == 0 and (word[0].isalpha() or word[0] == "_") and complete:
            if name:
                found.append((name, text[start:at]))
            name, start, complete = word, at, False
        elif not (word[0].isspace() or word[0] == "#" or word in (":", ",", ";")):
            complete = True
        at = token.end()
    if depth != 0:
        raise InvalidModel("config.pbtxt: a bracket is not closed, or closed twice")
    if name:
        found.append((name, text[start:]))
    return found


def _policy(policy: pb.ModelVersionPolicy) -> tuple[int, tuple[int, ...]]:
    match policy.WhichOneof("policy_choice"):
        case "all":
            return 0, ()
        case "specific":
            if not policy.specific.versions:
                raise InvalidModel("config.pbtxt: version_policy.specific names no version")
            return 0, tuple(policy.specific.versions)
        case "latest":
            return max(policy.latest.num_versions, 1), ()
    return 1, ()


def _slo(config: pb.ModelConfig) -> float | None:
    if SLO_PARAMETER not in config.parameters:
        return None
    text = config.parameters[SLO_PARAMETER].string_value
    try:
        slo = float(text) / 1000
    except ValueError:
        slo = -1.0
    if not 0 < slo < 1e6:
        raise InvalidModel(
            f"config.pbtxt: parameter {SLO_PARAMETER} is a number of milliseconds, not {text[:80]!r}"
        )
    return slo
