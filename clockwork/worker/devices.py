"""Opens the devices of a worker and the observer of their clocks; loads the code of their kind alone."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence

from clockwork.config import (
    ARENA_BYTES,
    CUDA_PAGE_BYTES,
    EMULATED_ARENA_BYTES,
    EMULATED_PAGE_BYTES,
    EXECUTION_GRACE_NS,
    PAGE_BYTES,
    cuda_pinned_bytes,
)
from clockwork.config.worker import DEVICES_ALONE_MAX, END_PAUSE_S, show_mig_instances
from clockwork.device.base import Device
from clockwork.device.cuda_clocks import ClockSource
from clockwork.device.machine import ArenaPlace, default_executors, format_list, spread, this_machine
from clockwork.errors import ConfigError
from clockwork.system.clock import now_ns
from clockwork.worker.settings import KINDS, WorkerSettings, check_executors, check_store, kind_of

log = logging.getLogger("clockwork.worker")


def open_devices(settings: WorkerSettings) -> list[Device]:
    """Open the devices that the settings name, all of one kind. Raises ConfigError if one fails to open."""
    kinds = list(dict.fromkeys(kind_of(name) for name in settings.devices))
    if len(kinds) != 1 or kinds[0] not in KINDS:
        raise ConfigError(f"no worker can have the devices {list(settings.devices)}")
    count = len(settings.devices)
    check_executors(settings.devices, settings.executors, settings.threads)
    check_store(settings.devices, settings.store_bytes)
    if kinds == ["emulated"]:
        from clockwork.device.emulated import EmulatedGroup
        from clockwork.device.emulation import parse_settings

        group = EmulatedGroup(
            count,
            settings.arena_bytes or EMULATED_ARENA_BYTES,
            settings.page_bytes or EMULATED_PAGE_BYTES,
            settings.run_ahead,
            parse_settings(settings.emulate),
            host_bytes=settings.host_bytes,
        )
        return list(group.devices)
    if count > DEVICES_ALONE_MAX:
        raise ConfigError(f"a worker drives at most {DEVICES_ALONE_MAX} {kinds[0]} devices, not {count}")
    if settings.host_bytes and kinds != ["cuda"]:
        raise ConfigError(
            f"{kinds[0]} devices have no host store with a budget (--host-bytes): every prepared model can be loaded"
        )
    if settings.pinned_bytes and (kinds != ["cuda"] or settings.host_bytes):
        raise ConfigError(
            "--pinned-bytes is for CUDA devices without a budget of a host store (--host-bytes)"
        )
    if settings.emulate:
        raise ConfigError(f"{settings.emulate[0]} is a setting of emulated devices")
    devices: list[Device] = []
    try:
        for open_device in _cuda_openers(settings) if kinds == ["cuda"] else _cpu_openers(settings):
            devices += open_device()
    except BaseException:
        for device in devices:
            device.close()
        raise
    return devices


def _cpu_openers(settings: WorkerSettings) -> Sequence[Callable[[], Sequence[Device]]]:
    """Return a function for each arena, which opens it and returns its executors. Raises ConfigError."""
    # imported here, so that a worker loads only the code of its devices
    from clockwork.device.cpu import CpuArena
    from clockwork.device.neighbours import measure_slowdown

    places = places_of(settings)
    arena_bytes = settings.arena_bytes // len(places) if settings.by_node else settings.arena_bytes

    def open_arena(place: ArenaPlace) -> Sequence[Device]:
        slowdown = measure_slowdown(place)
        if place.executors > 1:
            log.info("an execution beside %d others takes %.2f times as long", place.executors - 1, slowdown)
        return CpuArena(
            arena_bytes=arena_bytes or ARENA_BYTES,
            page_bytes=settings.page_bytes or PAGE_BYTES,
            threads=settings.threads,
            run_ahead=settings.run_ahead,
            lock_store=settings.lock_store,
            place=place,
            slowdown=slowdown,
        ).devices

    return [functools.partial(open_arena, place) for place in places]


def places_of(settings: WorkerSettings) -> list[ArenaPlace]:
    """Return the arenas of a CPU's worker on this machine."""
    machine = this_machine()
    if not settings.by_node:
        count, executors = len(settings.devices), settings.executors or 1
        if executors == 1 or not settings.is_pinned:
            return [ArenaPlace(executors)] * count
        pins = iter(spread(machine.as_one(), count * executors)[0].pins)
        return [ArenaPlace(executors, pins=tuple(itertools.islice(pins, executors))) for _ in range(count)]
    executors = settings.executors
    if not executors:
        executors = 1 if settings.threads > 1 else default_executors(machine)
    places = spread(machine, executors) if settings.is_pinned else [ArenaPlace(executors)]
    if len(places) > DEVICES_ALONE_MAX:
        places = spread(machine.as_one(), executors)
    log.info("%s: %s", machine, "; ".join(map(str, places)))
    return places


