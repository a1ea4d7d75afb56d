"""A cluster whose worker serves from two GPUs of the fake driver: hand-written programs, from client to
device."""

from __future__ import annotations

import contextlib
import json
import runpy
from pathlib import Path

import numpy as np
import onnx
import pytest

from clockwork.errors import ClockworkError, InvalidModel, Refused
from clockwork.formats.program import read_checks, read_program
from clockwork.models import zoo
from tests.device.cuda_rig import CudaRig
from tests.device.fake import DRIVER
from tests.device.rig import affine, expected_affine
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import Reference, running_cluster, same, total_sent

FAKE = {**DRIVER, "CLOCKWORK_FAKE_DEVICES": "2"}


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
    with (
        running_cluster(tmp_path / "cluster", workers=0) as cluster,
        cluster.client() as client,
    ):
        options = ("--device", "cuda:0,cuda:1", "--host-bytes", "768KiB")
        cluster.start_worker(*options, arena="256KiB", environment=FAKE)
        for index, one in enumerate(cases):
            check = x[:1], expected_affine(one, x[:1])
            client.register(f"model-{index}", rig.package(one, [([check[0]], [check[1]])]), slo=PATIENCE_S)
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
            ("MIG-1234", FAKE, "MIG-1234 was asked for: nvidia-smi -L lists MIG instances"),
            ("GPU-1234", FAKE, "there is no CUDA device 'GPU-1234'; the driver shows GPU-"),
            ("cuda:1,cuda:1", FAKE, "names one GPU twice"),
            ("cuda,cpu", FAKE, "of one kind, not cuda and cpu"),
            ("tpu", FAKE, "device 'tpu' is unknown"),
        ):
            program = cluster.program(["worker", "--device", device], environment=environment)
            assert program.wait() != 0
            assert said in program.text.replace("\n", " "), program.text


def test_the_last_gpu_that_breaks_takes_its_worker_with_it_and_the_next_one_serves(tmp_path: Path) -> None:
    rig = CudaRig(tmp_path / "packages")
    one = affine()
    x = np.ones((1, 4), np.float32)
    with running_cluster(tmp_path / "cluster", workers=0) as cluster, cluster.client() as client:

        def served() -> bool:
            with contextlib.suppress(Refused):  # no worker is ready for the model yet
                assert same(client.infer("model", x, slo=PATIENCE_S), expected_affine(one, x))
                return True
            return False

        first = cluster.start_worker("--device", "cuda", environment=FAKE, name="first")
        client.register("model", rig.package(one, [([x], [expected_affine(one, x)])]))
        first.stop()
        # The worker has the same store, where the model is prepared: the ninth kernel of all requests fails.
        breaking = {**FAKE, "CLOCKWORK_FAKE_FAIL": "kernel:9:719"}
        broken = cluster.start_worker("--device", "cuda", environment=breaking, name="broken")
        eventually(served, "the model is ready there")
        for _ in range(3):  # executions of two kernels each, as the one before
            assert served()
        with pytest.raises(ClockworkError):
            client.infer("model", x, slo=PATIENCE_S)
        assert broken.wait() == 1
        broken.wait_for(r"device 0 \(fake GPU 0\) is offline: cu\w+: CUDA_ERROR_LAUNCH_FAILED")
        broken.wait_for("no device is left: the worker ends")
        cluster.kill(broken)
        cluster.start_worker("--device", "cuda", environment=FAKE, name="next")
        eventually(served, "the model is ready on the next one")


