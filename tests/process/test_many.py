"""The comparison with thousands of models: client, loader, and a quick run."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("aiohttp", reason="the gateway's libraries are not installed ([gateway])")

from bench.many import measure, models, show
from bench.many.measure import Plan, Residents
from bench.many.models import ARCHITECTURES, Model
from bench.many.sender import BROKEN, GAVE_UP, REFUSED_BY_LOADER, Loader, Sender
from bench.many.systems import SYSTEMS
from bench.peers.roads import Http, Verdict, floats
from bench.reference import Plain, relative_error
from clockwork.system.clock import MS, SECOND
from clockwork.workloads import Arrivals

Answer = Callable[[str], bytes | None]
"""The bytes of the answer by the path of a request; None: no answer; b"": the connection ends."""

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"
ANSWERS = {
    "/ok": OK,
    "/chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
    "/last": b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nConnection: close\r\n\r\n",
    "/refused": b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n",
    "/failed": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\nno",
    "/silent": None,
    "/ends": b"",
}


@contextlib.contextmanager
def serving(answer: Answer) -> Iterator[int]:
    """The port of a server that answers each request by its path."""
    loop = asyncio.new_event_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:-2])
                await reader.readexactly(int(fields["content-length"]))
                found = answer(head.split(" ")[1])
                if found is None:
                    continue
                writer.write(found)
                if not found or b"Connection: close" in found:
                    break
        writer.close()

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks))
        loop.close()


def requests_of(paths: list[str]) -> Http:
    return Http(paths, [{}] * len(paths), [b"x" * 1000] * len(paths), lambda reply: floats(reply.body))


def arrivals_of(asked: list[int], gap_ns: int) -> Arrivals:
    return Arrivals.of(np.arange(len(asked)) * gap_ns, np.array(asked))


@pytest.mark.slow
def test_every_outcome_is_told_apart() -> None:
    paths = list(ANSWERS)
    asked = list(range(len(paths))) * 5
    with serving(lambda path: ANSWERS[path]) as port, Sender(port, requests_of(paths)) as sender:
        for _ in range(2):  # connections stay from run to run
            found = sender.run(arrivals_of(asked, 2 * MS), np.full(len(asked), 10 * SECOND), 1.0)
            expected = {"/refused": 429, "/failed": 500, "/silent": GAVE_UP, "/ends": BROKEN}
            assert found.statuses.tolist() == [expected.get(paths[index], 200) for index in asked]
            by_path = {paths[index]: Verdict(verdict) for index, verdict in zip(asked, found.verdicts)}
            assert by_path["/refused"] is Verdict.REFUSED
            assert by_path["/failed"] is by_path["/ends"] is Verdict.FAILED
            assert by_path["/silent"] is Verdict.GONE
            assert by_path["/ok"] is by_path["/chunked"] is by_path["/last"] is Verdict.ANSWERED
            assert (found.elapsed_ns > 0).all()
            assert (found.elapsed_ns[found.statuses == GAVE_UP] >= 1.0 * SECOND).all()


class Host:
    """A server whose models are loaded by request, and which notes what it holds."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.most = 0
        self.wrong = 0

    def __call__(self, path: str) -> bytes | None:
        action, name = path.strip("/").split("/")
        if action == "load":
            self.held.add(name)
            self.most = max(self.most, len(self.held))
        elif action == "unload":
            self.held.remove(name)
        else:
            self.wrong += name not in self.held
        return OK


@pytest.mark.slow
def test_the_loader_keeps_to_its_memory_and_unloads_the_least_recently_used() -> None:
    host, names = Host(), [f"m{index}" for index in range(6)]
    loader = Loader(
        [f"/load/{name}" for name in names], [f"/unload/{name}" for name in names],
        [10] * len(names), 30, 100, 2, 0.9,
    )  # fmt: skip
    asked = [0, 1, 2, 0, 3, 0, 1, 4, 5, 0]
    with (
        serving(host) as port,
        Sender(port, requests_of([f"/infer/{name}" for name in names]), loader) as sender,
    ):
        found = sender.run(arrivals_of(asked, 300 * MS), np.full(len(asked), 20 * SECOND), 20.0)
        assert found.statuses.tolist() == [200] * len(asked)
        # Loaded are 0 1 2, 3 for 1, 1 for 2, 4 for 3, 5 for 0 and 0 for 1.
        assert sender.loads == 8
    assert host.held == {"m0", "m4", "m5"}
    assert host.most == 3
    assert host.wrong == 0


@pytest.mark.slow
def test_a_request_that_waits_too_long_for_its_model_is_refused() -> None:
    def answer(path: str) -> bytes | None:
        return None if path == "/load/0" else OK

    loader = Loader(["/load/0", "/load/1"], ["/unload/0", "/unload/1"], [10, 10], 10, 1, 1, 0.5)
    with (
        serving(answer) as port,
        Sender(port, requests_of(["/infer/0", "/infer/1"]), loader) as sender,
    ):
        # The first load stands, so that there is no room for the second.
        found = sender.run(arrivals_of([0, 1], 1 * MS), np.full(2, 400 * MS), 20.0)
        assert found.statuses.tolist() == [REFUSED_BY_LOADER] * 2
        assert (found.elapsed_ns >= 200 * MS).all()
        assert sender.loads == 1


