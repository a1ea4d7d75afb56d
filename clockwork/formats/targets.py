"""Choice of the target of a program that a device runs, by NVIDIA's rules of compatibility.

A cubin runs on its own compute capability and on later ones of the same major version: 8.0 on 8.6 and 8.9.
Between a Jetson and other devices it runs on exactly its own capability. A cubin with features of a single
architecture (sm_90a) runs only there; a cubin with features of a family (sm_100f) also runs on later
capabilities of the same major version. The driver compiles PTX for any capability that is at least the PTX's
own; special features bind PTX as they bind a cubin.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from clockwork.formats.program import HOST, TargetModules

JETSON = frozenset({53, 62, 72, 87, 101, 110})  # Compute capabilities of systems on a chip

FINGERPRINT_PREFIX = "cuda-"
"""Prefix of the fingerprints of CUDA devices. The device's architecture follows, up to the next "-"."""

_FEATURES = ("", "f", "a")  # Suffixes of architectures, the most general first


class CodeChoice(NamedTuple):
    """The code that a device runs: the modules of a target, or the PTX beside them."""

    name: str
    is_ptx: bool


def choose(targets: Mapping[str, TargetModules], device: str) -> CodeChoice | None:
    """Return the best target for a device of an architecture ("sm_86", or "host"). None: there is none.

    A cubin is preferred to any PTX, as it was compiled and tested before. Then the newest target is
    preferred, then the most special.
    """
    if device == HOST:
        return CodeChoice(HOST, False) if HOST in targets else None
    capability = capability_of(device)
    cubins = [name for name in targets if _runs(name, capability)]
    if cubins:
        return CodeChoice(max(cubins, key=_rank), False)
    texts = [name for name, target in targets.items() if target.ptx and _compiles(name, capability)]
    return CodeChoice(max(texts, key=_rank), True) if texts else None


def architecture_of(fingerprint: str) -> str:
    """Return the architecture of devices with this fingerprint: "sm_86", or "host"."""
    return fingerprint.removeprefix(FINGERPRINT_PREFIX).split("-")[0]


def describe_mismatch(targets: Mapping[str, TargetModules], device: str) -> str:
    """Return why a device runs none of these targets, as a sentence."""
    has = ", ".join(f"{name} (and PTX)" if target.ptx else name for name, target in sorted(targets.items()))
    return f"the program is compiled for {has}; this device is {device}, which can run none of these"


def most_lasting(names: Iterable[str]) -> str:
    """Return the newest architecture without special features, whose PTX also runs on future devices; "" if
    there is none."""
    plain = [name for name in names if name != HOST and not _features(name)]
    return max(plain, key=_rank, default="")


def capability_of(name: str) -> int:
    """Return the number of a capability: 86 for sm_86."""
    return int(re.sub(r"\D", "", name))


def _features(name: str) -> str:
    return name[-1] if name[-1] in "af" else ""


def _rank(name: str) -> tuple[int, int]:
    return capability_of(name), _FEATURES.index(_features(name))


def _runs(name: str, capability: int) -> bool:
    if name == HOST:
        return False
    number = capability_of(name)
    if number == capability:
        return True
    is_later = number // 10 == capability // 10 and number < capability
    return is_later and _features(name) != "a" and JETSON.isdisjoint((number, capability))


def _compiles(name: str, capability: int) -> bool:
    return _runs(name, capability) or (not _features(name) and capability_of(name) <= capability)
