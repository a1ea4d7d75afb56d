"""A model that is ready over HTTP and gRPC is served, at a start too; a model that no worker serves is not
ready."""

from __future__ import annotations

from pathlib import Path

import grpc

from clockwork import Client
from clockwork.gateway.process import Gateway
from clockwork.models import zoo
from clockwork.protocol import inference_pb2 as pb
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import running_cluster
from tests.process.gateways import Http, method_of, running_gateway, tensor

ROW = {"inputs": [tensor(shape=(1, 64), data=[0.5] * 64)]}


class Seen:
    """A cluster through its gateway."""

    def __init__(self, gateway: Gateway, channel: grpc.Channel) -> None:
        self._port = gateway.ports["http"]
        self._channel = channel

    def _status(self, path: str) -> int:
        http = Http(self._port)
        try:
            return http.ask("GET", path).status
        finally:
            http.close()

    def server(self) -> tuple[int, bool]:
        ready = method_of(self._channel, "ServerReady")(pb.ServerReadyRequest(), timeout=PATIENCE_S).ready
        return self._status("/v2/health/ready"), ready

    def model(self, name: str) -> tuple[int, bool]:
        ready = method_of(self._channel, "ModelReady")(
            pb.ModelReadyRequest(name=name), timeout=PATIENCE_S
        ).ready
        return self._status(f"/v2/models/{name}/ready"), ready

    def answer(self, name: str) -> int:
        http = Http(self._port)
        try:
            return http.infer(ROW, model=name).status
        finally:
            http.close()


def test_the_cluster_and_a_model_are_ready_while_somebody_serves(tmp_path: Path) -> None:
    with (
        running_cluster(tmp_path / "data", workers=0) as cluster,
        cluster.client() as client,
        running_gateway(cluster.endpoint) as gateway,
        grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc']}") as channel,
    ):
        seen = Seen(gateway, channel)
        assert seen.server() == (503, False), "nobody is there"
        worker = cluster.start_worker()
        eventually(lambda: seen.server() == (200, True), "a worker without models is ready")
        client.register("served", zoo.build("mlp"), slo=PATIENCE_S)
        assert seen.model("served") == (200, True)
        assert seen.answer("served") == 200
        assert seen.model("another") == (404, False)

        assert worker.stop() == 0  # the worker drains
        eventually(lambda: seen.server() == (503, False), "the only worker has gone")
        assert seen.model("served") == (400, False)
        assert seen.answer("served") == 503

        cluster.start_worker()
        eventually(lambda: seen.server() == (200, True), "another one serves")
        eventually(lambda: seen.model("served") == (200, True), "what was registered")
        assert seen.answer("served") == 200


def test_a_start_is_over_when_what_was_registered_is_served(tmp_path: Path) -> None:
    """A worker that has joined, and has not prepared the models yet, makes nothing ready."""
    with running_cluster(tmp_path / "data") as cluster, cluster.client() as client:
        base = zoo.build("mlp")
        for number in range(3):
            client.register(f"kept-{number}", zoo.fine_tune(base, number), slo=PATIENCE_S)
        assert cluster.workers[-1].stop() == 0
        assert cluster.controller.stop() == 0
        cluster.start_controller()
        with (
            running_gateway(cluster.endpoint) as gateway,
            grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc']}") as channel,
            Client(cluster.endpoint, timeout=PATIENCE_S) as again,
        ):
            seen = Seen(gateway, channel)
            assert seen.server() == (503, False)
            cluster.start_worker(store="empty", wait=False)  # this worker has to fetch and prepare all models
            eventually(lambda: seen.server() == (200, True), "the start is over")
            assert [seen.answer(f"kept-{number}") for number in range(3)] == [200] * 3, "at once"
            assert {one.state for one in again.models()} == {"ready"}