def take_processors(processors: frozenset[int]) -> None:
    """Run this process on these processors alone; empty: on all that it may. Raises ConfigError."""
    if not processors:
        return
    usable = os.sched_getaffinity(0)
    if missing := processors - usable:
        raise ConfigError(
            f"--processors names {format_list(missing)}; this process may use {format_list(usable)}"
        )
    os.sched_setaffinity(0, processors)


def _cuda_openers(settings: WorkerSettings) -> Sequence[Callable[[], Sequence[Device]]]:
    """Return a function for each GPU, which opens it. All share a driver and a host store. Raises
    ConfigError."""
    from clockwork.device.cuda import CudaDevice
    from clockwork.device.cuda_host import BudgetedHost, HostStore, PinnedFiles
    from clockwork.device.cuda_memory import find_card, open_driver, open_memory

    whichs = [name.removeprefix("cuda:") for name in settings.devices]
    if instances := [f"MIG-{which[4:]}" for which in whichs if which.upper().startswith("MIG-")]:
        show_mig_instances(instances)
    try:
        table = open_driver()
    except ConfigError as error:
        if instances:
            raise ConfigError(
                f"{error}; {', '.join(instances)} was asked for: nvidia-smi -L lists MIG instances"
            ) from None
        raise
    found = [find_card(table, which) for which in whichs]
    if len({card.ordinal for card in found}) < len(found):
        raise ConfigError(f"{', '.join(settings.devices)} names one GPU twice")
    for card in found:
        node = f"NUMA node {card.numa_node}" if card.numa_node >= 0 else "no NUMA node known"
        log.info("GPU %d: %s, %s at %s, %s", card.ordinal, card.name, card.full_uuid, card.bus, node)
    if len(nodes := {card.numa_node for card in found}) > 1:
        log.warning(
            "GPUs of NUMA nodes %s share a host store on the first GPU's node: a worker for each node loads faster",
            ", ".join(map(str, sorted(nodes))),
        )
    page_bytes = settings.page_bytes or CUDA_PAGE_BYTES
    store: HostStore
    if settings.host_bytes:
        store = BudgetedHost([open_memory(table, found[0])], page_bytes, settings.host_bytes)
    else:
        size = settings.pinned_bytes or cuda_pinned_bytes()
        store = PinnedFiles([open_memory(table, card) for card in found], page_bytes, size)

    def open_gpu(name: str) -> Sequence[Device]:
        return [
            CudaDevice(
                which=name.removeprefix("cuda:"),
                arena_bytes=settings.arena_bytes,
                page_bytes=page_bytes,
                run_ahead=settings.run_ahead,
                store=store,
                table=table,
            )
        ]

    return [functools.partial(open_gpu, name) for name in settings.devices]


def end_runs(devices: Iterable[Device]) -> bool:
    """End running executions and wait for loads. Returns False if some of them do not end."""
    given_up_ns = now_ns() + EXECUTION_GRACE_NS
    all_devices = list(devices)
    while True:
        busy = False
        for device in all_devices:
            action_id = device.running()
            if action_id:
                device.end_run(action_id)
            busy |= action_id != 0 or any(device.moving())
        if not busy:
            return True
        if now_ns() >= given_up_ns:
            return False
        time.sleep(END_PAUSE_S)


def open_clocks(devices: Sequence[Device]) -> ClockSource | None:
    """Open the observer of these GPUs' clocks; None for other devices, or where there is no observer."""
    if devices[0].info.kind != "cuda":
        return None
    from clockwork.device.cuda import CudaDevice
    from clockwork.device.cuda_clocks import open_source

    gpus = [device for device in devices if isinstance(device, CudaDevice)]
    return open_source([gpu.card for gpu in gpus])
