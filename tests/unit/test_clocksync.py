"""Clock bounds: whatever the offset, drift and asymmetry, no window is converted to end too early."""

from __future__ import annotations

import random

import pytest

from clockwork.config.controller import CLOCK_LIMIT_NS
from clockwork.controller.peers.clocksync import LOST_NS, RESET_TOLD_NS, ClockSync
from clockwork.wire.messages import NEVER_NS
from tests.native._tested import ClockBounds

US, MS, SECOND, HOUR = 1_000, 1_000_000, 1_000_000_000, 3_600_000_000_000


class Clock:
    """A worker's clock with an offset and a drift."""

    def __init__(self, offset_ns: int, drift_ppm: float) -> None:
        self.offset_ns, self.drift_ppm = offset_ns, drift_ppm

    def __call__(self, true_ns: int) -> int:
        return true_ns + self.offset_ns + int(true_ns * self.drift_ppm / 1_000_000)


def ping(sync: ClockSync, clock: Clock, at: int, there: int, back: int, held: int = 50 * US) -> int:
    """Play a round trip; return the time of its end."""
    received, returned = at + there, at + there + held
    sync.pong(at, clock(received), clock(returned), returned + back)
    return returned + back


def conversion(sync: ClockSync) -> ClockBounds:
    """Return the conversion that the exchange uses after the last round trip."""
    bounds = ClockBounds()
    if sync.known:
        bounds.set(*sync.bounds())
    return bounds


def test_nothing_is_known_before_the_first_round_trip() -> None:
    sync = ClockSync()
    assert not sync.known
    assert conversion(sync).to_worker_latest(5) == conversion(sync).to_worker_earliest(5, 4) == 5
    assert sync.uncertainty_ns(5) == NEVER_NS


def test_a_round_trip_bounds_the_offset_by_its_delays() -> None:
    sync, clock = ClockSync(), Clock(HOUR, 0)
    now = ping(sync, clock, 10 * SECOND, there=1 * MS, back=3 * MS)
    assert sync.known
    assert sync.upper_ns(now) == pytest.approx(HOUR + MS, abs=2 * US)
    assert sync.lower_ns(now) == pytest.approx(HOUR - 3 * MS, abs=2 * US)
    assert sync.there_ns() + sync.back_ns() == pytest.approx(4 * MS, abs=5 * US)
    assert sync.uncertainty_ns(now) == pytest.approx(2 * MS, abs=5 * US)


