"""The dashboard draws the events that happened: columns computed from seeded worlds, compared with their
histories."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from clockwork.errors import ConfigError, ConnectionLost
from clockwork.observe import explain
from clockwork.observe.dashboard import picture, sources
from clockwork.observe.dashboard.around import around
from clockwork.observe.dashboard.follower import AWAY, EMPTY, LIVE, LOADING, FollowedSteps, Follower
from clockwork.observe.history import UNLOADING, History
from clockwork.observe.lanes import total_ns, union
from clockwork.observe.live import ClusterDescription
from clockwork.observe.palette import MODEL_COLORS, OTHER_MODELS
from clockwork.scheduler.recording import Header, ResidentModel, Step, encode_header, encode_step
from clockwork.scheduler.types import AnswerOk, SendInfer
from tests.sim.harness import MS, SECOND, World, spec
from tests.sim.test_history import one_device
from tests.sim.test_scheduler_random import random_world


def steps_of(world: World) -> list[Step]:
    return [Step([event], commands) for event, commands in world.trace]


def recorded(steps: list[Step]) -> bytes:
    header = encode_header(Header("adaptive", "adaptive", {}, "1"))
    return header + b"".join(encode_step(step.events, step.commands) for step in steps)


def followed(world: World, from_step: int = 0) -> Follower:
    follower = Follower()
    follower.take(FollowedSteps(1, steps_of(world)[from_step:]), 100.0)
    return follower


def colors_of(history: History) -> picture.ModelColors:
    colors = picture.ModelColors()
    colors.update(picture.busy_times(history))
    return colors


def busy_world(seed: int = 3) -> World:
    world = random_world(seed, calm=True, policy="adaptive")
    world.settle()
    return world


def test_a_lane_has_the_execution_and_the_load() -> None:
    world = one_device()
    for _ in range(3):
        world.request(1, slo_ms=100)
    world.settle()
    history = followed(world).history
    shown = picture.lanes(history, colors_of(history), 1.0, [])
    assert shown.labels == ["1/0"]
    batch = next(one for one in history.actions.values() if one.kind == "infer")
    assert shown.executions["batch"] == [3]
    assert shown.executions["model"] == ["m1@1"]
    assert shown.executions["color"] == [MODEL_COLORS[0]]
    assert shown.executions["predicted"] == [batch.expected_ns / MS] == shown.executions["measured"]
    assert shown.executions["left"][0] == pytest.approx((batch.begin_ns - history.now_ns) / SECOND)
    assert shown.executions["right"][0] - shown.executions["left"][0] == pytest.approx(0.007)
    assert shown.loads["measured"] == [10.0]
    assert shown.from_s == -1.0


@pytest.mark.parametrize("seed", range(4))
def test_all_executions_within_the_time_are_drawn(seed: int) -> None:
    history = followed(busy_world(seed)).history
    shown = picture.lanes(history, colors_of(history), 60.0, [])
    assert len(shown.executions["row"]) == sum(
        one.end_ns > 0 for device in history.devices.values() for one in device.executions
    )
    assert len(shown.executions["row"]) > 20, f"seed {seed}"
    assert {len(column) for column in shown.executions.values()} == {len(shown.executions["row"])}
    widths = shown.executions["right"] - shown.executions["left"]
    assert sum(widths) == pytest.approx(sum(picture.busy_times(history).values()) / SECOND, rel=0.01)
    part = picture.lanes(history, colors_of(history), 0.1, [])
    assert 0 < len(part.executions["row"]) < len(shown.executions["row"]) or not len(part.executions["row"])
    assert min(part.executions["left"], default=0) >= -0.1


def test_where_too_much_would_be_drawn_the_newest_is(monkeypatch: pytest.MonkeyPatch) -> None:
    history = followed(busy_world()).history
    everything = picture.lanes(history, colors_of(history), 60.0, [])
    monkeypatch.setattr(picture.bounds, "DASHBOARD_BARS_MAX", 10)
    shown = picture.lanes(history, colors_of(history), 60.0, [])
    assert len(shown.executions["row"]) == 10
    assert sorted(shown.executions["left"]) == sorted(everything.executions["left"])[-10:]
    assert shown.from_s == min(shown.executions["left"]) > -60
    assert (list(shown.gaps["left"]), list(shown.gaps["right"])) == ([-60], [shown.from_s]), (
        "and that is said"
    )
    assert list(everything.gaps["left"]) == []


def test_waiting_work_is_drawn_unless_nothing_is_known_of_that_time() -> None:
    world = World(policy="adaptive")
    world.now = SECOND
    world.join(1)
    world.ready(spec(1, exec_ms=5, batch_max=8, row_ms=1, load_ms=10))
    world.request(1, slo_ms=200)
    world.settle()
    world.at(world.now + 5 * MS, world.request, 1, 300)  # waiting includes the order's transfer to the device
    world.settle()
    history = followed(world).history
    colors = colors_of(history)
    idle = picture.lanes(history, colors, 5.0, []).idle
    assert len(idle["row"]) >= 1
    assert all(right > left for left, right in zip(idle["left"], idle["right"]))
    gap = (history.begun_ns, history.now_ns)
    shown = picture.lanes(history, colors, 5.0, [gap])
    assert list(shown.idle["row"]) == []
    assert len(shown.gaps["left"]) == 1


def test_the_busiest_models_keep_their_colors() -> None:
    colors = picture.ModelColors()
    count = len(MODEL_COLORS)
    colors.update({model: 1000 - model for model in range(20)})
    first = {model: colors.of(model) for model in range(count)}
    assert sorted(first.values()) == sorted(MODEL_COLORS)
    assert colors.of(count) == OTHER_MODELS.color
    colors.update(
        {model: 1000 - model for model in range(20)} | {count: 2000}
    )  # among the busiest devices, but not alone
    assert {model: colors.of(model) for model in range(count)} == first
    colors.update(dict.fromkeys(range(2, 30), 1000))  # the first two models get no further requests
    assert {model: colors.of(model) for model in range(2, count)} == {m: first[m] for m in range(2, count)}
    assert colors.of(0) == colors.of(1) == OTHER_MODELS.color
    assert {colors.of(count), colors.of(count + 1)} == {first[0], first[1]}


@pytest.mark.parametrize("seed", range(4))
def test_memory_is_what_devices_hold(seed: int) -> None:
    world = busy_world(seed)
    history = followed(world).history
    shown = picture.memory(history, colors_of(history))
    assert shown.unplaced == 0
    for row, device in enumerate(history.lanes()):
        runs = [
            (left, right)
            for at, left, right in zip(shown.runs["row"], shown.runs["left"], shown.runs["right"])
            if at == row
        ]
        assert total_ns(union(runs)) == sum(right - left for left, right in runs), "pages overlap"
        assert all(0 <= left < right <= device.page_count for left, right in runs)
        assert sum(right - left for left, right in runs) == sum(one.pages for one in device.resident.values())


def test_a_model_whose_load_was_not_seen_is_shown_without_its_place() -> None:
    world = one_device()
    world.request(1, slo_ms=100)
    world.settle()
    seen = len(world.trace)
    world.request(1, slo_ms=100)
    world.settle()
    early = [step for step in steps_of(world) if not any(isinstance(c, SendInfer) for c in step.commands)]
    joined = early[:3]  # the worker, its link and the model
    follower = Follower()
    follower.take(FollowedSteps(1, [*joined, *steps_of(world)[seen:]]), 0.0)
    shown = picture.memory(follower.history, colors_of(follower.history))
    assert shown.unplaced == 1
    assert (shown.runs["left"], shown.runs["right"]) == ([5], [8])
    assert "not known" in shown.runs["state"][0]


@pytest.mark.parametrize("seed", range(3))
def test_the_series_add_up_to_what_was_answered(seed: int) -> None:
    history = followed(busy_world(seed)).history
    found = picture.series(history, [])
    edges = [history.marks[0].at_ns / SECOND, *(at + history.now_ns / SECOND for at in found["at"])]
    lasted = [after - before for before, after in itertools.pairwise(edges)]
    for outcome in ("answered", "refused"):
        counted = sum(rate * time for rate, time in zip(found[outcome], lasted))
        first = getattr(history.marks[0], outcome)
        assert counted == pytest.approx(getattr(history.counts, outcome) - first), f"seed {seed}"


def test_a_second_of_which_half_was_not_read_counts_for_the_other_half() -> None:
    history = followed(busy_world()).history
    whole = picture.series(history, [])
    end = history.now_ns
    first = history.marks[0].at_ns
    half = picture.series(history, [(first, first + (end - first) // 2)])
    assert sum(half["arrived"]) > 1.3 * sum(whole["arrived"]) > 0


def test_predictions_and_tiles() -> None:
    history = followed(busy_world()).history
    found = picture.predictions(history, colors_of(history))
    assert found.executed == len(found.executions["predicted"]) > 20
    assert found.within == 1.0  # a calm world has no noise
    assert found.executions["predicted"] == pytest.approx(found.executions["measured"], rel=0.1)
    numbers = picture.tiles(history, [], seconds=60)
    assert numbers.good > 0
    assert 0 < numbers.executing <= 1
    assert numbers.devices == len(history.devices)
    assert 0 < numbers.p50_ms <= numbers.p99_ms
    assert numbers.batch >= 1


def test_the_newest_requests_of_each_outcome_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    history = followed(busy_world()).history
    monkeypatch.setattr(picture.bounds, "DASHBOARD_ROWS_MAX", 5)
    rows = picture.recent_requests(history)
    for outcome in ("answered", "refused"):
        newest = [one.id for one in history.requests.values() if one.outcome == outcome][-5:]
        assert sorted(row[0] for row in rows if row[2] == outcome) == newest
    assert [row[6] for row in rows] == sorted(row[6] for row in rows)


def test_a_refused_request_is_seen_among_what_devices_did() -> None:
    history = followed(busy_world()).history
    refused = explain.find_request(history, "refused")
    found = around(history, colors_of(history), refused, [])
    request = history.requests[refused]
    assert "refused" in found.title
    assert any("was refused" in sentence for sentence in found.sentences)
    assert found.from_s < 0 < found.until_s
    words = ", ".join(word for _, word in found.marks)
    assert "refused" in words
    assert len(found.lanes.labels) == len(history.devices)
    assert set(found.lanes.labels) == {one.label for one in history.devices.values()}
    holders = [one.label for one in history.lanes() if one.residency_of(request.model_id, request.arrived_ns)]
    assert set(found.lanes.labels[: len(holders)]) == set(holders)
    moments = [at for at, _ in found.marks]
    assert moments == sorted(moments)


def test_states_of_a_follower() -> None:
    world = one_device()
    world.request(1, slo_ms=100)
    world.settle()
    steps = steps_of(world)
    follower = Follower()
    assert follower.state == LOADING
    follower.fail("no answer", 1.0)
    assert (follower.state, follower.since_s, follower.note) == (AWAY, 1.0, "no answer")
    follower.take(FollowedSteps(1, []), 2.0)
    assert (follower.state, follower.since_s) == (EMPTY, 2.0)
    follower.take(FollowedSteps(1, steps), 3.0)
    assert (follower.state, follower.since_s) == (LIVE, 3.0)
    follower.take(FollowedSteps(1, []), 4.0)
    assert (follower.state, follower.since_s) == (LIVE, 3.0)
    follower.fail("it is gone", 5.0)
    assert follower.history.counts.answered == 1, "the last picture stays"
    follower.take(FollowedSteps(2, steps[:3]), 6.0)
    assert (follower.state, follower.restarted_s, follower.history.counts.answered) == (LIVE, 6.0, 0)


def test_what_was_before_is_read_before_anything_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.bounds, "DASHBOARD_STEPS_MAX", 100)
    steps = steps_of(busy_world())
    source = sources.RecordingSource(io.BytesIO(recorded(steps)), lambda: 0, from_ns=60 * SECOND)
    follower = Follower()
    states = []
    for _ in range(len(steps) // 100 + 1):
        look = source.look()
        assert len(look.steps) <= 100
        follower.take(look, 0.0)
        states.append(follower.state)
    assert states == [LOADING] * (len(states) - 1) + [LIVE]
    assert follower.history.steps == len(steps)


def test_what_was_left_out_is_known() -> None:
    world = busy_world()
    steps = steps_of(world)
    third = len(steps) // 3
    follower = Follower()
    follower.take(FollowedSteps(1, steps[:third]), 0.0)
    before_ns = follower.history.now_ns
    follower.take(FollowedSteps(1, steps[2 * third :], is_gap=True, share=0.5), 1.0)
    ((begin, end),) = follower.gaps
    assert begin == before_ns < end == steps[2 * third].events[0].now_ns
    assert follower.share == 0.75
    assert follower.history.skipped_ns == end - begin


def test_a_dump_of_the_middle_says_what_was_resident() -> None:
    world = one_device()
    world.request(1, slo_ms=100)
    world.settle()
    steps = steps_of(world)
    # the recording no longer has the LOAD itself
    late = [*steps[:3], *[step for step in steps[3:] if not step.commands]]
    header = Header("edf", "", {}, "1", 100, 3, (ResidentModel(1, 0, 1, 7),))
    file = io.BytesIO(encode_header(header) + b"".join(encode_step(*step) for step in late))
    follower = Follower()
    follower.take(sources.RecordingSource(file, lambda: 0, from_ns=60 * SECOND).look(), 0.0)
    shown = picture.memory(follower.history, colors_of(follower.history))
    assert (shown.unplaced, shown.runs["model"], shown.runs["pages"]) == (1, ["m1@1"], [3])


def test_a_recording_is_shown_at_its_own_pace() -> None:
    world = busy_world()
    steps = steps_of(world)
    begun = steps[0].events[0].now_ns
    clock = iter([50, 50 + 100 * MS, 50 + 10_000 * MS])
    source = sources.RecordingSource(io.BytesIO(recorded(steps)), lambda: next(clock), from_ns=20 * MS)
    looks = [source.look() for _ in range(3)]
    assert sum(len(look.steps) for look in looks) == len(steps)
    assert all(step.events[0].now_ns <= begun + 20 * MS for step in looks[0].steps)
    assert all(step.events[0].now_ns <= begun + 120 * MS for step in looks[1].steps)
    assert looks[1].steps
    assert sum(isinstance(c, AnswerOk) for look in looks for step in look.steps for c in step.commands) > 10


def test_a_damaged_recording_is_shown_until_there_and_then_said_to_be() -> None:
    steps = steps_of(busy_world())[:40]
    file = io.BytesIO(recorded(steps) + b"\xc4\x01\x07")
    ticks = itertools.count(0, 3_600 * SECOND)
    source = sources.RecordingSource(file, lambda: next(ticks))
    found = [*source.look().steps, *source.look().steps]
    assert [step.events[0].now_ns for step in found] == [step.events[0].now_ns for step in steps]
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"^step 40 of the recording is damaged: it is no step "):
            source.look()


class FakeRecorder:
    """A controller's flight recorder over the steps that have happened so far."""

    def __init__(self, steps: list[Step]) -> None:
        self.pieces = [encode_step(step.events, step.commands) for step in steps]
        self.times = [step.events[0].now_ns for step in steps]
        self.happened = 0  # number of steps so far
        self.epoch = 7
        self.asked: list[str] = []
        self.described = 0
        self.is_away = False
        self.left = -1  # answers until the controller is unreachable; negative: unlimited
        self.piece_bytes = 2_000

    def ask(self, argument: str) -> dict[str, Any]:
        self.left -= 1
        if self.is_away or self.left == -1:
            raise ConnectionLost("it is away")
        self.asked.append(argument)
        ends = [0, *itertools.accumulate(len(piece) for piece in self.pieces[: self.happened])]
        if argument.startswith("-"):
            since = self.times[self.happened - 1] - int(argument[1:]) if self.happened else 0
            place = ends[sum(at < since for at in self.times[: self.happened])]
        else:
            place = min(int(argument[1:]), ends[-1])
        found = b"".join(self.pieces[: self.happened])[place : place + self.piece_bytes]
        return {
            "place": place,
            "bytes": found,
            "next": place + len(found),
            "end": ends[-1],
            "epoch": self.epoch,
        }

    def describe(self) -> ClusterDescription:
        self.described += 1
        return ClusterDescription({"workers": []}, [])


