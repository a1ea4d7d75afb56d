"""The original's scheduler as stories: these events, exactly these orders."""

from __future__ import annotations

from clockwork.scheduler._core import ATTEMPTS_MAX
from clockwork.scheduler.types import ModelSpec, SendInfer
from clockwork.wire.messages import Status
from tests.unit.stories import LINK, MS, Story, spec, told


def paper(*specs: ModelSpec, **options: float) -> Story:
    return Story("paper", *specs, pages=8, options=options)


def fill(story: Story, model: int = 1) -> SendInfer:
    """Six milliseconds of work: more than the scheduler looks ahead."""
    _, [send] = story.request(model)
    assert isinstance(send, SendInfer)
    return send


def test_batches_have_one_two_four_eight_or_sixteen_requests() -> None:
    story = paper(spec(1, exec_ms=8, batch_max=16, row_ms=0.5))
    sent = fill(story)
    waiting = story.ask(*[1] * 7)
    [(_, four)] = story.until(4)
    assert four.requests == tuple(waiting[:4])
    story.at(8.2).done(sent, 8)
    [(_, two)] = story.until(13)
    assert two.requests == tuple(waiting[4:6])


def test_the_largest_batch_is_an_option() -> None:
    story = paper(spec(1, exec_ms=8, batch_max=16, row_ms=0.5), batch_cap=2)
    fill(story)
    waiting = story.ask(*[1] * 7)
    [(_, two)] = story.until(4)
    assert two.requests == tuple(waiting[:2])


def test_an_action_may_start_until_schedule_ahead_after_its_predicted_start() -> None:
    story = paper(spec(1), schedule_ahead_ms=10)
    first, second = fill(story), fill(story)
    assert first.latest_ns == story.now + 11 * MS
    assert second.latest_ns == story.now + LINK + 5 * MS + 10 * MS


def test_a_device_has_schedule_ahead_of_work_however_many_actions_that_is() -> None:
    story = paper(spec(1, exec_ms=1.5))
    assert [len(story.request(1)[1]) for _ in range(6)] == [1, 1, 1, 1, 0, 0]


def test_the_latest_start_goes_first_not_the_first_deadline() -> None:
    story = paper(spec(1, exec_ms=8), spec(2, exec_ms=30), spec(3, exec_ms=1))
    fill(story)
    [short] = story.ask(3, slo_ms=60)
    [long] = story.ask(2, slo_ms=80)
    assert told([order for _, order in story.until(4)]) == [("infer", 2, (long,))]
    assert short


def test_who_could_only_be_in_time_in_a_smaller_batch_is_sacrificed() -> None:
    story = paper(spec(1, exec_ms=8, batch_max=4, row_ms=8))
    fill(story)
    [tight] = story.ask(1, slo_ms=24)
    loose = story.ask(1, 1, 1, 1, slo_ms=90)
    orders = [order for _, order in story.until(4)]
    assert told(orders) == [("deadline_missed", tight), ("infer", 1, tuple(loose))]


def test_what_cannot_be_in_time_is_answered_at_once_or_five_milliseconds_before_its_deadline() -> None:
    for early, answered_ms in ((1, 32), (0, 40)):
        story = paper(spec(1, exec_ms=8), spec(2, exec_ms=60), early_cancel=early)
        fill(story, 2)
        [late] = story.ask(1, slo_ms=45)
        assert [(ms, told([one])) for ms, one in story.until(50)] == [
            (answered_ms, [("deadline_missed", late)])
        ]


def test_an_slo_below_ten_milliseconds_is_tried_and_answered_at_its_deadline() -> None:
    story = paper(spec(1))
    one, [send] = story.request(1, 8)
    assert told([send]) == [("infer", 1, (one,))]
    assert told(story.at(5.2).done(send)) == [("ok", one)]
    two, [send] = story.at(20).request(1, 3)
    assert told([send]) == [("infer", 1, (two,))]
    assert told([order for _, order in story.until(24)])[0] == ("deadline_missed", two)


def test_estimates_are_the_interpolated_99th_percentile_and_a_profile_is_soon_forgotten() -> None:
    story = paper(spec(1, exec_ms=5))
    took = [2.0] * 8 + [4.0, 3.0]
    expected = []
    for turn, ms in enumerate(took):
        _, [send] = story.at(100 * turn).request(1)
        expected.append(send.expected_ns / MS)
        story.at(100 * turn + ms + 0.2).done(send, ms)
    _, [send] = story.at(2000).request(1)
    assert expected[0] == 5
    assert 4.9 < expected[1] < 5  # the percentile of two samples: the warm-up's 5 ms and 2 ms
    assert send.expected_ns == round((3 + 0.91 * (4 - 3)) * MS)


def test_a_failed_action_goes_back_to_its_queue() -> None:
    story = paper(spec(1))
    one, [send] = story.request(1)
    [again] = story.at(1).done(send, 0, Status.TOO_LATE)
    assert told([again]) == [("infer", 1, (one,))]


def test_too_late_for_its_window_is_no_attempt_and_the_next_is_twice_as_wide() -> None:
    story = paper(spec(1))
    one, [send] = story.request(1, 86_400_000)
    wide, windows = 5, []
    for turn in range(8):
        windows.append((send.latest_ns - story.now) / MS)
        [send] = story.at(10 * (turn + 1)).done(send, 0, Status.TOO_LATE)
        assert send.requests == (one,)
    assert windows == [1 + wide * 2**turn for turn in range(8)]
    assert send.latest_ns > story.now + 86_000_000 * MS, "now it is the deadline's"
    assert told(story.at(100).done(send)) == [("ok", one)]


def test_what_is_always_too_late_is_answered_after_some_attempts_with_the_whole_window() -> None:
    story = paper(spec(1))
    one, orders = story.request(1, 86_400_000)
    sends = 0
    while told(orders)[0][0] == "infer":
        sends += 1
        orders = story.at(sends).done(orders[0], 0, Status.TOO_LATE)
    assert told(orders) == [("deadline_missed", one)]
    assert sends == 8 + ATTEMPTS_MAX
