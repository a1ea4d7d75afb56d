"""The calls of a client, declared once: the message that a call's arguments become, and the value of its
answer.

Client, AsyncClient and LoopClient carry calls out; this module neither sends nor waits. A call may also end
with a Failure, which error_of() turns into an exception.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Literal, NoReturn, TypeAlias, TypeVar, TypeVarTuple, cast

import numpy.typing as npt

from clockwork import config
from clockwork.client.memory import AnsweredInvalidInput, Loan
from clockwork.config import client as bounds
from clockwork.errors import (
    Cancelled,
    ClockworkError,
    DeadlineMissed,
    ExecutionFailed,
    Forbidden,
    InvalidInput,
    InvalidModel,
    ModelNotFound,
    ProtocolMismatch,
    Refused,
    RequestTimeout,
    SloWarning,
    Unavailable,
)
from clockwork.system.clock import now_ns, to_ns, to_seconds
from clockwork.wire import codec
from clockwork.wire.description import ClusterStatus, ModelInfo, RouteInfo
from clockwork.wire.messages import (
    ANSWER_TIMES,
    BATCHING,
    FROM_CLIENT,
    NEVER_NS,
    PRODUCT_DTYPES,
    Answer,
    Failure,
    HandOver,
    InferRequest,
    NamedTensorRef,
    Offer,
    Promote,
    Query,
    Register,
    Reply,
    ReportSource,
    Rollback,
    Route,
    Status,
    Unregister,
)
from clockwork.wire.shared import SHARED
from clockwork.wire.telling import printable, tell
from clockwork.wire.tensors import DTYPES, Array, as_array, decode_tensor, dtype_name, encode_array
from clockwork.wire.transport import Frame

Input: TypeAlias = npt.ArrayLike
"""A tensor: an array, an object with ``__array__``, a nested list of numbers or strings, or a scalar."""

Inputs: TypeAlias = Input | Mapping[str, Input]
Outputs: TypeAlias = Array | dict[str, Array]
Batching: TypeAlias = Literal["auto", "on", "off", "same-shape"]
ProductDtype: TypeAlias = Literal["fp32", "tf32", "fp16"]

AnswerFrames: TypeAlias = tuple[Answer, list[Frame]]  # The Answer to an inference, and its frames

Encoded: TypeAlias = tuple[bytes, Sequence[Frame]]  # A message's header and frames


Value = TypeVar("Value")
Arguments = TypeVarTuple("Arguments")


@dataclasses.dataclass(frozen=True, slots=True)
class Call(Generic[Value, *Arguments]):
    """A kind of call with one request message and one answering message.

    encode: makes the message from a request id and the call's arguments. Raises InvalidInput. decode: makes
    the call's value from the answering message and its frames. Raises ClockworkError where they are damaged.
    repeats: whether the call changes nothing, so that another controller may be asked the same.
    """

    encode: Callable[[int, *Arguments], Encoded]
    decode: Callable[[Any, list[Frame]], Value]
    repeats: bool = False


def _replied(
    message: Callable[[int, *Arguments], tuple[Any, ...]],
    value: Callable[[Any], Value],
    repeats: bool = False,
) -> Call[Value, *Arguments]:
    """Return a call without frames that a Reply answers. value: converts the reply's body."""

    def encode(request_id: int, *arguments: *Arguments) -> Encoded:
        return codec.encode(message(request_id, *arguments)), ()

    return Call(encode, _of_reply(value), repeats)


def _of_reply(value: Callable[[Any], Value]) -> Callable[[Any, list[Frame]], Value]:
    def decode(answer: Any, frames: list[Frame]) -> Value:
        if type(answer) is not Reply:
            _damaged(f"{type(answer).__name__} answers no query")
        try:
            return value(answer.body)
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            _damaged(f"{type(error).__name__}: {tell(str(error))}")

    return decode


def _damaged(text: str) -> NoReturn:
    raise ClockworkError(f"the controller's answer is damaged: {text}") from None


# ----- arguments -----------------------------------------------------------------------------


def checked_ns(seconds: float, name: str) -> int:
    """Return seconds in nanoseconds. Raises InvalidInput outside (0, SECONDS_MAX], and for NaN."""
    try:
        sound = 0 < seconds <= config.SECONDS_MAX and math.isfinite(seconds)
    except TypeError:
        sound = False
    if not sound:
        expected = f"a number of seconds above 0 and at most {config.SECONDS_MAX}"
        raise InvalidInput(f"{name} {seconds!r}: must be {expected}", expected=expected, got=repr(seconds))
    return max(1, to_ns(float(seconds)))


