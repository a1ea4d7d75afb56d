"""Telemetry's files describe every request and action as the world saw it."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from clockwork.cli.root import cli
from clockwork.errors import ConfigError
from clockwork.observe import telemetry
from clockwork.observe.live import ClusterDescription
from clockwork.observe.telemetry import ACTIONS, REQUESTS, Telemetry, follow
from clockwork.scheduler.recording import Header, Step, encode_header, encode_step
from clockwork.scheduler.types import (
    NEVER_NS,
    ActionDone,
    AnswerFailed,
    AnswerOk,
    DeviceLost,
    ModelReady,
    SendInfer,
    SendLoad,
    Status,
    WorkerJoined,
    WorkerLeft,
)
from tests.sim.harness import World
from tests.sim.test_scheduler_random import random_world

pq = pytest.importorskip("pyarrow.parquet", reason="the extra [telemetry] is not installed")

ROOM = 1 << 30


def steps_of(world: World) -> list[Step]:
    return [Step([event], commands) for event, commands in world.trace]


def finished_world(seed: int) -> World:
    world = random_world(seed, calm=seed % 2 == 0)
    world.run()
    return world


def read(folder: Path, kind: str) -> list[dict[str, Any]]:
    files = sorted(folder.glob(f"{kind}-*.parquet"))
    return [row for path in files for row in pq.read_table(path).to_pylist()]


@pytest.mark.parametrize("seed", range(6))
def test_every_request_and_every_action_has_one_row(tmp_path: Path, seed: int) -> None:
    world = finished_world(seed)
    writer = Telemetry(tmp_path, ROOM, note={"policy": "edf"})
    for step in steps_of(world):
        writer.apply(step)
    writer.close()
    requests, actions = read(tmp_path, "requests"), read(tmp_path, "actions")

    assert sorted(row["request_id"] for row in requests) == sorted(world.answers)
    for row in requests:
        request, answer = world.requests[row["request_id"]], world.answers[row["request_id"]]
        is_ok = isinstance(answer, AnswerOk)
        assert row["deadline_met"] == is_ok == (row["outcome"] == "answered")
        assert row["arrived_ns"] == request.arrived_ns
        if is_ok:
            assert (row["action_id"], row["exec_ns"]) == (answer.action_id, answer.exec_ns)
        else:
            assert (row["status"], row["reason"]) == (answer.status.name, answer.reason)
    assert requests[-1]["departure_count"] == len(requests)

    sent = {
        command.action_id
        for step in steps_of(world)
        for command in step.commands
        if hasattr(command, "earliest_ns")
    }
    assert len({row["action_id"] for row in actions}) == len(actions)
    ended = {event.action_id for event, _ in world.trace if isinstance(event, ActionDone)} & sent
    lost_some = any(isinstance(event, WorkerLeft | DeviceLost) for event, _ in world.trace)
    assert ended <= {row["action_id"] for row in actions}
    assert lost_some or ended == {row["action_id"] for row in actions}
    met = collections.Counter(row["action_id"] for row in requests if row["outcome"] == "answered")
    assert {row["action_id"]: row["met"] for row in actions if row["met"]} == dict(met)
    assert all(row["goodput_ns"] <= (row["exec_ns"] or 0) for row in actions)


def test_an_action_whose_worker_leaves_in_the_same_step_has_one_row(tmp_path: Path) -> None:
    lost, ended = (
        [
            SendLoad(worker, 0, worker, 1, 1, (0,), 0, NEVER_NS, 5),
            SendInfer(worker, 0, 10 * worker, 1, 1, (worker,), 0, NEVER_NS, 5),
        ]
        for worker in (1, 2)
    )
    joined = [WorkerJoined(100, worker, (("cpu", 1 << 20, 8, 2),), 0) for worker in (1, 2)]
    done = [ActionDone(200, 2, action, Status.OK, "", 110, 120, 10, 105) for action in (2, 20)]
    with Telemetry(tmp_path, ROOM) as writer:
        writer.apply(Step(joined, lost + ended))
        writer.apply(Step([DeviceLost(200, 1, 0), WorkerLeft(200, 1), *done, WorkerLeft(200, 2)], []))
    found = {(row["action_id"], row["status"]) for row in read(tmp_path, "actions")}
    assert found == {(1, "WORKER_LOST"), (10, "WORKER_LOST"), (2, "OK"), (20, "OK")}
    assert len(read(tmp_path, "actions")) == 4


def test_files_have_the_declared_columns_and_say_of_what_they_are(tmp_path: Path) -> None:
    writer = Telemetry(tmp_path, ROOM, wall_ns=1_700_000_000_000_000_000, note={"policy": "edf"})
    writer.skip(12)
    for step in steps_of(finished_world(1)):
        writer.apply(step)
    writer.close()
    for kind, columns in (("requests", REQUESTS), ("actions", ACTIONS)):
        (path,) = tmp_path.glob(f"{kind}-*.parquet")
        schema = pq.read_schema(path)
        assert schema.names == list(columns)
        note = json.loads(schema.metadata[b"clockwork"])
        assert note == {"policy": "edf", "wall_ns": 1_700_000_000_000_000_000, "lost_bytes": 12}
        assert str(pq.read_table(path)["t"][0]).startswith("2023-11-14")


def test_files_end_when_they_are_large_or_old_and_the_oldest_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry.bounds, "TELEMETRY_FILE_BYTES", 20_000)
    monkeypatch.setattr(telemetry.bounds, "TELEMETRY_ROWS", 20)
    writer = Telemetry(tmp_path, 200_000)
    steps = steps_of(finished_world(2))
    for _ in range(25):
        for step in steps:
            writer.apply(step)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 200_000
    assert writer.removed > 0
    writer.close()
    names = sorted(path.name for path in tmp_path.glob("*-*"))
    assert len(names) > 4
    assert all(name.endswith(".parquet") for name in names)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 200_000

    monkeypatch.setattr(telemetry.bounds, "TELEMETRY_FILE_BYTES", 1 << 20)
    monkeypatch.setattr(telemetry.bounds, "TELEMETRY_FILE_NS", 0)
    aged = tmp_path / "aged"
    writer = Telemetry(aged, ROOM)
    for step in steps[: len(steps) // 2]:
        writer.apply(step)
    writer.end_old()
    before = set(aged.glob("*-*"))
    assert before
    assert all(path.suffix == ".parquet" for path in before)
    for step in steps[len(steps) // 2 :]:
        writer.apply(step)
    writer.close()
    assert before < set(aged.iterdir())


def test_what_a_killed_writer_left_half_written_goes(tmp_path: Path) -> None:
    (tmp_path / "requests-00000000000000000001-7.parquet.part").write_bytes(b"PAR1")
    (tmp_path / "mine.txt").write_text("keep")
    Telemetry(tmp_path, ROOM).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "mine.txt"]


def test_one_process_writes_to_a_folder(tmp_path: Path) -> None:
    writer = Telemetry(tmp_path, ROOM)
    with pytest.raises(ConfigError, match="another process writes telemetry to"):
        Telemetry(tmp_path, ROOM)
    writer.close()
    Telemetry(tmp_path, ROOM).close()


def test_a_writer_may_begin_in_the_middle_and_lose_steps(tmp_path: Path) -> None:
    world = finished_world(3)
    steps = steps_of(world)
    writer = Telemetry(tmp_path, ROOM)
    for step in steps[100:200]:
        writer.apply(step)
    writer.skip(1000)
    for step in steps[300:]:
        writer.apply(step)
    writer.close()
    seen = [*steps[100:200], *steps[300:]]
    answers = [c for step in seen for c in step.commands if isinstance(c, AnswerOk | AnswerFailed)]
    assert len(read(tmp_path, "requests")) == len(answers)


def test_bounds_are_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="may take 1000 bytes; it needs 536870912 at least"):
        Telemetry(tmp_path, 1000)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written to .*: Not a directory"):
        Telemetry(tmp_path / "file" / "folder", ROOM)


def test_the_example_reads_the_files_and_draws_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="the extra [plots] is not installed")
    from examples.read_telemetry import main

    writer = Telemetry(tmp_path, ROOM)
    world = finished_world(4)
    for step in steps_of(world):
        writer.apply(step)
    writer.close()
    main(tmp_path, tmp_path / "picture.png")
    said = capsys.readouterr().out
    answered = sum(isinstance(answer, AnswerOk) for answer in world.answers.values())
    assert f"{answered} answered" in said
    assert "latency p99: " in said
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_makes_files_of_a_recording(tmp_path: Path) -> None:
    world = finished_world(5)
    recording = tmp_path / "it.rec"
    head = Header("edf", "", {}, "1.2.3")
    steps = b"".join(encode_step(step.events, step.commands) for step in steps_of(world))
    recording.write_bytes(encode_header(head) + steps)
    found = CliRunner().invoke(cli, ["telemetry", str(tmp_path / "files"), "--recording", str(recording)])
    assert found.exit_code == 0, found.output
    rows = read(tmp_path / "files", "requests")
    assert f"{len(rows)} requests and " in found.output
    assert len(rows) == len(world.answers)
    small = CliRunner().invoke(
        cli, ["telemetry", str(tmp_path), "--recording", str(recording), "--bytes", "1MiB"]
    )
    assert (small.exit_code, "needs 536870912 at least" in small.output) == (1, True)
    recording.write_bytes(b"no recording")
    wrong = CliRunner().invoke(cli, ["telemetry", str(tmp_path), "--recording", str(recording)])
    assert (wrong.exit_code, "this is no recording of a controller" in wrong.output) == (1, True)


def test_models_have_their_names_where_the_recorder_has_forgotten_them(tmp_path: Path) -> None:
    world = finished_world(0)
    steps = steps_of(world)
    specs = {event.spec.model_id: event.spec for event, _ in world.trace if isinstance(event, ModelReady)}
    workers = [
        {"id": event.worker, "name": f"w{event.worker}", "devices": []}
        for event, _ in world.trace
        if isinstance(event, WorkerJoined)
    ]
    cluster = ClusterDescription(
        {"workers": workers},
        [{"id": number, "name": spec.name, "version": spec.version} for number, spec in specs.items()],
    )
    late = b"".join(encode_step(step.events, step.commands) for step in steps[len(steps) // 2 :])
    answer = {"epoch": 5, "place": 900, "bytes": late, "next": 900 + len(late), "end": 900 + len(late)}
    answers = [answer, answer | {"epoch": 6}, None]
    ends = []
    writer = Telemetry(tmp_path, ROOM)
    with writer:
        follow(writer, lambda argument: answers.pop(0), lambda: ends.append(len(answers)), cluster)
    assert answers == [None], "another start of the controller ends it"
    assert ends == [2]
    models = {row["model"] for row in read(tmp_path, "requests") if row["arrived_ns"] or row["action_id"]}
    assert models
    assert models <= {f"{spec.name}@{spec.version}" for spec in specs.values()}
