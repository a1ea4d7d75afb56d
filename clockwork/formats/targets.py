"""Which of a program's targets a device runs, by NVIDIA's rules of compatibility.

A cubin runs on its own compute capability and on later ones of the same major version: 8.0 on 8.6 and 8.9. Cubins for
a Jetson, and other cubins on one, run on exactly their own. So does what uses features of one architecture (sm_90a);
features of a family (sm_100f) run on the later ones of the same major version. PTX is compiled by the driver for any
capability that is at least its own, but for those features, which bind it as they bind a cubin.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from clockwork.formats.program import HOST, Target

JETSON = frozenset({53, 62, 72, 87, 101, 110})
"""Compute capabilities of systems on a chip."""

FINGERPRINT_PREFIX = "cuda-"
"""Of the fingerprints of CUDA devices. The device's architecture follows, up to the next "-"."""

_FEATURES = ("", "f", "a")
"""Suffixes of architectures, the most general first."""


class Choice(NamedTuple):
    """What a device runs: the modules of a target, or the PTX beside them."""

    name: str
    is_ptx: bool


def choose(targets: Mapping[str, Target], device: str) -> Choice | None:
    """The best target for a device of an architecture ("sm_86", or "host"); None if there is none.

    A cubin before any PTX, since that was compiled and tested as it is; of each the newest, and of those the most special.
    """
    if device == HOST:
        return Choice(HOST, False) if HOST in targets else None
    capability = capability_of(device)
    cubins = [name for name in targets if _runs(name, capability)]
    if cubins:
        return Choice(max(cubins, key=_rank), False)
    texts = [name for name, one in targets.items() if one.ptx and _compiles(name, capability)]
    return Choice(max(texts, key=_rank), True) if texts else None


def architecture_of(fingerprint: str) -> str:
    """The architecture of devices with this fingerprint: "sm_86", or "host"."""
    return fingerprint.removeprefix(FINGERPRINT_PREFIX).split("-")[0]


def describe_mismatch(targets: Mapping[str, Target], device: str) -> str:
    """Why a device runs none of these, as a sentence."""
    has = ", ".join(f"{name} (and PTX)" if one.ptx else name for name, one in sorted(targets.items()))
    return f"the program is compiled for {has}; this device is {device}, which runs none of it"


def most_lasting(names: Iterable[str]) -> str:
    """The architecture whose PTX is of use to the devices that are yet to come: the newest one without special features;
    "" if there is none."""
    plain = [name for name in names if name != HOST and not _features(name)]
    return max(plain, key=_rank, default="")


def capability_of(name: str) -> int:
    """86 for sm_86."""
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


__all__ = [
    "FINGERPRINT_PREFIX",
    "Choice",
    "architecture_of",
    "capability_of",
    "choose",
    "describe_mismatch",
    "most_lasting",
]
