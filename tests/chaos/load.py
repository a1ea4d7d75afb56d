"""The load: a process with honest clients of several kinds, which check every answer.

``python -m tests.chaos.load SETTINGS.json`` runs until SIGTERM, waits for requests under way, and exits. Its
records go to a file as they are made, so that the growth of the process itself can be measured.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import http.client
import json
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clockwork import AsyncClient, Client
from clockwork.errors import (
    ClockworkError,
    ConnectionLost,
    DeadlineMissed,
    ModelNotFound,
    Refused,
    RequestTimeout,
    Unavailable,
)
from clockwork.system.clock import SECOND, now_ns
from clockwork.wire import codec, messages
from clockwork.wire.messages import Status
from clockwork.wire.tensors import decode_tensor, encode_array
from clockwork.wire.transport import ConnectionEvent, Poller, Transport
from tests.chaos.records import NO_SUCH_MODEL, ROOMY_SLO_NS, TIGHT_SLO_NS, Change, Outcome, Request, to_line
from tests.process.cluster import same

TIMEOUT_NS = 20 * SECOND
"""A client's timeout: longer than any SLO and than any fault."""

TIGHT_SHARE = 0.2
"""The SLO of requests that a fault will make late."""

RAW_UNDER_WAY = 4
ASYNC_UNDER_WAY = 4
CHANGE_PAUSE_S = 0.1


@dataclasses.dataclass(slots=True)
class LoadSettings:
    endpoint: str  # endpoint of the controller
    linked_endpoint: str  # endpoint of the controller behind a link that may fail
    gateway: tuple[str, int] | None
    answers: str  # the file of inputs and right answers, see template.py
    models: list[str]
    churn: dict[str, str]  # models that are registered and removed meanwhile: name to ONNX file
    out: str
    seed: int
    rate: float = 80.0  # requests a second, all kinds of clients together
    client_life_s: float = 0.0  # lifetime of a client, after which another replaces it; 0: unlimited


