"""The limits that a process raises for itself, tried in a process of its own."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from clockwork.system import limits
from tests.patience import PATIENCE_S

PROGRAM = """
import os
import resource
from clockwork.system.limits import raise_descriptor_limit
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
print(raise_descriptor_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE), raise_descriptor_limit())
"""


def test_the_soft_limit_of_descriptors_becomes_the_hard_one() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout.split() == [str(hard)] * 4, done.stderr


def container(folder: Path) -> list[tuple[str, ...]]:
    """The files of a container's limits, and of another kind that does not exist."""
    names = ("memory.max", "memory.current", "inactive_file")
    return [(str(folder), *names), (str(folder / "none"), *names)]


def test_memory_is_the_machines_or_its_containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for text, expected in (("max\n", whole), (f"{whole * 2}\n", whole), ("1073741824\n", 1 << 30)):
        (tmp_path / "memory.max").write_text(text)
        monkeypatch.setattr(limits, "CGROUPS", container(tmp_path))
        assert limits.memory_bytes() == expected


def test_free_memory_is_the_machines_or_what_its_container_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CGROUPS", ())
    machine = limits.free_bytes()
    assert 0 < machine <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(limits, "CGROUPS", container(tmp_path))
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 30\n")
    (tmp_path / "memory.current").write_text("100\n")
    for text, expected in (("1000\n", 930), ("60\n", 0)):
        (tmp_path / "memory.max").write_text(text)
        assert limits.free_bytes() == expected
    (tmp_path / "memory.max").write_text("max\n")
    assert limits.free_bytes() > 1000


BOUNDED = """
import numpy as np
from clockwork.system.limits import bounded_memory
def can_have(count):
    try:
        return len(np.ones(count, np.uint8)) == count
    except MemoryError:
        return False
with bounded_memory(100 << 20):
    print(can_have(60 << 20), can_have(160 << 20))
print(can_have(160 << 20))
"""


def test_memory_is_bounded_for_a_while() -> None:
    done = subprocess.run([sys.executable, "-c", BOUNDED], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout.split() == ["True", "False", "True"], done.stderr