def checked_model(model: str) -> str:
    """Raise InvalidInput where the value cannot be a model's name."""
    if type(model) is not str or not 0 < len(model) <= config.MODEL_REFERENCE_MAX:
        raise InvalidInput(
            f"a model is named by 1 to {config.MODEL_REFERENCE_MAX} characters, not by {repr(model)[:80]}",
            expected="name or name@version",
            got=repr(model)[:80],
        )
    return model


def _checked_version(version: int) -> int:
    """Raise InvalidInput where the value cannot be a version's number."""
    if type(version) is not int or not 0 <= version < 1 << 63:
        raise InvalidInput(
            f"version {version!r}: an integer of at least 0", expected=">= 0", got=repr(version)[:80]
        )
    return version


def _callers_level() -> int:
    """Return the stacklevel with which the calling function's warning names the first line outside this
    package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("clockwork."):
        level, frame = level + 1, frame.f_back
    return level


def slo_ns_of(slo: float | None) -> int:
    """Return an SLO of seconds in nanoseconds; 0: none.

    Raises InvalidInput; warns where milliseconds may be meant.
    """
    if slo is None:
        return 0
    slo_ns = checked_ns(slo, "slo")
    if slo_ns >= bounds.SLO_DOUBTED_NS:
        warnings.warn(
            f"an SLO is in seconds: {slo:g} is {slo:g} s, {slo:g} ms is {slo / 1000:g}",
            SloWarning,
            _callers_level(),
        )
    return slo_ns


def checked_names(optional_inputs: Any) -> list[str] | None:
    """Return the names of optional inputs, checked. Raises InvalidInput."""
    if optional_inputs is None:
        return None
    if isinstance(optional_inputs, str | bytes) or not isinstance(optional_inputs, Iterable):
        raise InvalidInput(
            f"optional_inputs is a list of names, not {type(optional_inputs).__name__}",
            expected="a list of names",
        )
    names = list(optional_inputs)
    if not all(type(name) is str for name in names):
        raise InvalidInput("optional_inputs is a list of names", expected="a list of names")
    return names


def registration_options(
    slo: float | None, batching: str | None, batch_max: int | None, version: int | None = None, origin: str = "",
    dtype: str | None = None, share: float | None = None, force: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Return the options of a Register message. An option that is None is left out, and inherited on the
    controller.

    Raises InvalidInput.
    """
    for option, given, allowed in (("batching", batching, BATCHING), ("dtype", dtype, PRODUCT_DTYPES)):
        if given is not None and given not in allowed:
            expected = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
            raise InvalidInput(f"{option} {given!r}: {expected}", expected=expected, got=repr(given))
    if batch_max is not None and (
        type(batch_max) is not int or not 0 <= batch_max <= config.REGISTER_BATCH_MAX
    ):
        expected = f"an integer from 1 to {config.REGISTER_BATCH_MAX}, or 0: as measured"
        raise InvalidInput(f"batch_max {batch_max!r}: {expected}", expected=expected, got=repr(batch_max))
    if version is not None and (type(version) is not int or version < 1):
        raise InvalidInput(
            f"version {version!r}: an integer of at least 1", expected=">= 1", got=repr(version)
        )
    if share is not None:
        _parts(share)
    options = {
        "slo_ns": None if slo is None else slo_ns_of(slo or None),
        "batching": batching,
        "batch_max": batch_max,
        "version": version,
        "origin": origin or None,
        "dtype": dtype,
        "traffic": None if share is None else "part" if share else "none",
        "forced": force or None,
    }
    return {key: value for key, value in options.items() if value is not None}


# ----- inference -----------------------------------------------------------------------------


def _encode_infer(
    request_id: int,
    model: str,
    inputs: Iterable[tuple[str, Any]],
    slo: float | None,
    priority: int,
    loan: Loan | None = None,
) -> Encoded:
    slo_ns = slo_ns_of(slo)
    if type(priority) is not int or not 0 <= priority <= config.PRIORITY_MAX:
        raise InvalidInput(
            f"priority {priority!r}: an integer from 0 (the default) to {config.PRIORITY_MAX}",
            expected=f"0 to {config.PRIORITY_MAX}",
            got=repr(priority),
        )
    checked_model(model)
    references: list[NamedTensorRef] = []
    frames: list[Frame] = []
    for name, value in inputs:
        if type(name) is not str:
            raise InvalidInput(f"the name of an input is a str, not {type(name).__name__}", got=repr(name))
        try:
            dtype, shape, frame = encode_array(as_array(value))
        except InvalidInput as error:
            # The only input may be given without its name
            subject = f"input {name!r}" if name else "the input"
            raise InvalidInput(f"{subject}: {error}", name, error.expected, error.got) from None
        references.append([name, dtype, shape, len(frames)])
        frames.append(frame)
    if loan is not None:
        loan.place(references, frames)
    return _infer_header(InferRequest(request_id, model, slo_ns, priority, references)), frames


