"""The comparison with other servers, with a stub in their place: the counts, and that nothing is left
behind."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.patience import PATIENCE_S, eventually, readable

pytest.importorskip("aiohttp", reason="the gateway's libraries are not installed ([gateway])")

from bench.peers import client, keeper, measure
from bench.peers.environments import Environment, _run
from bench.peers.measure import Plan
from bench.peers.processes import Kept
from bench.peers.roads import Grpc, Http, Reply, Verdict, oip_http
from bench.peers.systems import Launch, Site, Transport
from clockwork.models import zoo
from clockwork.system.clock import SECOND, now_ns

ROOT = Path(__file__).parents[2]
STUB = Path(__file__).with_name("stub_peer.py")
SLO_NS = SECOND


@dataclasses.dataclass(frozen=True, slots=True)
class Stub:
    """The stub as a system."""

    name: str  # mode of the stub
    title: str = "Stub"
    environment: str = ""
    transports: tuple[Transport, ...] = ("http",)
    limits_memory: bool = False
    many: bool = True

    def launch(self, site: Site, environment: Environment | None) -> Launch:
        return Launch(stub(site.ports["http"], self.name, site.models["m0"]))

    def ready_paths(self, site: Site) -> list[str]:
        return ["/v2/models/m0/ready"]

    def speak(self, transport: Transport, site: Site, image: np.ndarray) -> Http | Grpc:
        return oip_http(site.names, image, site.slo_ns // 1000)


def stub(port: int, mode: str, model: Path) -> list[str]:
    return [sys.executable, str(STUB), str(port), mode, str(model), str(1 + measure.WARM_UP)]


def measured(
    *modes: str, load: float = 0.2, seconds: float = 0.6, give_up_s: float = 3.0, rounds: int = 1
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    plan = Plan(
        [Stub(mode) for mode in modes], dict.fromkeys(modes, (load,)), {mode: ["http"] for mode in modes},
        1, 0, seconds, rounds, SLO_NS, give_up_s,
    )  # fmt: skip
    cells: list[measure.Cell] = []
    _, failed = measure.measure(plan, {}, cells.append, lambda text: None)
    return measure.rows(cells, SLO_NS), failed


def processes_of(stub: str = STUB.name) -> list[int]:
    """Return every running stub, and the processes it started in sessions of their own."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and stub in (entry / "cmdline").read_text():
                found += [int(entry.name), *keeper.descendants(int(entry.name))]
    return found


@pytest.fixture(autouse=True)
def _nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(measure, "BLOCK_S", 0.02)
    yield
    assert processes_of() == []


@pytest.mark.slow
def test_a_server_is_counted_in_every_round() -> None:
    [row], failed = measured("honest", rounds=2)
    assert failed == {}
    assert row["rounds"] == len(row["of_capacity_by_round"]) == 2
    counts = [row[name] for name in ("within_slo", "late", "refused", "failed", "gave_up")]
    assert sum(counts) == row["offered"] > 0
    assert row["within_slo"] > 0
    assert row["p50_ms"] <= row["p99_ms"]


@pytest.mark.long
def test_a_refusal_is_no_failure_and_no_answer() -> None:
    [row], _ = measured("refuser", load=0.5)
    assert row["refused"] == (row["offered"] + 1) // 2
    assert row["failed"] == 0
    assert row["said"] == {"# no": row["refused"]}


@pytest.mark.long
def test_work_for_clients_that_have_gone_is_seen() -> None:
    """30 ms a request, at the request rate of plain ONNX Runtime: seconds of work are left."""
    [row], _ = measured("hoarder", load=3.0, seconds=1.0, give_up_s=0.3)
    assert row["gave_up"] > 0
    assert row["gone_busy_s"] > 0.3
    assert row["gone_cpu_s"] > 0.1


@pytest.mark.long
@pytest.mark.parametrize(
    ("mode", "why"), [("wrong", "the answer of m0 is off by"), ("silent", "it was not ready within 3 s"),
                      ("ends", "it ended with status 3:\na fatal error")]
)  # fmt: skip
def test_a_server_that_fails_is_named_and_the_others_go_on(
    mode: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "READY_S", 3.0)
    rows, failed = measured(mode, "honest")
    assert [row["system"] for row in rows] == ["honest"]
    assert list(failed) == [mode]
    assert why in failed[mode]


