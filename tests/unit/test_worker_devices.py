"""Which devices `--device` and `--devices` ask for."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from clockwork.cli import serve
from clockwork.cli.serve import WorkerFlags, worker_options
from clockwork.device import machine
from clockwork.device.cuda_clocks import open_source
from clockwork.device.cuda_memory import CardInfo
from clockwork.device.machine import ArenaPlace
from clockwork.errors import ConfigError
from clockwork.launch import local, ray
from clockwork.scheduler.cores import Division
from clockwork.worker.devices import open_devices, places_of, take_processors
from clockwork.worker.settings import WorkerSettings, check_executors, device_names
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
        (("cpu",), -1, 1, "1 to 256 executors, not -1"),
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
    assert "--devices" not in found[0]
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


# ----- the machine's cores ---------------------------------------------------------------------------


def describe_nodes(root: Path, nodes: Sequence[str]) -> None:
    """Write what the kernel would say of a machine of these nodes."""
    for number, processors in enumerate(nodes):
        folder = root / f"devices/system/node/node{number}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(f"{processors}\n")


@pytest.fixture
def any_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of made-up nodes may be used."""
    monkeypatch.setattr(machine, "allowed_memories", lambda: None)


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, any_memory: None) -> None:
    """A machine of two nodes of sixteen cores."""
    describe_nodes(tmp_path / "sys", ["0-15", "16-31"])
    monkeypatch.setenv("CLOCKWORK_SYSFS", str(tmp_path / "sys"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(32)))


@pytest.mark.parametrize(
    ("settings", "executors", "nodes"),
    [
        ({"by_node": True, "executors": 0}, [14, 14], [0, 1]),
        ({"by_node": True, "executors": 0, "threads": 4}, [1], [-1]),
        ({"by_node": True, "executors": 1}, [1], [-1]),
        ({"by_node": True, "executors": 8}, [8], [0]),
        ({"by_node": True, "executors": 20}, [10, 10], [0, 1]),
        ({"devices": ("cpu",) * 3, "executors": 0}, [1, 1, 1], [-1, -1, -1]),
        ({"devices": ("cpu",) * 3, "executors": 10}, [10, 10, 10], [-1, -1, -1]),
    ],
)
def test_arenas_of_a_machine_of_two_nodes(
    large: None, settings: dict[str, Any], executors: list[int], nodes: list[int]
) -> None:
    places = places_of(WorkerSettings(**settings))
    assert [place.executors for place in places] == executors
    assert [place.node for place in places] == nodes
    pins = [pin for place in places for pin in place.pins]
    assert len(set(pins)) == len(pins) == (sum(executors) if max(executors) > 1 else 0)


