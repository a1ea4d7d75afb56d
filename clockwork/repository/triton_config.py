"""Reads ``config.pbtxt`` of a Triton model repository, with notes on the fields that are not used.

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
"""The backends that a model may name; all stand for the worker's own."""

PLATFORMS = ("", "onnxruntime_onnx", "clockwork_onnx")

SLO_PARAMETER = "clockwork_slo_ms"
"""A parameter of Clockwork's own: the default SLO of requests, in milliseconds."""

NOTES = {
    "model_warmup": "every model is run at every batch size before it takes requests",
    "instance_group": "the controller decides which devices have a model",
    "optimization": "workers choose the fastest form on their devices",
}
"""By ignored field: the reason, for the notes."""

USED = {
    "name", "platform", "backend", "version_policy", "max_batch_size", "input", "output", "dynamic_batching",
    "default_model_filename", "parameters",
}  # fmt: skip

REFUSED = ("ensemble_scheduling", "sequence_batching")
"""Fields that are errors, because ignoring them would change a model's answers."""

PASSED_OVER = (
    "runtime", "optimization", "instance_group", "cc_model_filenames", "metric_tags", "model_warmup", "batch_input",
    "batch_output", "model_operations", "model_transaction_policy", "model_repository_agents", "response_cache",
    "model_metrics",
)  # fmt: skip
"""The other fields of Triton's ModelConfig, which are ignored with a note."""

TRITON_TYPES = {
    number: "BYTES" if name == "TYPE_STRING" else name.removeprefix("TYPE_")
    for name, number in pb.DataType.items()
}
"""By Triton's DataType: the protocol's datatype."""


@dataclasses.dataclass(frozen=True, slots=True)
class TensorDemand:
    """An input or output that a configuration declares. dims: without the batch, where the model batches."""

    name: str
    dtype: int  # Triton's DataType; 0: not given
    dims: tuple[int, ...]
    reshape: tuple[int, ...] | None = None  # the shape in the model, like dims; None: the same as dims


@dataclasses.dataclass(frozen=True, slots=True)
class Queueing:
    """A configuration's defaults for requests without a priority or a timeout."""

    levels: int = 0  # number of priorities, of which 1 is the highest; 0: not given
    default_level: int = 0  # priority of requests without a valid one; 0: the cluster's default
    # Timeouts by priority; 0: of all other priorities
    timeouts_ns: Mapping[int, int] = dataclasses.field(default_factory=dict)

    def level(self, asked: int) -> int:
        """Return a request's priority. asked: the priority that the request has; 0: none."""
        return asked if not self.levels or 1 <= asked <= self.levels else self.default_level

    def timeout_ns(self, level: int) -> int:
        """Return the default timeout of requests of a priority; 0: none."""
        return self.timeouts_ns.get(level, self.timeouts_ns.get(0, 0))


@dataclasses.dataclass(frozen=True, slots=True)
class FolderConfig:
    """The settings with which a folder's model is served."""

    filename: str = MODEL_FILE
    batch_max: int | None = None  # max_batch_size; None: not given; 0: no batching
    newest: int = 1  # number of versions to serve, from the highest number down; 0: all
    versions: tuple[int, ...] = ()  # the only versions to serve; empty: see ``newest``
    slo_s: float | None = None
    inputs: tuple[TensorDemand, ...] = ()
    outputs: tuple[TensorDemand, ...] = ()
    queueing: Queueing = Queueing()
    labels: tuple[tuple[str, str], ...] = ()  # pairs of an output and the file with the names of its classes
    notes: tuple[str, ...] = ()  # sentences for the log

    def chosen(self, found: Sequence[int]) -> list[int]:
        """Return the versions to serve among those found, in ascending order."""
        ordered = sorted(found)
        if self.versions:
            return [number for number in ordered if number in self.versions]
        return ordered[-self.newest :] if self.newest else ordered


def read_config(text: str, folder: str) -> FolderConfig:
    """Parse the text of a config.pbtxt. Raises InvalidModel, naming the field.

    folder: name of the model's folder; a name in the text must be the same.
    """
    if len(text) > CONFIG_BYTES_MAX:
        raise InvalidModel(f"config.pbtxt has {len(text)} characters; at most {CONFIG_BYTES_MAX} are read")
    parts = split_fields(text)
    fields = list(dict.fromkeys(field for field, _ in parts))
    _check_fields(fields, "config.pbtxt")
    # Ignored fields become blanks, so that errors have the file's line and column.
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
    if slo_s is not None:  # the parameter precedes the timeouts of requests without a priority
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
    """Return a configuration's priorities and timeouts, and notes on ignored fields. Raises InvalidModel."""
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
            notes.append(
                f"max_queue_size of {name} is passed over: a request that would not be in time is refused"
            )
    return Queueing(levels, default, timeouts_ns), notes


def text_of_json(text: str) -> str:
    """Return a configuration as protobuf text. text: JSON, from a load of the repository API.

    Raises InvalidModel.
    """
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
    # A complete configuration in JSON also has the empty fields.
    given = [key for key, value in named.items() if value not in (None, {}, [], "")]
    _check_fields([key for key in named if key in given or key not in REFUSED], "the configuration")
    try:
        config = json_format.ParseDict(
            {key: value for key, value in named.items() if key in USED}, pb.ModelConfig()
        )
    except (json_format.ParseError, RecursionError) as error:
        raise InvalidModel(f"the configuration: {str(error)[:500]}") from None
    # protobuf does not write 0, which means no batching; a missing field means that batching is measured.
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
    """Return the declaration of a ModelInput or ModelOutput. Raises InvalidModel."""
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
    """Return the top-level fields of a text message, in order: (name, the field's text). Raises InvalidModel.

    protobuf's own reader fails at unknown fields.
    """
    found: list[tuple[str, str]] = []
    name, start, at, depth = "", 0, 0, 0
    complete = True  # whether the last name has its value
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
