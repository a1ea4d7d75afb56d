"""Prepared files are on the disk before a model is opened."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from clockwork.worker.syncing import Synced, SyncPool
from tests.patience import PATIENCE_S


def test_every_file_is_synced_and_a_failure_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.bin").write_bytes(b"weights")
        (tmp_path / name / "prepared.json").write_bytes(b"{}")
    synced: list[str] = []

    def fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append(path)
        if path == str(tmp_path / "b" / "weights.bin"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    woken = threading.Semaphore(0)
    pool: SyncPool[str] = SyncPool(woken.release)
    pool.put("a", [tmp_path / "a"])
    assert woken.acquire(timeout=PATIENCE_S)
    assert pool.poll() == [Synced("a", "")]
    assert sorted(synced) == [str(tmp_path / "a" / name) for name in ("prepared.json", "weights.bin")]
    pool.put("both", [tmp_path / "a", tmp_path / "b"])
    pool.put("gone", [tmp_path / "c"])
    ended: dict[str, str] = {}
    while len(ended) < 2:
        assert woken.acquire(timeout=PATIENCE_S)
        ended.update(pool.poll())
    assert "cannot be stored" in ended["both"]
    assert os.strerror(errno.EIO) in ended["both"]
    assert os.strerror(errno.ENOENT) in ended["gone"]
    pool.close()
