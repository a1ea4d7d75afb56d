"""A live cluster serves as before two seconds after a disturbance, as tests/sim/test_recovery.py shows for
simulated ones."""

from __future__ import annotations

import pytest

from bench import recovery
from clockwork.sim.recovery import GOODPUT_KEPT

TRIES = 3
"""Other load on the machine fails single tries; state that a scheduler does not forget fails all of them."""

SHORT = [("stop", "edf"), ("stop", "adaptive")]


def check_recovers(kind: str, policy: str, times: recovery.Times) -> None:
    found = []
    for _ in range(TRIES):
        found += recovery.measure(kind, policy, 1, times)
        if found[-1].steady > 0 and found[-1].second >= GOODPUT_KEPT:
            return
    pytest.fail(f"{kind} under {policy}: {found}")


@pytest.mark.parametrize(("kind", "policy"), [SHORT[0], pytest.param(*SHORT[1], marks=pytest.mark.slow)])
def test_a_worker_that_stood_still_is_used_again_as_before(kind: str, policy: str) -> None:
    check_recovers(kind, policy, recovery.QUICK)


@pytest.mark.long
@pytest.mark.parametrize("policy", recovery.POLICIES)
@pytest.mark.parametrize("kind", recovery.KINDS)
def test_goodput_is_back_two_seconds_after_a_disturbance(kind: str, policy: str) -> None:
    check_recovers(kind, policy, recovery.Times())
