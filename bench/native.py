"""C++ parts of benchmarks, each compiled when it is first used."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import subprocess
import sysconfig
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"


@cache
def compiled(source: str) -> ctypes.CDLL:
    """The library of a source file, named relative to the checkout; a file for each state of its sources."""
    headers = ROOT / "csrc"
    path = ROOT / source
    parts = [path, *sorted(headers.rglob("*.h"))]
    state = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()[:16]
    found = BUILD / f"{path.stem}-{state}.so"
    if not found.exists():
        found.parent.mkdir(exist_ok=True)
        compiler = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")
        partial = found.with_suffix(f".{os.getpid()}")
        flags = ["-O3", "-std=c++20", "-shared", "-fPIC", f"-I{headers}", "-o", str(partial)]
        subprocess.run([*compiler, *flags, str(path)], check=True)
        partial.rename(found)
    return ctypes.CDLL(str(found))
