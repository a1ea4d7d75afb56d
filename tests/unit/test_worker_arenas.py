"""A worker whose devices share arenas: the hello that it sends, and the loss of an arena."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clockwork.device.cpu import CpuArena
from clockwork.device.machine import ArenaPlace
from clockwork.formats.package import PackageStore
from clockwork.wire import codec
from clockwork.wire.messages import FROM_WORKER, DeviceFault, WorkerHello
from clockwork.wire.transport import Transport
from clockwork.worker.process import Worker
from clockwork.worker.settings import WorkerSettings

PAGE_BYTES = 4096


class Stage:
    """A worker with two arenas of two and three executors, and the messages that it sends."""

    def __init__(self, store: Path) -> None:
        self.arenas = [CpuArena(8 * PAGE_BYTES, PAGE_BYTES, place=ArenaPlace(count)) for count in (2, 3)]
        self.devices = [device for arena in self.arenas for device in arena.devices]
        self.transport = Transport()
        settings = WorkerSettings("tcp://127.0.0.1:9", "w", store=store)
        self.worker = Worker(settings, self.devices, PackageStore(store), self.transport)
        self.sent: list[Any] = []
        self.worker._session._send = self.note  # type: ignore[method-assign]
        self.lost: list[int] = []

    def note(self, header: bytes, frames: Any = ()) -> bool:
        self.sent.append(codec.decode(header, FROM_WORKER))
        return True

    def hello(self) -> list[int]:
        """The arenas of the devices that the worker offers."""
        self.worker._hello()
        hello = self.sent.pop()
        assert isinstance(hello, WorkerHello)
        return [device["arena"] for device in hello.devices]

    def close(self) -> None:
        self.worker.close()
        self.transport.close()
        for device in self.devices:
            device.close()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.close()


def test_an_executor_names_the_owner_of_its_arena(stage: Stage) -> None:
    assert stage.hello() == [-1, 0, -1, 2, 2]


@pytest.mark.parametrize("broken", [0, 1])
def test_an_arena_is_lost_with_any_of_its_executors(stage: Stage, broken: int) -> None:
    stage.hello()
    stage.worker._session.welcomed = True
    holders = stage.worker._models._devices
    assert holders == stage.arenas
    stage.devices[broken].fault = "it broke"
    stage.worker._lose_broken()
    assert stage.sent == [DeviceFault(broken, "it broke")]
    assert [device.offline for device in stage.worker._all_devices] == ["it broke", "it broke", "", "", ""]
    assert stage.worker._models._devices == stage.arenas[1:]
    assert stage.worker._exit is None
    stage.devices[1 - broken].fault = "it broke, too"
    stage.worker._lose_broken()
    assert len(stage.sent) == 1, "the controller has taken the fault for both"
    stage.sent.clear()
    stage.worker._session.welcomed = False
    assert stage.hello() == [-1, 0, 0]
    stage.devices[4].fault = "the last arena"
    stage.worker._lose_broken()
    assert stage.worker._exit == 1
