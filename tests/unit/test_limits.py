"""The limits that a process raises for itself, tried in a process of its own."""

from __future__ import annotations

import resource
import subprocess
import sys

PROGRAM = """
import resource
from clockwork.limits import raise_descriptor_limit
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
print(raise_descriptor_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE), raise_descriptor_limit())
"""


def test_the_soft_limit_of_descriptors_becomes_the_hard_one() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [str(hard)] * 4, done.stderr
