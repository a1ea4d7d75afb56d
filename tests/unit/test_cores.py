"""The division of a machine's cores: what is chosen, and against the enumeration of every division."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from clockwork.config.cores import DIVISION_GAIN, DIVISION_KEPT
from clockwork.scheduler.cores import (
    CoreLoad,
    Division,
    choose,
    deadline_loss,
    divisions,
    erlang_loss,
    goodput_of,
    unserved_by,
)

MS = 1_000_000


def load(name: str, ms: dict[int, float], slo_ms: float, rate: float, gain: float = 1.0) -> CoreLoad:
    """A model's load, by its times with so many threads; gain: of batches of four, in throughput."""
    times = {
        threads: {1: round(alone * MS), 4: round(4 * alone * MS / gain)} for threads, alone in ms.items()
    }
    return CoreLoad(name, times, round(slo_ms * MS), rate)


TIGHT = load("tight", {1: 40, 2: 22, 4: 13}, 30, 20)
LOOSE = load("loose", {1: 10, 2: 5.8, 4: 3.6}, 200, 300)


def test_executors_of_one_core_are_kept_where_more_cores_gain_nothing() -> None:
    found = choose([LOOSE], 16)
    assert found == Division(16)
    assert goodput_of([LOOSE], found) == pytest.approx(300, rel=0.01)
    assert choose([], 8) == Division(8)
    assert choose([load("idle", {1: 10, 4: 3}, 200, 0)], 8) == Division(8)
    assert str(Division(8)) == "8 of one core"


def test_a_model_that_one_core_executes_too_slowly_gets_more_whatever_is_asked_of_it() -> None:
    for rate in (0.0, 1.0):
        slow = load("slow", {1: 40, 2: 35, 4: 13}, 30, rate)
        found = choose([slow, LOOSE], 16)
        assert found == Division(12, 1, 4)
        able = {one.name: [threads for threads in (1, 4) if one.meets(threads)] for one in (slow, LOOSE)}
        assert able == {"slow": [4], "loose": [1, 4]}
        assert not unserved_by(found, [slow, LOOSE])
    assert str(found) == "12 of one core and 1 of 4 cores"


def test_there_are_as_many_wide_executors_as_their_requests_need() -> None:
    wide = [choose([load("tight", {1: 40, 4: 13}, 30, rate)], 64).wide for rate in (10, 100, 400, 900)]
    assert wide == sorted(wide)
    assert wide[0] < wide[1] < wide[2] < wide[3] <= 16


def test_an_execution_that_just_fits_the_slo_is_no_use_where_requests_have_to_wait() -> None:
    just = load("just", {1: 28, 2: 14.5}, 30, 500)
    found = choose([just], 16)
    assert found.threads == 2
    assert goodput_of([just], found) > 1.02 * goodput_of([just], Division(16)), (
        "the fluid bound would be lower with two threads"
    )


def test_cores_that_wide_executors_may_not_have_are_left() -> None:
    found = choose([TIGHT, LOOSE], 4, most_wide=2)
    assert found == Division(2, 1, 2)
    slow = load("slow", {1: 40, 2: 35, 4: 13}, 30, 5)
    found = choose([slow], 4, most_wide=3)
    assert found == Division(4)
    assert unserved_by(found, [slow]) == ["slow"]
    with pytest.raises(ValueError, match="a division of 0 cores"):
        choose([LOOSE], 0)


def test_a_division_stays_until_another_gains_much() -> None:
    present, others = Division(12, 1, 4), load("others", {1: 10, 2: 5.8, 4: 3.6}, 200, 600)
    for rate, stays in ((20, True), (30, True), (200, False)):
        loads = [load("tight", {1: 40, 4: 13}, 30, rate), others]
        best, kept = choose(loads, 16), choose(loads, 16, kept=present)
        assert best != present
        assert (kept == present) == stays
        assert (goodput_of(loads, kept) * DIVISION_KEPT >= goodput_of(loads, best)) or not stays
    # Without a model that needs them, wide executors stay as long as they harm nobody.
    assert choose([LOOSE], 16, kept=Division(12, 1, 4)) == Division(12, 1, 4)
    busy = load("busy", {1: 10, 4: 9}, 200, 1550)
    assert choose([busy], 16, kept=Division(4, 3, 4)) == Division(16)
    # A division that serves fewer models never stays.
    assert choose([TIGHT], 16, kept=Division(16)) != Division(16)