@pytest.mark.parametrize(
    ("settings", "executors"),
    [
        ({"by_node": True, "executors": 0}, [28]),
        ({"by_node": True, "executors": 20}, [20]),
        ({"devices": ("cpu",) * 3, "executors": 10}, [10, 10, 10]),
    ],
)
def test_a_worker_that_may_not_pin_is_bound_to_no_processor_and_no_node(
    large: None, settings: dict[str, Any], executors: list[int]
) -> None:
    places = places_of(WorkerSettings(**settings, is_pinned=False))
    assert places == [ArenaPlace(count) for count in executors]


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ([], None),
        (["--workers", "2"], [("14", "0-15"), ("14", "16-31")]),
        (["--workers", "3"], [("9", "0-9"), ("9", "10-20"), ("9", "21-31")]),
        (["--workers", "20"], [("1", "")] * 20),
        (["--workers", "2", "--executors", "6"], [("6", "0-15"), ("6", "16-31")]),
        (["--workers", "2", "--executors", "1"], None),
        (["--workers", "2", "--devices", "3"], None),
        (["--workers", "2", "--threads", "3"], None),
        (["--workers", "2", "--device", "emulated"], None),
    ],
)
def test_workers_of_a_cluster_share_the_machine(
    large: None, arguments: list[str], given: list[tuple[str, str]] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[local.UpSettings] = []
    monkeypatch.setattr(local, "up", lambda settings, say: found.append(settings))
    result = CliRunner().invoke(serve.up, ["--no-gateway", "--no-demo", *arguments])
    assert found, result.output
    expected = () if given is None else tuple(
        ("--executors", count, *(("--processors", processors) if processors else ())) for count, processors in given
    )  # fmt: skip
    assert found[0].own_arguments == expected


@pytest.mark.parametrize(
    ("arguments", "narrow", "wide"),
    [
        (["--wide", "4"], [("24", "0-27")], "28-31"),
        (["--wide", "16"], [("12", "0-15")], "16-31"),
        (["--wide", "4", "--workers", "2"], [("12", "0-13"), ("12", "14-27")], "28-31"),
        (["--wide", "20", "--executors", "3"], [("3", "0-11")], "12-31"),
        (["--wide", "31", "--executors", "1"], [("1", "0")], "1-31"),
    ],
)
def test_one_more_worker_has_an_executor_of_several_cores(
    large: None,
    arguments: list[str],
    narrow: list[tuple[str, str]],
    wide: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[local.UpSettings] = []
    monkeypatch.setattr(local, "up", lambda settings, say: found.append(settings))
    result = CliRunner().invoke(serve.up, ["--no-gateway", "--no-demo", *arguments])
    assert found, result.output
    expected = [("--executors", count, "--processors", processors) for count, processors in narrow]
    own = ("--executors", "1", "--threads", arguments[1], "--processors", wide)
    assert found[0].own_arguments == (*expected, own)
    assert found[0].workers == len(narrow) + 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--wide", "32"], "there are no 32 cores to spare: this process may use 32 cores (32 processors) of 2 NUMA"),
        (["--wide", "4", "--devices", "2"], "--wide is for CPU workers of one thread on this machine"),
        (["--wide", "4", "--threads", "2"], "--wide is for CPU workers of one thread on this machine"),
        (["--wide", "4", "--workers", "0"], "--wide is for CPU workers of one thread on this machine"),
        (["--wide", "4", "--ray"], "--wide is for CPU workers of one thread on this machine"),
        (["--wide", "4", "--device", "emulated"], "--wide is for CPU workers of one thread on this machine"),
        (["--wide", "1"], "'1' is not auto, 0, or 2 to 1024 threads"),
        (["--wide", "1025"], "'1025' is not auto, 0, or 2 to 1024 threads"),
        (["--wide", "four"], "'four' is not auto, 0, or 2 to 1024 threads"),
    ],
)  # fmt: skip
def test_a_wide_worker_that_cannot_be_is_refused(large: None, arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(serve.up, ["--no-gateway", "--no-demo", *arguments])
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "cores", "narrow_least"),
    [
        ([], 28, 1),
        (["--wide", "auto", "--workers", "3"], 28, 3),
        (["--wide", "0"], 0, 0),
        (["--wide", "4"], 0, 0),
        (["--executors", "8"], 0, 0),
        (["--devices", "2"], 0, 0),
        (["--threads", "2"], 0, 0),
        (["--device", "emulated"], 0, 0),
        (["--store-bytes", "1GiB"], 0, 0),
        (["--workers", "27"], 0, 0),
        (["--workers", "0"], 0, 0),
    ],
)
def test_cores_are_divided_by_need_where_the_operator_has_not_divided_them(
    large: None, arguments: list[str], cores: int, narrow_least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[local.UpSettings] = []
    monkeypatch.setattr(local, "up", lambda settings, say: found.append(settings))
    result = CliRunner().invoke(serve.up, ["--no-gateway", "--no-demo", *arguments])
    assert found, result.output
    divided = found[0].cores
    assert (divided.cores, divided.narrow_least) == (cores, narrow_least) if divided else cores == 0


def test_the_workers_of_a_division_have_cores_of_their_own(large: None) -> None:
    divided = serve.divided_cores(2)
    assert divided is not None
    assert divided.threads_max == 26
    assert divided.flags(Division(16, 3, 4)) == (
        ("--executors", "8", "--processors", "0-9"),
        ("--executors", "8", "--processors", "10-19"),
        ("--executors", "1", "--threads", "4", "--devices", "3", "--processors", "20-31"),
    )
    assert divided.flags(Division(24, 1, 4))[2] == (
        "--executors", "1", "--threads", "4", "--processors", "28-31",
    )  # fmt: skip
    assert divided.flags(Division(28)) == (
        ("--executors", "14", "--processors", "0-15"),
        ("--executors", "14", "--processors", "16-31"),
    )


@pytest.mark.parametrize(
    ("processors", "workers", "quota", "divides"),
    [(4, 1, "max", True), (3, 1, "max", False), (4, 2, "max", False), (32, 1, "800000 100000", False)],
)
def test_cores_are_divided_on_machines_that_have_enough_for_it(
    large: None,
    tmp_path: Path,
    processors: int,
    workers: int,
    quota: str,
    divides: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(processors)))
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text(quota)
    assert (serve.divided_cores(workers) is not None) == divides