class Answers:
    """The inputs of each model, with the answers of ONNX Runtime."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as arrays:
            self._arrays = dict(arrays)
        self._count = sum(name.startswith("m0/inputs/") for name in self._arrays)

    def input(self, model: str, number: int) -> np.ndarray:
        return self._arrays[f"{model}/inputs/{number % self._count}"]

    def right(self, model: str, number: int, answer: Any) -> bool:
        return same(answer, self._arrays[f"{model}/outputs/{number % self._count}"])


def outcome_of(error: BaseException) -> Outcome:
    kinds: list[tuple[type, Outcome]] = [
        (Refused, Outcome.REFUSED),
        (DeadlineMissed, Outcome.MISSED),
        (RequestTimeout, Outcome.HUNG),
        (Unavailable, Outcome.UNAVAILABLE),
        (ConnectionLost, Outcome.LOST),
        (ClockworkError, Outcome.FAILED),
    ]
    return next(outcome for kind, outcome in kinds if isinstance(error, kind))


class Load:
    """All clients, and the file to which they write their records."""

    def __init__(self, settings: LoadSettings) -> None:
        self.settings = settings
        self.answers = Answers(Path(settings.answers))
        self.stopping = threading.Event()
        self._out = open(settings.out, "w", buffering=1 << 16)  # noqa: SIM115  (closed by close())
        self._lock = threading.Lock()

    def write(self, record: Request | Change) -> None:
        with self._lock:
            self._out.write(to_line(record))

    def close(self) -> None:
        self._out.close()

    def orders(self, kind: str, share: float) -> Iterator[tuple[str, int, int]]:
        """Yield (model, number of its input, SLO in nanoseconds) at this share of the rate, until the end."""
        rng = random.Random(f"{self.settings.seed} {kind}")
        pace_s = 1 / (self.settings.rate * share)
        while not self.stopping.wait(rng.expovariate(1 / pace_s)):
            slo_ns = TIGHT_SLO_NS if rng.random() < TIGHT_SHARE else ROOMY_SLO_NS
            yield rng.choice(self.settings.models), rng.randrange(1 << 16), slo_ns

    def ask(self, kind: str, order: tuple[str, int, int], infer: Callable[[str, Any, int], Any]) -> None:
        """Send a request and record how it ended."""
        model, number, slo_ns = order
        begin_ns, text = now_ns(), ""
        try:
            answer = infer(model, self.answers.input(model, number), slo_ns)
            outcome = Outcome.OK if self.answers.right(model, number, answer) else Outcome.WRONG
        except ClockworkError as error:
            outcome, text = outcome_of(error), str(error)[:200]
        except (ValueError, KeyError) as error:  # a success whose body is malformed
            outcome, text = Outcome.WRONG, str(error)[:200]
        self.write(Request(kind, model, begin_ns, now_ns(), outcome, slo_ns, text))

    def lives(self) -> Iterator[int]:
        """Yield the times at which the client is to be closed; a single time in the far future if clients are
        not replaced."""
        life_ns = int(self.settings.client_life_s * SECOND)
        while not self.stopping.is_set():
            yield now_ns() + life_ns if life_ns else 1 << 62

    # ----- kinds of clients -------------------------------------------------------------------

    def blocking(self, endpoint: str, kind: str, share: float) -> None:
        """Run a client of its own in a thread."""
        orders = self.orders(kind, share)
        for until_ns in self.lives():
            # One tells when it notices that its connection is gone; the others ask again.
            again = kind != "linked"
            with Client(endpoint, timeout=TIMEOUT_NS / SECOND, name=kind, ask_again=again) as client:
                for order in orders:
                    self.ask(
                        kind, order, lambda model, x, slo_ns: client.infer(model, x, slo=slo_ns / SECOND)
                    )
                    if now_ns() > until_ns:
                        break

    def asynchronous(self, endpoint: str, share: float) -> None:
        asyncio.run(self._asynchronous(endpoint, share))

    async def _asynchronous(self, endpoint: str, share: float) -> None:
        loop = asyncio.get_running_loop()
        orders = self.orders("async", share)

        async def ask(client: AsyncClient, order: tuple[str, int, int]) -> None:
            model, number, slo_ns = order
            begin_ns, text = now_ns(), ""
            try:
                answer = await client.infer(model, self.answers.input(model, number), slo=slo_ns / SECOND)
                outcome = Outcome.OK if self.answers.right(model, number, answer) else Outcome.WRONG
            except ClockworkError as error:
                outcome, text = outcome_of(error), str(error)[:200]
            self.write(Request("async", model, begin_ns, now_ns(), outcome, slo_ns, text))

        for until_ns in self.lives():
            async with AsyncClient(endpoint, timeout=TIMEOUT_NS / SECOND, name="async") as client:
                tasks: set[asyncio.Task[None]] = set()
                while now_ns() < until_ns:
                    order = await loop.run_in_executor(None, next, orders, None)
                    if order is None:
                        break
                    tasks.add(asyncio.create_task(ask(client, order)))
                    if len(tasks) >= ASYNC_UNDER_WAY:
                        _, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if tasks:
                    await asyncio.wait(tasks)

    def http(self, address: tuple[str, int], share: float) -> None:
        """Send requests over the gateway, on a connection that is kept for the client's life."""
        orders = self.orders("http", share)
        for until_ns in self.lives():
            connection = http.client.HTTPConnection(*address, timeout=TIMEOUT_NS / SECOND)
            with contextlib.closing(connection):
                for order in orders:
                    self.ask("http", order, lambda *request: _post(connection, *request))  # noqa: B023
                    if now_ns() > until_ns:
                        break

    def raw(self, endpoint: str, share: float) -> None:
        """Speak the wire protocol directly, so that a duplicate answer, or an answer to a request that has
        ended, is seen."""
        client = RawClient(self, endpoint)
        try:
            for order in self.orders("raw", share):
                client.turn(order)
            client.finish()
        finally:
            client.close()

    # ----- changes of models ------------------------------------------------------------------

    def changes(self, endpoint: str) -> None:
        """Register, unload, load and unregister models at random, one change after the other."""
        rng = random.Random(f"{self.settings.seed} changes")
        with Client(endpoint, timeout=TIMEOUT_NS / SECOND, name="changes") as client:
            while not self.stopping.wait(CHANGE_PAUSE_S * rng.uniform(0.5, 1.5)):
                name = rng.choice(list(self.settings.churn))
                operation = rng.choice(["register", "register", "unload", "load", "unregister"])
                begin_ns, text = now_ns(), ""
                try:
                    if operation == "register":
                        client.register(name, Path(self.settings.churn[name]), timeout=TIMEOUT_NS / SECOND)
                    else:
                        getattr(client, operation)(name)
                    outcome = Outcome.OK
                except (
                    ModelNotFound
                ):  # correct for a model that is not registered: the oracle knows whether it is
                    outcome, text = Outcome.REFUSED, NO_SUCH_MODEL
                except ClockworkError as error:
                    outcome, text = outcome_of(error), f"{type(error).__name__}: {error}"[:200]
                self.write(Change(operation, name, begin_ns, now_ns(), outcome, text))

    def run(self) -> None:
        """Run all clients until SIGTERM; raise any client's exception that is no error of the cluster."""
        settings = self.settings
        jobs: list[tuple[Any, ...]] = [
            (self.blocking, settings.endpoint, "sync", 0.2),
            (self.blocking, settings.linked_endpoint, "linked", 0.2),
            (self.asynchronous, settings.endpoint, 0.2),
            (self.raw, settings.endpoint, 0.2),
        ]
        if settings.gateway is not None:
            jobs.append((self.http, tuple(settings.gateway), 0.2))
        if settings.churn:
            jobs.append((self.changes, settings.endpoint))
        with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
            tasks = [pool.submit(*job) for job in jobs]
            print("the load runs", flush=True)
            try:
                for task in concurrent.futures.as_completed(tasks):
                    task.result()
            finally:
                self.stopping.set()


