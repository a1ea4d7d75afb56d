"""Which compiled target a device takes."""

from __future__ import annotations

import pytest

from clockwork.formats.program import TargetModules
from clockwork.formats.targets import CodeChoice, choose, describe_mismatch, most_lasting


def targets(*names: str, ptx: str = "") -> dict[str, TargetModules]:
    """Make targets; those named in ``ptx``, as well, have PTX."""
    return {name: TargetModules(0, ("m",), ("m.ptx",) if name in ptx.split() else ()) for name in names}


@pytest.mark.parametrize(
    ("has", "device", "taken"),
    [
        (targets("sm_80"), "sm_80", "sm_80"),
        (targets("sm_80"), "sm_86", "sm_80"),
        (targets("sm_80", "sm_86"), "sm_89", "sm_86"),
        (targets("sm_80", "sm_86", "sm_89"), "sm_86", "sm_86"),
        (targets("sm_86"), "sm_80", None),  # no target is new enough
        (targets("sm_80"), "sm_90", None),  # no target of that major version
        (targets("sm_75", "sm_90"), "sm_80", None),
        (targets("sm_90", "sm_90a"), "sm_90", "sm_90a"),
        (targets("sm_100", "sm_100a", "sm_100f"), "sm_100", "sm_100a"),
        (targets("sm_100", "sm_100a", "sm_100f"), "sm_103", "sm_100f"),
        (targets("sm_100f", "sm_103"), "sm_103", "sm_103"),
        (targets("sm_100a"), "sm_103", None),
        (targets("sm_100f", "sm_103f"), "sm_110", None),  # the device belongs to another family
        (targets("sm_120f"), "sm_121", "sm_120f"),
        (targets("sm_80", "sm_86"), "sm_87", None),  # the device is a Jetson
        (targets("sm_87"), "sm_89", None),
        (targets("sm_87"), "sm_87", "sm_87"),
        (targets("host", "sm_80"), "host", "host"),
        (targets("host"), "sm_80", None),
        (targets("sm_80"), "host", None),
        (targets("sm_80", "sm_90", ptx="sm_90"), "sm_120", "PTX of sm_90"),
        (targets("sm_80", "sm_90", ptx="sm_80 sm_90"), "sm_100", "PTX of sm_90"),
        (targets("sm_80", "sm_90", ptx="sm_80 sm_90"), "sm_89", "sm_80"),  # a cubin is preferred to PTX
        # PTX of a target that is not newer
        (targets("sm_75", "sm_86", ptx="sm_75 sm_86"), "sm_80", "PTX of sm_75"),
        (targets("sm_80", ptx="sm_80"), "sm_87", "PTX of sm_80"),
        (targets("sm_90a", ptx="sm_90a"), "sm_100", None),
        (targets("sm_100f", ptx="sm_100f"), "sm_120", None),
    ],
)  # fmt: skip
def test_the_best_target_of_a_device(has: dict[str, TargetModules], device: str, taken: str | None) -> None:
    expected = None if taken is None else CodeChoice(taken.split()[-1], taken.startswith("PTX"))
    assert choose(has, device) == expected


def test_what_is_there_is_said_where_nothing_runs() -> None:
    assert describe_mismatch(targets("sm_90", "sm_80", ptx="sm_90"), "sm_75") == (
        "the program is compiled for sm_80, sm_90 (and PTX); this device is sm_75, which can run none of these"
    )


def test_the_ptx_that_lasts_is_of_the_newest_architecture_without_special_features() -> None:
    assert most_lasting(["host", "sm_80", "sm_100f", "sm_120a", "sm_90"]) == "sm_90"
    assert most_lasting(["host", "sm_90a"]) == ""
