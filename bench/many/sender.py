"""The native client of all servers (bench/many/sender.cpp): requests over HTTP/1.1, a loader of models."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Sequence
from functools import cache
from types import TracebackType
from typing import Any

import numpy as np

from bench.native import compiled
from bench.peers.roads import REFUSALS, Http, Verdict
from clockwork.workloads import Arrivals

BROKEN, GAVE_UP, REFUSED_BY_LOADER = 0, -1, -2
"""Statuses that are none of HTTP's."""

BEYOND_NS = 10_000_000
"""Time for which clients stay after the last SLO, to distinguish late answers from missing ones."""


class _Text(ctypes.Structure):
    _fields_ = [("data", ctypes.c_char_p), ("size", ctypes.c_uint64)]


class _Request(ctypes.Structure):
    _fields_ = [("head", _Text), ("body", _Text)]


class _Plan(ctypes.Structure):
    _fields_ = [
        ("port", ctypes.c_int32), ("models", ctypes.c_uint32), ("requests", ctypes.POINTER(_Request)),
        ("loads", ctypes.POINTER(_Request)), ("unloads", ctypes.POINTER(_Request)), ("bytes", ctypes.c_void_p),
        ("budget", ctypes.c_int64), ("models_max", ctypes.c_uint32), ("loads_max", ctypes.c_uint32),
    ]  # fmt: skip


class _Run(ctypes.Structure):
    _fields_ = [
        ("count", ctypes.c_uint64), ("due_ns", ctypes.c_void_p), ("model", ctypes.c_void_p),
        ("slo_ns", ctypes.c_void_p), ("shed_ns", ctypes.c_int64), ("give_up_ns", ctypes.c_int64),
        ("after_ns", ctypes.c_int64), ("status", ctypes.c_void_p), ("elapsed_ns", ctypes.c_void_p),
        ("lag_ns", ctypes.c_void_p),
    ]  # fmt: skip


@cache
def _library() -> Any:
    library = compiled("bench/many/sender.cpp")
    library.sender_open.restype = ctypes.c_void_p
    library.sender_loads.restype = ctypes.c_uint64
    for function in (library.sender_run, library.sender_loads, library.sender_close):
        function.argtypes = [ctypes.c_void_p, *([ctypes.c_void_p] if function is library.sender_run else [])]
    return library


@dataclasses.dataclass(frozen=True, slots=True)
class Loader:
    """How models are loaded into a server that does not decide about it: by requests of these paths."""

    loads: Sequence[str]
    unloads: Sequence[str]
    model_bytes: Sequence[int]
    budget_bytes: int
    models_max: int  # models that are loaded at once
    loads_max: int  # loads that are under way at once
    shed: float  # part of the SLO for which a request may wait for its model


@dataclasses.dataclass(frozen=True, slots=True)
class Outcomes:
    """The outcome of each request. Times count from when it was due."""

    verdicts: np.ndarray
    elapsed_ns: np.ndarray
    lag_ns: np.ndarray
    statuses: np.ndarray


class Sender:
    """Connections to a server that stay from run to run, and the loader's record of loaded models."""

    def __init__(self, port: int, requests: Http, loader: Loader | None = None) -> None:
        self._kept: list[Any] = []
        self._loader = loader
        found = self._requests(requests.paths, requests.headers, requests.bodies)
        count = len(requests.paths)
        plan = _Plan(port, count, found)
        if loader is not None:
            headers: list[dict[str, str]] = [{}] * count
            plan.loads = self._requests(loader.loads, headers, [b"{}"] * count)
            plan.unloads = self._requests(loader.unloads, headers, [b"{}"] * count)
            sizes = np.asarray(loader.model_bytes, np.int64)
            self._kept.append(sizes)
            plan.bytes = sizes.ctypes.data
            plan.budget, plan.models_max, plan.loads_max = (
                loader.budget_bytes, loader.models_max, loader.loads_max,
            )  # fmt: skip
        self._sender = ctypes.c_void_p(_library().sender_open(ctypes.byref(plan)))

    def _requests(
        self, paths: Sequence[str], headers: Sequence[dict[str, str]], bodies: Sequence[bytes]
    ) -> ctypes.Array[_Request]:
        found = (_Request * len(paths))()
        for place, (path, fields, body) in enumerate(zip(paths, headers, bodies, strict=True)):
            lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
            lines += [f"{name}: {value}" for name, value in fields.items()]
            head = ("\r\n".join(lines) + "\r\n\r\n").encode()
            self._kept += [head, body]
            found[place] = _Request(_Text(head, len(head)), _Text(body, len(body)))
        self._kept.append(found)
        return found

    @property
    def loads(self) -> int:
        """The number of loads that the loader has ordered."""
        return int(_library().sender_loads(self._sender))

    def run(self, arrivals: Arrivals, slo_ns: np.ndarray, give_up_s: float) -> Outcomes:
        """Send each request when it is due, regardless of the outcomes of earlier requests.

        slo_ns: of each request. A client gives up give_up_s after its request was due. When the last SLO has
        passed, all clients that still wait disconnect at once.
        """
        count = len(arrivals)
        due_ns = np.ascontiguousarray(arrivals.t_ns, np.int64)
        model = np.ascontiguousarray(arrivals.model, np.uint32)
        slo_ns = np.ascontiguousarray(slo_ns, np.int64)
        statuses = np.zeros(count, np.int16)
        elapsed_ns, lag_ns = np.zeros(count, np.int64), np.zeros(count, np.int64)
        shed = self._loader.shed if self._loader is not None else 0.0
        run = _Run(
            count, due_ns.ctypes.data, model.ctypes.data, slo_ns.ctypes.data, round(1000 * shed),
            round(give_up_s * 1e9), BEYOND_NS, statuses.ctypes.data, elapsed_ns.ctypes.data, lag_ns.ctypes.data,
        )  # fmt: skip
        _library().sender_run(self._sender, ctypes.byref(run))
        return Outcomes(verdicts(statuses), elapsed_ns, lag_ns, statuses)

    def __enter__(self) -> Sender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _library().sender_close(self._sender)


def verdicts(statuses: np.ndarray) -> np.ndarray:
    """The verdict of each status, as bench.peers gives it."""
    found = np.full(len(statuses), int(Verdict.FAILED))
    found[statuses == 200] = Verdict.ANSWERED
    found[np.isin(statuses, (*REFUSALS, REFUSED_BY_LOADER))] = Verdict.REFUSED
    found[statuses == GAVE_UP] = Verdict.GONE
    return found