def _encode_infer_array(request_id: int, model: str, array: Any, slo: float | None, priority: int) -> Encoded:
    return _encode_infer(request_id, model, (("", array),), slo, priority)


def _encode_infer_mapping(
    request_id: int, model: str, inputs: Mapping[str, Any], slo: float | None, priority: int
) -> Encoded:
    return _encode_infer(request_id, model, inputs.items(), slo, priority)


def _encode_infer_frames(
    request_id: int,
    model: str,
    references: list[NamedTensorRef],
    frames: Sequence[Frame],
    slo_ns: int,
    priority: int,
) -> Encoded:
    request = InferRequest(request_id, checked_model(model), slo_ns, priority, references)
    return _infer_header(request), frames


def _infer_header(request: InferRequest) -> bytes:
    """Raise InvalidInput for more inputs, or longer names, than a controller takes."""
    count = len(request.tensors)
    if count > config.TENSORS_MAX:
        raise InvalidInput(
            f"the request has {count} inputs, at most {config.TENSORS_MAX} are taken",
            expected=f"at most {config.TENSORS_MAX} inputs", got=str(count),
        )  # fmt: skip
    try:
        return codec.encode(request)
    except codec.MessageTooLarge as error:
        raise InvalidInput(
            f"names and shapes of the request's {count} inputs are too long: {error}",
            expected=f"at most {config.REQUEST_HEADER_BYTES_MAX} bytes", got=str(error),
        ) from None  # fmt: skip


def _outputs(answer: Any, frames: list[Frame], loan: Loan | None = None) -> dict[str, Array]:
    if type(answer) is not Answer:
        _damaged(f"{type(answer).__name__} answers no inference")
    outputs: dict[str, Array] = {}
    try:
        for name, dtype, shape, at in answer.tensors:
            if dtype & SHARED and loan is not None:
                outputs[name] = decode_tensor(dtype & ~SHARED, shape, loan.fetch(frames[at]))
            else:
                outputs[name] = decode_tensor(dtype, shape, frames[at])
    except (ValueError, TypeError, IndexError) as error:
        _damaged(str(error))
    return outputs


def _only_output(answer: Any, frames: list[Frame], loan: Loan | None = None) -> Array:
    """Return the array of an answer's only output. Raises InvalidInput where there are several outputs."""
    outputs = _outputs(answer, frames, loan)
    if len(outputs) != 1:
        raise AnsweredInvalidInput(
            f"the model has {len(outputs)} outputs ({printable(', '.join(outputs))}): give its inputs by name, and infer() "
            "returns a dict of all outputs",
            expected="a mapping by input name",
            got="one array",
        )
    return next(iter(outputs.values()))


def _output_frames(answer: Any, frames: list[Frame]) -> AnswerFrames:
    if type(answer) is not Answer:
        _damaged(f"{type(answer).__name__} answers no inference")
    return answer, frames


# ----- models, routes and queries ------------------------------------------------------------


def _encode_register(request_id: int, name: str, files: list[list[Any]], options: dict[str, Any]) -> Encoded:
    try:
        return codec.check(Register(request_id, name, files, options)), ()
    except codec.WireError as error:
        raise InvalidModel(f"a package of {len(files)} files: {error}") from None


def _route(
    request_id: int,
    name: str,
    shares: Mapping[int, float] | None,
    shadow: Mapping[int, float] | None,
    tolerance: float,
) -> Route:
    checked_model(name)
    if not shares and shadow is None:
        raise InvalidInput("a route is shares, a shadow, or both", expected="shares={2: 0.1}", got="neither")
    parts = [[_checked_version(version), _parts(share)] for version, share in (shares or {}).items()]
    copied: list[Any] = []
    if shadow is not None:
        if not isinstance(shadow, Mapping):
            raise InvalidInput(
                f"shadow {shadow!r}: a version and its part of the requests", expected="{3: 1.0}"
            )
        if len(shadow) > 1:
            raise InvalidInput(f"{len(shadow)} shadows; a model has one at most")
        copied = [0, 0, 0.0]
        for version, share in shadow.items():
            try:
                copied = [_checked_version(version), _parts(share), float(tolerance)]
            except (TypeError, ValueError):
                raise InvalidInput(f"tolerance {tolerance!r}: a number") from None
    return Route(request_id, name, parts, copied)


