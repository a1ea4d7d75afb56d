"""Models registered on a GPU that serves: calls that would stall it are made when the controller has ordered
them."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from clockwork.client.blocking import Client
from clockwork.errors import InvalidModel
from clockwork.scheduler.recording import decode
from clockwork.scheduler.types import ActionDone, SendReserve
from clockwork.system.clock import MS
from clockwork.wire.messages import Status
from tests.device.cuda_rig import CudaRig
from tests.device.fake import DRIVER
from tests.device.rig import affine, expected_affine
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import running_cluster, same

STALL_NS = 10 * MS
RATE = 50.0
CLOCKS_NS = 2 * MS
"""Bound on the error of the worker's clock, from the controller's measurements."""

X = np.ones((1, 4), np.float32)
TWO = {**DRIVER, "CLOCKWORK_FAKE_DEVICES": "2"}


class Span(NamedTuple):
    begin_ns: int
    end_ns: int
    what: str

    def lies_in(self, other: Span) -> bool:
        return other.begin_ns - CLOCKS_NS <= self.begin_ns and self.end_ns <= other.end_ns + CLOCKS_NS


def stalls(path: Path) -> list[Span]:
    rows = (line.split() for line in path.read_text().splitlines())
    return [Span(int(begin), int(end), name) for name, _, begin, end in rows]


def reservations(recording: Path) -> list[Span]:
    given: set[int] = set()
    found = []
    with open(recording, "rb") as file:
        for step in decode(file)[1]:
            for event in step.events:
                if type(event) is ActionDone and event.action_id in given and event.status is Status.OK:
                    found.append(Span(event.begin_ns, event.end_ns, "reserve"))
            given |= {command.action_id for command in step.commands if type(command) is SendReserve}
    return found


def ask(client: Client, model: str, is_over: threading.Event, wrong: list[Any]) -> None:
    """Send requests at a fixed rate, whatever their outcomes."""
    asked = []
    while not is_over.wait(1 / RATE):
        asked.append(client.submit(model, X, slo=PATIENCE_S))
    wrong += [future for future in asked if future.exception() is not None]
    assert len(asked) > 5


@pytest.mark.parametrize(
    "models", [3, pytest.param(10, marks=pytest.mark.slow), pytest.param(40, marks=pytest.mark.long)]
)
def test_what_stalls_a_gpu_happens_in_reservations_alone(tmp_path: Path, models: int) -> None:
    rig = CudaRig(tmp_path / "packages")
    serving = affine()
    noted, recording = tmp_path / "stalls", tmp_path / "recording"
    environment = {
        **DRIVER, "CLOCKWORK_FAKE_STALL": str(STALL_NS), "CLOCKWORK_FAKE_STALLS": str(noted),
        "CLOCKWORK_FAKE_SPEED": "0:0:1000000:0",
    }  # fmt: skip
    with (
        running_cluster(
            tmp_path / "cluster", workers=0, controller_options=("--record", str(recording))
        ) as cluster,
        cluster.client() as client,
        cluster.client() as second,
    ):
        worker = cluster.start_worker("--device", "cuda", environment=environment)
        started = len(stalls(noted))
        client.register("serving", rig.package(serving, [([X], [expected_affine(serving, X)])]))
        assert same(client.infer("serving", X), expected_affine(serving, X))
        over, wrong = threading.Event(), list[Any]()
        thread = threading.Thread(target=ask, args=(client, "serving", over, wrong))
        thread.start()
        try:
            for index in range(models):
                one = affine(
                    index, width=8 + index
                )  # models with programs of their own, some with larger slots and workspace
                x = np.ones((1, 8 + index), np.float32)
                second.register(f"model-{index}", rig.package(one, [([x], [expected_affine(one, x)])]))
                assert same(second.infer(f"model-{index}", x, slo=PATIENCE_S), expected_affine(one, x))
                if index % 2:
                    second.unregister(f"model-{index}")
        finally:
            over.set()
            thread.join()
        assert not wrong
        happened = stalls(noted)[started:]
        worker.stop()
    given = reservations(recording)
    assert sum(one.what == "cuModuleLoadData" for one in happened) == models + 1
    assert [one for one in happened if not any(one.lies_in(other) for other in given)] == []


@pytest.mark.parametrize("call", ["kernel", pytest.param("cuModuleLoadData", marks=pytest.mark.slow)])
def test_a_gpu_that_breaks_in_a_registration_goes_alone_and_the_next_one_tries_the_model(
    tmp_path: Path, call: str
) -> None:
    rig = CudaRig(tmp_path / "packages")
    one = affine()
    with running_cluster(tmp_path / "cluster", workers=0) as cluster, cluster.client() as client:
        breaking = {**TWO, "CLOCKWORK_FAKE_FAIL": f"{call}:1:719:0"}
        worker = cluster.start_worker("--device", "cuda:0,cuda:1", environment=breaking)
        client.register("model", rig.package(one, [([X], [expected_affine(one, X)])]))
        assert same(client.infer("model", X), expected_affine(one, X))
        worker.wait_for(r"device 0 \(fake GPU 0\) is offline: .*CUDA_ERROR_LAUNCH_FAILED")
    assert worker.text.count("is offline") == 1


def test_what_a_model_had_is_given_back_at_once_and_a_gpu_that_breaks_meanwhile_goes_alone(
    tmp_path: Path,
) -> None:
    rig = CudaRig(tmp_path / "packages")
    with running_cluster(tmp_path / "cluster", workers=0) as cluster, cluster.client() as client:
        breaking = {**TWO, "CLOCKWORK_FAKE_FAIL": "cuModuleUnload:1:719:0"}
        worker = cluster.start_worker("--device", "cuda:0,cuda:1", environment=breaking)
        for seed in range(2):
            one = affine(seed)
            client.register(f"model-{seed}", rig.package(one, [([X], [expected_affine(one, X)])]))
            assert same(client.infer(f"model-{seed}", X), expected_affine(one, X))
            if seed == 0:
                client.unregister("model-0")
                worker.wait_for(r"device 0 \(fake GPU 0\) is offline: .*CUDA_ERROR_LAUNCH_FAILED")


@pytest.mark.slow
def test_registrations_go_on_with_the_other_gpus_when_one_is_lost(tmp_path: Path) -> None:
    """As the observer of clocks reports, while the model is being tried there: its driver reports nothing."""
    rig = CudaRig(tmp_path / "packages")
    clocks = tmp_path / "clocks.json"
    whole = {"sm_mhz": 1000}
    clocks.write_text(json.dumps([whole, whole]))
    environment = {**TWO, "CLOCKWORK_FAKE_SPEED": "0:0:30000000:0", "CLOCKWORK_FAKE_CLOCKS": str(clocks)}
    with (
        running_cluster(tmp_path / "cluster", workers=0) as cluster,
        cluster.client() as client,
        cluster.client() as second,
    ):
        worker = cluster.start_worker("--device", "cuda:0,cuda:1", environment=environment)

        def reserved() -> int:
            return client.status()["workers"][0]["sent"].get("reserve", 0)

        one, other = affine(), affine(1)
        first = threading.Thread(
            target=second.register, args=("first", rig.package(one, [([X], [expected_affine(one, X)])]))
        )
        first.start()
        eventually(lambda: reserved() > 3, "it is being tried")
        fresh = clocks.with_suffix(".new")
        fresh.write_text(json.dumps([{**whole, "lost": "GPU is lost"}, whole]))
        fresh.rename(clocks)
        worker.wait_for("is offline: GPU is lost")
        client.register("second", rig.package(other, [([X], [expected_affine(other, X)])]))
        first.join()
        assert same(client.infer("first", X, slo=PATIENCE_S), expected_affine(one, X))
        assert same(client.infer("second", X, slo=PATIENCE_S), expected_affine(other, X))


def test_a_model_whose_execution_does_not_end_fails_its_registration_alone(tmp_path: Path) -> None:
    """Its worker restarts, once: no kernel can be stopped."""
    rig = CudaRig(tmp_path / "packages")
    one = affine()
    with running_cluster(tmp_path / "cluster", workers=0) as cluster, cluster.client() as client:
        environment = {
            **DRIVER,
            "CLOCKWORK_FAKE_SPEED": "0:0:60000000000:0",
            "CLOCKWORK_PREPARATION_RUN": "0.2",
        }
        worker = cluster.start_worker("--device", "cuda", environment=environment)
        with pytest.raises(
            InvalidModel, match=r"one execution takes longer than 0\.2 s; registered again, it is"
        ):
            client.register("model", rig.package(one, [([X], [expected_affine(one, X)])]))
        (trouble,) = client.status()["troubles"]["open"]
        assert (trouble["kind"], trouble["subject"]) == (
            "worker_stuck",
            client.status()["workers"][0]["name"],
        )
        assert trouble["text"].startswith("model@1: making it ready on worker ")
        assert not list((tmp_path / "cluster" / "worker" / "trying").iterdir())
    said = "the reservation on fake GPU 0, does not come back: the worker begins anew"
    assert worker.text.count(said) == 1
