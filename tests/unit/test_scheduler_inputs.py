"""Estimates of the time of inputs to a worker (csrc/scheduler/inputs.h) and their use, as stories."""

from __future__ import annotations

from typing import Any

import pytest

from clockwork.scheduler.types import LinkMeasured, SendInfer
from clockwork.wire.messages import Status
from tests.unit import stories
from tests.unit.stories import MS, Story, spec

LARGE = 602_000  # bytes of a request's inputs
DELAY_MS = 0.1  # delay of the link


def adaptive(*specs: Any, **more: Any) -> Story:
    return Story("adaptive", *specs, **more)


def send(story: Story, at_ms: float, model: int = 1) -> SendInfer:
    """A request with large inputs comes and is sent."""
    _, [order] = story.at(at_ms).request(model, slo_ms=200, size=LARGE)
    assert isinstance(order, SendInfer)
    return order


def send_large(story: Story, at_ms: float, way_ms: float) -> None:
    """A request comes and is sent; the worker has its inputs way_ms later."""
    order = send(story, at_ms)
    story.at(at_ms + way_ms + 5.2).done(order, 5, ready_ms=at_ms + way_ms)


def learnt_ms(story: Story) -> float:
    """Return the predicted time of a request's inputs."""
    story.tick()
    return float(story.scheduler.devices()[0]["inputs_mb_ns"]) * LARGE / 1e6 / MS


def under_way(story: Story) -> int:
    return int(story.scheduler.devices()[0]["inputs_bytes"])


def test_one_delivery_that_took_long_is_no_rule() -> None:
    """A segment was lost, and 602 KB took 60 ms instead of half a millisecond: the next are sent as
    before."""
    story = adaptive(spec(1))
    for at_ms in range(0, 100, 10):
        send_large(story, at_ms, 0.5)
    send_large(story, 100, 60)
    _, commands = story.at(200).request(slo_ms=25, size=LARGE)
    assert [type(one) for one in commands] == [SendInfer]


def test_inputs_that_always_take_long_are_learnt_and_forgotten_when_none_are_seen() -> None:
    """At 60 ms for each request none with an SLO of 25 ms can be in time.

    So none is sent that could correct the estimate: it has to decay, within a second.
    """
    story = adaptive(spec(1))
    for at_ms in range(0, 1000, 100):
        send_large(story, at_ms, 60)
    assert learnt_ms(story) == pytest.approx(60 - DELAY_MS, rel=0.01)
    _, commands = story.at(1000).request(slo_ms=25, size=LARGE)
    assert SendInfer not in [type(one) for one in commands]
    story.until(1100)
    _, commands = story.at(2000).request(slo_ms=25, size=LARGE)
    assert [type(one) for one in commands] == [SendInfer]


def test_bytes_that_wait_behind_others_are_not_charged_for_it() -> None:
    """Four devices of a worker are sent a batch each at once, repeatedly: the last batch arrives after four
    times the duration of one."""
    story = adaptive(*(spec(number) for number in range(1, 5)), devices=4, pages=2, resident=False)
    for number in range(1, 5):
        _, [load] = story.request(number, slo_ms=0)
        [first] = story.done(load, 4)
        story.done(first, 5)
    for at_ms in range(0, 120, 20):
        orders = [send(story, at_ms, number) for number in range(1, 5)]
        assert under_way(story) >= 4 * LARGE
        for place, order in enumerate(orders, 1):
            story.at(at_ms + 5.2 + place).done(order, 5, ready_ms=at_ms + DELAY_MS + place)
    assert learnt_ms(story) == pytest.approx(1, rel=0.05)
    assert under_way(story) == 0


@pytest.mark.parametrize("policy", ["adaptive", "edf"])
def test_a_ping_that_waited_behind_inputs_says_nothing_about_the_link(policy: str) -> None:
    """Four inputs of 12 ms each are on their way when a ping is sent, which takes 48 ms longer."""
    story = Story(policy, *(spec(number) for number in range(1, 5)), devices=4, pages=2)
    for at_ms in range(0, 1000, 100):
        orders = []
        for number in range(1, 5):
            _, commands = story.at(at_ms).request(number, slo_ms=200, size=LARGE)
            orders += [order for order in commands if isinstance(order, SendInfer)]
        for place, order in enumerate(orders, 1):
            story.at(at_ms + 5.2 + 12 * place).done(order, 5, ready_ms=at_ms + DELAY_MS + 12 * place)
        way_ms = 12 * len(orders) + DELAY_MS
        story.at(at_ms + way_ms + DELAY_MS)(
            LinkMeasured(story.now, 1, round(way_ms * MS), round(DELAY_MS * MS))
        )
    _, commands = story.at(1000).request(slo_ms=10)
    assert [type(one) for one in commands] == [SendInfer]


def test_a_worker_that_stood_still_is_thought_slow_for_a_second_at_most() -> None:
    """For any arrival times that a worker reports, both the believed time and its duration are bounded."""
    story = adaptive(spec(1))
    for at_ms in range(0, 5000, 500):
        send_large(story, at_ms, 400)
    assert 0 < learnt_ms(story) <= LARGE * 100 / MS + 0.01, "a way is never thought to be slower than 10 MB/s"
    story.at(4905.2 + 1001)
    assert learnt_ms(story) == 0


def test_a_way_that_is_quick_again_is_thought_so_after_a_few_batches() -> None:
    story = adaptive(spec(1))
    for at_ms in range(0, 1000, 100):
        send_large(story, at_ms, 60)
    for at_ms in range(1000, 1060, 10):
        send_large(story, at_ms, 0.5)
    assert learnt_ms(story) < 1


