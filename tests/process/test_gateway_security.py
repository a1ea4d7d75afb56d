"""TLS, the bearer token, and settings with which a gateway refuses to start."""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from clockwork.errors import ConfigError
from clockwork.gateway import openapi, security
from clockwork.gateway.errors import Unauthorized
from clockwork.gateway.grpc import rights as grpc_rights
from clockwork.gateway.http import PATHS
from clockwork.gateway.process import Gateway
from clockwork.gateway.settings import OFF, GatewaySettings, StatusCodes
from clockwork.launch.local import held_ports
from clockwork.protocol import inference_pb2 as pb
from clockwork.wire.keys import CONTROLLER_KEY_FILE, KEY_FILES, write_keys
from clockwork.wire.messages import Failure, InferRequest, Status
from clockwork.wire.roles import GRPC, HTTP, Right, Role
from clockwork.wire.transport import new_key_pair
from tests.patience import PATIENCE_S
from tests.process.cluster import Program
from tests.process.fake_controller import FakeController, echo
from tests.process.gateways import BODY, TOKEN, Http, Https, Reply, infer_on, running_gateway
from tests.process.peers import running_controller


def test_tls_and_a_token_on_both_servers(
    controller: FakeController, pair: tuple[Path, Path], token_file: Path
) -> None:
    cert, key = pair
    with running_gateway(controller.endpoint, tls_cert=cert, tls_key=key, token_file=token_file) as gateway:
        http = Https(gateway.ports["http"], cert)
        assert http.infer(BODY, Authorization=f"Bearer {TOKEN}").status == 200
        assert http.infer(BODY, Authorization=f"bearer  {TOKEN}").status == 200
        http.close()
        with socket.create_connection(("127.0.0.1", gateway.ports["http"]), timeout=PATIENCE_S) as plain:
            plain.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"HTTP" not in plain.recv(1000)
        credentials = grpc.ssl_channel_credentials(cert.read_bytes())
        with grpc.secure_channel(f"localhost:{gateway.ports['grpc']}", credentials) as channel:
            assert infer_on(channel, TOKEN) == "OK"
            assert infer_on(channel, "wrong") == "UNAUTHENTICATED"
            assert infer_on(channel) == "UNAUTHENTICATED"


def test_without_the_token_only_health_answers(controller: FakeController, token_file: Path) -> None:
    with running_gateway(controller.endpoint, token_file=token_file) as gateway:

        def ask(method: str, path: str, **headers: str) -> Reply:
            http = Http(gateway.ports["http"])
            reply = http.ask(method, path, None, headers)
            http.close()
            return reply

        for path in ("/v2/models/m", "/v2", "/openapi.json"):
            reply = ask("GET", path)
            assert (reply.status, reply.json["reason"]) == (401, "unauthorized")
            assert reply.headers["www-authenticate"].startswith("Bearer")
        assert ask("POST", "/v2/models/m/infer").status == 401
        for wrong in (
            TOKEN,
            f"Basic {TOKEN}",
            "Bearer",
            f"Bearer {TOKEN}x",
            "Bearer ä".encode().decode("latin-1"),
        ):
            assert ask("GET", "/v2", Authorization=wrong).status == 401
        assert ask("GET", "/v2", Authorization=f"Bearer {TOKEN}").status == 200
        assert ask("GET", "/openapi.json", Authorization=f"Bearer {TOKEN}").json["security"] == [
            {"token": []}
        ]
        assert ask("GET", "/v2/health/live").status == 200
        with grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc']}") as channel:
            live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            assert live(b"", timeout=PATIENCE_S) == b"\x08\x01"
            assert infer_on(channel) == "UNAUTHENTICATED"
            assert infer_on(channel, TOKEN) == "OK"


OPERATOR = "battery-staple"
BEARS = {"": None, "wrong": "x", "client": TOKEN, "operator": OPERATOR}
"""A caller, and its token."""


