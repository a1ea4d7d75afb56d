"""The Python client, which blocks; its futures do not."""

from __future__ import annotations

import concurrent.futures
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TypeAlias, overload

from clockwork import config
from clockwork.client import calls, upload
from clockwork.client.calls import (
    Arguments,
    Batching,
    Call,
    Input,
    Inputs,
    Outputs,
    Pages,
    ProductDtype,
    ProgressCallback,
    Value,
)
from clockwork.client.channel import Channel
from clockwork.client.memory import ClientMemory, Loan
from clockwork.wire.description import ClusterStatus, ModelInfo, RouteInfo
from clockwork.wire.keys import PeerKeys, read_peer_keys
from clockwork.wire.tensors import Array

Keys: TypeAlias = PeerKeys | str | os.PathLike[str] | None


class Client:
    """A connection to a cluster. Thread-safe; one serves a whole process.

        with Client() as client:
            y = client.infer("digits", x)

    endpoint: of the controller; else CLOCKWORK_ENDPOINT, else the default on this machine.
    timeout: seconds that a call waits for its answer unless it says otherwise.
    keys: the peer's key file (or its content); else CLOCKWORK_KEY, else none.
    name: how this client appears in the controller's logs.
    shared_memory: large tensors of infer() and submit() are put into memory that workers on this machine read and
    write in place, if they run as the same user; nothing of them passes the controller. Where a worker cannot,
    they are sent as always, and a warning is logged. See docs/shared-memory.md.

    It connects in the background and, when the connection is lost, again: calls under way then fail
    with ConnectionLost, later ones wait for the new connection (a few seconds at most).

    Times are seconds. Every call ends: with its result, with an error of clockwork.errors, or with
    RequestTimeout. Ctrl-C during a call cancels the request.
    """

    channel_type: ClassVar[type[Channel]] = Channel

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        timeout: float = config.CLIENT_TIMEOUT_NS / 1e9,
        keys: Keys = None,
        name: str = "",
        shared_memory: bool = False,
    ) -> None:
        self._memory = ClientMemory() if shared_memory else None
        self._timeout_ns = calls.checked_ns(timeout, "timeout")
        self._channel = self.channel_type(
            endpoint if endpoint is not None else config.client_endpoint(), _read_keys(keys), name
        )
        # Not __del__: this also runs at exit, while sockets can still be closed in order.
        self._finalizer = weakref.finalize(self, _close, self._channel, self._memory)

    @property
    def endpoint(self) -> str:
        """Where the controller is expected."""
        return self._channel.endpoint

    # ----- inference -------------------------------------------------------------------------

    @overload
    def infer(
        self,
        model: str,
        inputs: Mapping[str, Input],
        *,
        slo: float | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> dict[str, Array]: ...

    @overload
    def infer(
        self,
        model: str,
        inputs: Input,
        *,
        slo: float | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Array: ...

    def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        slo: float | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Outputs:
        """The model's outputs for these inputs.

        model: ``name``, or ``name@version`` for one version of it.
        inputs: exactly as the ONNX model takes them, batch axis included. One array, for a model with
        one input, gives the array of a model's only output; of a model with several outputs it raises InvalidInput.
        A mapping by input name gives a dict by output name. Arrays keep their dtype; of plain Python numbers, floats become
        float32 and integers int64.
        slo: seconds from the controller's receipt in which the answer is due (None: the model's own).
        priority: 1 is the highest, larger is lower, 0 the default level.

        The arrays returned are read-only views of the received message; ``.copy()`` gives writable
        ones. Arrays passed in must not be changed by other threads meanwhile.
        """
        limit_ns = self._limit_ns(timeout)

        def ask(loan: Loan | None) -> Outputs:
            call = calls.infer_call(inputs, loan)
            return self._channel.call(call, limit_ns, model, inputs, slo, priority)

        return ask(None) if self._memory is None else self._memory.infer(ask, model)

    @overload
    def submit(
        self,
        model: str,
        inputs: Mapping[str, Input],
        *,
        slo: float | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> concurrent.futures.Future[dict[str, Array]]: ...

    @overload
    def submit(
        self,
        model: str,
        inputs: Input,
        *,
        slo: float | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> concurrent.futures.Future[Array]: ...

    def submit(
        self,
        model: str,
        inputs: Inputs,
        *,
        slo: float | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> concurrent.futures.Future[Any]:
        """Like infer(), at once: a future of the outputs. cancel() cancels the request itself.

        The arrays passed in are sent without a copy: do not change them before the future is done.
        Callbacks of the future run on the client's I/O thread, and must not wait for another call.
        """
        limit_ns = self._limit_ns(timeout)

        def ask(loan: Loan | None) -> concurrent.futures.Future[Outputs]:
            call = calls.infer_call(inputs, loan)
            return self._channel.submit(call, limit_ns, model, inputs, slo, priority)

        return ask(None) if self._memory is None else self._memory.submit(ask, model)

    # ----- models ----------------------------------------------------------------------------

    def register(
        self,
        name: str,
        model: str | os.PathLike[str] | bytes | Any,
        *,
        slo: float | None = None,
        examples: Any = None,
        optional_inputs: Sequence[str] | None = None,
        batching: Batching | None = None,
        batch_max: int | None = None,
        version: int | None = None,
        origin: str = "",
        dtype: ProductDtype | None = None,
        share: float | None = None,
        force: bool = False,
        timeout: float | None = None,
        progress: ProgressCallback | None = None,
    ) -> ModelInfo:
        """Make a model known, and return once it is ready to serve: optimised, profiled, on the workers.

        model: an ONNX file (external data beside it is followed, within its folder), its bytes, or an
        onnx.ModelProto; a directory with a compiled program; for emulated devices, a
        clockwork.formats.profiles.ModelProfile. Other content under a known name becomes its next version, which takes the
        name's traffic once it is ready, unless there is a route() of the name. What is not given of slo, batching, batch_max
        and dtype, and the labels of an ONNX file that has none, are then those of the version that serves.
        slo: the default of its requests; 0: none. examples: real inputs, for profiling and checks: a dict by
        input name, a list of such, or one array for a model of one input.
        optional_inputs: names of inputs that have a default in the ONNX file, at most 64 bytes of a fixed shape, and that a
        request may then give or leave out; others keep their default. None: those that choose what an If or Loop does, and those
        that examples bring.
        batching: "on" and "off" overrule what registration finds out; with "same-shape" only requests of one shape share
        a batch. batch_max: an upper bound; 0: as measured. Of a new name, batching is "auto".
        version: the number of the version, if it is free; else, and without one, it is the next. origin: whose it
        is, for whoever keeps models as they are elsewhere; shown in ``options`` of its description.
        dtype: of matrix products where an ONNX model is compiled for GPUs: "tf32" and "fp16" use tensor cores, and cut
        what is multiplied to 10 bits of mantissa. CPU devices compute as the model says. Of a new name, it is "fp32".
        share: of the name's requests that the new version gets once it is ready, from 0 to 1; the others stay with those that
        have them, and from then on no new version takes any by itself; see route(). None: all of them, as above.
        force: take the name's traffic even if requests that fit the version that serves do not fit this one, or its outputs
        are others; without it that is refused (InvalidInput).
        timeout: for the whole; without one, only a registration that shows no progress is given up.
        """
        options = calls.registration_options(slo, batching, batch_max, version, origin, dtype, share, force)
        limit_ns = None if timeout is None else self._limit_ns(timeout)
        return upload.register(
            self._channel, name, model, options, examples, limit_ns, progress, share, optional=optional_inputs
        )

    def models(self, *, timeout: float | None = None) -> list[ModelInfo]:
        """Every registered model, by name and version."""
        return self._pages(calls.MODELS, "", timeout).models()

    def model(self, name: str, *, timeout: float | None = None) -> ModelInfo:
        """One model; its newest version, or the one in ``name@version``. Raises ModelNotFound."""
        return self._ask(calls.MODEL, timeout, name)

    def unregister(self, name: str, *, timeout: float | None = None) -> None:
        """Remove a model, or one version of it. What was admitted is still answered."""
        self._ask(calls.UNREGISTER, timeout, name)

    def load(self, name: str, *, timeout: float | None = None) -> None:
        """Have a model that was unloaded serve again; returns when it does. Nothing to do where it does already."""
        self._ask(calls.LOAD, timeout, name)

    def unload(self, name: str, *, timeout: float | None = None) -> None:
        """Have a model, or one version of it, serve nobody and take no memory, until load(); it stays registered.

        What was admitted is still answered. Raises ModelNotFound.
        """
        self._ask(calls.UNLOAD, timeout, name)

    def report_source(self, source: str, text: str, *, timeout: float | None = None) -> None:
        """Have status and metrics say that this program cannot read a source of models, and why; text "": it can again.

        For programs that register models from elsewhere, as a gateway does from its repositories. A report holds until it is
        withdrawn or this client is closed.
        """
        self._ask(calls.REPORT_SOURCE, timeout, source, text)

    def route(
        self,
        name: str,
        shares: Mapping[int, float] | None = None,
        *,
        shadow: Mapping[int, float] | None = None,
        tolerance: float = config.SHADOW_TOLERANCE,
        timeout: float | None = None,
    ) -> RouteInfo:
        """Split a model's traffic between its versions; from then on no new version takes any by itself.

        shares: of requests that name no version, from 0 to 1, in steps of 0.0001: ``{2: 0.1}`` gives version 2
        every tenth; those that are not named share the rest, as they shared before. None: as they are.
        shadow: a version that is to answer as well, and for which part of the requests that go to others
        (``{2: 1.0}``); its answers are compared and dropped, see description.ShadowInfo. None: as it is;
        ``{}``: no longer. tolerance: of the relative difference of such answers.
        Versions must be ready, and take the same inputs.
        """
        return self._ask(calls.ROUTE, timeout, name, shares, shadow, tolerance)

    def promote(self, name: str, version: int, *, timeout: float | None = None) -> RouteInfo:
        """Give all of a model's traffic to one version, at once; a shadow ends.

        version: 0 for the newest that is ready, and from then on for each newer one once it is ready, as before
        there was a route.
        """
        return self._ask(calls.PROMOTE, timeout, name, version)

    def rollback(self, name: str, *, timeout: float | None = None) -> RouteInfo:
        """Go back to where the traffic went before the last route() or promote(), or before a new version took it, at once;
        several times, one by one."""
        return self._ask(calls.ROLLBACK, timeout, name)

    def status(self, *, timeout: float | None = None) -> ClusterStatus:
        """The cluster as its controller sees it; see clockwork.wire.description.ClusterStatus."""
        return self._ask(calls.STATUS, timeout)

    def why_not_ready(self, *, timeout: float | None = None) -> str:
        """Why the cluster is not ready, in a sentence; "" if it is. Answered in little time, however large the cluster."""
        return self._ask(calls.READINESS, timeout)

    # ----- life ------------------------------------------------------------------------------

    def metrics(self, model: str = "", *, timeout: float | None = None) -> dict[str, Any]:
        """Every number that the controller has, as plain data: see docs/metrics.md. model: of its versions alone."""
        return self._pages(calls.METRICS, model, timeout).body

    def recorder(self, argument: str = "", *, timeout: float | None = None) -> Any:
        """What the controller's flight recorder answers: see docs/recorder.md, and scheduler.recording.Stream.

        argument: "" for the state of its ring; "#PLACE" for the bytes from a place on; "-NS" for those from the step that was
        told so many nanoseconds ago; "dump", "dumps" and "NAME#OFFSET" for files.
        """
        return self._ask(calls.RECORDER, timeout, argument)

    def close(self) -> None:
        """Disconnect. What is still waited for ends with ConnectionLost. Idempotent."""
        self._finalizer.detach()
        _close(self._channel, self._memory)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _limit_ns(self, timeout: float | None) -> int:
        return self._timeout_ns if timeout is None else calls.checked_ns(timeout, "timeout")

    def _pages(self, call: Call[Any, str], argument: str, timeout: float | None) -> Pages:
        """The answers to a query that is answered page by page."""
        pages = Pages(argument, self._limit_ns(timeout))
        while pages.add(self._ask(call, pages.left_s(), pages.argument)):
            pass
        return pages

    def _ask(self, call: Call[Value, *Arguments], timeout: float | None, *arguments: *Arguments) -> Value:
        return self._channel.call(call, self._limit_ns(timeout), *arguments)


def _close(channel: Channel, memory: ClientMemory | None) -> None:
    channel.close()
    if memory is not None:
        memory.close()


def _read_keys(keys: Keys) -> PeerKeys | None:
    if isinstance(keys, PeerKeys):
        return keys
    path = config.key_file() if keys is None else Path(keys)
    return None if path is None else read_peer_keys(path)
