"""Emulated devices on a clock that the test moves: every time that they report is exact."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from clockwork.config import IO_SLOT_BYTES_MAX
from clockwork.config.device import STALE_EVENTS_MAX
from clockwork.device.base import Completion, TensorView
from clockwork.device.emulated import EmulatedGroup
from clockwork.device.emulation import EmulatedSettings, parse_settings
from clockwork.errors import ConfigError, InvalidModel
from clockwork.formats.package import PackageFile, digest_of, rows_of
from clockwork.formats.profile_package import (
    decode_profile,
    encode_profile,
    prepare_profile,
    prepared_from_profile,
)
from clockwork.formats.profiles import ModelProfile
from clockwork.system.clock import MS, SECOND, now_ns
from clockwork.wire.messages import NEVER_NS, HostDrop, HostFetch, Infer, Load, Profile, Status, Unload
from clockwork.wire.packages import LIST_FILE, PROFILE_FILE
from tests.patience import readable

START_NS = 1_000 * SECOND
PAGE_BYTES = 1 << 20
PROFILE = ModelProfile(
    name="m", exec_ns={1: 3 * MS, 2: 4 * MS, 8: 10 * MS}, weights_bytes=2 * PAGE_BYTES, load_ns=8 * MS,
    input_bytes=1000, output_bytes=10,
)  # fmt: skip


class Bench:
    """A group whose clock stands still until the test moves it."""

    def __init__(
        self, place: Path, count: int = 1, pages: int = 8, host_pages: int = 0, **settings: Any
    ) -> None:
        self.now = START_NS
        self.group = EmulatedGroup(
            count,
            pages * PAGE_BYTES,
            PAGE_BYTES,
            settings=EmulatedSettings(**settings),
            clock=lambda: self.now,
            host_bytes=host_pages * PAGE_BYTES,
        )
        self.devices = self.group.devices
        self.place = place
        self.models = self.last_id = 0

    def prepare(self, profile: ModelProfile = PROFILE, **options: Any) -> int:
        self.models += 1
        info, content = self.group.info, encode_profile(profile)
        files = [PackageFile(PROFILE_FILE, len(content), hashlib.sha256(content).hexdigest())]
        package = self.place / digest_of(files)
        package.mkdir(exist_ok=True)
        (package / PROFILE_FILE).write_bytes(content)
        (package / LIST_FILE).write_text(json.dumps(rows_of(files)))
        target = self.place / f"prepared-{self.models}"
        prepare_profile(package, target, "d", info.fingerprint, info.page_bytes, options)
        self.group.open(self.models, str(target))
        return self.models

    def load(self, model: int, device: int = 0, pages: Sequence[int] = (0, 1), latest: int = NEVER_NS) -> int:
        self.last_id += 1
        order = Load(self.last_id, device, model, 1, list(pages), 0, latest, 0)
        self.devices[device].start(order)
        return self.last_id

    def host(self, kind: type[HostFetch | HostDrop], model: int) -> int:
        self.last_id += 1
        order = kind(self.last_id, 0, model, 1, 0, NEVER_NS, 0)
        self.devices[0].start(order)
        return self.last_id

    def infer(
        self,
        model: int,
        *rows: int,
        device: int = 0,
        earliest: int = 0,
        latest: int = NEVER_NS,
        load_id: int = 1,
    ) -> int:
        self.last_id += 1
        parts = [[TensorView(2, (count, 1000), bytes(1000 * count))] for count in rows or (1,)]
        order = Infer(self.last_id, device, model, load_id, earliest, latest, 0, [])
        self.devices[device].start(order, parts)
        return self.last_id

    def at(self, now: int) -> list[Completion]:
        """Return the actions that have ended by then, after START_NS, on all devices."""
        self.now = START_NS + now
        return [done for device in self.group.ended() for done in device.poll()]

    def resident(self, model: int, device: int = 0) -> None:
        """Load the model, and begin again at START_NS + 0 with nothing under way."""
        self.now = START_NS - SECOND
        self.load(model, device)
        (done,) = self.at(0)
        assert done.status is Status.OK


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Any]:
    made: list[Bench] = []

    def one(*arguments: Any, **settings: Any) -> Bench:
        place = tmp_path / str(len(made))
        place.mkdir()
        made.append(Bench(place, *arguments, **settings))
        return made[-1]

    yield one
    for bench in made:
        for device in bench.devices:
            device.close()
            device.close()


def span(done: Completion) -> tuple[int, int]:
    """Return the span of an execution, relative to START_NS."""
    return done.execute[0] - START_NS, done.execute[1] - START_NS


# ----- time ---------------------------------------------------------------------------------


def test_actions_take_the_profiled_time_however_late_the_process_looks(make: Any) -> None:
    bench = make()
    model = bench.prepare()
    load = bench.load(model)
    assert bench.at(8 * MS - 1) == []
    (done,) = bench.at(50 * MS)
    assert (done.action_id, done.status, span(done)) == (load, Status.OK, (0, 8 * MS))
    infer = bench.infer(model)
    (done,) = bench.at(70 * MS)
    assert (done.action_id, span(done)) == (infer, (50 * MS, 53 * MS))
    assert [(view.dtype, view.shape, bytes(view.data)) for view in done.parts[0]] == [(2, (1, 10), bytes(10))]


def test_one_after_another_without_a_gap(make: Any) -> None:
    bench = make()
    model = bench.prepare()
    bench.resident(model)
    bench.infer(model, 1)
    bench.infer(model, 1, 1)
    assert [span(done) for done in bench.at(SECOND)] == [(0, 3 * MS), (3 * MS, 7 * MS)]


def test_an_action_waits_for_its_window_and_dies_with_it(make: Any) -> None:
    bench = make()
    model = bench.prepare()
    bench.resident(model)
    bench.infer(model, earliest=START_NS + 5 * MS)
    late = bench.infer(model, latest=START_NS + 6 * MS)  # the first runs from 5 to 8 ms
    assert bench.at(5 * MS) == []
    first, second = bench.at(8 * MS)
    assert span(first) == (5 * MS, 8 * MS)
    assert (second.action_id, second.status, second.execute) == (late, Status.TOO_LATE, [0, 0, 0])
    assert second.text


def test_revoking_lets_the_next_one_start(make: Any) -> None:
    bench = make()
    model = bench.prepare()
    bench.resident(model)
    waiting = bench.infer(model, earliest=START_NS + SECOND)
    bench.infer(model)
    bench.at(MS)
    bench.devices[0].revoke(waiting)
    cancelled, done = bench.at(10 * MS)
    assert (cancelled.action_id, cancelled.status) == (waiting, Status.ACTION_CANCELLED)
    assert span(done) == (MS, 4 * MS)


def test_batches_between_the_points_are_as_the_profile_says(make: Any) -> None:
    bench = make()
    model = bench.prepare(profile := ModelProfile("m", {1: 3 * MS, 4: 9 * MS}, 0, MS, 1000, batch_max=9))
    bench.load(model, pages=[0])
    bench.at(SECOND)
    for rows in range(1, 10):
        bench.infer(model, rows)
        (done,) = bench.at((rows + 1) * SECOND)
        assert done.execute[2] == profile.execution_ns(rows)


def test_inputs_are_copied_before_they_are_used_and_beside_what_runs(make: Any) -> None:
    bench = make(copy_bandwidth=1_000_000)  # a kilobyte in a millisecond
    model = bench.prepare()
    bench.resident(model)
    bench.infer(model, 1, 1)  # copied from 0 to 2, runs from 2 to 6
    bench.infer(model, 1)  # copied from 2 to 3, runs from 6 to 9
    first, second = bench.at(SECOND)
    assert [first.copy_in[0] - START_NS, first.copy_in[2]] == [0, 2 * MS]
    assert span(first) == (2 * MS, 6 * MS)
    assert second.copy_in[2] == 0, "nobody waited for it"
    assert span(second) == (6 * MS, 9 * MS)
    assert bench.devices[0].memory()["input_bytes"] == 3000
    # inputs copied in 4 ms, which is after the window
    late = bench.infer(model, 4, latest=START_NS + SECOND + MS)
    (done,) = bench.at(2 * SECOND)
    assert (done.action_id, done.status) == (late, Status.TOO_LATE)


def test_loads_of_all_devices_share_one_link_or_do_not(make: Any) -> None:
    for shared in (False, True):
        bench = make(3, shared_link=shared)
        model = bench.prepare()
        bench.load(model, 0)
        bench.load(model, 1)
        hopeless = bench.load(model, 2, latest=START_NS + 15 * MS)
        done = {one.action_id: one for one in bench.at(SECOND)}
        if shared:
            assert [span(done[1]), span(done[2])] == [(0, 8 * MS), (8 * MS, 16 * MS)]
            assert done[hopeless].status is Status.TOO_LATE
        else:
            assert [span(done[one]) for one in (1, 2, 3)] == [(0, 8 * MS)] * 3


def test_the_link_goes_to_who_asked_first_and_still_wants_it(make: Any) -> None:
    bench = make(4, shared_link=True)
    model = bench.prepare()
    loads = [bench.load(model, device) for device in range(4)]
    bench.at(2 * MS)
    bench.devices[1].revoke(loads[1])
    bench.devices[0].reset()
    done = {one.action_id: one for one in bench.at(SECOND)}
    assert done.keys() == {*loads[1:]}
    assert done[loads[1]].status is Status.ACTION_CANCELLED
    assert [span(done[one]) for one in loads[2:]] == [(2 * MS, 10 * MS), (10 * MS, 18 * MS)]


def test_noise_is_seeded_and_of_the_size_asked_for(make: Any) -> None:
    def durations(seed: int, device: int) -> list[int]:
        bench = make(2, seed=seed, exec_noise=0.1, outlier=0.05, outlier_factor=10.0)
        model = bench.prepare()
        bench.resident(model, device)
        found = []
        for index in range(400):
            bench.infer(model, device=device)
            found.append(bench.at((index + 1) * SECOND)[0].execute[2])
        return found

    first = durations(1, 0)
    assert first == durations(1, 0)
    assert first != durations(2, 0)
    assert first != durations(1, 1)
    usual = sorted(one / (3 * MS) for one in first if one < 10 * MS)
    assert usual[len(usual) // 2] == pytest.approx(1.0, abs=0.03)
    assert usual[len(usual) * 84 // 100] == pytest.approx(1.1, abs=0.04)
    assert 5 <= sum(one > 20 * MS for one in first) <= 45


def test_failures_take_their_time_and_keep_nothing(make: Any) -> None:
    bench = make(failures=1.0)
    model = bench.prepare()
    bench.load(model)
    (done,) = bench.at(SECOND)
    assert (done.status, done.execute[2]) == (Status.DEVICE_ERROR, 8 * MS)
    assert bench.devices[0].memory()["resident_bytes"] == 0
    bench.group.forget(model)
    bench = make(failures=0.3, seed=6)
    model = bench.prepare()
    statuses = []
    for index in range(200):
        if not bench.group.fleet.is_resident(model):
            bench.load(model)
        else:
            bench.infer(model)
        statuses += [one.status for one in bench.at((index + 1) * SECOND)]
    assert {*statuses} == {Status.OK, Status.DEVICE_ERROR, Status.EXECUTION_FAILED}
    assert 30 <= sum(one is not Status.OK for one in statuses) <= 90


# ----- models and memory ----------------------------------------------------------------------


def test_a_model_is_there_when_its_load_has_ended_and_not_before(make: Any) -> None:
    bench = make()
    model = bench.prepare()
    bench.load(model)
    early = bench.infer(model)
    on_time = bench.infer(model, earliest=START_NS + 8 * MS)
    done = {one.action_id: one for one in bench.at(SECOND)}
    assert done[early].status is Status.NOT_RESIDENT
    assert done[on_time].status is Status.OK


def test_devices_share_models_and_nothing_else(make: Any) -> None:
    bench = make(2)
    model = bench.prepare()
    bench.resident(model, 0)
    bench.infer(model, device=1)
    (done,) = bench.at(SECOND)
    assert done.status is Status.NOT_RESIDENT
    with pytest.raises(ValueError, match="resident"):
        bench.group.forget(model)
    bench.devices[0].start(Unload(50, 0, model, 1, 0, NEVER_NS, 0))
    bench.group.forget(model)
    assert not bench.group.models


def test_a_profile_action_takes_as_long_as_an_inference(make: Any) -> None:
    bench = make()
    model = bench.prepare()
    bench.resident(model)
    bench.devices[0].start(Profile(7, 0, model, 1, 0, NEVER_NS, 0, [[8, 1000]]))
    (done,) = bench.at(SECOND)
    assert (done.status, span(done), done.parts) == (Status.OK, (0, 10 * MS), [])


def test_inputs_beyond_the_slots_are_refused(make: Any) -> None:
    bench = make()
    profile = ModelProfile("m", {1: MS}, 0, MS, input_bytes=IO_SLOT_BYTES_MAX)
    model = bench.prepare(profile, batch_max=1)
    bench.devices[0].start(Profile(1, 0, model, 1, 0, NEVER_NS, 0, [[1, IO_SLOT_BYTES_MAX + 1]]))
    (done,) = bench.at(0)
    assert done.status is Status.INVALID_INPUT
    assert str(IO_SLOT_BYTES_MAX) in done.text


def test_what_is_revoked_leaves_nothing_behind(make: Any) -> None:
    bench = make()
    model = bench.prepare()
    bench.resident(model)
    for count in range(5 * STALE_EVENTS_MAX):
        action = bench.infer(model, earliest=START_NS + SECOND + count)
        bench.devices[0].revoke(action)
        assert [one.status for one in bench.at(0)] == [Status.ACTION_CANCELLED]
        # An earlier event in the heap keeps those behind it from being removed.
        if count == 0:
            bench.load(bench.prepare(), pages=(4, 5))
    assert bench.group.fleet.event_count <= STALE_EVENTS_MAX + 6


# ----- the real clock -------------------------------------------------------------------------


def test_the_descriptor_wakes_whoever_waits_at_the_end(tmp_path: Path, make: Any) -> None:
    for spin in (False, True):
        bench = make(spin=spin)
        bench.group.clock = now_ns
        model = bench.prepare()
        bench.load(model)
        late_ns = []
        for _ in range(20):
            done: list[Completion] = []
            while not done:
                assert readable(bench.group.fileno()), "nobody woke"
                done = [one for device in bench.group.ended() for one in device.poll()]
            late_ns.append(now_ns() - max(done[0].execute[1], done[0].copy_out[1]))
            bench.infer(model)
        assert min(late_ns) >= 0
        stats = bench.group.stats()
        assert 0 <= stats["late_p50_ns"] <= stats["late_p99_ns"] <= stats["late_max_ns"]
        assert stats["late_p50_ns"] < 50 * MS


def test_executions_that_begin_in_a_slow_spell_take_longer(make: Any) -> None:
    assert START_NS % (10 * SECOND) == 0
    bench = make(slow_factor=1.5, slow_ns=SECOND, slow_every_ns=10 * SECOND)
    model = bench.prepare()
    bench.resident(model)
    usual_ns, took_ns = PROFILE.exec_ns[1], []
    for begin_ns in (0, SECOND - 1, 5 * SECOND, 10 * SECOND - 1, 11 * SECOND - 1, 11 * SECOND + 2 * usual_ns):
        bench.infer(model, earliest=START_NS + begin_ns)
        (done,) = bench.at(begin_ns + 2 * usual_ns)
        took_ns.append(done.execute[2])
    slow_ns = usual_ns * 3 // 2
    assert took_ns == [slow_ns, slow_ns, usual_ns, usual_ns, slow_ns, usual_ns]


# ----- settings and profiles --------------------------------------------------------------------


def test_settings_from_the_command_line() -> None:
    found = parse_settings(["exec_noise=0.01", "copy_bandwidth=12e9", "spin", "shared_link=false", "seed=7"])
    assert found == EmulatedSettings(seed=7, exec_noise=0.01, copy_bandwidth=12_000_000_000, spin=True)


@pytest.mark.parametrize(
    "pair", ["speed=2", "exec_noise=lots", "failures=1.5", "failures=nan", "outlier_factor=0", "spin=maybe",
             "copy_bandwidth=-1", "disk_bandwidth=-1", "seed=1e999", "exec_noise=3", "slow_factor=0", "slow_ns=1e9"],
)  # fmt: skip
def test_settings_that_make_no_sense(pair: str) -> None:
    with pytest.raises(ConfigError, match=pair.partition("=")[0]):
        parse_settings([pair])


@pytest.mark.parametrize("changes", [{"count": 0}, {"count": 1025}, {"arena_bytes": 1}, {"run_ahead": 0}])
def test_groups_that_make_no_sense(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        EmulatedGroup(**changes)


def test_a_profile_survives_its_package_and_keeps_its_slo_out_of_it() -> None:
    profile = ModelProfile("m", {1: MS, 4: 2 * MS}, 5, 6, 7, 8, "p", 4, slo_ns=100 * MS)
    found = decode_profile(encode_profile(profile))
    assert (found.exec_ns, found.slo_ns, found.program) == ({1: MS, 4: 2 * MS}, 0, "p")


@pytest.mark.parametrize(
    "body", ["{", "[]", "{}", '{"profiles": []}', '{"profiles": [{"name": "m"}]}',
             json.dumps({"profiles": [{"name": "m", "exec_ns": {"1": 0}, "weights_bytes": 1, "load_ns": 1}]}),
             json.dumps({"profiles": [{"name": "m", "exec_ns": {"1": 1}, "weights_bytes": 1, "load_ns": 1,
                                       "input_bytes": 2**40}]})],
)  # fmt: skip
def test_a_file_that_is_no_profile(body: str) -> None:
    with pytest.raises(InvalidModel):
        decode_profile(body.encode())


def test_what_is_prepared_of_a_profile() -> None:
    whole = prepared_from_profile(PROFILE, "d", "f", PAGE_BYTES + 1, {})
    assert (whole.batches, whole.batch_max, whole.runs) == (True, 8, [1, 1])
    assert [(point.batch, point.exec_ns) for point in whole.profile] == [
        (1, 3 * MS),
        (2, 4 * MS),
        (8, 10 * MS),
    ]
    capped = prepared_from_profile(PROFILE, "d", "f", PAGE_BYTES, {"batch_max": 5})
    assert [(point.batch, point.exec_ns) for point in capped.profile] == [
        (1, 3 * MS),
        (2, 4 * MS),
        (5, 7 * MS),
    ]
    single = prepared_from_profile(PROFILE, "d", "f", PAGE_BYTES, {"batching": "off"})
    assert (single.batches, single.batch_max, single.inputs[0].shape) == (False, 1, (1, 1000))
    assert single.profile[0].shape == ((1, 1000),)


# ----- the host store -------------------------------------------------------------------------


def test_a_load_needs_its_model_in_the_host_store_and_a_fetch_takes_the_disks_time(make: Any) -> None:
    bench = make(count=2, host_pages=2, disk_bandwidth=PAGE_BYTES * 1000)
    model = bench.prepare()
    bench.load(model)
    (done,) = bench.at(0)
    assert (done.status, done.text) == (Status.NOT_RESIDENT, "the model is not in the host store")
    fetch = bench.host(HostFetch, model)
    assert bench.at(2 * MS - 1) == []
    (done,) = bench.at(2 * MS)
    assert (done.action_id, done.status, span(done)) == (fetch, Status.OK, (0, 2 * MS))
    for device in (0, 1):
        bench.load(model, device)
    assert [done.status for done in bench.at(10 * MS)] == [Status.OK, Status.OK]
    assert bench.devices[1].memory()["host_bytes"] == 2 * PAGE_BYTES


def test_the_host_store_believes_nothing(make: Any) -> None:
    bench = make(count=2, host_pages=3)
    first, second = bench.prepare(), bench.prepare()
    bench.host(HostDrop, first)
    bench.host(HostFetch, first)
    assert [done.status for done in bench.at(MS)] == [Status.NOT_RESIDENT, Status.OK]
    bench.host(HostFetch, first)
    bench.host(HostFetch, second)
    assert [done.status for done in bench.at(2 * MS)] == [Status.DEVICE_ERROR, Status.BAD_PAGES]
    bench.load(first, device=1)
    bench.host(HostDrop, first)
    (done,) = bench.at(3 * MS)
    assert done.status is Status.IN_USE
    bench.at(20 * MS)
    bench.host(HostDrop, first)
    bench.host(HostFetch, second)
    assert [done.status for done in bench.at(21 * MS)] == [Status.OK, Status.OK]
    with pytest.raises(ValueError, match="in use"):
        bench.group.forget(second)
    for device in bench.devices:
        device.reset()
    bench.group.forget(second)
    assert bench.group.fleet.host_bytes == 0


def test_a_fetch_into_a_store_that_was_cleared_leaves_nothing_in_it(make: Any) -> None:
    bench = make(count=2, host_pages=2, disk_bandwidth=PAGE_BYTES * 1000)
    model = bench.prepare()
    bench.devices[1].start(HostFetch(99, 1, model, 1, 0, NEVER_NS, 0))
    bench.devices[0].reset()
    (done,) = bench.at(SECOND)
    assert done.action_id == 99
    bench.load(model)
    (done,) = bench.at(2 * SECOND)
    assert (done.status, bench.group.fleet.host_bytes) == (Status.NOT_RESIDENT, 0)
    bench.group.forget(model)


def test_devices_without_a_host_tier_say_so(make: Any) -> None:
    bench = make()
    model = bench.prepare()
    bench.host(HostFetch, model)
    (done,) = bench.at(0)
    assert (done.status, done.text) == (Status.DEVICE_ERROR, "these devices have no host tier")


# ----- executors of an arena -------------------------------------------------------------------------


def test_executors_run_at_once_what_their_arena_has_loaded_once(make: Any) -> None:
    bench = make(count=2, executors=2)
    assert [device.info.arena for device in bench.devices] == [-1, 0, -1, 2]
    model = bench.prepare()
    bench.resident(model)
    first, second, elsewhere = (bench.infer(model, device=device) for device in (0, 1, 2))
    done = {end.action_id: end for end in bench.at(10 * MS)}
    assert span(done[first]) == span(done[second]) == (0, 3 * MS)
    assert done[elsewhere].status is Status.NOT_RESIDENT
    assert [device.memory()["resident_bytes"] // PAGE_BYTES for device in bench.devices] == [2, 0, 0, 0]


def test_executors_slow_each_other_while_both_execute(make: Any) -> None:
    bench = make(executors=2, slowdown=1.5)
    assert [device.info.slowdown_thousandths for device in bench.devices] == [1500, 1000]
    model = bench.prepare()
    bench.resident(model)
    both = [bench.infer(model, device=device) for device in (0, 1)]
    done = {end.action_id: span(end) for end in bench.at(10 * MS)}
    assert [done[action] for action in both] == [pytest.approx((0, 4.5 * MS), abs=20)] * 2
    first = bench.infer(model, device=0)
    bench.at(11 * MS)
    second = bench.infer(model, device=1)
    done = {end.action_id: span(end) for end in bench.at(20 * MS)}
    # 1 ms of the first alone, 2 ms of it beside the second in 3 ms, and the last ms of the second alone
    assert done[first] == pytest.approx((10 * MS, 14 * MS), abs=20)
    assert done[second] == pytest.approx((11 * MS, 15 * MS), abs=20)


@pytest.mark.parametrize("is_ended", [True, False])
def test_an_execution_that_is_ended_or_forgotten_slows_its_neighbour_no_longer(
    make: Any, is_ended: bool
) -> None:
    bench = make(executors=2, slowdown=2.0)
    model = bench.prepare()
    bench.resident(model)
    first, second = (bench.infer(model, device=device) for device in (0, 1))
    bench.at(2 * MS)
    if is_ended:
        bench.devices[1].end_run(second)
    else:
        bench.devices[1].reset()
    done = {end.action_id: end for end in bench.at(10 * MS)}
    # 1 ms in 2 beside the second, and 2 ms alone
    assert span(done[first]) == pytest.approx((0, 4 * MS), abs=20)


def test_each_of_many_executors_takes_the_same_part_of_the_speed(make: Any) -> None:
    bench = make(executors=4, slowdown=4.0)
    model = bench.prepare()
    bench.resident(model)
    for executing, speed in ((1, 1.0), (2, 0.75), (4, 0.25)):
        begun = bench.now - START_NS
        actions = [bench.infer(model, device=device) for device in range(executing)]
        done = {end.action_id: span(end) for end in bench.at(begun + 20 * MS)}
        assert [done[action][1] - begun for action in actions] == [
            pytest.approx(3 * MS / speed, abs=20)
        ] * executing


def test_a_slowdown_out_of_its_range_is_named() -> None:
    for text in ("0.9", "65", "nan", "inf"):
        with pytest.raises(ConfigError, match="slowdown is between 1 and 64"):
            parse_settings([f"slowdown={text}"])


def test_a_model_that_an_executor_runs_is_in_use(make: Any) -> None:
    bench = make(executors=3)
    model = bench.prepare()
    bench.resident(model)
    bench.infer(model, device=2)
    bench.last_id += 1
    bench.devices[0].start(Unload(bench.last_id, 0, model, 1, 0, NEVER_NS, 0))
    (refused,) = bench.at(MS)
    assert refused.status is Status.IN_USE
    bench.at(10 * MS)
    bench.last_id += 1
    bench.devices[0].start(Unload(bench.last_id, 0, model, 1, 0, NEVER_NS, 0))
    (done,) = bench.at(11 * MS)
    assert done.status is Status.OK
    bench.infer(model, device=2)
    (absent,) = bench.at(20 * MS)
    assert absent.status is Status.NOT_RESIDENT