def test_the_best_of_the_window_counts_and_ages() -> None:
    sync, clock = ClockSync(), Clock(-HOUR, 0)
    now = ping(sync, clock, SECOND, there=100 * US, back=100 * US)
    now = ping(sync, clock, now + SECOND // 4, there=20 * MS, back=20 * MS)
    assert sync.uncertainty_ns(now) < 250 * US
    assert sync.uncertainty_ns(now + 10 * SECOND) == pytest.approx(
        sync.uncertainty_ns(now) + 2 * MS, abs=10 * US
    )


def test_an_open_end_stays_open() -> None:
    sync = ClockSync()
    ping(sync, Clock(HOUR, 0), SECOND, MS, MS)
    assert conversion(sync).to_worker_latest(NEVER_NS) == NEVER_NS
    assert conversion(sync).to_worker_earliest(NEVER_NS, SECOND) == NEVER_NS


def test_a_clock_that_jumps_is_found_again() -> None:
    sync, clock = ClockSync(), Clock(0, 0)
    now = SECOND
    for _ in range(10):
        now = ping(sync, clock, now + SECOND // 4, 100 * US, 100 * US)
    for jump in (5 * SECOND, -20 * SECOND):
        clock.offset_ns += jump
        for _ in range(3):
            now = ping(sync, clock, now + SECOND // 4, 100 * US, 100 * US)
        assert sync.lower_ns(now) <= clock(now) - now <= sync.upper_ns(now)
        assert sync.uncertainty_ns(now) < MS
    assert sync.resets == 2


def test_a_clock_that_cannot_be_followed_is_named_and_why() -> None:
    sync, clock = ClockSync(), Clock(0, 0)
    assert sync.complaint(SECOND, SECOND + CLOCK_LIMIT_NS) == ""
    assert "answered no ping for 2.1 s" in sync.complaint(SECOND, SECOND + CLOCK_LIMIT_NS + 100 * MS)
    now = ping(sync, clock, 4 * SECOND, 100 * US, 100 * US)
    assert sync.complaint(SECOND, now) == ""
    clock.offset_ns += 5 * SECOND
    now = ping(sync, clock, now + SECOND, 100 * US, 100 * US)
    assert "jumped" in sync.complaint(SECOND, now)
    now = ping(sync, clock, now + RESET_TOLD_NS, 100 * US, 100 * US)
    assert sync.complaint(SECOND, now) == ""
    far = ClockSync()
    now = ping(far, clock, SECOND, there=LOST_NS, back=LOST_NS + 10 * MS)
    assert "no better than to 505 ms" in far.complaint(SECOND, now)


@pytest.mark.parametrize("seed", range(25))
def test_no_window_is_spuriously_too_late(seed: int) -> None:
    """An hour of offset, 100 ppm of drift, asymmetric delays of 1 to 20 ms that change."""
    rng = random.Random(seed)
    clock = Clock(rng.choice([-1, 1]) * HOUR, rng.choice([-100, 100]))
    sync = ClockSync()
    base_there, base_back = rng.randint(1, 20) * MS, rng.randint(1, 20) * MS
    now = rng.randrange(100) * SECOND
    for _ in range(300):
        there = base_there + rng.randrange(3 * MS)
        back = base_back + rng.randrange(3 * MS)
        now = ping(sync, clock, now + 250 * MS, there, back)
        bounds = conversion(sync)
        for ahead in (0, 5 * MS, 100 * MS, SECOND):
            at = now + ahead
            assert bounds.to_worker_latest(at) >= clock(at), "an action on time would be too late"
            assert bounds.to_worker_earliest(at, now) <= clock(at)
        # A worker's time stamp is never later than the receipt of its message.
        stamp = clock(now - back)
        assert bounds.to_controller(stamp, now) <= now
        # The bounds are useful, too: no wider than the delays and the drift over the window.
        assert sync.upper_ns(now) - sync.lower_ns(now) <= base_there + base_back + 3 * MS + 8 * MS
        # Request and reply together take the round trips' time.
        assert base_there + base_back <= sync.there_ns() + sync.back_ns() <= base_there + base_back + 9 * MS
    assert sync.resets == 0


@pytest.mark.parametrize("seed", range(5))
def test_intervals_of_the_worker_stay_intervals(seed: int) -> None:
    """A duration of 5 ms on the worker takes 5 ms here: begin and end are converted alike."""
    rng = random.Random(seed)
    clock, sync, now = Clock(HOUR, 100), ClockSync(), SECOND
    for _ in range(50):
        now = ping(sync, clock, now + 250 * MS, rng.randint(1, 20) * MS, rng.randint(1, 20) * MS)
        begin, end = now - 30 * MS, now - 25 * MS
        bounds = conversion(sync)
        took = bounds.to_controller(clock(end), now) - bounds.to_controller(clock(begin), now)
        assert took == pytest.approx(5 * MS, abs=2 * US)


def test_a_window_that_is_open_has_no_beginning() -> None:
    """A clock that was set back by ten seconds would have the worker wait for so long."""
    sync = ClockSync()
    clock = Clock(HOUR, 0)
    now = ping(sync, clock, SECOND, MS, MS)
    bounds = conversion(sync)
    assert bounds.to_worker_earliest(now, now) == bounds.to_worker_earliest(now - 1, now) == -NEVER_NS
    assert now < bounds.to_worker_earliest(now + 1, now) - HOUR + 2 * MS


def test_the_exchange_has_the_bounds_that_were_found() -> None:
    """The middle of both bounds, at any time: drift counts alike on both sides."""
    rng = random.Random(20201104)
    for offset in (-(10**15), -1, 0, 12345, 10**15):
        sync, clock, now = ClockSync(), Clock(offset, 0), 10**12
        for _ in range(100):
            now = ping(sync, clock, now + rng.randrange(SECOND), rng.randrange(1, MS), rng.randrange(1, MS))
            later = now + rng.randrange(10 * SECOND)
            bounds = conversion(sync)
            for at in (later - rng.randrange(SECOND), later + 1 + rng.randrange(10 * SECOND)):
                assert bounds.to_worker_latest(at) == at + sync.upper_ns(at)
                assert at <= later or bounds.to_worker_earliest(at, later) == at + sync.lower_ns(at)
                expected = min(at + offset - sync.offset_ns(later), later)
                assert bounds.to_controller(at + offset, later) == expected
