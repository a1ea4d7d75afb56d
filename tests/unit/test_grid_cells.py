"""The cells of the grid: they follow the method, and draw the same requests at every rate."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bench.grid import bounds, cells, measure, policies

ALL = list(cells.CELLS.values())


def test_the_grid_spans_what_it_should() -> None:
    assert len(ALL) >= 32
    assert {one.devices for one in ALL if one.executors == 1} == {1, 8, 24, 100}
    assert {(one.devices, one.executors) for one in ALL if one.executors > 1} == {(4, 4), (16, 16), (64, 16)}
    assert {one.models for one in ALL} == {1, 6, 20, 200, 4000}
    assert {one.arrivals for one in ALL} == {"poisson", "cv4", "bursts"}
    assert {one.gain for one in ALL} >= {"0.5", "20", "zoo"}
    assert any(len(one.slo.split("/")) > 1 for one in ALL)
    assert any(one.priorities > 1 for one in ALL)
    assert sum(not one.resident for one in ALL) >= 8
    assert sum(one.stored < 1 for one in ALL) == 2


@pytest.mark.parametrize("cell", ALL, ids=lambda one: one.name)
def test_a_cell_is_its_specification(cell: cells.Cell) -> None:
    again = cells.specified(cell.name, cell.spec)
    assert again == cell
    pages = [one.pages(cells.PAGE_BYTES) for one in cells.profiles(cell)]
    assert max(pages) <= cell.page_count
    assert (cell.page_count >= sum(pages)) == cell.resident
    assert bounds.fluid_rate(cell) > 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("d9-nothing", "no cell"),
        ("devices=0", "at least 1"),
        ("device=1", "keys of a cell"),
        ("slo=5", "no time"),
        ("arrivals=never", "poisson"),
        ("fits=2", "share"),
        ("speeds=0.5/0.25", "the fastest 1"),
        ("speeds=1/0", "above 0"),
        ("executors=0", "at least 1"),
        ("devices=6,executors=4", "divide the devices"),
        ("devices=8,models=20,fits=0.5,stored=0.2", "two copies"),
        ("devices=8,models=20,fits=0.5,stored=0", "two copies"),
        ("devices=8,models=20,stored=0.5", "cannot hold all"),
    ],
)
def test_a_wrong_cell_is_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        cells.parse(text)


def test_drawn_cells_are_those_of_their_seed_and_differ() -> None:
    found = cells.drawn(27, 30)
    assert found == cells.drawn(27, 30) != cells.drawn(28, 30)
    assert found[:10] == cells.drawn(27, 10)
    assert [cells.specified(cell.name, cell.spec) for cell in found] == found
    assert len({cell.spec for cell in found}) == 30
    many = cells.drawn(1, 300)
    assert {cell.arrivals for cell in many} == {"poisson", "cv4", "bursts"}
    assert {cell.resident for cell in many} == {cell.priorities == 1 for cell in many} == {True, False}
    assert {len(cell.slo.split("/")) for cell in many} == {1, 2, 3}
    assert len({cell.speeds for cell in many}) == 3


def test_disks_hold_the_share_of_the_models_that_a_cell_says() -> None:
    cell = cells.parse("devices=4,models=20,fits=0.4,stored=0.5")
    assert cells.specified(cell.name, cell.spec) == cell
    there = measure.cluster(cell)
    assert there.store_bytes == 10 * cells.profiles(cell)[0].pages(cells.PAGE_BYTES) * cells.PAGE_BYTES
    assert there.store_bandwidth == cells.STORE_BANDWIDTH
    everywhere = measure.cluster(dataclasses.replace(cell, stored=1.0))
    assert (everywhere.store_bytes, everywhere.store_bandwidth) == (0, 0)


def test_uneven_devices_execute_at_their_speeds() -> None:
    cell = cells.parse("devices=3,models=1,slo=100x,exec=10ms,speeds=1/0.5")
    even = dataclasses.replace(cell, speeds=(1.0,))
    assert "speeds" not in even.spec
    assert cells.specified(cell.name, cell.spec) == cell

    def served(there: cells.Cell) -> int:
        report = measure.run(
            there, policies.Setting("adaptive"), there.draw(3, 9000).at(900.0, 10.0), seed=3, warmup_s=0.0,
            until_s=10.0,
        )  # fmt: skip
        return int(report.good.sum())

    assert served(cell) / served(even) == pytest.approx(2.5 / 3, abs=0.02)


@pytest.mark.parametrize("arrivals", ["poisson", "cv4", "bursts"])
def test_every_rate_sees_the_same_requests(arrivals: str) -> None:
    cell = cells.parse(f"models=6,slo=2x/4x,arrivals={arrivals},zipf=0.9,fits=0.5,gain=2")
    drawn = cell.draw(7, 4000)
    slow, fast = drawn.at(100.0, 20.0), drawn.at(400.0, 5.0)
    assert 1400 < len(slow) < 2600
    if arrivals != "bursts":
        assert np.array_equal(slow.model, fast.model)
        assert np.array_equal(slow.group, fast.group)
        assert np.allclose(slow.t_ns, 4 * fast.t_ns, atol=4)
    assert not np.array_equal(cell.draw(8, 4000).at(100.0, 20.0).t_ns, slow.t_ns)
    assert set(slow.group.tolist()) == {0, 1}
    more = cell.draw(7, 8000).at(100.0, 20.0)
    assert np.array_equal(more.t_ns, slow.t_ns), "asking for more changes those that come first"


def test_a_burst_is_of_one_model_and_keeps_its_pace() -> None:
    cell = cells.parse("models=200,arrivals=bursts,fits=0.2,gain=2")
    drawn = cell.draw(1, 2000)
    for rate in (50.0, 500.0):
        offered = drawn.at(rate, 0.8 * 2000 / rate)
        runs = np.flatnonzero(np.diff(offered.model[np.argsort(offered.model, kind="stable")]))
        assert len(runs) < len(offered) / 10
        first = offered.t_ns[offered.model == offered.model[0]][: cells.BURST_REQUESTS]
        assert 10e6 < first[-1] - first[0] < 120e6


def test_drawing_too_little_is_an_error_not_a_quiet_end() -> None:
    with pytest.raises(ValueError, match="do not fill"):
        cells.parse("models=2").draw(1, 1000).at(100.0, 20.0)


def test_deciles_are_by_popularity() -> None:
    cell = cells.parse("models=200,zipf=0.9")
    assert [cell.decile(one) for one in (0, 19, 20, 199)] == [0, 0, 1, 9]
    assert cells.parse("models=6").decile(5) == 5
    assert cells.parse("models=6").groups == 6


def test_requests_carry_the_slo_and_priority_of_their_class() -> None:
    cell = cells.parse("models=2,slo=2x/10x,priorities=2,exec=4ms,gain=1")
    requests = cell.requests(cell.draw(1, 400).at(100.0, 3.0))
    seen = {(int(a), int(b), int(c)) for a, b, c in zip(requests.cls, requests.slo_ns, requests.priority)}
    assert seen == {(0, 8_000_000, 1), (1, 8_000_000, 2), (2, 40_000_000, 1), (3, 40_000_000, 2)}


def test_settings_have_keys_that_lead_back() -> None:
    for name in ("d8-m20-tight-zoo", "d1-m1-tight-low", "d24-m4000-pressed-zoo"):
        cell = cells.CELLS[name]
        for policy in policies.POLICIES:
            for memory in policies.memories(policy, cell):
                found = policies.settings(policy, memory, cell)
                assert [policies.Setting.of_key(one.key) for one in found] == found
                assert len({one.key for one in found}) == len(found)


def test_warm_is_where_windows_agree() -> None:
    offered = [1000] * 8
    assert measure.settled(offered, [0] * 8, [0] * 8) == 0
    assert measure.settled(offered, [0] * 8, [400, 300, 220, 150, 100, 98, 103, 99]) == 4
    assert measure.settled(offered, [300, 200, 120, 60, 20, 10, 9, 11], [0] * 8) in (4, 5)
    assert measure.settled(offered, [0] * 8, [100 * 2**index for index in range(8)]) == 8
