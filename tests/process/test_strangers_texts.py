"""Untrusted texts, in every field that a command or a process prints, are shown without effect."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from clockwork.cli import root as cli
from clockwork.errors import InvalidModel, ModelNotFound
from clockwork.system.clock import now_ns
from clockwork.wire import messages
from clockwork.wire.logs import CONTINUED
from clockwork.wire.messages import Answer, Failure, InferRequest, Query, Reply, Status
from clockwork.wire.tensors import encode_array
from tests.patience import PATIENCE_S
from tests.process.cluster import Program, running_cluster
from tests.process.fake_controller import FakeController
from tests.process.peers import Peer, RawClient, echo_model, running_controller
from tests.process.test_preparations import connect
from tests.process.threaded_worker import threaded_worker

FORGED = "forged"
HOSTILE = f"\x1b[31m\x9b\x07\r\u2028\u202e[red]\n{FORGED}"
"""A terminal's controls, of 7 and 8 bits, line breaks, a change of direction, rich's markup, and a line of
its own."""

QUERIES = [("status", ""), ("models", ""), ("model", "m"), ("metrics", ""), ("recorder", "")]


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Answers of a controller in which every reported condition exists."""
    folder = tmp_path_factory.mktemp("controller")
    with (
        running_controller(folder / "data", policy="edf") as controller,
        threaded_worker(controller, 1),
        threaded_worker(controller, 2, "no space is left"),
        connect(controller) as client,
    ):
        client.register("m", echo_model())
        client.infer("m", np.zeros((1, 2), np.float32), slo=PATIENCE_S)
        raw = RawClient(controller)
        found = {}
        for what, argument in QUERIES:
            raw.send(Query(1, what, argument))
            found[what] = raw.receive(Reply)[0].body
        raw.close()
    return found


def poisoned(value: Any, kept: frozenset[str] = frozenset(), name: str = "") -> Any:
    """A body with HOSTILE behind every text in it except those of kept fields."""
    if isinstance(value, str):
        return value if name in kept else value + HOSTILE
    if isinstance(value, dict):
        return {key: poisoned(one, kept, str(key)) for key, one in value.items()}
    if isinstance(value, list):
        return [poisoned(one, kept, name) for one in value]
    return value


