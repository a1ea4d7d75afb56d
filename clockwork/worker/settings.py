"""Settings of a worker."""

from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path

from clockwork import config
from clockwork.config.wire import STORE_BYTES_LEAST, STORE_BYTES_MAX
from clockwork.config.worker import WIDE_CORES_LEAST
from clockwork.device.executors import check_executors as check_threads
from clockwork.device.machine import (
    default_executors,
    format_list,
    parse_list,
    split,
    take_cores,
    this_machine,
)
from clockwork.errors import ConfigError


def default_name() -> str:
    """Return ``host-pid``, which is unique among the workers of a cluster, and readable."""
    return f"{socket.gethostname()}-{os.getpid()}"


KINDS = ("cpu", "cuda", "emulated")


def kind_of(device: str) -> str:
    """Return the kind of a named device: "cuda" for "cuda:1"."""
    return device.partition(":")[0]


def device_names(text: str, count: int = 1) -> tuple[str, ...]:
    """Return the names of the devices that ``--device`` and ``--devices`` ask for. Raises ConfigError.

    text: a kind, or names with commas between them: cpu, emulated, cuda (the first GPU; ``count`` of them
    from it on), cuda:1, cuda:GPU-<uuid>, and a MIG instance as nvidia-smi names it, MIG-<uuid>.
    """
    names = [name.strip() for name in text.split(",")]
    names = [f"cuda:{name}" if name.upper().startswith(("MIG-", "GPU-")) else name for name in names]
    for name in names:
        kind, colon, which = name.partition(":")
        if kind not in KINDS or bool(colon) != bool(which) or (colon and kind != "cuda"):
            raise ConfigError(
                f"device {name!r} is unknown; this version has: cpu, cuda, cuda:N, cuda:UUID, emulated"
            )
    kinds = list(dict.fromkeys(kind_of(name) for name in names))
    if len(kinds) > 1:
        raise ConfigError(f"the devices of one worker are of one kind, not {' and '.join(kinds)}")
    if kinds == ["cuda"]:
        if names == ["cuda"]:
            return tuple(f"cuda:{number}" for number in range(count))
        if count > 1:
            raise ConfigError(f"--devices {count} is for `--device cuda`; {text!r} says which they are")
        names = ["cuda:0" if name == "cuda" else name for name in names]
        if len(set(names)) < len(names):
            raise ConfigError(f"{text!r} names one GPU twice")
        return tuple(names)
    return tuple(names) * count


def check_executors(devices: tuple[str, ...], executors: int, threads: int) -> None:
    """Check that each of these devices can have so many executors (0: the default). Raises ConfigError."""
    if executors in (0, 1):
        return
    if (kind := kind_of(devices[0])) != "cpu":
        raise ConfigError(f"{executors} executors are for CPU devices, and {kind} devices have one each")
    if len(devices) * executors > config.WORKER_DEVICES_MAX:
        raise ConfigError(
            f"{len(devices)} devices of {executors} executors: a worker has at most {config.WORKER_DEVICES_MAX}"
        )
    check_threads(executors, threads)


def check_store(devices: tuple[str, ...], store_bytes: int) -> None:
    """Check that a worker with these devices can have a store of so many bytes; 0: one without a bound.
    Raises ConfigError."""
    if not store_bytes:
        return
    if not STORE_BYTES_LEAST <= store_bytes <= STORE_BYTES_MAX:
        raise ConfigError(
            f"a store of {store_bytes} bytes: --store-bytes is {STORE_BYTES_LEAST} to {STORE_BYTES_MAX} bytes"
        )
    if (kind := kind_of(devices[0])) != "cpu":
        raise ConfigError(
            f"--store-bytes is for CPU devices: models that {kind} devices prepare cannot be fetched from others"
        )


