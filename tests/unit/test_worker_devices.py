"""Which devices `--device` and `--devices` ask for."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from clockwork.cli import serve
from clockwork.cli.serve import WorkerFlags, worker_options
from clockwork.device.cuda_clocks import open_source
from clockwork.device.cuda_memory import CardInfo
from clockwork.errors import ConfigError
from clockwork.launch import local
from clockwork.worker.settings import check_executors, device_names
from tests.device.fake import LIBRARY


def test_kinds_and_names() -> None:
    assert device_names("cpu") == ("cpu",)
    assert device_names("emulated", 3) == ("emulated",) * 3
    assert device_names("cuda") == ("cuda:0",)
    assert device_names("cuda", 2) == ("cuda:0", "cuda:1")
    assert device_names("cuda:1, cuda:3") == ("cuda:1", "cuda:3")
    assert device_names("MIG-12ab,cuda:GPU-34cd") == ("cuda:MIG-12ab", "cuda:GPU-34cd")


@pytest.mark.parametrize(
    ("text", "count", "said"),
    [
        ("", 1, "device '' is unknown"),
        ("tpu", 1, "device 'tpu' is unknown"),
        ("cpu:1", 1, "device 'cpu:1' is unknown"),
        ("cuda:", 1, "device 'cuda:' is unknown"),
        ("cuda,cpu", 1, "of one kind, not cuda and cpu"),
        ("cuda,cuda:0", 1, "names one GPU twice"),
        ("cuda:1", 2, "--devices 2 is for `--device cuda`"),
    ],
)
def test_what_makes_no_sense_is_named(text: str, count: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        device_names(text, count)


@pytest.mark.parametrize(
    ("devices", "executors", "threads", "said"),
    [
        (("cuda:0",), 2, 1, "2 executors are for CPU devices, and cuda devices have one each"),
        (("emulated",), 2, 1, "and emulated devices have one each"),
        (("cpu",), 257, 1, "1 to 256 executors, not 257"),
        (("cpu",), 0, 1, "1 to 256 executors, not 0"),
        (("cpu",) * 12, 100, 1, "12 devices of 100 executors: a worker has at most 1024"),
        (("cpu",), 2, 4, "2 executors of 4 threads"),
    ],
)
def test_executors_that_make_no_sense_are_named(
    devices: tuple[str, ...], executors: int, threads: int, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        check_executors(devices, executors, threads)


def test_executors_are_passed_to_the_workers_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[str, ...]] = []
    monkeypatch.setattr(local, "up", lambda settings, say: found.append(settings.worker_arguments))
    result = CliRunner().invoke(serve.up, ["--executors", "4", "--no-gateway", "--no-demo"])
    assert found, result.output
    assert found[0][found[0].index("--executors") + 1] == "4"
    for flags, said in (
        (["--threads", "2"], "4 executors of 2 threads"),
        (["--device", "emulated"], "CPU devices"),
    ):
        result = CliRunner().invoke(serve.up, ["--executors", "4", "--no-gateway", *flags])
        assert result.exit_code == 2
        assert said in result.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("driver", "device", "said"),
    [
        (str(LIBRARY), "cuda", "Serving from fake GPU 0."),
        (
            "libcuda_nowhere.so.1",
            "cpu",
            "Serving from the CPU: cannot use a CUDA device: no CUDA driver: libcuda_n",
        ),
    ],
)
def test_auto_is_a_gpu_where_one_is_usable_and_says_which_or_why_not(
    driver: str, device: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOCKWORK_CUDA_DRIVER", driver)
    found = []

    @click.command()
    @worker_options
    def command(flags: WorkerFlags) -> None:
        found.append(flags.device)

    result = CliRunner().invoke(command, ["--device", "auto"])
    assert said in result.stderr.replace("\n", " ")
    assert found == [device]


@pytest.mark.parametrize(
    ("device", "compiler", "demo"), [("cpu", False, True), ("cuda", True, True), ("cuda", False, False)]
)
def test_up_says_why_a_gpu_has_no_demo_model(
    device: str, compiler: bool, demo: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    monkeypatch.setattr(local, "up", lambda settings, say: started.append(settings.demo))
    monkeypatch.setattr(serve, "find_spec", lambda name: object() if compiler else None)
    result = CliRunner().invoke(serve.up, ["--device", device, "--no-gateway"])
    assert started == [demo], result.output
    assert ("No demo model" in result.stderr) == (not demo)
    assert ("pip install 'clockwork-serving[compile]'" in result.stderr) == (not demo)


def test_clocks_of_a_fake_driver_are_those_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOCKWORK_FAKE_CLOCKS", str(tmp_path / "clocks.json"))
    monkeypatch.setenv("CLOCKWORK_CUDA_DRIVER", str(LIBRARY))
    source = open_source([CardInfo(1, "a card", "", "", -1, 86, 0, 0)])
    assert source is not None
    assert source.read(0).sm_mhz == 0
    (tmp_path / "clocks.json").write_text('[{}, {"sm_mhz": 1980}]')
    assert source.read(0).sm_mhz == 1980
    source.close()