def test_a_request_is_cold_where_the_least_recently_used_are_gone() -> None:
    def model(size: int) -> Model:
        return Model("m", 0, 0, size, "x", (1,), "y", 1, SECOND)

    residents = Residents([model(40), model(40), model(40), model(90)], 100)
    assert residents.cold([0, 1, 0, 2, 0, 1]).tolist() == [True, True, False, True, False, True]
    assert residents.cold([1, 3, 1]).tolist() == [False, True, True]  # the next requests of the same memory


def test_models_are_fine_tunes_of_twenty_architectures_and_few_are_large() -> None:
    families = models.families(3000, 12)
    counts = np.bincount(families)
    assert len(counts) == len(ARCHITECTURES) == 20
    assert counts[-1] == 12
    assert set(counts[:-1]) <= {157, 158}
    assert models.families(3000, 0).count(19) == 0


def test_goodput_is_held_against_the_best_peer() -> None:
    rows = [
        {"system": name, "share": share, "pattern": "zipf", "load": 0.9, "goodput/s": rate,
         "client_cores": 0.1, "other_cores": 0.0}
        for name, share, rate in [
            ("clockwork", 0.05, 400.0), ("clockwork-edf", 0.05, 500.0), ("triton-sessions", 0.05, 100.0),
            ("ray", 0.05, 50.0), ("triton-sessions", 0.2, 300.0),
        ]
    ]  # fmt: skip
    found = {
        "rows": rows, "capacity/s": [600.0], "models": 3000, "architectures": 20, "bytes": 8e9,
        "median_bytes": 1.5e6, "largest_bytes": 1e8, "zipf": 0.9, "slo_ms": 100.0, "large_slo_ms": 250.0,
    }  # fmt: skip
    assert show.facts(found).endswith("in multiples of the best peer's: 4.0 at 0.9 of capacity.")


@pytest.mark.slow
def test_an_optimised_model_answers_the_same(tmp_path: Path) -> None:
    some = [model for model in models.listed(40, 0) if model.number == 1][:3]
    paths = models.optimised(some, tmp_path, lambda text: None)
    for model, path in zip(some, paths, strict=True):
        feeds = {model.input: models.input_of(model)}
        expected, found = (Plain(onnx_model).run(feeds)[0] for onnx_model in (model.build(), onnx.load(path)))
        assert relative_error(found, expected) < 1e-5
    written = [path.stat().st_mtime_ns for path in paths]
    models.optimised(some, tmp_path, lambda text: None)
    assert [path.stat().st_mtime_ns for path in paths] == written


def test_trees_answer_the_mean_of_their_leaves() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    trees, depth, features, outputs = 3, 2, 5, 2
    model = models.oblivious_trees(seed=4, trees=trees, depth=depth, features=features, outputs=outputs)
    weights = {tensor.name: np.frombuffer(tensor.raw_data, np.float32) for tensor in model.graph.initializer}
    asked = np.random.default_rng(4).integers(0, features, trees * depth)
    x = np.random.default_rng(1).standard_normal((4, features)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    [found] = session.run(None, {"x": x})
    leaves = weights["leaves"].reshape(trees, 1 << depth, outputs)
    bits = (x[:, asked] > weights["thresholds"]).reshape(len(x), trees, depth)
    leaf = (bits * (1 << np.arange(depth))).sum(2)
    expected = np.stack([leaves[np.arange(trees), row].mean(0) for row in leaf])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_forty_models_are_measured_live_and_a_run_goes_on_where_it_ended(tmp_path: Path) -> None:
    listed = models.listed(40, 0)
    assert {model.architecture for model in listed} == set(range(19))
    assert len({model.name for model in listed}) == 40
    system = SYSTEMS["clockwork"]
    plan = Plan([system], listed, [0.3], ["zipf", "bursts"], [0.05], 0.5, 0.2, 1, 5)
    done: list[measure.Key] = []
    directory, failed = measure.measure(plan, {}, tmp_path, done.append, lambda text: None)
    assert failed == {}
    assert len(done) == 2
    found = measure.rows(directory, plan)
    assert [row["pattern"] for row in found] == ["zipf", "bursts"]
    for row in found:
        counts = [row[name] for name in ("within_slo", "late", "refused", "failed", "gave_up")]
        assert sum(counts) == row["offered"] > 0
        assert row["failed"] == 0
        assert row["loads"] >= 0
    again: list[measure.Key] = []
    written = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    measure.measure(plan, {}, tmp_path, again.append, lambda text: None)
    assert again == done
    assert {path: path.stat().st_mtime_ns for path in directory.iterdir()} == written
    assert len(show.markdown(show.of(found, 0.3, "zipf"))) == 3
    assert len(show.details(found)) == 4