def parse_processors(text: str) -> frozenset[int]:
    """Return the processors of a list such as 0-3,8-11. Raises ConfigError."""
    try:
        return frozenset(parse_list(text))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def share_machine(
    workers: int, executors: int, wide: int = 0, wide_count: int = 1
) -> tuple[tuple[str, ...], ...]:
    """Return the flags by which workers share this machine's cores, for each of them. Raises ConfigError.

    executors: of each worker; 0: as many as the machine has room for, divided by the workers. wide: threads
    of one more worker, the last, each of whose wide_count executors has as many cores to itself; 0: there is
    none.
    """
    machine = this_machine()
    room = default_executors(machine) - wide * wide_count
    own: list[tuple[str, ...]] = []
    if wide:
        taken, machine = take_cores(machine, wide * wide_count)
        several = ("--devices", str(wide_count)) if wide_count > 1 else ()
        own = [("--executors", "1", "--threads", str(wide), *several, "--processors", format_list(taken))]
    count = executors or max(1, room // workers)
    parts = split(machine, workers) if workers > 1 else []
    if wide and not parts:
        parts = [frozenset().union(*(node.processors for node in machine.nodes))] * workers
    return (
        *(
            ("--executors", str(count), *(("--processors", format_list(parts[index])) if parts else ()))
            for index in range(workers)
        ),
        *own,
    )


def cores_to_divide(workers: int) -> int:
    """Return the cores that so many workers of CPU executors may divide as models need them.

    0: the machine has too few, or a quota of time, under which cores are nobody's own.
    """
    machine = this_machine()
    cores = default_executors(machine)
    if machine.is_throttled or machine.core_count < WIDE_CORES_LEAST or cores - workers < 2:
        return 0
    return cores


def why_no_gpu() -> str:
    """Return a sentence that says why no GPU of this machine can be used; "" if a GPU can be used."""
    # imported here, so that workers without GPUs do not load it
    from clockwork.device.cuda_memory import why_unusable

    return why_unusable()


def first_gpu() -> str:
    """Return the name of the GPU that ``cuda`` means, where a GPU can be used."""
    from clockwork.device.cuda_memory import cards, open_driver

    return cards(open_driver())[0].name


@dataclasses.dataclass(slots=True)
class WorkerSettings:
    endpoint: str = config.WORKER_ENDPOINT
    name: str = dataclasses.field(default_factory=default_name)
    devices: tuple[str, ...] = ("cpu",)  # names of the devices, all of one kind; see device_names()
    executors: int = (
        1  # executors of each CPU device's arena, each a device to the controller; 0: see by_node
    )
    # A CPU device for each NUMA node. These devices have `executors` and `arena_bytes` together; without a
    # number of executors, as many as the machine has room for. Otherwise a device has one executor then.
    by_node: bool = False
    processors: frozenset[int] = frozenset()  # those that the worker runs on; empty: all that it may
    # Executors have processors of their own, and arenas NUMA nodes, where the machine has room for that.
    is_pinned: bool = True
    arena_bytes: int = 0  # arena of each device; 0: the default of its kind
    page_bytes: int = 0  # page size of each device; 0: the default of its kind
    host_bytes: int = 0  # budget of the host store that all devices load from; 0: none
    store_bytes: int = 0  # bound of the prepared models on the disk (CPU devices); 0: all models lie there
    # Without a host store: CUDA devices' pinned memory for the weights of all prepared models. 0: default.
    pinned_bytes: int = 0
    emulate: tuple[str, ...] = ()  # settings of emulated devices, name=value; see device.emulated
    threads: int = 1  # threads of each CPU device's execution
    run_ahead: int = config.RUN_AHEAD
    store: Path = dataclasses.field(default_factory=config.data_directory)
    lock_store: bool = False  # keep the laid-out weights of every model in RAM
    drain_ns: int = config.DRAIN_LIMIT_NS  # time for the worker's actions to end, once it is told to stop
    key: Path | None = None  # a worker.key file; none: no encryption
    clock_offset_ns: int = 0  # offset and drift of this worker's clock: for tests
    clock_drift_ppm: float = 0.0