def not_found(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
    """Answers every request with "not found": with that, no call takes long."""
    failure = Failure(message.request_id, Status.MODEL_NOT_FOUND, "there is none", {})
    controller.send(identity, failure)


def expected(right: Right, who: str, has_operator: bool) -> str:
    """Return the gateway's refusal of a call: "" if it accepts it."""
    if right is Right.OPEN or (who == "operator" and has_operator):
        return ""
    if who != "client":
        return "unauthorized"
    return "forbidden" if right is Right.OPERATE and has_operator else ""


@pytest.fixture
def operator_token_file(tmp_path: Path) -> Path:
    path = tmp_path / "operator-token"
    path.write_text(f"{OPERATOR}\n")
    return path


@pytest.mark.parametrize("has_operator", [True, False], ids=["two tokens", "one token"])
def test_every_path_and_every_method_with_every_token(
    token_file: Path, operator_token_file: Path, has_operator: bool
) -> None:
    documented = {
        (path, method) for path, methods in openapi.document(True, StatusCodes.MESH)["paths"].items() for method in methods
        if method != "parameters"
    }  # fmt: skip
    asked = {path: method.upper() for path, method in documented} | {"/openapi.json": "GET"}
    assert set(asked) | {"/metrics"} == set(HTTP), "the table has every path"
    assert {word for path in PATHS for word in ["/".join(["", *path.words])]} == set(asked)
    methods = {one.name for one in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods}
    assert methods == set(GRPC), "the table has every method"
    needed = grpc_rights()
    assert set(needed.values()) == set(Right)
    with (
        FakeController(handle=not_found) as controller,
        running_gateway(
            controller.endpoint, metrics_port=0, token_file=token_file,
            operator_token_file=operator_token_file if has_operator else None,
        ) as gateway,
        grpc.insecure_channel(f"127.0.0.1:{gateway.ports['grpc']}") as channel,
    ):  # fmt: skip
        for who, token in BEARS.items():
            bearing = {"Authorization": f"Bearer {token}"} if token else {}
            for path, right in HTTP.items():
                http = Http(gateway.ports["metrics" if path == "/metrics" else "http"])
                where = path.replace("{model}", "m").replace("{version}", "1").replace("{region}", "r")
                method = asked.get(path, "GET")
                reply = http.ask(method, where, {} if method == "POST" else None, bearing)
                http.close()
                reason = reply.json["reason"] if reply.status in (401, 403) else ""
                assert reason == expected(right, who, has_operator), (who, path, reply.status, reply.data)
                assert (reply.status == 401) == (reason == "unauthorized")
                assert (reply.status == 403) == (reason == "forbidden")
            for name, right in needed.items():
                metadata = [("authorization", f"Bearer {token}")] if token else []
                is_stream = name.endswith(("ModelStreamInfer", "Watch", "ServerReflectionInfo"))
                call = (channel.stream_stream if is_stream else channel.unary_unary)(name)
                try:
                    if is_stream:
                        next(call(iter([b""]), metadata=metadata, timeout=PATIENCE_S))
                    else:
                        call(b"", metadata=metadata, timeout=PATIENCE_S)
                    code = "OK"
                except grpc.RpcError as error:
                    code = error.code().name
                wanted = {"unauthorized": "UNAUTHENTICATED", "forbidden": "PERMISSION_DENIED", "": None}[
                    expected(right, who, has_operator)
                ]
                lawful = (
                    ("UNIMPLEMENTED",)
                    if name.endswith("/CudaSharedMemoryRegister")
                    else ("OK", "NOT_FOUND", "INVALID_ARGUMENT")
                )
                assert code == wanted if wanted else code in lawful, (
                    who,
                    name,
                    code,
                )


def test_one_token_for_everything_is_warned_of_and_two_must_differ(
    token_file: Path, operator_token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "clockwork.gateway"):
        security.read_tokens(GatewaySettings(token_file=token_file, operator_token_file=operator_token_file))
        assert caplog.text == ""
        security.read_tokens(GatewaySettings(token_file=token_file))
        assert "--operator-token-file" in caplog.text
    operator_token_file.write_text(TOKEN)
    with pytest.raises(ConfigError, match="make another one"):
        security.read_tokens(GatewaySettings(token_file=token_file, operator_token_file=operator_token_file))


def test_an_operators_token_alone_leaves_inference_open(operator_token_file: Path) -> None:
    tokens = security.read_tokens(GatewaySettings(operator_token_file=operator_token_file))
    tokens.check(Right.INFER, None)
    with pytest.raises(Unauthorized):
        tokens.check(Right.OPERATE, None)
    tokens.check(Right.OPERATE, OPERATOR.encode())


def test_a_gateway_changes_models_with_an_operators_key_alone(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    write_keys(keys, new_key_pair(), {role: new_key_pair() for role in Role})
    with running_controller(tmp_path / "data", key=keys / CONTROLLER_KEY_FILE) as controller:
        for operator, status, reason in (
            (None, 403, "forbidden"),
            (keys / KEY_FILES[Role.OPERATOR], 404, "model_not_found"),
        ):
            with running_gateway(
                controller.client_endpoint, key=keys / KEY_FILES[Role.GATEWAY], operator_key=operator,
                metrics_port=0,
            ) as gateway:  # fmt: skip
                http = Http(gateway.ports["http"])
                for action in ("load", "unload"):
                    reply = http.ask("POST", f"/v2/repository/models/m/{action}", {})
                    assert (reply.status, reply.json["reason"]) == (status, reason)
                assert http.ask("POST", "/v2/repository/index", {}).json == []
                http.close()
                http = Http(gateway.ports["metrics"])
                assert b"clockwork_" in http.ask("GET", "/metrics").data
                http.close()


def test_half_open_tls_handshakes_hold_nobody_up(controller: FakeController, pair: tuple[Path, Path]) -> None:
    cert, key = pair
    with running_gateway(
        controller.endpoint, grpc_port=-1, tls_cert=cert, tls_key=key, drain_s=0.2
    ) as gateway:
        waiting = [socket.create_connection(("127.0.0.1", gateway.ports["http"])) for _ in range(50)]
        http = Https(gateway.ports["http"], cert)
        assert http.infer(BODY).status == 200
        http.close()
        for one in waiting:
            one.close()


def test_what_listens_beyond_this_machine_needs_tls_and_a_token(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    open_to_all = {"host": "0.0.0.0"}
    for settings, words in (
        (open_to_all, "--tls-cert and --tls-key and --token-file, or say --insecure"),
        (open_to_all | {"token_file": path}, "--tls-cert"),
        (open_to_all | {"tls_cert": path, "tls_key": path}, "--token-file"),
        ({"tls_cert": path}, "go together"),
    ):
        with pytest.raises(ConfigError, match=words):
            security.require_security_beyond_loopback(GatewaySettings(**settings))
    for settings in ({"host": "localhost"}, {"host": "::1"}, open_to_all | {"insecure": True}):
        security.require_security_beyond_loopback(GatewaySettings(**settings))


def test_two_servers_of_a_gateway_need_two_ports() -> None:
    with held_ports(1) as [port]:
        with pytest.raises(ConfigError, match=rf"^--grpc-port {port} is the port of --http-port$"):
            Gateway(GatewaySettings(http_port=port, grpc_port=port, metrics_port=OFF))
        again = Gateway(GatewaySettings(http_port=port, grpc_port=OFF, metrics_port=OFF))
        assert again.ports == {"http": port}, "what was bound before has been released"
        again._release()


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", b"x" * 5000, b"\xff\xfe"])
def test_a_token_file_holds_one_token(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="visible ASCII"):
        security.read_token(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        security.read_token(tmp_path / "nope")


def test_the_command_says_what_is_wrong_in_one_line(
    controller: FakeController, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    cert, key = pair
    with running_gateway(controller.endpoint) as gateway:
        http_port, grpc_port = str(gateway.ports["http"]), str(gateway.ports["grpc"])
        free = [
            "--connect",
            controller.endpoint,
            "--http-port",
            "0",
            "--grpc-port",
            "0",
            "--metrics-port",
            "off",
        ]
        cases = [
            ([*free, "--http-port", http_port], f"port {http_port} (--http-port): Address already in use"),
            ([*free, "--grpc-port", grpc_port], f"port {grpc_port} (--grpc-port): Address already in use"),
            ([*free, "--host", "0.0.0.0"], "or say --insecure"),
            ([*free, "--tls-cert", str(key), "--tls-key", str(cert)], "are no certificate and its key"),
            (["--http-port", "99999"], "is no port"),
            (["--max-request-bytes", "1GiB"], "which all requests share"),
        ]
        programs = [(Program(["gateway", *arguments]), words) for arguments, words in cases]
        for program, words in programs:
            assert program.wait() != 0
            assert words in program.text
            assert "Traceback" not in program.text


def test_without_its_libraries_the_command_says_what_to_install() -> None:
    code = """
import importlib.util, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ("aiohttp", "uvloop") else real(name, *rest)
from clockwork.cli.root import main
sys.argv = ["clockwork", "gateway"]
main()
"""
    program = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert program.returncode == 1
    assert "aiohttp, uvloop: pip install 'clockwork-serving[gateway]'" in program.stderr


def test_a_gateway_ends_in_order_on_a_signal(controller: FakeController) -> None:
    program = Program(["gateway", "--connect", controller.endpoint, "--http-port", "0", "--grpc-port", "0",
                       "--metrics-port", "off"])  # fmt: skip
    where = program.wait_for(r"http on http://127.0.0.1:(\d+), grpc on 127.0.0.1:(\d+)")
    http = Http(int(where[1]))
    assert http.infer(BODY).status == 200
    program.send(signal.SIGTERM)
    assert program.wait() == 0, program.text
    assert "Traceback" not in program.text
    http.close()


@pytest.mark.parametrize("stream", [False, True], ids=["one", "stream"])
def test_without_the_token_no_message_is_read(
    controller: FakeController, token_file: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """gRPC parses a message before its method is called, and it may be 64 MB."""
    from clockwork.gateway import grpc as server

    read: list[int] = []
    sized = server._sized

    def counting(kind: Any) -> Any:
        inner = sized(kind)

        def note(data: bytes) -> Any:
            read.append(len(data))
            return inner(data)

        return note

    monkeypatch.setattr(server, "_sized", counting)
    body = pb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(60 << 20)]).SerializeToString()
    with (
        running_gateway(controller.endpoint, token_file=token_file) as gateway,
        grpc.insecure_channel(
            f"127.0.0.1:{gateway.ports['grpc']}", compression=grpc.Compression.Gzip
        ) as channel,
    ):
        path = f"/inference.GRPCInferenceService/{'ModelStreamInfer' if stream else 'ModelInfer'}"

        def ask(metadata: list[tuple[str, str]]) -> grpc.StatusCode:
            call = channel.stream_stream(path) if stream else channel.unary_unary(path)
            with pytest.raises(grpc.RpcError) as refusal:
                list(call(iter([body]) if stream else body, metadata=metadata, timeout=PATIENCE_S))
            return refusal.value.code()

        assert ask([]) == grpc.StatusCode.UNAUTHENTICATED
        assert ask([("authorization", "Bearer wrong")]) == grpc.StatusCode.UNAUTHENTICATED
        assert read == []


UNLOAD = "/v2/repository/models/m/unload"


def echo_only(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
    """Answers inferences, and everything else with "not found"."""
    (echo if type(message) is InferRequest else not_found)(controller, identity, message, frames)


@pytest.fixture(scope="module")
def ready() -> Iterator[FakeController]:
    with FakeController(handle=echo_only) as controller:
        yield controller


PAGE = {"User-Agent": "Mozilla/5.0", "Content-Type": "text/plain"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "passes"),
    [
        # A request as a page of another site sends it, which browsers allow.
        ("POST", UNLOAD, PAGE | {"Origin": "https://evil.example"}, False),
        ("POST", UNLOAD, PAGE | {"Origin": "null"}, False),
        ("POST", UNLOAD, PAGE, False),
        ("POST", UNLOAD, {"User-Agent": "Mozilla/5.0"}, False),
        ("POST", "/v2/systemsharedmemory/unregister", PAGE, False),
        ("POST", "/v2/models/m/infer", PAGE | {"Origin": "https://evil.example"}, False),
        ("POST", "/v2/models/m/infer", PAGE | {"Origin": "http://localhost:3000"}, False),
        ("GET", "/v2", {"Origin": "https://evil.example"}, False),
        # A request of a page whose name was pointed at this machine.
        ("GET", "/v2", {"Host": "evil.example"}, False),
        ("POST", "/v2/models/m/infer", {"Host": "evil.example:8000"}, False),
        ("POST", UNLOAD, {"Host": "evil.example", "Content-Type": "application/json"}, False),
        # Requests of clients on this machine and through a named proxy, and of probes under any name.
        ("POST", UNLOAD, {"Content-Type": "application/json"}, True),
        ("POST", UNLOAD, {"User-Agent": "curl/8.5.0"}, True),
        ("POST", "/v2/models/m/infer", PAGE, True),
        ("GET", "/v2", {"Host": "proxy.example"}, True),
        ("GET", "/v2", {"Host": "proxy.example:8443", "Origin": "https://proxy.example:8443"}, True),
        ("GET", "/v2", {"Host": "localhost:1", "Origin": "http://proxy.example"}, True),
        ("GET", "/v2/health/live", {"Host": "10.2.3.4", "Origin": "https://evil.example"}, True),
        ("GET", "/v2/health/live", {"Host": "evil.example"}, True),
    ],
)
def test_web_pages_of_other_sites_may_ask_nothing(
    ready: FakeController, method: str, path: str, headers: dict[str, str], passes: bool
) -> None:
    with running_gateway(
        ready.endpoint, grpc_port=-1, allowed_hosts=("proxy.example",), control_mode="none"
    ) as gateway:
        http = Http(gateway.ports["http"])
        body = json.dumps(BODY).encode() if method == "POST" else None
        reply = http.ask(method, path, body, headers)
        http.close()
        assert (reply.status != 403) == passes, reply.data
        assert passes or reply.json["reason"] == "forbidden"


def test_a_gateways_own_page_may_ask_it(controller: FakeController) -> None:
    with running_gateway(controller.endpoint, grpc_port=-1) as gateway:
        port = gateway.ports["http"]
        http = Http(port)
        for name in (f"127.0.0.1:{port}", f"localhost:{port}"):
            headers = PAGE | {"Host": name, "Origin": f"http://{name}"}
            assert http.ask("POST", "/v2/models/m/infer", json.dumps(BODY).encode(), headers).status == 200
        http.close()


def test_metrics_are_for_no_page_either(controller: FakeController) -> None:
    with running_gateway(controller.endpoint, http_port=OFF, grpc_port=-1, metrics_port=0) as gateway:
        http = Http(gateway.ports["metrics"])
        assert http.ask("GET", "/metrics?of=gateway").status == 200
        for wrong in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
            assert http.ask("GET", "/metrics?of=gateway", None, wrong).status == 403
        http.close()


@pytest.mark.parametrize(
    ("has_token", "headers", "path", "passes"),
    [
        (False, {"Host": "proxy.internal"}, "/v2/models/m/infer", True),
        (False, {"Host": "proxy.internal"}, UNLOAD, False),
        (False, {"Host": "127.0.0.1"}, UNLOAD, True),
        (True, {"Host": "proxy.internal", "Authorization": f"Bearer {TOKEN}"}, UNLOAD, True),
        (True, {"Host": "proxy.internal", "Authorization": f"Bearer {TOKEN}", "Origin": "https://evil.example"}, UNLOAD, False),
    ],
)  # fmt: skip
def test_beyond_loopback_a_host_is_checked_where_a_change_takes_no_token(
    ready: FakeController,
    token_file: Path,
    has_token: bool,
    headers: dict[str, str],
    path: str,
    passes: bool,
) -> None:
    with running_gateway(
        ready.endpoint, host="0.0.0.0", insecure=True, grpc_port=-1,
        token_file=token_file if has_token else None,
    ) as gateway:  # fmt: skip
        http = Http(gateway.ports["http"])
        assert (http.ask("POST", path, BODY, headers).status != 403) == passes
        http.close()