@pytest.mark.slow
def test_when_the_gpu_that_fetches_for_all_breaks_another_one_does(tmp_path: Path) -> None:
    rig = CudaRig(tmp_path / "packages")
    cases = [affine(seed, width=100) for seed in range(5)]
    x = np.random.default_rng(0).standard_normal((3, 100)).astype(np.float32)
    options = ("--device", "cuda:0,cuda:1", "--host-bytes", "512KiB")
    with (
        running_cluster(tmp_path / "cluster", workers=0) as cluster,
        cluster.client() as client,
    ):
        first = cluster.start_worker(*options, environment=FAKE, arena="256KiB")
        for index, one in enumerate(cases):
            check = x[:1], expected_affine(one, x[:1])
            client.register(f"model-{index}", rig.package(one, [([check[0]], [check[1]])]))
        first.stop()
        breaking = {**FAKE, "CLOCKWORK_FAKE_FAIL": "kernel:9:719:0"}
        worker = cluster.start_worker(*options, environment=breaking, arena="256KiB")
        eventually(
            lambda: [one["stats"].get("models", 0) for one in client.status()["workers"]] == [5],
            "the models are ready on it",
        )

        def ask_each() -> None:
            for index, one in enumerate(cases):
                assert same(client.infer(f"model-{index}", x, slo=PATIENCE_S), expected_affine(one, x))

        while not client.status()["workers"][0]["devices"][0]["offline"]:
            ask_each()
        worker.wait_for(r"device 0 \(fake GPU 0\) is offline")
        before = total_sent(client.status(), "fetch")
        ask_each()  # the host store has two copies, the GPU one
        assert total_sent(client.status(), "fetch") > before


@pytest.mark.slow
def test_a_gpu_that_breaks_goes_alone_and_the_other_one_answers_what_it_had(tmp_path: Path) -> None:
    rig = CudaRig(tmp_path / "packages")
    cases = [affine(seed, width=100) for seed in range(4)]
    x = np.random.default_rng(0).standard_normal((3, 100)).astype(np.float32)
    with (
        running_cluster(tmp_path / "cluster", workers=0) as cluster,
        cluster.client() as client,
    ):
        first = cluster.start_worker("--device", "cuda:0,cuda:1", environment=FAKE, arena="512KiB")
        for index, one in enumerate(cases):
            check = x[:1], expected_affine(one, x[:1])
            client.register(f"model-{index}", rig.package(one, [([check[0]], [check[1]])]))
        first.stop()
        # The worker has the same store, where the models are prepared. Each execution is two kernels.
        breaking = {**FAKE, "CLOCKWORK_FAKE_FAIL": "kernel:31:719:1"}
        worker = cluster.start_worker("--device", "cuda:0,cuda:1", environment=breaking, arena="512KiB")

        def models() -> int:
            workers = client.status()["workers"]
            return workers[0]["stats"].get("models", 0) if workers else 0

        eventually(lambda: models() == 4, "the models are ready on it")
        asked = [
            (one, turn % 3 + 1, client.submit(f"model-{index}", x[: turn % 3 + 1], slo=PATIENCE_S))
            for turn in range(40)
            for index, one in enumerate(cases)
        ]
        for one, rows, future in asked:
            assert same(future.result(), expected_affine(one, x[:rows]))  # the other outcome is an exception
        worker.wait_for(r"device 1 \(fake GPU 1\) is offline: cu\w+: CUDA_ERROR_LAUNCH_FAILED")
        cluster.controller.wait_for(
            r"device 1 \(fake GPU 1\) of worker worker-1 is offline: cu\w+: CUDA_ERROR_LAUN"
        )

        def described() -> str:
            text = cluster.run("status")[1]
            return text if "offline    worker-1, fake GPU 1: cu" in text else ""

        eventually(described, "the status says that it is offline")
        (shown,) = client.status()["workers"]
        assert [bool(device["offline"]) for device in shown["devices"]] == [False, True]
        assert "CUDA_ERROR_LAUNCH_FAILED" in shown["devices"][1]["offline"]
        before = shown["sent"]["infer"]
        for index, one in enumerate(cases):
            assert same(client.infer(f"model-{index}", x, slo=PATIENCE_S), expected_affine(one, x))
        assert client.status()["workers"][0]["sent"]["infer"] == before + 4
        # A new controller is offered the remaining devices.
        cluster.controller.stop()
        cluster.start_controller()
        worker.wait_for("as worker 1", after=len(worker.lines) - 1)

        def serves() -> bool:
            with contextlib.suppress(ClockworkError):
                return same(client.infer("model-3", x, slo=PATIENCE_S), expected_affine(cases[3], x))
            return False

        eventually(serves, "the new controller has it serve")
        (shown,) = client.status()["workers"]
        assert [device["name"] for device in shown["devices"]] == ["fake GPU 0"]
        assert len(shown["stats"]["devices_lost"]) == 1
        client.register("fresh", rig.package(affine(7), []))  # the model goes onto the device that works


