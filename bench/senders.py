"""Senders of arrivals to a live cluster: the Python client, or an HTTP client through a gateway."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bench import gateway
from bench.peers import client as http_client
from bench.peers.roads import Http, Verdict, floats, oip_http_request
from clockwork.client.blocking import Client
from clockwork.system.clock import SECOND, now_ns
from clockwork.workloads import Arrivals, load_generator

SEED = 7
"""Seed of the inputs."""

PATIENCE_S = 10.0
"""Timeout of a request that has the cluster to itself."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sent:
    """The outcomes of arrivals; element i of each array is that of arrival i. Latencies count from
    due times.
    """

    arrivals: Arrivals
    good: npt.NDArray[np.bool_]  # whether each request was answered within the SLO
    answered: npt.NDArray[np.bool_]
    latency_ns: npt.NDArray[np.int64]
    lag_ns: npt.NDArray[np.int64]  # delay by which each request was sent late


class Sender(Protocol):
    def alone(self, model: int, times: int) -> list[int]:
        """Latencies, ns, of requests for one model, one after another."""
        ...

    def send(self, arrivals: Arrivals, slo_ns: int) -> Sent: ...


class ByClient:
    """Sends arrivals with clockwork.Client."""

    def __init__(self, client: Client, models: Sequence[str]) -> None:
        self._client = client
        self._models = models

    def alone(self, model: int, times: int) -> list[int]:
        inputs = load_generator.make_inputs(self._client.model(self._models[model]), 1, model)[0]
        found = []
        for _ in range(times):
            begin_ns = now_ns()
            self._client.infer(self._models[model], inputs, slo=PATIENCE_S)
            found.append(now_ns() - begin_ns)
        return found

    def send(self, arrivals: Arrivals, slo_ns: int) -> Sent:
        run = load_generator.run_live(self._client, arrivals, self._models, seed=SEED)
        good = run.outcome == load_generator.Outcome.GOOD
        return Sent(
            run.arrivals,
            good,
            good | (run.outcome == load_generator.Outcome.LATE),
            run.latency_ns,
            run.lag_ns,
        )


class ByHttp:
    """Sends arrivals over HTTP/1.1 with binary tensors, a connection for each request under way."""

    def __init__(self, client: Client, models: Sequence[str], port: int) -> None:
        infos = [client.model(name) for name in models]
        self._asked = [
            (load_generator.make_inputs(info, 1, index)[0], [spec.name for spec in info.outputs])
            for index, info in enumerate(infos)
        ]
        self._models = models
        self._port = port

    def _requests(self, slo_ns: int) -> Http:
        bodies, headers = zip(*(oip_http_request(*asked, slo_ns // 1000) for asked in self._asked))
        return Http(
            [f"/v2/models/{name}/infer" for name in self._models], headers, bodies,
            lambda reply: floats(reply.body[reply.header_bytes :]),
        )  # fmt: skip

    def alone(self, model: int, times: int) -> list[int]:
        requests = self._requests(round(PATIENCE_S * SECOND))

        async def one_by_one() -> list[int]:
            road = requests.open(self._port)
            found = []
            for _ in range(times):
                begin_ns = now_ns()
                reply = await http_client.ask(road, model, PATIENCE_S)
                if reply.verdict is not Verdict.ANSWERED:
                    raise RuntimeError(f"{self._models[model]} was not answered: {reply.said}")
                found.append(now_ns() - begin_ns)
            await road.close()
            return found

        return http_client.run(one_by_one())

    def send(self, arrivals: Arrivals, slo_ns: int) -> Sent:
        requests = self._requests(slo_ns)
        found = http_client.run(
            http_client.offer(
                lambda: requests.open(self._port), arrivals.t_ns.tolist(), arrivals.model.tolist(),
                slo_ns, PATIENCE_S,
            )
        )  # fmt: skip
        answered = found.verdicts == Verdict.ANSWERED
        return Sent(
            arrivals, answered & (found.elapsed_ns <= slo_ns), answered, found.elapsed_ns, found.lag_ns
        )


@contextlib.contextmanager
def sender(over: str, client: Client, endpoint: str, models: Sequence[str]) -> Iterator[Sender]:
    """A sender to a live cluster. over: "client" or "http"; with "http" a gateway runs meanwhile."""
    if over == "client":
        yield ByClient(client, models)
        return
    process, port, _ = gateway.started(endpoint)
    try:
        yield ByHttp(client, models, port)
    finally:
        process.terminate()
        process.wait()