def test_workers_of_a_ray_cluster_do_not_share_this_machine(
    large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[local.UpSettings, ray.RaySettings]] = []
    monkeypatch.setattr(ray, "up", lambda settings, wanted, say: found.append((settings, wanted)))
    for arguments in ([], ["--executors", "6"]):
        result = CliRunner().invoke(
            serve.up, ["--no-gateway", "--no-demo", "--ray", "--workers", "2", *arguments]
        )
        assert result.exit_code == 0, result.output
    assert [settings.own_arguments for settings, _ in found] == [(("--no-pin",),) * 2] * 2, (
        "two workers may come to one machine"
    )
    assert [wanted.cpus for _, wanted in found] == [1, 6], "Ray reserves as many as the worker will have"
    words = [settings.worker_arguments for settings, _ in found]
    assert [given[given.index("--executors") + 1] for given in words] == ["1", "6"]


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "257", "many", "", "\u0663", "9" * 5000])
def test_a_number_of_executors_is_checked(text: str) -> None:
    result = CliRunner().invoke(serve.worker, ["--executors", text])
    assert result.exit_code == 2
    assert "neither auto nor a number from 1 to 256" in result.output.replace("\n", " ").replace("│ ", "")


@pytest.mark.parametrize("text", ["x", "3-1", "0-99999", "1,1"])
def test_a_list_of_processors_is_checked(text: str) -> None:
    result = CliRunner().invoke(serve.worker, ["--processors", text])
    assert result.exit_code == 2
    assert "is no span of an ascending list" in result.output.replace("\n", " ").replace("│ ", "")


def test_a_worker_runs_on_the_processors_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[set[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3, 4})
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, processors: taken.append(set(processors)))
    take_processors(frozenset())
    assert taken == []
    take_processors(frozenset({2, 4}))
    assert taken == [{2, 4}]
    with pytest.raises(ConfigError, match="--processors names 0-1,5; this process may use 2-4"):
        take_processors(frozenset({0, 1, 2, 5}))


def test_an_arena_for_each_node_and_a_part_of_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, any_memory: None
) -> None:
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        pytest.skip("a machine of one processor has one node")
    describe_nodes(tmp_path, [str(usable[0]), ",".join(map(str, usable[1:]))])
    monkeypatch.setenv("CLOCKWORK_SYSFS", str(tmp_path))
    count = len(usable)
    settings = WorkerSettings(by_node=True, executors=count, arena_bytes=16 << 20, page_bytes=1 << 20)
    devices = open_devices(settings)
    try:
        assert [device.info.page_count for device in devices] == [8] * count
        assert [device.owner for device in devices] == [None, None, *[devices[1]] * (count - 2)]
        found = [thread.native_id for thread in threading.enumerate() if thread.name == "cw-load"]
        assert [os.sched_getaffinity(thread or 0) for thread in found] == [{usable[0]}, set(usable[1:])]
    finally:
        for device in devices:
            device.close()