def test_clocks_and_throttling_are_shown_and_planned_with(tmp_path: Path) -> None:
    clocks = tmp_path / "clocks.json"

    def set_clocks(*states: dict[str, int]) -> None:
        fresh = clocks.with_suffix(".new")
        fresh.write_text(json.dumps(states))
        fresh.rename(clocks)

    full = {"sm_mhz": 1980, "memory_mhz": 2619, "temperature_c": 60, "power_w": 400}
    set_clocks(full, full)
    with running_cluster(tmp_path / "cluster", workers=0) as cluster, cluster.client() as client:
        cluster.start_worker(
            "--device", "cuda:0,cuda:1", environment={**FAKE, "CLOCKWORK_FAKE_CLOCKS": str(clocks)}
        )

        def planned() -> list[int]:
            return [device["plan"]["clock_mhz"] for device in client.status()["workers"][0]["devices"]]

        def shown() -> list[tuple[int, list[str]]]:
            rows = client.status()["workers"][0]["stats"]["devices"]
            return [(row["gpu"]["sm_mhz"], row["gpu"]["throttled"]) for row in rows]

        eventually(lambda: planned() == [1980, 1980], "the controller knows the clocks")
        set_clocks(full, {**full, "sm_mhz": 1386, "reasons": 0x4 | 0x20})
        eventually(lambda: planned() == [1980, 1386], "the controller knows that one fell")
        eventually(lambda: shown() == [(1980, []), (1386, ["power cap", "thermal"])], "the status shows why")
        text = cluster.run("status")[1]
        assert "1386 MHz" in text
        assert "throttled: power cap, thermal" in text
        # An idle GPU's clock does not show the clock under work.
        set_clocks({**full, "sm_mhz": 345, "reasons": 0x1}, full)
        eventually(lambda: planned() == [1980, 1980], "only the other one has changed")
        eventually(lambda: shown()[0][0] == 345, "what idles is shown as it is")
        set_clocks({**full, "lost": "GPU is lost"}, full)
        eventually(
            lambda: client.status()["workers"][0]["devices"][0]["offline"], "a GPU that is gone is offline"
        )


