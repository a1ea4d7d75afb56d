"""The limits that a process raises for itself, tried in a process of its own."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from clockwork.system import limits

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
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [str(hard)] * 4, done.stderr


def test_memory_is_the_machines_or_its_containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for text, expected in (("max\n", whole), (f"{whole * 2}\n", whole), ("1073741824\n", 1 << 30)):
        (tmp_path / "memory.max").write_text(text)
        monkeypatch.setattr(limits, "CGROUP_LIMITS", (str(tmp_path / "memory.max"), str(tmp_path / "none")))
        assert limits.memory_bytes() == expected
