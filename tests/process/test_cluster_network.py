"""Networks with delay, clocks with offsets, and keys."""

from __future__ import annotations

import concurrent.futures
import json
import random
import selectors
import socket
from pathlib import Path

import numpy as np
import pytest

from bench.links import link
from clockwork import Client
from clockwork.errors import ClockworkError, ConnectionLost
from clockwork.models import zoo
from clockwork.system.clock import now_ns
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import (
    ANYWHERE,
    Program,
    Reference,
    running_cluster,
    same,
)

SHIFTED_WORKER = """
import sys
from pathlib import Path
from clockwork.worker.process import main
from clockwork.worker.settings import WorkerSettings
endpoint, name, store, offset_ns, drift_ppm = sys.argv[1:]
sys.exit(main(WorkerSettings(
    endpoint=endpoint, name=name, store=Path(store), arena_bytes=64 << 20, page_bytes=1 << 18,
    clock_offset_ns=int(offset_ns), clock_drift_ppm=float(drift_ppm),
)))
"""

HOUR_NS = 3_600_000_000_000


@pytest.mark.parametrize("seconds", [3, pytest.param(45, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("offset_ns", "drift_ppm", "there_ms", "back_ms"),
    [
        pytest.param(HOUR_NS, 100.0, (1, 5), (4, 20), marks=pytest.mark.slow),
        pytest.param(-HOUR_NS, -100.0, (8, 20), (1, 3), marks=pytest.mark.slow),
        (-now_ns() - HOUR_NS, 100.0, (1, 5), (1, 5)),  # a clock below 0, as at a machine's start
    ],
    ids=["ahead", "behind", "below-zero"],
)
def test_a_clock_an_hour_off_that_drifts_behind_an_asymmetric_delay(
    tmp_path: Path,
    offset_ns: int,
    drift_ppm: float,
    there_ms: tuple[float, float],
    back_ms: tuple[float, float],
    seconds: int,
) -> None:
    model = zoo.build("mlp", seed=1)
    reference = Reference(model)
    with (
        running_cluster(tmp_path, workers=0) as cluster,
        link(cluster.worker_endpoint, there_ms, back_ms, seed=1) as way,
        cluster.client() as client,
    ):
        arguments = [way.endpoint, "shifted", str(tmp_path / "worker"), str(offset_ns), str(drift_ppm)]
        worker = cluster.program(arguments, code=SHIFTED_WORKER)
        worker.wait_for("serves controller")
        names = [f"model-{index}" for index in range(4)]
        for name in names:
            client.register(name, model)
        rng = np.random.default_rng(1)
        slowest = 0.0

        def ask(name: str, x: np.ndarray) -> float:
            begin_ns = now_ns()
            assert same(client.infer(name, x, slo=PATIENCE_S), reference(x))
            return (now_ns() - begin_ns) / 1e9

        count = 0
        end_ns = now_ns() + seconds * 1_000_000_000
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            while now_ns() < end_ns or count <= 20:
                inputs = [rng.standard_normal((1, 64)).astype(np.float32) for _ in names]
                slowest = max(slowest, *pool.map(ask, names, inputs))
                count += len(names)
        status = client.status()
        (seen,) = status["workers"]
        print(
            f"{count} requests, slowest {slowest:.3f} s, round trip {seen['rtt_ns'] / 1e6:.1f} ms,", end=" "
        )
        print(f"clock known to {seen['clock_uncertainty_ns'] / 1e6:.1f} ms, results {seen['results']}")
        assert set(seen["results"]) == {"ok"}  # no action came too late
        assert seen["rtt_ns"] > (there_ms[0] + back_ms[0]) * 1e6  # the round trip includes the delay
        assert status["counts"]["answered"] == count > 20
        assert worker.stop() == 0


# ----- keys -------------------------------------------------------------------------------------


def new_keys(directory: Path) -> tuple[str, str, str]:
    """The files of the controller's, the workers' and the operator's key."""
    program = Program(["keys", "new", str(directory)])
    assert program.wait() == 0, program.text
    return tuple(str(directory / f"{name}.key") for name in ("controller", "worker", "operator"))  # type: ignore[return-value]


def test_with_keys_only_those_who_have_the_right_ones_are_served(tmp_path: Path) -> None:
    controller_key, worker_key, operator_key = new_keys(tmp_path / "keys")
    client_key = str(tmp_path / "keys" / "client.key")
    _, _, wrong_key = new_keys(tmp_path / "wrong")
    stranger = tmp_path / "stranger.key"  # knows the controller's key, but is not accepted
    body = json.loads(Path(wrong_key).read_text())
    body["controller"] = json.loads(Path(operator_key).read_text())["controller"]
    stranger.write_text(json.dumps(body))

    with running_cluster(
        tmp_path / "data", workers=0, controller_options=["--key", controller_key]
    ) as cluster:
        cluster.start_worker("--key", worker_key)
        model = zoo.build("mlp", seed=2)
        x = np.zeros((1, 64), np.float32)
        others = []
        with cluster.client(keys=operator_key) as client:
            client.register("secret", model)
            assert same(client.infer("secret", x), Reference(model)(x))
            for keys in (wrong_key, str(stranger), worker_key, None):
                with Client(cluster.endpoint, keys=keys, timeout=PATIENCE_S) as other:
                    with pytest.raises(ClockworkError) as caught:
                        other.models()
                    print(keys, type(caught.value).__name__, caught.value)
                    assert "key" in str(caught.value)
                    assert isinstance(caught.value, ConnectionLost)
            worker = cluster.program([
                "worker", "--connect", cluster.worker_endpoint, "--store", str(tmp_path / "other"),
                "--key", str(stranger), "--arena", "16MiB",
            ])  # fmt: skip
            assert worker.wait() == 1
            assert "key" in worker.text
            # A client's key does not admit a worker.
            worker = cluster.program([
                "worker", "--connect", cluster.worker_endpoint, "--store", str(tmp_path / "other"),
                "--key", client_key, "--arena", "16MiB",
            ])  # fmt: skip
            assert worker.wait() == 1
            assert "its key has the role client and must have worker" in worker.text
            # A worker without a key, or with another controller's, is not accepted either, and reports it.
            for key in ([], ["--key", wrong_key]):
                worker = cluster.program([
                    "worker", "--connect", cluster.worker_endpoint, "--store", str(tmp_path / "other"),
                    "--arena", "16MiB", *key,
                ])  # fmt: skip
                worker.wait_for(r"waits for the controller|refused the connection")
                others.append(worker)
            assert [one["name"] for one in client.status()["workers"]] == ["worker-0"]
            assert same(client.infer("secret", x), Reference(model)(x))
        for worker in others:
            worker.stop()


def test_damaged_key_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "some.key"
    for content in ("", "{}", "[]", '{"public": 1, "secret": 2, "controller": 3}', "\0"):
        path.write_text(content)
        program = Program(["status", "--key", str(path), "--endpoint", "tcp://127.0.0.1:9"])
        assert program.wait() == 2
        assert str(path) in program.text
        assert "Traceback" not in program.text
    program = Program(["keys", "new", str(tmp_path / "twice")])
    assert program.wait() == 0
    program = Program(["keys", "new", str(tmp_path / "twice")])
    assert program.wait() == 1
    assert "exists" in program.text


def controller_arguments(data: Path, *more: str) -> list[str]:
    return ["controller", "--worker-listen", ANYWHERE, "--events", ANYWHERE, "--data", str(data), *more]


def test_beyond_loopback_takes_keys_or_insistence(tmp_path: Path) -> None:
    everywhere = "tcp://0.0.0.0:0"
    program = Program(controller_arguments(tmp_path, "--listen", everywhere))
    assert program.wait() == 1
    assert "--insecure" in program.text
    assert "keys new" in program.text
    assert "Traceback" not in program.text
    key, _, _ = new_keys(tmp_path / "keys")
    for option in (["--insecure"], ["--key", key]):
        program = Program(controller_arguments(tmp_path, "--listen", everywhere, *option))
        program.wait_for("listens for clients")
        assert program.stop() == 0


def test_a_port_in_use_and_a_directory_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        program = Program(controller_arguments(tmp_path / "data", "--listen", f"tcp://127.0.0.1:{port}"))
        assert program.wait() == 1
    assert str(port) in program.text
    assert "in use" in program.text
    assert "Traceback" not in program.text
    (tmp_path / "file").write_text("")
    for arguments in (
        controller_arguments(tmp_path / "file" / "data", "--listen", ANYWHERE),
        ["worker", "--store", str(tmp_path / "file" / "data"), "--arena", "1MiB"],
    ):
        program = Program(arguments)
        assert program.wait() == 1
        assert str(tmp_path / "file" / "data") in program.text
        assert "Traceback" not in program.text


def test_two_controllers_cannot_share_one_directory(tmp_path: Path) -> None:
    first = Program(controller_arguments(tmp_path, "--listen", ANYWHERE))
    first.wait_for("listens for clients")
    second = Program(controller_arguments(tmp_path, "--listen", ANYWHERE))
    try:
        assert second.wait() == 1
        assert str(tmp_path) in second.text
        assert "Traceback" not in second.text
    finally:
        second.destroy()
        assert first.stop() == 0


def test_nonsense_on_a_socket_harms_nobody(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as cluster, cluster.client() as client:
        client.register("sane", zoo.build("mlp"))
        rng = random.Random(3)
        for endpoint in (cluster.endpoint, cluster.worker_endpoint):
            for _ in range(20):
                with socket.create_connection(("127.0.0.1", int(endpoint.rpartition(":")[2]))) as one:
                    one.sendall(rng.randbytes(rng.randrange(1, 2000)))
        # A peer that connects and sends nothing at all stays, and does no harm either.
        with (
            socket.create_connection(("127.0.0.1", int(cluster.endpoint.rpartition(":")[2]))) as silent,
            selectors.DefaultSelector() as selector,
        ):
            selector.register(silent, selectors.EVENT_READ)
            assert np.asarray(client.infer("sane", np.zeros((1, 64), np.float32))).shape == (1, 10)
        eventually(lambda: client.status()["clients"] == 1, "only the one client counts")