@pytest.mark.slow
def test_packages_by_hand_and_models_to_compile_are_registered_and_served_alike(tmp_path: Path) -> None:
    """By the command line, on one worker: the example's package, a package of `clockwork compile`, and two
    fine-tuned models as ONNX files, which the worker compiles and which share a program."""
    pytest.importorskip("tinygrad", reason="compiling needs the extra [compile]")
    make = runpy.run_path(str(Path(__file__).parents[2] / "examples/program/make.py"))["make"]
    make(tmp_path / "relu", ["host"])
    encoder = zoo.build("transformer", layers=1, width=16, heads=2, sequence=None, vocabulary=50)
    onnx.save(encoder, tmp_path / "encoder.onnx")
    onnx.save(plain := zoo.build("mlp", width=16, depth=1), tmp_path / "plain.onnx")
    onnx.save(tuned := zoo.fine_tune(plain, 7), tmp_path / "tuned.onnx")
    with running_cluster(tmp_path / "cluster", workers=0) as cluster, cluster.client() as client:
        compiling = cluster.program([
            "compile", str(tmp_path / "encoder.onnx"), "-o", str(tmp_path / "encoder"), "--arch", "host", "--batch", "2",
            "--shape", "ids:1,8",
        ])  # fmt: skip
        assert compiling.wait() == 0, compiling.text
        assert "compile: host batch 2" in compiling.text
        assert "shorter inputs: padded in 'S': proven to be harmless, and tried" in compiling.text
        cluster.start_worker("--device", "cuda", environment=FAKE)
        for name, path in (
            ("relu", "relu"),
            ("encoder", "encoder"),
            ("plain", "plain.onnx"),
            ("tuned", "tuned.onnx"),
        ):
            more = ["--batch-max", "1"] if path.endswith(".onnx") else []
            status, text = cluster.run("models", "add", name, str(tmp_path / path), *more)
            assert status == 0, text
        rng = np.random.default_rng(0)
        (((x,), (expected,)),) = read_checks(tmp_path / "relu", read_program(tmp_path / "relu"))
        assert same(client.infer("relu", x), expected)
        for length in (3, 8, 5):
            ids = rng.integers(0, 50, (1, length))
            given = {"ids": ids, "mask": np.ones_like(ids)}
            assert same(
                client.infer("encoder", given, slo=PATIENCE_S)["embedding"], Reference(encoder)(given)
            )
        x = rng.standard_normal((1, 64)).astype(np.float32)
        for name, model in (("plain", plain), ("tuned", tuned)):
            assert same(client.infer(name, x), Reference(model)(x))
        programs = {name: client.model(name).raw["program"] for name in ("relu", "encoder", "plain", "tuned")}
        assert programs["plain"] == programs["tuned"]
        assert len(set(programs.values())) == 3
        kept = {path.name for path in (tmp_path / "cluster" / "worker" / "programs").iterdir()}
        assert kept == set(programs.values())
        assert cluster.run("models", "add", "half", str(tmp_path / "plain.onnx"), "--dtype", "fp16")[0] == 0
        (answer,), (expected,) = client.infer("half", x), Reference(plain)(x)
        assert 0 < np.abs(answer - expected).max() < 5e-2 * np.abs(expected).max(), "16 bits, and no fewer"
        assert client.model("half").weights_bytes < 0.6 * client.model("plain").weights_bytes
        # Equal content except for the factors is another version; equal content is the same version.
        status, text = cluster.run("models", "add", "half", str(tmp_path / "plain.onnx"), "--dtype", "fp16")
        assert (status, "half@1 is ready" in text) == (0, True), text
        status, text = cluster.run("models", "add", "half", str(tmp_path / "plain.onnx"), "--dtype", "tf32")
        assert (status, "half@2 is ready" in text) == (0, True), text


@pytest.mark.slow
def test_loads_onto_two_gpus_end_when_they_were_predicted_to(tmp_path: Path) -> None:
    """40 ms each over the link that both devices share: copied at once, each would end late by the other's
    part."""
    rig = CudaRig(tmp_path / "packages")
    cases = [affine(seed, width=100) for seed in range(6)]
    x = np.ones((1, 100), np.float32)
    slow = {**FAKE, "CLOCKWORK_FAKE_SPEED": "0:1000000:0:0"}
    with (
        running_cluster(tmp_path / "cluster", workers=0) as cluster,
        cluster.client() as client,
    ):
        cluster.start_worker("--device", "cuda:0,cuda:1", arena="256KiB", environment=slow)
        for index, one in enumerate(cases):
            client.register(f"model-{index}", rig.package(one, [([x], [expected_affine(one, x)])]))
        for _ in range(6):  # one page each: every round loads all, on both devices at once
            asked = [client.submit(f"model-{index}", x, slo=PATIENCE_S) for index in range(6)]
            for one, future in zip(cases, asked, strict=True):
                assert same(future.result(), expected_affine(one, x))
        status = client.status()
        (worker,) = status["workers"]
        assert min(device["plan"]["served"] for device in worker["devices"]) > 3
        errors = status["predictions"]["load_completion"]
        early, late = errors["over"], errors["under"]
        assert early["total"] + late["total"] > 20
        # Now and then two lanes wake in the opposite order, and these two loads change places.
        assert early["percentiles_ns"]["50"] < 15_000_000, errors
        assert late["total"] < early["total"] / 3 or late["percentiles_ns"]["50"] < 15_000_000, errors