def _parts(share: float) -> int:
    """Return a share in parts of SHARE_WHOLE.

    Raises InvalidInput outside [0, 1], and for a share rounded to 0.
    """
    if isinstance(share, int | float) and 0 <= share <= 1:
        parts = round(share * config.SHARE_WHOLE)
        if parts or not share:
            return parts
    expected = f"from 0 to 1, in steps of {1 / config.SHARE_WHOLE:g}"
    raise InvalidInput(f"share {share!r}: must be {expected}", expected=expected, got=repr(share))


def _standbys_of(body: Any) -> list[str]:
    found = body.get("standbys") if isinstance(body, dict) else None
    return [str(address) for address in found or ()]


def _report_source(request_id: int, source: str, text: str) -> ReportSource:
    return ReportSource(
        request_id, printable(source, config.TROUBLE_CHARS_MAX), printable(text, config.TROUBLE_CHARS_MAX)
    )


def _promote(request_id: int, name: str, version: int) -> Promote:
    return Promote(request_id, checked_model(name), _checked_version(version))


def _paged(what: str) -> Callable[[int, str], Query]:
    """Return a call for a query that is answered in pages; see Pages."""
    return lambda request_id, page: Query(request_id, what, page)


def _of_model(message: Callable[[int, str], tuple[Any, ...]]) -> Callable[[int, str], tuple[Any, ...]]:
    """Return a call with a message about a model or version, whose name is checked."""
    return lambda request_id, name: message(request_id, checked_model(name))


def _models_of(page: Any) -> Any:
    """Return a page of models, with a record of each."""
    if isinstance(page, dict) and isinstance(rows := page.get("models"), list):
        return {**page, "models": [ModelInfo.from_wire(row) for row in rows]}
    return page


def _status_of(body: Any) -> ClusterStatus:
    return cast(ClusterStatus, body if isinstance(body, dict) else {})


def _why_of(body: Any) -> str:
    return str(body.get("why_not_ready", "")) if isinstance(body, dict) else ""


def _unchanged(body: Any) -> Any:
    return body


def _nothing(body: Any) -> None:
    return None


class PageCollector:
    """Collects the pages of a query for models or metrics, within a time limit and bounds on their number."""

    def __init__(self, argument: str, limit_ns: int) -> None:
        self.body: dict[str, Any] = {}
        self.argument = argument  # argument of MODELS or METRICS for the next page
        self._until_ns = now_ns() + limit_ns
        self._limit_ns = limit_ns

    def left_s(self) -> float:
        """Return the time left for the next page. Raises RequestTimeout."""
        left_ns = self._until_ns - now_ns()
        if left_ns <= 0:
            raise RequestTimeout(f"no answer within {to_seconds(self._limit_ns):g} s")
        return to_seconds(left_ns)

    def add(self, page: Any) -> bool:
        """Add a page, and return whether another follows. Raises ClockworkError where the page is damaged."""
        if type(page) is not dict or type(models := page.get("models")) is not list:
            _damaged("it is no page of models")
        self.argument = page.pop("next", "")
        if type(self.argument) is not str or (self.argument and not models):
            _damaged("a page without a model is followed by another")
        # Longer than a Query's argument may be
        if len(self.argument.encode()) > config.MODEL_REFERENCE_BYTES_MAX:
            _damaged("the next page begins with a text that names no model")
        if not self.body:
            self.body = page
        else:
            self.body["models"] += models
        if len(self.body["models"]) > config.MODELS_MAX:
            _damaged(f"it is of more than {config.MODELS_MAX} models")
        return bool(self.argument)

    def models(self) -> list[ModelInfo]:
        """Return the models of all pages of MODELS, by name and version."""
        infos: list[ModelInfo] = self.body["models"]
        return sorted(infos, key=lambda info: (info.name, info.version))


# ----- the table of calls -----------------------------------------------------------------------------

_Infer: TypeAlias = Call[Outputs, str, Any, float | None, int]
INFER_MAPPING: _Infer = Call(_encode_infer_mapping, _outputs, repeats=True)
INFER_ARRAY: _Infer = Call(_encode_infer_array, _only_output, repeats=True)
INFER_FRAMES = Call(_encode_infer_frames, _output_frames, repeats=True)  # tensors as frames, in and out

# An upload follows the message; see upload.py
REGISTER = Call(_encode_register, _of_reply(ModelInfo.from_wire))
UNREGISTER = _replied(_of_model(Unregister), _nothing)
LOAD = _replied(_of_model(lambda request_id, name: Offer(request_id, name, True)), _nothing)
REPORT_SOURCE = _replied(_report_source, _nothing)
HAND_OVER = _replied(HandOver, _standbys_of)
UNLOAD = _replied(_of_model(lambda request_id, name: Offer(request_id, name, False)), _nothing)

