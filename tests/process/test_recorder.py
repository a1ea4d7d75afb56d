"""The flight recorder of a live controller: read while it records, dumped when asked and by itself, and
replayed."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from clockwork import Client
from clockwork.errors import ClockworkError, InvalidInput, Unavailable
from clockwork.formats.profiles import ModelProfile, copies
from clockwork.scheduler.recording import Header, Step, Stream, decode
from clockwork.scheduler.types import AnswerOk, Arrived, ModelReady, WorkerJoined
from clockwork.sim.replay import replay
from clockwork.system.clock import MS
from clockwork.workloads import load_generator
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import Cluster, running_cluster

SMALL = ModelProfile("small", {1: 2 * MS, 4: 4 * MS}, 40 << 20, 3 * MS, input_bytes=100, output_bytes=7)
NAMES = [one.name for one in copies([SMALL], 6)]


def start(cluster: Cluster, client: Client) -> None:
    cluster.start_worker("--device", "emulated", "--page-size", "16MiB", "--devices", "2", arena="128MiB")
    for name in NAMES:
        client.register(name, SMALL)


def load(client: Client, seconds: float, rate: float = 300.0) -> int:
    settings = load_generator.LoadSettings(
        models=tuple(NAMES), rate=rate, duration_s=seconds, slo_s=PATIENCE_S, seed=3
    )
    return load_generator.run(client, settings).offered


def read_all(client: Client, since: str = "#0") -> list[Step]:
    stream = Stream(since)
    found: list[Step] = []
    while not stream.is_at_end:
        found += stream.take(client.recorder(stream.argument))
    assert stream.lost == 0
    return found


def arrivals(steps: list[Step]) -> list[int]:
    return [event.request.id for step in steps for event in step.events if isinstance(event, Arrived)]


def read_dump(body: bytes) -> tuple[Header, list[Step]]:
    header, steps = decode(io.BytesIO(body))
    return header, list(steps)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("cluster")
    with running_cluster(directory, workers=0) as running:
        with running.client() as client:
            start(running, client)
        yield running


def test_whoever_reads_sees_what_is_recorded_and_goes_on_from_there(cluster: Cluster) -> None:
    with cluster.client() as client:
        offered = load(client, 0.5)
        found = arrivals(read_all(client))
        assert len(found) >= offered
        assert found == sorted(found)
        now = client.recorder()
        stream = Stream(f"#{now['end']}")
        while not stream.is_at_end:
            assert arrivals(stream.take(client.recorder(stream.argument))) == []
        offered = load(client, 0.3)
        more = []
        while not more or not stream.is_at_end:
            more += stream.take(client.recorder(stream.argument))
        assert len(arrivals(more)) == offered
        assert min(arrivals(more)) > max(found)
        answered = [command for step in more for command in step.commands if isinstance(command, AnswerOk)]
        assert {one.request_id for one in answered} <= set(arrivals(more))
        assert len(answered) > 0
        assert arrivals(read_all(client, f"-{10**17}")) == arrivals(read_all(client))


def test_a_reader_begins_anew_with_another_controller(cluster: Cluster) -> None:
    with cluster.client() as client:
        load(client, 0.2)
        stream = Stream()
        assert stream.take(client.recorder(stream.argument))
        stream.epoch -= 1  # the epoch of a controller that ran before this one
        assert stream.take(client.recorder(stream.argument)) == []
        again = stream.take(client.recorder(stream.argument))
        assert again[0] == read_all(client)[0]
        assert stream.lost == 0


@pytest.mark.parametrize(
    ("argument", "error"),
    [
        ("#-1", InvalidInput), ("#x", InvalidInput), ("-x", InvalidInput), ("nonsense", InvalidInput),
        (f"#{10**19 - 1}", InvalidInput), ("../lock#0", InvalidInput), (".hidden.rec#0", InvalidInput),
        ("a/b.rec#0", InvalidInput), ("no-such.rec#0", Unavailable),
    ],
)  # fmt: skip
def test_what_asks_nothing_of_the_recorder_is_refused(
    cluster: Cluster, argument: str, error: type[ClockworkError]
) -> None:
    with cluster.client() as client, pytest.raises(error):
        client.recorder(argument)


def test_a_place_beyond_the_end_is_the_end(cluster: Cluster) -> None:
    with cluster.client() as client:
        found = client.recorder(f"#{10**17}")
        assert (found["bytes"], found["place"], found["lost"]) == (b"", found["end"], 0)


def test_a_dump_is_replayed_and_listed(cluster: Cluster, tmp_path: Path) -> None:
    with cluster.client() as client:
        load(client, 0.3)
        file = tmp_path / "it.rec"
        dumped = cluster.program(["recorder", "dump", str(file), "--endpoint", cluster.endpoint])
        assert dumped.wait() == 0, dumped.text
        name = re.search(r"\((\S+-asked\.rec)\)", dumped.text)
        assert name is not None, dumped.text
        header, steps = read_dump(file.read_bytes())
        assert (header.start, header.cluster_steps) == (0, 0)
        assert {(one.worker, one.device) for one in header.held} == {(1, 0), (1, 1)}
        assert len(arrivals(steps)) > 100
        again = cluster.program(["replay", str(file)])
        assert again.wait() == 0, again.text
        assert "The decisions are identical." in again.text
        shown = cluster.program(["recorder", "status", "--endpoint", cluster.endpoint])
        assert shown.wait() == 0, shown.text
        assert "all since the controller's start" in shown.text
        assert name[1] in shown.text
        once_more = tmp_path / "again.rec"
        fetched = cluster.program(
            ["recorder", "dump", str(once_more), "--name", name[1], "--endpoint", cluster.endpoint]
        )
        assert fetched.wait() == 0, fetched.text
        assert once_more.read_bytes() == file.read_bytes()
        for wrong in ("no-such", "20260801T120000.000000Z-asked.rec"):
            command = ["recorder", "dump", str(once_more), "--name", wrong, "--endpoint", cluster.endpoint]
            failed = cluster.program(command)
            assert failed.wait() == 1, failed.text
            assert f"the controller has no dump '{wrong}'; there are {name[1]}" in failed.text
            assert once_more.read_bytes() == file.read_bytes(), "a name that is wrong costs no file"


def test_a_ring_that_has_forgotten_the_start_is_dumped_with_its_cluster(tmp_path: Path) -> None:
    with (
        running_cluster(
            tmp_path / "cluster", workers=0, controller_options=("--recorder-bytes", "256KiB")
        ) as running,
        running.client() as client,
    ):
        start(running, client)
        state = client.recorder()
        while state["begin"] == 0 or not state["exact_ns"]:
            load(client, 0.5, rate=3_000.0)
            state = client.recorder()
        assert state["state_bytes"] > 0
        name = client.recorder("dump")["name"]
        body = (running.data / "controller" / "recordings" / name).read_bytes()
        header, steps = read_dump(body)
        assert header.start >= state["begin"] > 0
        assert header.cluster_steps == 1
        told = steps[0].events
        assert isinstance(told[0], WorkerJoined)
        assert sorted(event.spec.name for event in told if isinstance(event, ModelReady)) == sorted(NAMES)
        assert {event.now_ns for event in told} == {steps[1].events[0].now_ns}
        assert len(arrivals(steps)) > 100
        assert len(header.held) > 0
        shown = running.program(["recorder", "status", "--endpoint", running.endpoint])
        assert shown.wait() == 0, shown.text
        assert "A dump made now can be replayed exactly from" in shown.text
    path = tmp_path / "it.rec"
    path.write_bytes(body)
    found = replay(path)
    assert found.identical, (found.parted_at, found.parted_events, found.parted_orders)
    assert found.steps == len(steps) - 1 > 20
    assert found.header.state


def test_a_lost_worker_is_an_alert(tmp_path: Path) -> None:
    with running_cluster(tmp_path / "cluster", workers=0) as running, running.client() as client:
        start(running, client)
        load(client, 0.3)
        running.kill(running.workers[0])
        dumps = eventually(lambda: client.recorder("dumps"), "the alert is dumped")
        assert dumps[0]["name"].endswith("-worker-lost.rec")
        body = (running.data / "controller" / "recordings" / dumps[0]["name"]).read_bytes()
        _, steps = read_dump(body)
        assert len(arrivals(steps)) > 50
        running.controller.wait_for(r"the flight recorder was dumped \(worker-lost\)")


def test_a_recorder_that_is_off_says_so(tmp_path: Path) -> None:
    with (
        running_cluster(
            tmp_path / "cluster", workers=0, controller_options=("--recorder-bytes", "0")
        ) as running,
        running.client() as client,
    ):
        assert client.recorder()["bytes_max"] == 0
        for argument in ("#0", "-5", "dump"):
            with pytest.raises(Unavailable, match="the flight recorder is off"):
                client.recorder(argument)
        shown = running.program(["recorder", "status", "--endpoint", running.endpoint])
        assert shown.wait() == 0
        assert "The flight recorder is off" in shown.text


def test_rings_that_make_no_sense_are_refused(cluster: Cluster, tmp_path: Path) -> None:
    for options, sentence in (
        (("--recorder-bytes", "1000"), "--recorder-bytes 1000 is too small: 0 (none), or at least 256 KiB"),
        (("--recorder-bytes", "0", "--record", str(tmp_path / "it")), "--record needs the flight recorder"),
    ):
        refused = cluster.program(["controller", *options])
        assert refused.wait() == 2
        assert sentence in refused.text