def test_actions_that_were_lost_leave_nothing_on_the_way() -> None:
    """A failed action reports nothing of its inputs; the inputs of the next reported action were behind
    them."""
    story = adaptive(spec(1))
    for at_ms in range(0, 100, 10):
        story.at(at_ms + 1).done(send(story, at_ms), 0, Status.EXECUTION_FAILED, "it broke")
    story.until(300)
    assert under_way(story) > 0
    send_large(story, 400, 0.5)
    assert under_way(story) == 0


# ----- inputs in clients' memory -------------------------------------------------------------------


def send_copied(story: Story, at_ms: float, way_ms: float, status: Status = Status.OK) -> None:
    """A request with large inputs in its client's memory comes and is sent; their copies have ended way_ms
    later."""
    _, [order] = story.at(at_ms).request(slo_ms=200, copied=LARGE)
    assert isinstance(order, SendInfer)
    story.at(at_ms + way_ms + 5.2).done(order, 5, status, ready_ms=at_ms + way_ms)


def copies_ms(story: Story) -> float:
    """Return the predicted time of a request's copies."""
    story.tick()
    return float(story.scheduler.devices()[0]["copies_mb_ns"]) * LARGE / 1e6 / MS


def test_copies_from_clients_memory_are_a_part_of_what_is_predicted() -> None:
    """Copies take 20 ms each, so that none with an SLO of 22 ms can be in time: sent inputs can, and small
    ones."""
    story = adaptive(spec(1))
    for at_ms in range(0, 1000, 100):
        send_copied(story, at_ms, 20)
    assert copies_ms(story) == pytest.approx(20 - DELAY_MS, rel=0.01)
    assert learnt_ms(story) == 0, "nothing was learnt of the way to the worker"
    _, commands = story.at(1000).request(slo_ms=22, copied=LARGE)
    assert SendInfer not in [type(one) for one in commands]
    story.until(1050)
    _, commands = story.at(1100).request(slo_ms=22, size=LARGE)
    assert [type(one) for one in commands] == [SendInfer]


def test_what_is_learnt_of_copies_is_forgotten_when_none_are_seen() -> None:
    story = adaptive(spec(1))
    for at_ms in range(0, 1000, 100):
        send_copied(story, at_ms, 20)
    story.at(925.2 + 1001)
    assert copies_ms(story) == 0
    _, commands = story.request(slo_ms=22, copied=LARGE)
    assert [type(one) for one in commands] == [SendInfer]


def test_inputs_that_are_sent_do_not_wait_for_copies() -> None:
    """The bound holds however many bytes a client claims to have in its memory while its request is under
    way."""
    story = adaptive(spec(1), spec(2), devices=2, pages=2, resident=False)
    for number in (1, 2):
        _, [load] = story.request(number, slo_ms=0)
        [first] = story.done(load, 4)
        story.done(first, 5)
    for at_ms in range(0, 1000, 100):
        send_copied(story, at_ms, 20)
    story.at(1000).request(1, slo_ms=0, copied=1 << 40)
    assert under_way(story) < 100
    _, commands = story.request(2, slo_ms=22, size=LARGE)
    assert [type(one) for one in commands] == [SendInfer]


def test_a_request_that_refers_to_nothing_teaches_nothing() -> None:
    """The request is refused at once, because its bytes were not copied in that time."""
    story = adaptive(spec(1))
    for at_ms in range(0, 1000, 100):
        send_copied(story, at_ms, 20)
        send_copied(story, at_ms + 50, 0.2, Status.INVALID_INPUT)
    assert copies_ms(story) == pytest.approx(20 - DELAY_MS, rel=0.01)


def promising(way_ms: float) -> Story:
    """A story of `edf` in which the inputs of a request have taken so long lately; the time is 1000 ms.

    Model 1 takes 5 ms, model 2 takes 50 ms.
    """
    story = Story("edf", spec(1), spec(2, exec_ms=50))
    for at_ms in range(0, 1000, 100):
        send_large(story, at_ms, way_ms)
    story.at(1000)
    assert learnt_ms(story) == pytest.approx(way_ms - DELAY_MS, rel=0.01)
    return story


def test_a_promise_counts_the_time_of_inputs() -> None:
    """5 ms of execution and 20 ms for inputs do not fit into 24 ms. The worker would be told too late."""
    story = promising(20)
    _, [refusal] = story.request(slo_ms=24, size=LARGE)
    assert refusal.status is Status.REFUSED
    _, [order] = story.request(slo_ms=30, size=LARGE)
    assert isinstance(order, SendInfer)


def test_a_promised_batch_leaves_early_by_the_time_of_its_inputs() -> None:
    """Otherwise the device would wait for them, and the promises behind would be broken."""
    story = promising(20)
    story.request(2, slo_ms=500)
    _, commands = story.request(1, slo_ms=500, size=LARGE)
    assert commands == []
    [(at_ms, order)] = story.until(1050)
    assert isinstance(order, SendInfer)
    lead_ms = 5
    assert at_ms == pytest.approx(1050 - lead_ms - 20, abs=2)


def test_a_batch_that_cannot_have_all_its_inputs_in_time_is_sent_with_fewer() -> None:
    """Two requests that were planned as a batch are sent late: the inputs of both would miss the window."""
    story = Story("edf", spec(1, batch_max=2), spec(2, exec_ms=50))
    for at_ms in range(0, 1000, 100):
        send_large(story, at_ms, 20)
    story.at(1000)
    _, [first] = story.request(2, slo_ms=500)
    asked = [story.request(1, slo_ms=110, size=LARGE)[0] for _ in range(2)]
    story.at(1070)  # the controller stood still
    assert stories.told(story.done(first, 69))[1:] == [
        ("deadline_missed", asked[0]),
        ("infer", 1, (asked[1],)),
    ]