ROUTE = _replied(_route, RouteInfo.from_wire)
PROMOTE = _replied(_promote, RouteInfo.from_wire)
ROLLBACK = _replied(_of_model(Rollback), RouteInfo.from_wire)

MODELS = _replied(_paged("models"), _models_of, repeats=True)
MODEL = _replied(
    _of_model(lambda request_id, name: Query(request_id, "model", name)), ModelInfo.from_wire, repeats=True
)
STATUS = _replied(lambda request_id: Query(request_id, "status", ""), _status_of, repeats=True)
READINESS = _replied(lambda request_id: Query(request_id, "readiness", ""), _why_of, repeats=True)
CORES = _replied(lambda request_id: Query(request_id, "cores", ""), _unchanged, repeats=True)
METRICS = _replied(_paged("metrics"), _unchanged, repeats=True)
RECORDER = _replied(_paged("recorder"), _unchanged)


def infer_call(inputs: Inputs, loan: Loan | None = None) -> _Infer:
    """Return the call for these inputs, with the matching kind of outputs.

    loan: shared memory for its tensors.
    """
    is_mapping = isinstance(inputs, Mapping)
    if loan is None:
        return INFER_MAPPING if is_mapping else INFER_ARRAY

    def encode(request_id: int, model: str, inputs: Any, slo: float | None, priority: int) -> Encoded:
        items = inputs.items() if is_mapping else (("", inputs),)
        return _encode_infer(request_id, model, items, slo, priority, loan)

    decode: Callable[[Any, list[Frame], Loan | None], Outputs] = _outputs if is_mapping else _only_output
    return Call(encode, lambda answer, frames: decode(answer, frames, loan))


def asked_again(header: bytes, waited_ns: int) -> tuple[bytes, int]:
    """Return the header of a call as another controller is asked it, so long after the first; and the time
    that is left of its SLO, at least 1 ns (NEVER_NS: it names none)."""
    message = codec.decode(header, FROM_CLIENT)
    if not isinstance(message, InferRequest) or message.slo_ns == 0:
        return header, NEVER_NS
    left_ns = max(1, message.slo_ns - waited_ns)
    return codec.encode(message._replace(slo_ns=left_ns)), left_ns


# ----- registration -------------------------------------------------------------------------

ProgressCallback: TypeAlias = Callable[[str, int, int], None]
"""Called with (stage, done, total); total 0 is unknown. Stages: hash, upload, store, prepare."""


# ----- failures ------------------------------------------------------------------------------


def error_of(failure: Failure) -> ClockworkError:
    """Return the exception for a Failure message."""
    error = _error_of(failure)
    error.request = failure.details.get("request")
    return error


def request_of(answer: Answer) -> int | None:
    """Return the controller's number of an answered request; None where the answer has none."""
    return answer.times[_REQUEST_PLACE] if len(answer.times) > _REQUEST_PLACE else None


_REQUEST_PLACE = ANSWER_TIMES.index("request")


def _error_of(failure: Failure) -> ClockworkError:
    text, details = failure.text, failure.details
    match failure.status:
        case Status.REFUSED:
            return Refused(
                text,
                str(details.get("reason", "")),
                _seconds_or_none(details.get("feasible_slo_ns")),
                _seconds_or_none(details.get("retry_after_ns")),
            )
        case Status.INVALID_INPUT:
            tensor, expected, got = (str(details.get(key, "")) for key in ("tensor", "expected", "got"))
            error = InvalidInput(text, tensor, expected, got)
            if {expected, got} <= _NUMBERS:
                error.add_note(f"NumPy converts it: .astype({expected!r})")
            return error
    return _ERRORS.get(failure.status, ClockworkError)(text)


_NUMBERS = frozenset(dtype_name(code) for code in DTYPES) - {"string"}

_ERRORS: dict[int, type[ClockworkError]] = {
    Status.DEADLINE_MISSED: DeadlineMissed,
    Status.CANCELLED: Cancelled,
    Status.MODEL_NOT_FOUND: ModelNotFound,
    Status.EXECUTION_FAILED: ExecutionFailed,
    Status.UNAVAILABLE: Unavailable,
    Status.PROTOCOL_MISMATCH: ProtocolMismatch,
    Status.INVALID_MODEL: InvalidModel,
    Status.FORBIDDEN: Forbidden,
}


def _seconds_or_none(ns: Any) -> float | None:
    return to_seconds(ns) if isinstance(ns, int) and ns > 0 else None
