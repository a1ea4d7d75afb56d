"""The edge cases of every field of every message, over real sockets to every process: an honest peer beside
is served.

The messages are made from the declarations (tests.edges): the least and the most of each number, one past
each, the longest text and list and one more, and values of kinds that the field may not have.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clockwork import __version__
from clockwork.models import zoo
from clockwork.wire import messages
from clockwork.wire.messages import FROM_CLIENT, FROM_WORKER, NEVER_NS, TO_WORKER, Status
from tests.edges import Edge, edges
from tests.process.fake_scheduler_side import SchedulerSide, package, running_worker
from tests.process.peers import ROW, FakeWorker, RawClient, Served, serving


@pytest.fixture
def found(request: pytest.FixtureRequest) -> list[Edge]:
    """The edge cases of a kind, made before any peer waits for a heartbeat."""
    return list(edges(request.param))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path, epoch=20_201_104) as served:
        yield served


@pytest.mark.parametrize("found", FROM_CLIENT.values(), ids=lambda kind: kind.__name__, indirect=True)
def test_a_clients_edges_harm_nobody_beside_it(found: list[Edge], served: Served) -> None:
    kind = found[0].kind
    frames = [ROW] if kind in (messages.InferRequest, messages.UploadChunk) else []
    malformed = 0
    with RawClient(served.controller) as stranger:
        for edge in found:
            malformed += not edge.is_good
            assert stranger.dealer.send(edge.header, frames)
            if edge.label == "plain":
                served.check()
        stranger.send(messages.Query(1, "end", ""))  # the answer shows that everything has been read
        while getattr(message := stranger.receive()[0], "text", "").find("'end'") < 0:
            if type(message) is messages.HelloNeeded:  # the peer sent Bye, or hello once more
                break
        served.check()
        complaints = served.status()["complaints"]
        assert complaints["client failed"] == 0, "an edge met a defect: the log says which"
        if kind is not messages.Bye:
            assert complaints["client malformed"] == malformed
    served.check()


@pytest.mark.parametrize("found", FROM_WORKER.values(), ids=lambda kind: kind.__name__, indirect=True)
def test_a_workers_edges_harm_nobody_beside_it(found: list[Edge], served: Served) -> None:
    hello = messages.WorkerHello(
        messages.PROTOCOL_VERSION, "test", "stranger", 77,
        [{"kind": "cpu", "name": "x", "fingerprint": "other", "page_bytes": 4096, "page_count": 4, "run_ahead": 1}],
    )  # fmt: skip
    malformed = sum(not edge.is_good for edge in found)
    with FakeWorker(served.controller, epoch=77) as stranger:
        for place, edge in enumerate(found):
            stranger.send(hello)  # begins a new session, whatever the edge before has ended
            assert stranger.dealer.send(edge.header)
            if place % 10 == 0:
                served.check()
        served.check()
        while served.status()["complaints"]["worker malformed"] < malformed:
            served.check()
        served.check()
        assert served.status()["complaints"]["worker failed"] == 0, "an edge met a defect: the log says which"
    served.check()


@pytest.mark.parametrize("found", TO_WORKER.values(), ids=lambda kind: kind.__name__, indirect=True)
@pytest.mark.slow
def test_a_controllers_edges_end_no_worker(found: list[Edge], tmp_path: Path) -> None:
    kind = found[0].kind
    model = package(zoo.build("digits").SerializeToString())
    with SchedulerSide() as side, running_worker(side.endpoint, tmp_path / "store") as worker:
        side.welcome()
        _serve(side, model)
        for edge in found:
            if kind is messages.Mismatch and edge.is_good:
                continue  # this message ends a worker, and should
            side.send_raw(edge.header, [ROW])
        side.send(messages.HelloNeeded(1))
        _skip_to(side, messages.WorkerHello)
        side.send(messages.WorkerWelcome(messages.PROTOCOL_VERSION, __version__, 2, 7))
        _serve(side, model)
        while (beat := _skip_to(side, messages.Heartbeat)).stats["malformed"] == 0:
            pass
        assert beat.stats["failed"] == 0, worker.log_text()
        assert worker.process.poll() is None


def _skip_to(side: SchedulerSide, kind: type) -> Any:
    while type(message := side.receive()[0]) is not kind:
        pass
    return message


def _serve(side: SchedulerSide, model: Any) -> None:
    """Have a model prepared, loaded and run, whatever other messages are still on their way."""
    side.announce(5, model)
    while (prepared := _skip_to(side, messages.Prepared)).model_id != 5 or prepared.status != Status.OK:
        pass
    pages = list(range(sum(prepared.summary["runs"])))
    starts, page = [], 0
    for run in prepared.summary["runs"]:
        starts.append(pages[page])
        page += run
    side.send(messages.Load(10**6, 0, 5, 1, starts, 0, NEVER_NS, 0))
    assert _result(side, 10**6).status == Status.OK
    shape = [1 if type(one) is str else one for one in prepared.summary["inputs"][0]["shape"]]
    count = 1
    for one in shape:
        count *= one
    parts = [[[prepared.summary["inputs"][0]["dtype"], shape, 0]]]
    side.send(messages.Infer(10**6 + 1, 0, 5, 1, 0, NEVER_NS, 0, parts), [bytes(4 * count)])
    assert _result(side, 10**6 + 1).status == Status.OK


def _result(side: SchedulerSide, action_id: int) -> Any:
    while (result := _skip_to(side, messages.Result)).action_id != action_id:
        pass
    return result