_HTTP_ERRORS: dict[int, dict[str, type[ClockworkError]]] = {
    503: {"unavailable": Unavailable, "controller_unreachable": ConnectionLost},
    504: {
        "deadline_missed": DeadlineMissed,
        "timeout": DeadlineMissed,
    },  # the gateway's own wait is over by then, so no request hangs
}


def _post(connection: http.client.HTTPConnection, model: str, x: np.ndarray, slo_ns: int) -> np.ndarray:
    """Send an inference over HTTP. Raises the exceptions of the Python client."""
    body = {
        "inputs": [
            {
                "name": "x",
                "datatype": "FP32",
                "shape": list(x.shape),
                "parameters": {"binary_data_size": x.nbytes},
            }
        ],
        "parameters": {"timeout": slo_ns // 1000},  # the timeout in microseconds
    }
    header = json.dumps(body).encode()
    headers = {
        "Inference-Header-Content-Length": str(len(header)),
        "Content-Type": "application/octet-stream",
    }
    try:
        connection.request("POST", f"/v2/models/{model}/infer", header + x.tobytes(), headers)
        response = connection.getresponse()
        data = response.read()
    except TimeoutError:
        connection.close()
        raise RequestTimeout("the gateway did not answer") from None
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        raise ConnectionLost(f"the gateway: {type(error).__name__}: {error}") from None
    if response.status != 200:
        reason = json.loads(data)["reason"]
        raise _HTTP_ERRORS.get(response.status, {}).get(
            reason, Refused if response.status in (422, 429, 503) else ClockworkError
        )(f"{response.status} {data[:150].decode(errors='replace')}")
    length = int(response.headers.get("Inference-Header-Content-Length", len(data)))
    (output,) = json.loads(data[:length])["outputs"]
    if "data" in output:
        return np.array(output["data"], np.float32).reshape(output["shape"])
    return np.frombuffer(data[length:], np.float32).reshape(output["shape"])


_FAILURES = {
    Status.REFUSED: Outcome.REFUSED,
    Status.DEADLINE_MISSED: Outcome.MISSED,
    Status.UNAVAILABLE: Outcome.UNAVAILABLE,
}


class RawClient:
    """A connection of which every message is examined."""

    def __init__(self, load: Load, endpoint: str) -> None:
        self._load = load
        self._transport = Transport()
        self._dealer = self._transport.dealer(endpoint)
        self._poller = Poller([self._dealer])
        self._welcome = False
        self._next_id = 1
        self._open: dict[int, tuple[int, tuple[str, int, int]]] = {}
        self._given_up: set[int] = (
            set()
        )  # when the connection is lost, its last answers may still be readable

    def turn(self, order: tuple[str, int, int]) -> None:
        """Send a request as soon as few enough are under way, and read answers that have come."""
        self._receive()
        limit_ns = now_ns() + TIMEOUT_NS
        while (not self._welcome or len(self._open) >= RAW_UNDER_WAY) and now_ns() < limit_ns:
            if self._load.stopping.is_set() and not self._open:
                return
            self._poller.wait(SECOND // 20)
            self._receive()
        if not self._welcome:
            return
        model, number, slo_ns = order
        dtype, shape, frame = encode_array(self._load.answers.input(model, number))
        header = codec.encode(
            messages.InferRequest(self._next_id, model, slo_ns, 0, [["x", dtype, shape, 0]])
        )
        if self._dealer.send(header, [frame]):
            self._open[self._next_id] = (now_ns(), order)
            self._next_id += 1

    def finish(self) -> None:
        """Wait for the requests under way."""
        limit_ns = now_ns() + TIMEOUT_NS
        while self._open and now_ns() < limit_ns:
            self._poller.wait(SECOND // 20)
            self._receive()
        for request_id in list(self._open):
            self._end(request_id, Outcome.HUNG)

    def close(self) -> None:
        self._transport.close()

    def _receive(self) -> None:
        for change in self._dealer.changes():
            self._welcome = False
            if change is ConnectionEvent.UP:
                self._dealer.send(
                    codec.encode(messages.ClientHello(messages.PROTOCOL_VERSION, "chaos", "raw"))
                )
            else:
                self._given_up.update(self._open)
                for request_id in list(self._open):
                    self._end(request_id, Outcome.LOST)
        while (frames := self._dealer.receive()) is not None:
            message = codec.decode(frames[0], messages.TO_CLIENT)
            if type(message) is messages.ClientWelcome:
                self._welcome = True
            elif type(message) is messages.Failure and message.request_id:
                outcome = _FAILURES.get(Status(message.status), Outcome.FAILED)
                self._end(message.request_id, outcome, message.text[:200])
            elif type(message) is messages.Answer:
                self._answered(message, [bytes(frame) for frame in frames[1:]])
        for request_id, (begin_ns, _) in list(self._open.items()):
            if now_ns() > begin_ns + TIMEOUT_NS:
                self._end(request_id, Outcome.HUNG)

    def _answered(self, message: messages.Answer, frames: list[bytes]) -> None:
        outcome = Outcome.WRONG
        if message.request_id in self._open and len(message.tensors) == 1:
            _, (model, number, _) = self._open[message.request_id]
            _, dtype, shape, frame = message.tensors[0]
            with contextlib.suppress(ValueError, TypeError, IndexError):  # the answer is wrong then
                if self._load.answers.right(model, number, decode_tensor(dtype, shape, frames[frame])):
                    outcome = Outcome.OK
        self._end(message.request_id, outcome)

    def _end(self, request_id: int, outcome: Outcome, text: str = "") -> None:
        found = self._open.pop(request_id, None)
        if found is None:
            if request_id in self._given_up:
                self._given_up.remove(request_id)  # a second answer is an error
                return
            now = now_ns()
            self._load.write(Request("raw", "", now, now, Outcome.AGAIN, 0, f"{outcome} for {request_id}"))
            return
        begin_ns, (model, _, slo_ns) = found
        self._load.write(Request("raw", model, begin_ns, now_ns(), outcome, slo_ns, text))


def main() -> int:
    settings = LoadSettings(**json.loads(Path(sys.argv[1]).read_text()))
    load = Load(settings)
    signal.signal(signal.SIGTERM, lambda number, frame: load.stopping.set())
    try:
        load.run()
    finally:
        load.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