class Hostile:
    """A controller's answers, with every text hostile. kept: fields without which a command does not go
    on."""

    def __init__(self, bodies: dict[str, Any], kept: frozenset[str]) -> None:
        self.kept = kept
        self._bodies = poisoned(bodies, kept)
        labels = json.dumps([f"{index}{HOSTILE}" for index in range(2)])
        model = self._bodies["model"]
        model["metadata"] = {"clockwork.labels": labels, "a" + HOSTILE: HOSTILE}
        model["text"] = HOSTILE
        trouble = {
            "kind": HOSTILE,
            "subject": HOSTILE,
            "text": HOSTILE,
            "since_ns": 0,
            "last_ns": 0,
            "count": 1,
        }
        self._bodies["status"] |= {
            "troubles": {"open": [trouble], "left_out": {HOSTILE: 1}},
            "why_not_ready": HOSTILE,
        }
        for worker in self._bodies["status"]["workers"]:
            worker["models"] = {
                "ready": 0,
                "preparing": 1,
                "failed": 2,
                "failures": [["m" + HOSTILE, HOSTILE]],
            }
            worker["stats"] = {"devices_lost": [HOSTILE]}

    def __call__(self, controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
        if type(message) is Query:
            controller.send(identity, Reply(message.request_id, self._bodies.get(message.what, HOSTILE)))
        elif type(message) is InferRequest:
            dtype, shape, frame = encode_array(np.full((1, 2), 0.5, np.float32))
            answer = Answer(message.request_id, 1, [["y" + HOSTILE, dtype, shape, 0]], [0] * 4)
            controller.send(identity, answer, [frame])
        elif hasattr(message, "request_id"):
            controller.send(identity, Reply(message.request_id, self._bodies["model"]))


def refuse(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
    if hasattr(message, "request_id"):
        details = {"reason": HOSTILE} if type(message) is InferRequest else {}
        controller.send(identity, Failure(message.request_id, Status.REFUSED, HOSTILE, details))


SHOWN = [
    ["status"],
    ["models", "list"],
    ["models", "show", "m"],
    ["infer", "m", "x.npy"],
    ["probe"],
    ["metrics"],
    ["top", "--once"],
]
"""Commands that print untrusted texts."""

OTHERS = [
    ["status", "--json"],
    ["models", "show", "m", "--json"],
    ["models", "show", "m", "--profile", "-"],
    ["models", "add", "m", "model.onnx"],
    ["models", "load", "m"],
    ["models", "unload", "m"],
    ["models", "remove", "m"],
    ["models", "route", "m"],
    ["infer", "m", "x.npy", "--json"],
    ["load", "m", "--duration", "0.05", "--rate", "50"],
    ["probe", "--model", "m"],
    ["probe", "--worker", "fake1"],
    ["metrics", "--json"],
    ["top", "--once", "--json"],
    ["recorder", "status"],
    ["explain", "1"],
]
"""Commands that print texts of any cluster, or quote as JSON does."""

NEEDED = frozenset({"state", "dtype", "name", "next", "shape"})


@pytest.fixture
def controller() -> Iterator[FakeController]:
    with FakeController() as found:
        yield found


def check(output: str) -> None:
    assert output.replace("\n", "").isprintable(), ascii(output)
    assert not [line for line in output.splitlines() if line.startswith(FORGED)], output


@pytest.mark.parametrize("arguments", [*SHOWN, *OTHERS], ids=" ".join)
def test_no_command_passes_on_what_a_terminal_would_obey(
    arguments: list[str],
    bodies: dict[str, Any],
    controller: FakeController,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLOCKWORK_ENDPOINT", controller.endpoint)
    np.save("x.npy", np.zeros((1, 2), np.float32))
    Path("model.onnx").write_bytes(echo_model().SerializeToString())
    for handle in (Hostile(bodies, NEEDED), Hostile(bodies, frozenset()), refuse):
        controller.handle = handle
        result = CliRunner().invoke(cli.cli, [*arguments, "--timeout", "1"])
        check(result.output)
        if arguments in SHOWN and isinstance(handle, Hostile) and handle.kept:
            assert r"\x1b[31m\x9b" in result.output
            assert result.exit_code == 0, result.output


# ----- logs ---------------------------------------------------------------------------------------

RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (controller|gateway) [A-Z] ")
FAKED = f"x\n2026-01-01 00:00:00,000 controller I {FORGED}\r\x1b[2J\x9b\u2028\u202e"


def check_log(program: Program) -> None:
    for line in program.lines:
        assert RECORD.match(line) or line.startswith(CONTINUED), ascii(line)
        assert line.isprintable(), ascii(line)
        assert not re.match(rf"\S+ \S+ controller I {FORGED}", line), line


def test_no_peer_forges_lines_of_a_controllers_log(tmp_path: Path) -> None:
    with running_cluster(tmp_path, workers=0) as cluster:
        device = {"name": FAKED, "fingerprint": FAKED, "page_bytes": 4096, "page_count": 4, "run_ahead": 2}
        hello = messages.WorkerHello(
            messages.PROTOCOL_VERSION, FAKED[:60], FAKED, 7, [device | {"kind": FAKED[:60]}]
        )
        with Peer(cluster.worker_endpoint, messages.TO_WORKER) as worker, cluster.client() as client:
            worker.send(hello)
            worker.receive(messages.WorkerWelcome)
            worker.send(messages.Heartbeat(now_ns(), 0, {"damage": FAKED, "damaged": 1, "repaired": 0}))
            worker.send(messages.DeviceFault(0, FAKED))
            with ThreadPoolExecutor(1) as pool:
                registered = pool.submit(client.register, "m", echo_model())
                prepare, _ = worker.receive(messages.Prepare)
                worker.send(messages.Prepared(prepare.model_id, Status.INVALID_MODEL, FAKED, {}))
                with pytest.raises(InvalidModel):
                    registered.result(PATIENCE_S)
            worker.send(messages.Result(99, 0, FAKED, 0, [0] * 3, [0] * 3, [0] * 3, []))
            with pytest.raises(ModelNotFound):
                client.unregister("m")
        with Peer(cluster.endpoint, messages.TO_CLIENT) as other:
            other.send(messages.ClientHello(messages.PROTOCOL_VERSION, FAKED[:60], FAKED))
            other.receive(messages.ClientWelcome)
            other.send(messages.ReportSource(1, FAKED, FAKED))
            other.receive(messages.Reply)
        for said in (r"worker x.* joined", "cannot prepare m@1", r"worker x.* left"):
            cluster.controller.wait_for(said)
        assert any(FORGED in line for line in cluster.controller.lines)
        check_log(cluster.controller)


def test_no_folder_forges_lines_of_a_gateways_log(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    (repository / FAKED.replace("/", "") / "1").mkdir(parents=True)
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "config.pbtxt").write_text(f'name: "{FAKED}"')
    with running_cluster(tmp_path / "cluster", workers=0) as cluster:
        gateway = cluster.program([
            "gateway", "--connect", cluster.endpoint, "--host", "127.0.0.1", "--http-port", "0", "--grpc-port", "0", "--metrics-port", "off",
            "--model-repository", str(repository),
        ])  # fmt: skip
        gateway.wait_for("broken")
        gateway.wait_for(FORGED)
        assert gateway.stop() == 0
        check_log(gateway)
