"""gRPC's health checks and server reflection, asked by hand-made messages, by the official clients, and by
attackers."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from bench import http2
from clockwork.config.gateway import REFLECTION_BYTES_MAX
from clockwork.gateway import grpc as grpc_server
from clockwork.gateway import health, reflection
from clockwork.gateway.grpc import LIVENESS, NOT_SERVING, SERVICE, SERVICE_UNKNOWN, SERVING
from clockwork.gateway.process import Gateway
from clockwork.protocol import health_pb2 as health_pb
from clockwork.protocol import inference_pb2 as pb
from clockwork.protocol import reflection_pb2 as reflection_pb
from clockwork.wire.messages import Query, Reply
from tests.patience import PATIENCE_S, eventually
from tests.process.fake_controller import FakeController, echo
from tests.process.gateways import TOKEN, infer_on, running_gateway

WATCH = "/grpc.health.v1.Health/Watch"
REFLECT = {
    version: f"/{version}.ServerReflection/ServerReflectionInfo"
    for version in (reflection.V1, reflection.V1ALPHA)
}
BEARING = (("authorization", f"Bearer {TOKEN}"),)


SEATS = 8


class Cluster:
    """A controller that is ready or not, as the test says."""

    def __init__(self, controller: FakeController) -> None:
        self.why_not = ""
        self.asked = 0
        self.controller = controller
        controller.handle = self._handle

    def _handle(self, controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
        if type(message) is Query and message.what == "readiness":
            self.asked += 1
            controller.send(identity, Reply(message.request_id, {"why_not_ready": self.why_not}))
        else:
            echo(controller, identity, message, frames)


@pytest.fixture
def cluster(controller: FakeController, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr(health, "HEALTH_POLL_S", 0.01)
    yield Cluster(controller)
    controller.handle = echo


@pytest.fixture
def gateway(cluster: Cluster) -> Iterator[Gateway]:
    with running_gateway(cluster.controller.endpoint, http_port=-1) as gateway:
        yield gateway


def dialled(gateway: Gateway) -> grpc.Channel:
    # Channels of a process share their connections by default.
    return grpc.insecure_channel(
        f"127.0.0.1:{gateway.ports['grpc']}", [("grpc.use_local_subchannel_pool", 1)]
    )


@pytest.fixture
def channel(gateway: Gateway) -> Iterator[grpc.Channel]:
    with dialled(gateway) as channel:
        yield channel


def check(channel: grpc.Channel, service: str, metadata: Any = ()) -> int:
    call = channel.unary_unary(
        "/grpc.health.v1.Health/Check", health_pb.HealthCheckRequest.SerializeToString, health_pb.HealthCheckResponse.FromString
    )  # fmt: skip
    return int(
        call(health_pb.HealthCheckRequest(service=service), metadata=metadata, timeout=PATIENCE_S).status
    )


class Watch:
    """A watch whose statuses are read on a thread of its own."""

    def __init__(self, channel: grpc.Channel, service: str, metadata: Any = ()) -> None:
        self.call = channel.unary_stream(
            WATCH, health_pb.HealthCheckRequest.SerializeToString, health_pb.HealthCheckResponse.FromString
        )(health_pb.HealthCheckRequest(service=service), metadata=metadata)  # fmt: skip
        self._said: queue.Queue[int | grpc.StatusCode] = queue.Queue()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(grpc.RpcError):
            for response in self.call:
                self._said.put(response.status)
        self._said.put(self.call.code())

    def next(self) -> int | grpc.StatusCode:
        """Return the next status; at the end, the status of the call."""
        return self._said.get(timeout=PATIENCE_S)


@pytest.mark.parametrize("service", ["", SERVICE])
def test_a_check_follows_the_clusters_readiness(
    channel: grpc.Channel, cluster: Cluster, service: str
) -> None:
    assert check(channel, service) == SERVING
    cluster.why_not = "no worker"
    assert check(channel, service) == NOT_SERVING
    assert check(channel, LIVENESS) == SERVING, "the gateway runs"


def test_of_other_services_nothing_is_known(channel: grpc.Channel) -> None:
    for service in ("m", "x" * 10_000, "inference"):
        with pytest.raises(grpc.RpcError) as caught:
            check(channel, service)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert len(caught.value.details()) < 300
        assert Watch(channel, service).next() == SERVICE_UNKNOWN


def test_a_watch_tells_each_change_once(channel: grpc.Channel, cluster: Cluster) -> None:
    watch = Watch(channel, SERVICE)
    live = Watch(channel, LIVENESS)
    assert (watch.next(), live.next()) == (SERVING, SERVING)
    for why, status in (("no worker", NOT_SERVING), ("", SERVING), ("gone", NOT_SERVING)):
        asked = cluster.asked
        cluster.why_not = why
        assert watch.next() == status
        assert Watch(channel, "").next() == status, "who comes later is told as well"
        assert cluster.asked > asked
    live.call.cancel()
    assert live.next() is grpc.StatusCode.CANCELLED, "and had nothing else to say"


def test_the_end_of_the_gateway_is_told_and_watches_do_not_delay_it(cluster: Cluster) -> None:
    with running_gateway(cluster.controller.endpoint, http_port=-1, drain_s=600.0) as gateway:
        channel = dialled(gateway)
        watch, live, unknown = (Watch(channel, service) for service in ("", LIVENESS, "x"))
        assert [one.next() for one in (watch, live, unknown)] == [SERVING, SERVING, SERVICE_UNKNOWN]
    assert [watch.next(), watch.next()] == [NOT_SERVING, grpc.StatusCode.OK]
    assert (live.next(), unknown.next()) == (grpc.StatusCode.OK, grpc.StatusCode.OK)
    channel.close()


def test_many_watches_ask_the_controller_as_often_as_one(
    channel: grpc.Channel, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "HEALTH_POLL_S", 3_600.0)
    first = Watch(channel, "")
    assert first.next() == SERVING
    asked = cluster.asked
    assert [one.next() for one in [Watch(channel, "") for _ in range(100)]] == [SERVING] * 100
    assert cluster.asked == asked


def test_watches_are_seats_that_make_room_for_others(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_server.bounds, "GRPC_WAITING_MAX", 3)
    with (
        running_gateway(cluster.controller.endpoint, http_port=-1, requests_max=1) as gateway,
        dialled(gateway) as channel,
        dialled(gateway) as other,
    ):
        watches = [Watch(channel, "")]
        for _ in range(19):
            assert watches[-1].next() == SERVING
            watches.append(Watch(channel, ""))
        assert [one.next() for one in watches[:16]] == [grpc.StatusCode.DEADLINE_EXCEEDED] * 16
        assert infer_on(other) == "OK"


def test_a_stranger_may_watch_for_as_long_as_there_is_room(cluster: Cluster, token_file: Path) -> None:
    with (
        running_gateway(
            cluster.controller.endpoint,
            http_port=-1,
            headers_s=2.0,
            connections_max=SEATS,
            token_file=token_file,
        ) as gateway,
        contextlib.ExitStack() as stack,
    ):
        silent = stack.enter_context(dialled(gateway))
        watching = stack.enter_context(dialled(gateway))
        watch = Watch(watching, "")
        assert watch.next() == SERVING
        assert check(silent, "") == SERVING
        idle = threading.Event()
        # gRPC's clients reconnect by themselves when they are used; until then they are idle.
        silent.subscribe(lambda state: idle.set() if state is grpc.ChannelConnectivity.IDLE else None)
        assert idle.wait(PATIENCE_S), "a stranger who says nothing more is closed"
        cluster.why_not = "no worker"
        assert watch.next() == NOT_SERVING, "on the same connection"
        cluster.why_not = ""
        assert watch.next() == SERVING
        watches = [watch, *(Watch(stack.enter_context(dialled(gateway)), "") for _ in range(16))]
        eventually(lambda: sum(one.call.is_active() for one in watches) <= SEATS, "the others have made room")
        known = stack.enter_context(dialled(gateway))
        assert infer_on(known, TOKEN) == "OK"


def test_health_is_for_everybody_and_reflection_is_not(cluster: Cluster, token_file: Path) -> None:
    with (
        running_gateway(cluster.controller.endpoint, http_port=-1, token_file=token_file) as gateway,
        dialled(gateway) as channel,
    ):
        assert check(channel, "") == SERVING
        assert Watch(channel, "").next() == SERVING
        request = reflection_pb.ServerReflectionRequest(list_services="*")
        for path in REFLECT.values():
            with pytest.raises(grpc.RpcError) as caught:
                list(reflected(channel, path, [request]))
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert len(list(reflected(channel, path, [request], BEARING))) == 1


# ----- reflection ------------------------------------------------------------------------------


def reflected(channel: grpc.Channel, path: str, requests: list[Any], metadata: Any = ()) -> Iterator[Any]:
    call: Callable[..., Iterator[Any]] = channel.stream_stream(
        path, reflection_pb.ServerReflectionRequest.SerializeToString, reflection_pb.ServerReflectionResponse.FromString
    )  # fmt: skip
    return call(iter(requests), metadata=metadata, timeout=PATIENCE_S)


@pytest.mark.parametrize("path", REFLECT.values())
def test_every_service_that_is_listed_is_described(channel: grpc.Channel, path: str) -> None:
    from google.protobuf import descriptor_pb2

    [listed] = reflected(channel, path, [reflection_pb.ServerReflectionRequest(host="h", list_services="")])
    names = [one.name for one in listed.list_services_response.service]
    assert names == [
        "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection",
        SERVICE,
    ]  # fmt: skip
    assert (listed.valid_host, listed.original_request.host) == ("h", "h")
    asked = [reflection_pb.ServerReflectionRequest(file_containing_symbol=name) for name in names]
    found = []
    for name, response in zip(names, reflected(channel, path, asked), strict=True):
        [data] = response.file_descriptor_response.file_descriptor_proto
        file = descriptor_pb2.FileDescriptorProto.FromString(data)
        [service] = file.service
        assert f"{file.package}.{service.name}" == name
        found += [f"/{name}/{method.name}" for method in service.method]
        named = reflection_pb.ServerReflectionRequest(file_by_filename=file.name)
        [again] = reflected(channel, path, [named])
        assert again.file_descriptor_response.file_descriptor_proto == [data]
        one = reflection_pb.ServerReflectionRequest(file_containing_symbol=found[-1][1:].replace("/", "."))
        [again] = reflected(channel, path, [one])
        assert again.file_descriptor_response.file_descriptor_proto == [data]
    assert sorted(found) == sorted(grpc_server.rights()), "what is described is what there is"


def test_what_is_not_there_is_an_error_within_the_answer(channel: grpc.Channel) -> None:
    kinds: list[dict[str, Any]] = [
        {"file_by_filename": "../../etc/passwd"}, {"file_by_filename": ""},
        {"file_containing_symbol": "inference.Nope"}, {"file_containing_symbol": "a\0b"},
        {"file_containing_symbol": "inference.GRPCInferenceService.Nope"},
        {"file_containing_symbol": "." * (REFLECTION_BYTES_MAX // 2)},
        {"file_containing_extension": {"containing_type": "inference.ModelInferRequest", "extension_number": 1}},
        {"all_extension_numbers_of_type": "inference.Nope"}, {},
    ]  # fmt: skip
    requests = [reflection_pb.ServerReflectionRequest(**one) for one in kinds]
    answers = list(reflected(channel, REFLECT[reflection.V1], requests))
    assert [one.error_response.error_code for one in answers] == [5] * (len(kinds) - 1) + [3]
    assert [one.original_request for one in answers] == requests
    known = reflection_pb.ServerReflectionRequest(all_extension_numbers_of_type="inference.ModelInferRequest")
    [answer] = reflected(channel, REFLECT[reflection.V1], [known])
    assert answer.all_extension_numbers_response.base_type_name == "inference.ModelInferRequest"
    assert not answer.all_extension_numbers_response.extension_number


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_questions_have_a_bound(channel: grpc.Channel, compression: Any) -> None:
    large = reflection_pb.ServerReflectionRequest(host="x" * REFLECTION_BYTES_MAX, list_services="")
    call = channel.stream_stream(REFLECT[reflection.V1], lambda message: message.SerializeToString())
    with pytest.raises(grpc.RpcError) as caught:
        list(call(iter([large]), compression=compression))
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
    with pytest.raises(grpc.RpcError) as caught:
        list(channel.stream_stream(REFLECT[reflection.V1])(iter([b"\xff" * 99])))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_questions_wait_for_the_answers_before_them_to_be_read(
    gateway: Gateway, channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """9 KB are sent for each 40 bytes, and would be kept for a client that reads none."""
    answered: list[str] = []
    answer = reflection.answer

    def counted(request: Any) -> Any:
        answered.append(request.host)
        return answer(request)

    monkeypatch.setattr(reflection, "answer", counted)
    message = reflection_pb.ServerReflectionRequest(
        host="deaf", file_containing_symbol=SERVICE
    ).SerializeToString()
    data = (b"\0" + len(message).to_bytes(4) + message) * 1_000
    path = REFLECT[reflection.V1]
    with socket.create_connection(("127.0.0.1", gateway.ports["grpc"]), PATIENCE_S) as deaf:
        deaf.sendall(http2.hello() + http2.frame(http2.HEADERS, http2.END_HEADERS, 1, http2.call(path=path)))
        for at in range(0, len(data), http2.DATA_BYTES_MAX):
            deaf.sendall(http2.frame(http2.DATA, 0, 1, data[at : at + http2.DATA_BYTES_MAX]))
        # A client that reads has all of its answers meanwhile.
        request = reflection_pb.ServerReflectionRequest(host="reads", file_containing_symbol=SERVICE)
        assert len(list(reflected(channel, path, [request] * 1_000))) == 1_000
    assert answered.count("deaf") <= 2 * http2.WINDOW // len(pb.DESCRIPTOR.serialized_pb)


# ----- the official clients --------------------------------------------------------------------


def test_the_official_client_of_health_is_answered(channel: grpc.Channel, cluster: Cluster) -> None:
    theirs = pytest.importorskip(
        "grpc_health.v1.health_pb2",
        reason="grpcio-health-checking is not installed (requirements-clients.lock)",
    )
    from grpc_health.v1 import health_pb2_grpc

    stub = health_pb2_grpc.HealthStub(channel)
    assert stub.Check(theirs.HealthCheckRequest()).status == theirs.HealthCheckResponse.SERVING
    watch = stub.Watch(theirs.HealthCheckRequest(service=SERVICE))
    assert next(watch).status == theirs.HealthCheckResponse.SERVING
    cluster.why_not = "no worker"
    assert next(watch).status == theirs.HealthCheckResponse.NOT_SERVING
    watch.cancel()


def test_a_client_takes_a_gateway_that_is_not_ready_out_of_its_pool(
    gateway: Gateway, cluster: Cluster
) -> None:
    """As every client of gRPC does whose service config names a service to watch."""
    cluster.why_not = "no worker"
    config = json.dumps({
        "loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": SERVICE},
    })  # fmt: skip
    options = [("grpc.service_config", config), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc']}", options) as channel:
        states: queue.Queue[grpc.ChannelConnectivity] = queue.Queue()
        channel.subscribe(states.put, try_to_connect=True)

        def wait_for(wanted: grpc.ChannelConnectivity) -> None:
            while states.get(timeout=PATIENCE_S) is not wanted:
                pass

        wait_for(grpc.ChannelConnectivity.TRANSIENT_FAILURE)
        cluster.why_not = ""
        wait_for(grpc.ChannelConnectivity.READY)
        assert infer_on(channel) == "OK"


def test_the_official_client_of_reflection_finds_every_message(channel: grpc.Channel) -> None:
    theirs = pytest.importorskip(
        "grpc_reflection.v1alpha.proto_reflection_descriptor_database",
        reason="grpcio-reflection is not installed (requirements-clients.lock)",
    )
    from google.protobuf import descriptor_pool, message_factory

    database = theirs.ProtoReflectionDescriptorDatabase(channel)
    assert SERVICE in database.get_services()
    found = descriptor_pool.DescriptorPool(database).FindServiceByName(SERVICE)
    [ours] = pb.DESCRIPTOR.services_by_name.values()
    assert [one.name for one in found.methods] == [one.name for one in ours.methods]
    infer = found.FindMethodByName("ModelInfer")
    request = message_factory.GetMessageClass(infer.input_type)(model_name="m", raw_input_contents=[bytes(8)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    answer = channel.unary_unary(
        f"/{SERVICE}/ModelInfer", lambda message: message.SerializeToString(),
        message_factory.GetMessageClass(infer.output_type).FromString,
    )(request)  # fmt: skip
    assert list(answer.raw_output_contents) == [bytes(8)]
