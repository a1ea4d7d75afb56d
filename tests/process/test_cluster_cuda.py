"""A cluster whose worker serves from two GPUs of the fake driver: programs by hand, the whole road."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from clockwork.errors import ClockworkError, InvalidModel, Refused
from tests.device.cuda_rig import CudaRig
from tests.device.rig import affine, expected_affine
from tests.process.cluster import eventually, running_cluster, same, total_sent

FAKE = {"CLOCKWORK_CUDA_DRIVER": "fake", "CLOCKWORK_FAKE_DEVICES": "2"}


def test_two_gpus_serve_more_models_than_they_have_pages(tmp_path: Path) -> None:
    rig = CudaRig(tmp_path / "packages")
    cases = [affine(seed, width=100) for seed in range(8)]
    x = np.random.default_rng(0).standard_normal((3, 100)).astype(np.float32)
    with running_cluster(tmp_path / "cluster", workers=0) as cluster, cluster.client() as client:
        cluster.start_worker("--device", "cuda:0,cuda:1", arena="512KiB", environment=FAKE)
        for index, one in enumerate(cases):
            check = x[:1], expected_affine(one, x[:1])
            client.register(f"model-{index}", rig.package(one, [([check[0]], [check[1]])]))
        for turn in range(3):
            for index, one in enumerate(cases):
                assert same(
                    client.infer(f"model-{index}", x[: turn + 1]), expected_affine(one, x[: turn + 1])
                )
        status = client.status()
        assert total_sent(status, "load") > 8  # four pages for eight models
        (worker,) = status["workers"]
        assert [device["kind"] for device in worker["devices"]] == ["cuda", "cuda"]
        with pytest.raises(InvalidModel, match="answers wrongly"):
            client.register("wrong", rig.package(cases[0], [([x[:1]], [x[:1]])]))


def test_two_gpus_serve_more_models_than_their_machine_has_memory(tmp_path: Path) -> None:
    rig = CudaRig(tmp_path / "packages")
    cases = [affine(seed, width=100) for seed in range(8)]
    x = np.random.default_rng(0).standard_normal((3, 100)).astype(np.float32)
    with running_cluster(tmp_path / "cluster", workers=0) as cluster, cluster.client() as client:
        options = ("--device", "cuda:0,cuda:1", "--host-bytes", "768KiB")
        cluster.start_worker(*options, arena="256KiB", environment=FAKE)
        for index, one in enumerate(cases):
            check = x[:1], expected_affine(one, x[:1])
            client.register(f"model-{index}", rig.package(one, [([check[0]], [check[1]])]), slo=2.0)
        for _ in range(3):
            for index, one in enumerate(cases):
                assert same(client.infer(f"model-{index}", x), expected_affine(one, x))
        status = client.status()
        (worker,) = status["workers"]
        plan = worker["devices"][0]["plan"]
        assert plan["host_bytes"] == 768 << 10
        assert 0 < plan["hosted"] < 8
        assert plan["host_used"] <= plan["host_bytes"]
        assert total_sent(status, "fetch") > 8
        assert total_sent(status, "drop") == total_sent(status, "fetch") - plan["hosted"]
        assert status["predictions"]["fetch_duration"]["over"]["total"] > 0


def test_a_worker_that_cannot_have_its_gpu_says_why_and_ends(tmp_path: Path) -> None:
    with running_cluster(tmp_path / "cluster", workers=0) as cluster:
        for device, environment, said in (
            ("cuda", {"CLOCKWORK_CUDA_DRIVER": "libcuda_nowhere.so.1"}, "no CUDA driver: libcuda_nowhere"),
            ("cuda:2", FAKE, "there is no CUDA device 2; the driver shows 2"),
            ("MIG-1234", FAKE, "there is no CUDA device 'MIG-1234'"),
            ("cuda:1,cuda:1", FAKE, "names one GPU twice"),
            ("cuda,cpu", FAKE, "of one kind, not cuda and cpu"),
            ("tpu", FAKE, "device 'tpu' is unknown"),
        ):
            program = cluster.program(["worker", "--device", device], environment=environment)
            assert program.wait() != 0
            assert said in program.text.replace("\n", " "), program.text


def test_a_gpu_that_breaks_takes_its_worker_with_it_and_the_next_one_serves(tmp_path: Path) -> None:
    rig = CudaRig(tmp_path / "packages")
    one = affine()
    x = np.ones((1, 4), np.float32)
    with running_cluster(tmp_path / "cluster", workers=0) as cluster, cluster.client() as client:

        def served() -> bool:
            with contextlib.suppress(Refused):  # no worker is ready for it
                assert same(client.infer("model", x, slo=5.0), expected_affine(one, x))
                return True
            return False

        first = cluster.start_worker("--device", "cuda", environment=FAKE, name="first")
        client.register("model", rig.package(one, [([x], [expected_affine(one, x)])]))
        first.stop()
        # Of the same store, where the model is prepared: what fails is the ninth kernel of all requests.
        breaking = {**FAKE, "CLOCKWORK_FAKE_FAIL": "kernel:9:719"}
        broken = cluster.start_worker("--device", "cuda", environment=breaking, name="broken")
        eventually(served, "the model is ready there")
        for _ in range(3):  # of two kernels each, as the one before
            assert served()
        with pytest.raises(ClockworkError):
            client.infer("model", x, slo=5.0)
        assert broken.wait() == 1
        broken.wait_for(r"is broken, and the worker with it: cu\w+: CUDA_ERROR_LAUNCH_FAILED")
        cluster.kill(broken)
        cluster.start_worker("--device", "cuda", environment=FAKE, name="next")
        eventually(served, "the model is ready on the next one")
