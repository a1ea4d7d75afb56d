"""The blocking client, whose submit() returns futures."""

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
    PageCollector,
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
    """A connection to a cluster. Thread-safe, so that a process needs only one client.

        with Client() as client:
            y = client.infer("digits", x)

    endpoint: the controller's; by default CLOCKWORK_ENDPOINT, else the default on this machine. Several, with
    commas between them, are tried in turn until a controller lets the client in. timeout:
    seconds that a call waits for its answer unless it says otherwise. keys: the client's key file (or its
    content); by default CLOCKWORK_KEY, else none. name: how this client appears in the controller's logs.
    shared_memory: large tensors of infer() and submit() are put into memory that workers on this machine read
    and write in place, if they run as the same user, so that tensors do not pass the controller. Where a
    worker cannot use the memory, tensors are sent as always, and a warning is logged. See
    docs/shared-memory.md.

    The client connects in the background, and again after each loss of the connection. Calls wait for the
    new connection, a few seconds at most. Calls under way that change nothing (infer(), submit(), queries)
    are asked again then, as long as their deadlines allow; ask_again=False, and tensors in shared memory,
    have them fail with ConnectionLost, as calls do that may have changed something.

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
        ask_again: bool = True,
    ) -> None:
        self._memory = ClientMemory() if shared_memory else None
        self._timeout_ns = calls.checked_ns(timeout, "timeout")
        self._channel = self.channel_type(
            endpoint if endpoint is not None else config.client_endpoint(), _read_keys(keys), name, ask_again
        )
        # A finalizer instead of __del__, because it also runs at exit, while sockets can still be closed.
        self._finalizer = weakref.finalize(self, _close, self._channel, self._memory)

    @property
    def endpoint(self) -> str:
        """The controller's endpoint."""
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
        """Return the model's outputs for these inputs.

        model: ``name``, or ``name@version`` for a certain version. inputs: as the ONNX model takes them,
        batch axis included. A single array, for a model with one input, returns the array of the model's only
        output; with several outputs, it raises InvalidInput. A mapping by input name returns a dict by output
        name. Arrays keep their dtype; Python's floats become float32, and its integers int64. slo: seconds
        from receipt by the controller within which the answer is due (None: the model's default). priority: 1
        is the highest, larger numbers are lower, 0 is the default level.

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
        """Like infer(), but return a future of the outputs at once. Its cancel() cancels the request.

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
        """Register a model, and return once it is optimised, profiled and on the workers, ready to serve.

        model: an ONNX file (external data beside it is followed, within its folder), its bytes, or an
        onnx.ModelProto; a directory with a compiled program; for emulated devices, a
        clockwork.formats.profiles.ModelProfile. Other content under a known name becomes its next version,
        which takes the name's traffic once it is ready, unless the name has a route(). Such a version
        inherits slo, batching, batch_max and dtype, where they are not given, and labels that its ONNX file
        lacks, from the version that serves. slo: the default of requests; 0: none. examples: real inputs, for
        profiling and checks: a dict by input name, a list of such dicts, or an array for a model with one
        input. optional_inputs: names of inputs that a request may leave out; each has a default in the ONNX
        file, with a fixed shape and at most 64 bytes. Other inputs keep their defaults. None: all such
        inputs, unless the file lists its weights as inputs, and inputs in the examples. batching: "on" and
        "off" overrule the result of registration; with "same-shape", only requests of equal shape share a
        batch. Default for a new name: "auto". batch_max: an upper bound; 0: as measured. version: the
        version's number, if it is free; otherwise, and by default, the next number. origin: names the source,
        for programs that mirror models from elsewhere; shown in ``options`` of the model's description.
        dtype: precision of matrix products where an ONNX model is compiled for GPUs. "tf32" and "fp16" use
        tensor cores, and cut the factors to 10 bits of mantissa. CPU devices compute in the model's own
        precision. Default for a new name: "fp32". share: part of the name's requests, from 0 to 1, that the
        new version gets once it is ready. Earlier versions share the rest, and from then on no new version
        takes traffic by itself; see route(). None: all requests, as above. force: take the name's traffic
        even if the version's outputs differ, or if requests that fit the serving version do not fit this one;
        without force that is refused (InvalidInput). timeout: for the whole call; None: only a registration
        without progress is given up.
        """
        options = calls.registration_options(slo, batching, batch_max, version, origin, dtype, share, force)
        limit_ns = None if timeout is None else self._limit_ns(timeout)
        return upload.register(
            self._channel, name, model, options, examples, limit_ns, progress, share, optional=optional_inputs
        )

    def models(self, *, timeout: float | None = None) -> list[ModelInfo]:
        """Return all registered models, by name and version."""
        return self._pages(calls.MODELS, "", timeout).models()

    def model(self, name: str, *, timeout: float | None = None) -> ModelInfo:
        """Return a model: its newest version, or the version in ``name@version``. Raises ModelNotFound."""
        return self._ask(calls.MODEL, timeout, name)

    def unregister(self, name: str, *, timeout: float | None = None) -> None:
        """Remove a model, or a version of it. Requests that were admitted are still answered."""
        return self._ask(calls.UNREGISTER, timeout, name)

    def load(self, name: str, *, timeout: float | None = None) -> None:
        """Load a model that was unloaded, and return when it serves. A model that serves stays unchanged."""
        return self._ask(calls.LOAD, timeout, name)

    def unload(self, name: str, *, timeout: float | None = None) -> None:
        """Unload a model, or a version of it: until load(), it takes no requests and no memory, but stays
        registered.

        Requests that were admitted are still answered. Raises ModelNotFound.
        """
        return self._ask(calls.UNLOAD, timeout, name)

    def report_source(self, source: str, text: str, *, timeout: float | None = None) -> None:
        """Report to status and metrics that this program cannot read a source of models, and why.

        text: the reason; "" withdraws the report. For programs that register models from elsewhere, as a
        gateway does from its repositories. A report holds until it is withdrawn or until this client is
        closed.
        """
        return self._ask(calls.REPORT_SOURCE, timeout, source, text)

    def route(
        self,
        name: str,
        shares: Mapping[int, float] | None = None,
        *,
        shadow: Mapping[int, float] | None = None,
        tolerance: float = config.SHADOW_TOLERANCE,
        timeout: float | None = None,
    ) -> RouteInfo:
        """Split a model's traffic between its versions; from then on no new version takes traffic by itself.

        shares: by version, its part of the requests that name no version, from 0 to 1 in steps of 0.0001.
        ``{2: 0.1}`` gives version 2 a tenth; the other versions split the rest in their earlier proportions.
        None: unchanged. shadow: a version that also gets copies of requests to other versions, and the part
        of them that it gets (``{2: 1.0}``). Its answers are compared and dropped; see description.ShadowInfo.
        None: unchanged; ``{}``: no shadow. tolerance: largest relative difference at which answers count as
        equal. Versions must be ready, and take the same inputs.
        """
        return self._ask(calls.ROUTE, timeout, name, shares, shadow, tolerance)

    def hand_over(self, *, timeout: float | None = None) -> list[str]:
        """Have the controller give way to a standby; returns the addresses of the standbys that may follow.

        Requests are asked again of the next controller. Raises Unavailable where no standby is there, or
        models are being changed.
        """
        return self._ask(calls.HAND_OVER, timeout)

    def promote(self, name: str, version: int, *, timeout: float | None = None) -> RouteInfo:
        """Give all of a model's traffic to one version, at once; a shadow ends.

        version: 0 selects the newest version that is ready, and from then on each newer version once it is
        ready, as without a route.
        """
        return self._ask(calls.PROMOTE, timeout, name, version)

    def rollback(self, name: str, *, timeout: float | None = None) -> RouteInfo:
        """Restore at once the traffic before the last route() or promote(), or before a new version took the
        traffic.

        Repeated calls go back step by step.
        """
        return self._ask(calls.ROLLBACK, timeout, name)

    def status(self, *, timeout: float | None = None) -> ClusterStatus:
        """Return the cluster's status, as its controller sees it; see
        clockwork.wire.description.ClusterStatus."""
        return self._ask(calls.STATUS, timeout)

    def why_not_ready(self, *, timeout: float | None = None) -> str:
        """Return the reason why the cluster is not ready; "" if it is.

        The query is cheap in a cluster of any size.
        """
        return self._ask(calls.READINESS, timeout)

    def core_loads(self, *, timeout: float | None = None) -> Any:
        """Return what `clockwork up` divides the cores of its machine by: the models' loads by number of
        threads, and the models that wait for executions of more threads. For operators."""
        return self._ask(calls.CORES, timeout)

    # ----- life ------------------------------------------------------------------------------

    def metrics(self, model: str = "", *, timeout: float | None = None) -> dict[str, Any]:
        """Return the controller's metrics as plain data; see docs/metrics.md.

        model: only those of its versions.
        """
        return self._pages(calls.METRICS, model, timeout).body

    def recorder(self, argument: str = "", *, timeout: float | None = None) -> Any:
        """Query the controller's flight recorder; see docs/recorder.md and scheduler.recording.Stream.

        argument: "" returns the state of the ring; "#PLACE" the bytes from a place on; "-NS" the bytes from
        the step that was recorded so many nanoseconds ago; "dump", "dumps" and "NAME#OFFSET" are for files.
        """
        return self._ask(calls.RECORDER, timeout, argument)

    def close(self) -> None:
        """Disconnect. Calls under way end with ConnectionLost. Idempotent."""
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

    def _pages(self, call: Call[Any, str], argument: str, timeout: float | None) -> PageCollector:
        """Return the answers to a query that is answered in pages."""
        pages = PageCollector(argument, self._limit_ns(timeout))
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