def live(recorder: FakeRecorder, clock: Callable[[], int]) -> sources.Live:
    return sources.Live(recorder.ask, recorder.describe, clock)


def test_a_live_controller_is_followed_step_by_step() -> None:
    steps = steps_of(busy_world())
    recorder = FakeRecorder(steps)
    ticks = itertools.count(1, SECOND // 2)
    source = live(recorder, lambda: next(ticks))
    found = []
    for happened in range(0, len(steps) + 40, 40):
        recorder.happened = min(happened, len(steps))
        look = source.look()
        assert (look.run, look.is_gap, look.share, look.is_behind) == (7, False, 1.0, False)
        assert happened or look.cluster is not None, "who is there is told first"
        found += look.steps
    assert [step.events[0].now_ns for step in found] == recorder.times
    assert recorder.described == 3, (
        "at once, after 1 and 2 seconds more; then after 4, 8 and 16, and every 30"
    )
    for _ in range(360):  # a recording of three minutes
        source.look()
    assert recorder.described == 3 + 3 + 5


def test_a_controller_that_does_more_than_is_read_is_read_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = steps_of(busy_world())
    recorder = FakeRecorder(steps)
    recorder.piece_bytes = 300
    monkeypatch.setattr(sources.bounds, "DASHBOARD_LOOK_BYTES", 400)
    monkeypatch.setattr(sources.bounds, "DASHBOARD_BACKLOG_BYTES", 3_000)
    monkeypatch.setattr(sources.bounds, "DASHBOARD_BEGIN_NS", 1)
    place = {"happened": 1}
    source = live(recorder, lambda: recorder.times[place["happened"] - 1])
    follower = Follower()
    shares, behinds = [], []
    for happened in range(10, len(steps), len(steps) // 12):
        place["happened"] = recorder.happened = happened
        look = source.look()
        shares.append(look.share)
        behinds.append(look.behind_ns)
        follower.take(look, 0.0)
    assert min(shares) < 0.5
    assert 0 < follower.share < 1
    assert follower.gaps
    total = follower.history.now_ns - follower.history.begun_ns
    assert 0 < follower.history.skipped_ns < total
    behind = recorder.times[happened - 1] - follower.history.now_ns
    assert behind < total / 4, "what is shown is of now"
    assert max(behinds) > 0
    assert follower.behind_ns == behinds[-1]
    assert abs(behinds[-1] - behind) < total / 12, "by bytes, so about"


def described(history: History) -> ClusterDescription:
    """Return the description of the cluster after these steps, as its controller gives it."""
    workers = [
        {
            "id": worker,
            "name": f"w{worker}",
            "devices": [
                {"kind": one.kind, "page_bytes": one.page_bytes, "page_count": one.page_count}
                for one in history.lanes()
                if one.worker == worker
            ],
        }
        for worker in history.workers
    ]
    models = []
    for model in history.models.values():
        there = [
            {"worker": f"w{device.worker}", "device": device.index, "state": one.state}
            for device in history.lanes()
            for one in device.resident.values()
            if one.model_id == model.id and one.state != UNLOADING
        ]
        runs = next(iter(model.specs.values())).runs
        models.append({"id": model.id, "name": model.name, "version": 1, "runs": runs, "devices": there})
    return ClusterDescription({"workers": workers}, models)


def resident_in(history: History) -> dict[str, list[int]]:
    """Return the models on each device, except those being unloaded."""
    return {
        device.label: sorted(one.model_id for one in device.resident.values() if one.state != UNLOADING)
        for device in history.lanes()
    }


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_no_more_pages_are_used_than_there_are_however_late_and_little_is_read(
    monkeypatch: pytest.MonkeyPatch, seed: int, is_whole: bool
) -> None:
    steps = steps_of(busy_world(seed))
    recorder = FakeRecorder(steps)
    total = sum(len(piece) for piece in recorder.pieces)
    recorder.piece_bytes = total // 80
    monkeypatch.setattr(sources.bounds, "DASHBOARD_LOOK_BYTES", total // 40)
    monkeypatch.setattr(sources.bounds, "DASHBOARD_BACKLOG_BYTES", total if is_whole else total // 20)
    monkeypatch.setattr(sources.bounds, "DASHBOARD_BEGIN_NS", 100 * MS)
    truth = History()
    ticks = itertools.count(1, SECOND // 2)

    def describe() -> ClusterDescription:
        for step in steps[truth.steps : recorder.happened]:
            truth.apply(step)
        return described(truth)

    source = sources.Live(recorder.ask, describe, lambda: next(ticks))
    follower = Follower()
    history = follower.history
    skips = 0
    for happened in [
        *range(len(steps) // 2, len(steps), len(steps) // (20 if is_whole else 8)),
        *[len(steps)] * 80,
    ]:
        recorder.happened = happened
        look = source.look()
        skips += look.is_gap
        follower.take(look, 0.0)
        for device in history.lanes():
            assert (
                sum(one.pages for one in device.resident.values() if one.state != UNLOADING)
                == device.pages_used
            )
            assert device.pages_used <= device.page_count, f"seed {seed}, {device.label}"
        assert 0 <= picture.memory(history, colors_of(history)).used <= 1
    describe()
    assert resident_in(history) == resident_in(truth), f"seed {seed}: it is known again once all is read"
    assert (skips == 0) == is_whole


@pytest.mark.parametrize("has_rested", [False, True])
@pytest.mark.parametrize("backlog_bytes", [1 << 20, 3_000])
def test_after_a_long_time_the_newest_is_read_and_what_nobody_wanted_is_not_missing(
    monkeypatch: pytest.MonkeyPatch, backlog_bytes: int, has_rested: bool
) -> None:
    steps = steps_of(busy_world())
    recorder = FakeRecorder(steps)
    recorder.piece_bytes = 400
    monkeypatch.setattr(sources.bounds, "DASHBOARD_LOOK_BYTES", 400)
    monkeypatch.setattr(sources.bounds, "DASHBOARD_BACKLOG_BYTES", backlog_bytes)
    source = live(recorder, lambda: recorder.times[recorder.happened - 1])
    for happened, rested, is_whole in ((20, False, True), (40, False, False), (300, has_rested, has_rested)):
        recorder.happened = happened
        look = source.look(rested)
        assert (look.share == 1.0) == is_whole
    behind_ns = recorder.times[299] - look.steps[0].events[0].now_ns
    whole_ns = recorder.times[299] - recorder.times[0]
    is_newest = backlog_bytes == 3_000
    assert (behind_ns < whole_ns / 4, look.behind_ns < whole_ns / 4) == (is_newest, is_newest)
    assert look.is_gap == is_newest


def test_a_backlog_of_a_controller_that_is_still_by_now_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.bounds, "DASHBOARD_LOOK_BYTES", 400)
    monkeypatch.setattr(sources.bounds, "DASHBOARD_BACKLOG_BYTES", 3_000)
    recorder = FakeRecorder(steps_of(busy_world()))
    recorder.piece_bytes = 300
    recorder.happened = len(recorder.pieces)
    source = live(recorder, itertools.count(1, SECOND // 2).__next__)
    looks = [source.look()]
    while looks[-1].steps:
        looks.append(source.look())
    assert not any(look.is_gap for look in looks)
    assert [step.events[0].now_ns for look in looks for step in look.steps] == recorder.times


def test_steps_that_were_read_before_an_answer_failed_to_come_are_a_gap() -> None:
    recorder = FakeRecorder(steps_of(busy_world()))
    recorder.happened = len(recorder.pieces)
    source = live(recorder, itertools.count(1, SECOND // 2).__next__)
    recorder.left = 2
    with pytest.raises(ConnectionLost):
        source.look()
    recorder.left = -1
    look = source.look()
    assert look.steps[0].events[0].now_ns > recorder.times[0]
    assert look.is_gap
    assert not source.look().is_gap


def test_a_controller_that_was_started_anew_is_begun_anew() -> None:
    steps = steps_of(busy_world())
    recorder = FakeRecorder(steps)
    ticks = itertools.count(1)
    source = live(recorder, lambda: next(ticks))
    recorder.happened = 50
    assert len(source.look().steps) == 50
    recorder.is_away = True
    with pytest.raises(ConnectionLost):
        source.look()
    recorder.is_away, recorder.epoch, recorder.happened = False, 8, 60
    look = source.look()
    assert (look.run, len(look.steps)) == (8, 60)
    assert source.look().steps == []
    recorder.epoch, recorder.happened = 9, 5  # faster than a reader notices
    look = source.look()
    assert (look.run, len(look.steps)) == (9, 5)