def test_every_division_uses_all_cores() -> None:
    found = list(divisions(5, [1, 2, 4, 8]))
    assert found == [Division(5), Division(3, 1, 2), Division(1, 2, 2), Division(1, 1, 4)]
    assert all(division.narrow + division.wide_cores == 64 for division in divisions(64, [1, 2, 4, 8]))


def made_up(seed: int) -> tuple[list[CoreLoad], int]:
    """Models of any kind, and a number of cores."""
    rng = random.Random(seed)
    cores = rng.randint(2, 12)
    loads = []
    for number in range(rng.randint(1, 4)):
        alone, serial = rng.uniform(1, 50), rng.choice([0.0, 0.1, 0.4])
        times = {threads: alone * (serial + (1 - serial) / threads) for threads in (1, 2, 4, 8)}
        slo, share = alone * rng.choice([0.4, 0.8, 1.2, 5]), rng.uniform(0, 1.5 / 4)
        loads.append(load(f"m{number}", times, slo, share * cores * 1000 / alone, rng.choice([1.0, 1.6])))
    return loads, cores


@pytest.mark.parametrize("seed", range(60))
def test_the_choice_is_that_of_an_exhaustive_search(seed: int) -> None:
    loads, cores = made_up(seed)
    found = choose(loads, cores)
    found_goodput = goodput_of(loads, found)
    rows = []
    for threads, wide in itertools.product((0, 2, 4, 8), range(cores + 1)):
        if (threads == 0) != (wide == 0) or wide * threads > cores:
            continue
        division = Division(cores - wide * threads, wide, threads)
        able = [(division.narrow > 0 and one.meets(1)) or (wide > 0 and one.meets(threads)) for one in loads]
        rows.append((sum(able), goodput_of(loads, division), division))
    most = max(able for able, _, _ in rows)
    best = max(goodput for able, goodput, _ in rows if able == most)
    assert len(loads) - len(unserved_by(found, loads)) == most, f"seed {seed}"
    assert best / DIVISION_GAIN <= found_goodput <= best, f"seed {seed}"
    fewer = [goodput for able, goodput, other in rows if able == most and other.wide_cores < found.wide_cores]
    assert not fewer or max(fewer) < found_goodput, f"seed {seed}: fewer wide cores are as good"


@pytest.mark.parametrize("seed", range(20))
def test_goodput_is_never_more_than_is_asked_nor_falls_with_more_executors(seed: int) -> None:
    loads, cores = made_up(seed)
    asked = sum(one.rate for one in loads)
    for division in divisions(cores, (2, 4)):
        goodput = goodput_of(loads, division)
        assert -1e-9 <= goodput <= asked * (1 + 1e-9)
    alone = [goodput_of(loads[:1], Division(count)) for count in range(1, cores + 1)]
    assert all(more >= fewer * (1 - 1e-9) for fewer, more in itertools.pairwise(alone))


def test_losses_are_those_of_queues_that_are_known() -> None:
    assert erlang_loss(1, 1.0) == pytest.approx(0.5)
    assert erlang_loss(2, 1.0) == pytest.approx(0.2)
    # Nobody can wait: Erlang's loss. Everybody can wait for long: what exceeds the executors is lost.
    assert deadline_loss(2, 1.0, erlang_loss(2, 1.0), 0.0) == pytest.approx(0.2)
    assert deadline_loss(2, 1.0, erlang_loss(2, 1.0), 50.0) == pytest.approx(0.0, abs=1e-9)
    assert deadline_loss(2, 4.0, erlang_loss(2, 4.0), 50.0) == pytest.approx(0.5)
    assert deadline_loss(2, 4.0, erlang_loss(2, 4.0), 5_000.0) == pytest.approx(0.5)
    # At capacity the loss is that of the limit from either side.
    near = [
        deadline_loss(4, 4 * (1 + step), erlang_loss(4, 4 * (1 + step)), 3.0) for step in (-1e-6, 0.0, 1e-6)
    ]
    assert math.isclose(near[0], near[1], rel_tol=1e-4)
    assert math.isclose(near[1], near[2], rel_tol=1e-4)
    assert deadline_loss(3, 0.0, 0.0, 1.0) == 0.0
