"""A scheduler of any policy with everything around it played by hand: for stories of events and exact
orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from clockwork.config import QUEUED_REQUESTS_MAX
from clockwork.scheduler import make_scheduler
from clockwork.scheduler.types import (
    ActionDone,
    AnswerFailed,
    AnswerOk,
    Arrived,
    LinkMeasured,
    ModelReady,
    ModelSpec,
    ProfilePoint,
    Request,
    SendInfer,
    SendLoad,
    SendUnload,
    Tick,
    Wake,
    WorkerJoined,
    device_shape,
)
from clockwork.wire.messages import NEVER_NS, Status

MS = 1_000_000
SHAPE = ((3, 8, 8),)
LINK = 100_000
PAGE_BYTES = 1 << 20


def spec(
    model_id: int,
    exec_ms: float = 5,
    batch_max: int = 1,
    row_ms: float = 1,
    runs: tuple[int, ...] = (2,),
    load_ms: float = 4,
    program: str = "",
    shape: Any = SHAPE,
    batches: Sequence[int] = (),
) -> ModelSpec:
    """A model whose batch of b takes exec_ms + row_ms * (b - 1). batches: the sizes measured beside 1 and
    batch_max."""
    measured = sorted({1, batch_max, *(batch for batch in batches if batch <= batch_max)})
    points = [ProfilePoint(shape, batch, round((exec_ms + row_ms * (batch - 1)) * MS)) for batch in measured]
    return ModelSpec(
        model_id, f"m{model_id}", 1, program or f"p{model_id}", batch_max > 1, batch_max, 0, runs, round(load_ms * MS), points
    )  # fmt: skip


class Story:
    """Workers of `devices` devices each, of which `executors` share an arena; resident: every model is on the
    first device at 1 s, where stories begin."""

    def __init__(
        self,
        policy: str,
        *specs: ModelSpec,
        pages: int = 4,
        workers: int = 1,
        devices: int = 1,
        executors: int = 1,
        resident: bool = True,
        memory: str = "",
        run_ahead: int = 2,
        options: Mapping[str, float] | None = None,
        queued_requests_max: int = QUEUED_REQUESTS_MAX,
        host_pages: int = 0,
        link_ns: int = LINK,
        slowdown: float = 1,
    ) -> None:
        self.scheduler = make_scheduler(policy, memory, options, queued_requests_max)
        self.now = 0
        self.wake = NEVER_NS
        self.ids = 0
        for worker in range(1, workers + 1):
            shapes = tuple(
                device_shape(
                    "cpu",
                    PAGE_BYTES,
                    pages,
                    run_ahead,
                    place - place % executors if place % executors else -1,
                    1000 if place % executors else round(1000 * slowdown),
                )
                for place in range(devices)
            )
            self(WorkerJoined(0, worker, shapes, host_pages * PAGE_BYTES))
            self(LinkMeasured(0, worker, link_ns, link_ns))
            for one in specs if worker == 1 else ():
                self(ModelReady(0, worker, one))
        if resident:
            for one in specs:
                _, [load] = self.request(one.model_id, 0)
                [send] = self.done(load, 4)
                self.done(send, one.profile[0].exec_ns / MS)
        for worker in range(2, workers + 1):
            for one in specs:
                self(ModelReady(0, worker, one))
        self.at(0)

    def __call__(self, event: Any) -> list[Any]:
        commands = self.scheduler.step(event)
        self.scheduler.check_invariants()
        for command in commands:
            if isinstance(command, Wake):
                self.wake = command.at_ns
        return [command for command in commands if not isinstance(command, Wake)]

    def at(self, ms: float) -> Self:
        """Set the time to so many milliseconds after the beginning (1 s)."""
        self.now = 1000 * MS + round(ms * MS)
        return self

    def request(
        self,
        model: int = 1,
        slo_ms: float = 100,
        priority: int = 4,
        rows: int = 1,
        shape: Any = SHAPE,
        size: int = 10,
        waited_ms: float = 0,
        copied: int = 0,
    ) -> tuple[int, list[Any]]:
        """waited_ms: how long the request has waited for the controller. copied: bytes of its inputs in the
        client's memory."""
        self.ids += 1
        arrived = self.now - round(waited_ms * MS)
        deadline = arrived + round(slo_ms * MS) if slo_ms else NEVER_NS
        return self.ids, self(
            Arrived(
                self.now, Request(self.ids, model, rows, shape, size, arrived, deadline, priority, copied)
            )
        )

    def ask(self, *models: int, slo_ms: float = 100, priority: int = 4) -> list[int]:
        """Send requests that make the scheduler give no order."""
        asked = []
        for model in models:
            request, commands = self.request(model, slo_ms, priority)
            assert commands == []
            asked.append(request)
        return asked

    def done(
        self,
        sent: Any,
        took_ms: float = 5,
        status: Status = Status.OK,
        text: str = "",
        ready_ms: float | None = None,
    ) -> list[Any]:
        """End the action now. ready_ms: when the worker had its inputs; None: not reported."""
        took = round(took_ms * MS)
        ready = 0 if ready_ms is None else 1000 * MS + round(ready_ms * MS)
        begin = self.now - took
        return self(
            ActionDone(self.now, sent.worker, sent.action_id, status, text, begin, self.now, took, ready)
        )

    def tick(self) -> list[Any]:
        return self(Tick(self.now))

    def until(self, ms: float) -> list[tuple[float, Any]]:
        """Return every order that timers bring about until then, with its time in ms."""
        end = 1000 * MS + round(ms * MS)
        orders = []
        while self.wake <= end:
            self.now, self.wake = max(self.now, self.wake), NEVER_NS
            orders += [((self.now - 1000 * MS) / MS, one) for one in self.tick()]
        self.now = end
        return orders


def told(commands: list[Any]) -> list[Any]:
    """Return orders in short form: ("infer", model, requests), ("load" or "unload", model), ("ok" or a
    status, request)."""
    short: list[Any] = []
    for one in commands:
        if isinstance(one, SendInfer):
            short.append(("infer", one.model_id, one.requests))
        elif isinstance(one, SendLoad):
            short.append(("load", one.model_id))
        elif isinstance(one, SendUnload):
            short.append(("unload", one.model_id))
        elif isinstance(one, AnswerOk):
            short.append(("ok", one.request_id))
        elif isinstance(one, AnswerFailed):
            short.append((one.status.name.lower(), one.request_id))
        else:
            short.append(one)
    return short
