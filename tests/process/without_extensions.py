"""A plugin of pytest, and a module to import first: from then on no compiled module can be imported, and
Python lacks the features of Linux. As for a client that was installed alone, on another system."""

from __future__ import annotations

import os
import select
import sys
from importlib.machinery import ModuleSpec
from typing import Any

HIDDEN = ("clockwork.wire._codec", "clockwork.wire._zmq", "clockwork.system._wait", "resource", "fcntl")
LINUX_ONLY = ("eventfd", "eventfd_read", "eventfd_write", "EFD_CLOEXEC", "EFD_NONBLOCK")


class _Hidden:
    """An importer that finds nothing of HIDDEN, ahead of all others."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name in HIDDEN:
            raise ModuleNotFoundError(f"{name} is hidden", name=name)
        return None


for name in HIDDEN:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, _Hidden)
for name in LINUX_ONLY:
    if hasattr(os, name):
        delattr(os, name)
if os.environ.get("WITHOUT_POLL"):
    del select.poll
