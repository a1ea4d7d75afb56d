"""Bytes that wake a worker's loop."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clockwork.device.emulated import EmulatedGroup, EmulatedSettings
from clockwork.formats.package import PackageStore
from clockwork.wire.transport import Transport
from clockwork.worker.process import Worker
from clockwork.worker.settings import WorkerSettings

PAGE_BYTES = 4096


def test_a_byte_that_comes_after_its_turn_is_read(tmp_path: Path) -> None:
    """A thread has set the flag, a turn has seen it, and only then the byte comes. If it stayed unread, the
    loop would turn without a pause until the next wake-up."""
    group = EmulatedGroup(1, 8 * PAGE_BYTES, PAGE_BYTES, settings=EmulatedSettings())
    transport = Transport()
    worker = Worker(
        WorkerSettings("tcp://127.0.0.1:9", "w", store=tmp_path),
        group.devices,
        PackageStore(tmp_path),
        transport,
    )
    try:
        os.write(worker._wake_write, b"\0")
        worker._turn()
        with pytest.raises(BlockingIOError):
            os.read(worker._wake_read, 1)
    finally:
        worker.close()
        transport.close()
        for device in group.devices:
            device.close()