class Slow:
    """A connection on which nothing comes back."""

    def __init__(self) -> None:
        self.open_calls = 0
        self.closed = False

    async def call(self, model_index: int) -> Reply:
        self.open_calls += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.open_calls -= 1
        raise AssertionError

    async def close(self) -> None:
        self.closed = True


def test_clients_send_on_time_whatever_became_of_others_and_all_leave_at_the_end() -> None:
    road = Slow()
    due_ns = [index * 10_000_000 for index in range(30)]
    begin_ns = now_ns()
    found = client.run(client.offer(lambda: road, due_ns, [0] * 30, 100_000_000, 0.1))
    assert (now_ns() - begin_ns) / SECOND >= 0.39
    assert set(found.verdicts) == {Verdict.GONE}
    assert road.open_calls == 0
    assert road.closed
    # The first requests timed out; no client waited for them.
    assert found.elapsed_ns[0] >= 90_000_000  # a loop's timers are some milliseconds wide
    assert found.said["no answer within # s"] > 0


def test_processes_that_hide_and_ignore_sigterm_are_ended(tmp_path: Path) -> None:
    command = stub(0, "honest", model_in(tmp_path))
    with Kept(command, tmp_path / "log", grace_s=0.2) as kept:
        eventually(lambda: len(kept.pids()) >= 2, "it has a child")
        pids = kept.pids()
    assert not any(runs(pid) for pid in pids)


def test_a_server_that_ends_takes_what_it_started_with_it(tmp_path: Path) -> None:
    script = "import subprocess; print(subprocess.Popen(['sleep', '300'], start_new_session=True).pid)"
    with Kept([sys.executable, "-c", script], tmp_path / "log") as kept:
        eventually(lambda: kept.status is not None, "it ends")
        assert kept.status == 0
        assert not runs(int((tmp_path / "log").read_text()))


DRIVER = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from bench.peers import __main__ as main
from tests.process.test_peers import Stub
main.SYSTEMS["honest"] = Stub("honest")
sys.argv = ["bench.peers", "--peers", "honest", "--models", "1", "--loads", "0.1", "--seconds", "60", "--rounds", "1"]
main.main()
"""


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_benchmark(number: int) -> None:
    """Ended while requests are under way: by Ctrl-C, SIGTERM, and SIGKILL, of which only the kernel tells the
    keeper."""
    driver = DRIVER.format(root=str(ROOT), tests=str(ROOT / "tests"))
    child = subprocess.Popen(
        [sys.executable, "-c", driver], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert child.stderr is not None
    with child:
        said = ""
        while "http, 0.1" not in said:
            if not readable(child.stderr):
                child.kill()
                pytest.fail(f"it said no more than {said}")
            piece = os.read(child.stderr.fileno(), 4096).decode()
            assert piece, said
            said += piece
        assert processes_of()
        child.send_signal(number)
        child.wait(PATIENCE_S)
        assert child.returncode != 0
    eventually(lambda: not processes_of(), "its processes end")


def test_an_environment_is_made_once_and_anew_after_a_failure(tmp_path: Path) -> None:
    environment = Environment("litserve", tmp_path)
    commands: list[list[str]] = []

    def broken(command: list[str], log: Path) -> None:
        environment.path.mkdir(exist_ok=True)
        (environment.path / "half").touch()
        raise SystemExit("no network")

    def works(command: list[str], log: Path) -> None:
        environment.path.mkdir(exist_ok=True)
        commands.append(command)

    with pytest.raises(SystemExit, match="no network"):
        environment.make(broken)
    assert not environment.is_ready
    environment.make(works)
    environment.make(works)
    assert environment.is_ready
    assert not (environment.path / "half").exists()
    assert len(commands) == 2
    assert "--no-deps" in commands[1]


def test_a_failed_installation_shows_what_was_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"status 4:\nnothing matches"):
        _run([sys.executable, "-c", "print('nothing matches'); raise SystemExit(4)"], tmp_path / "log")


def model_in(directory: Path) -> Path:
    path = directory / "m.onnx"
    path.write_bytes(zoo.build(measure.MODEL).SerializeToString())
    return path


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
