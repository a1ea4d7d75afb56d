"""Loads and evictions as stories: which models, where and when; under a policy that does not interfere."""

from __future__ import annotations

import pytest

from clockwork.scheduler.types import (
    LinkMeasured,
    ModelReady,
    ModelSpec,
    SendInfer,
    SendLoad,
    SendUnload,
    Tick,
    WorkerJoined,
)
from clockwork.wire.messages import Status
from tests.unit.stories import LINK, MS, Story, spec, told

BOTH = pytest.mark.parametrize("memory", ["adaptive", "paper"])


def story_of(memory: str, *specs: ModelSpec, **more: int) -> Story:
    return Story("fifo", *specs, memory=memory, options={"schedule_ahead_ms": 0}, **more)  # type: ignore[arg-type]


def serve(story: Story, ms: float, model: int) -> None:
    """A request for a resident model, from arrival to answer."""
    _, [send] = story.at(ms).request(model)
    assert isinstance(send, SendInfer)
    story.at(ms + 5.2).done(send)


@BOTH
def test_a_request_for_a_cold_model_loads_it_and_waits(memory: str) -> None:
    story = story_of(memory, spec(1), resident=False)
    one, [load] = story.request(1)
    assert told([load]) == [("load", 1)]
    [send] = story.at(4.3).done(load, 4)
    assert send.requests == (one,)
    [answer] = story.at(9.6).done(send)
    assert answer.load_ns == 4 * MS


@BOTH
def test_one_load_serves_all_who_wait_for_it(memory: str) -> None:
    story = story_of(memory, spec(1, batch_max=4), resident=False, devices=2)
    one, [load] = story.request(1)
    others = story.ask(1, 1)
    [send] = story.at(4.3).done(load, 4)
    assert send.requests == (one, *others)


@BOTH
def test_a_load_that_failed_is_tried_again_and_then_answered(memory: str) -> None:
    story = story_of(memory, spec(1), resident=False)
    one, [load] = story.request(1)
    for _ in range(2):
        [load] = story.done(load, 0, Status.DEVICE_ERROR, "no")
        assert told([load]) == [("load", 1)]
    assert told(story.done(load, 0, Status.DEVICE_ERROR, "no")) == [("unavailable", one)]


@BOTH
def test_what_is_in_flight_or_being_loaded_is_not_evicted(memory: str) -> None:
    story = story_of(memory, spec(1), pages=4)
    for model in (2, 3):
        story(ModelReady(story.now, 1, spec(model)))
    _, [send] = story.request(1)
    _, [load] = story.request(2)
    assert story.request(3)[1] == []
    commands = story.at(5.2).done(send)
    assert told(commands)[1:] == [("unload", 1), ("load", 3)]
    assert load.model_id == 2


@BOTH
def test_a_load_whose_requests_are_gone_is_not_sent(memory: str) -> None:
    story = story_of(memory, spec(1), spec(2), pages=4, run_ahead=1)
    story(ModelReady(story.now, 1, spec(3, load_ms=30)))
    story(ModelReady(story.now, 1, spec(4)))
    story.request(1)
    _, [unload, load] = story.request(3, 60)
    assert told([unload, load]) == [("unload", 2), ("load", 3)]
    [late] = story.ask(4, slo_ms=20)
    assert told([order for _, order in story.until(28)])[:1] == [("deadline_missed", late)]
    commands = story.at(30.2).done(load, 30)
    assert [one for one in commands if isinstance(one, SendLoad | SendUnload)] == []


def test_paper_evicts_the_least_recently_used_of_those_nobody_waits_for() -> None:
    story = story_of("paper", spec(1), spec(2), spec(3), pages=6)
    for ms, model in ((0, 3), (10, 1), (20, 2)):
        serve(story, ms, model)
    story(ModelReady(story.now, 1, spec(4)))
    assert told(story.at(30).request(4)[1]) == [("unload", 3), ("load", 4)]


def test_adaptive_evicts_the_least_asked_for_even_if_it_was_used_last() -> None:
    story = story_of("adaptive", spec(1), spec(2), spec(3), pages=6)
    for turn in range(10):
        serve(story, 20 * turn, 1 + turn % 2)
    serve(story, 300, 3)
    story(ModelReady(story.now, 1, spec(4)))
    assert told(story.at(400).request(4)[1]) == [("unload", 3), ("load", 4)]


def test_adaptive_counts_what_a_model_costs_per_page() -> None:
    story = story_of("adaptive", spec(1, runs=(1,), load_ms=2), spec(2, runs=(3,), load_ms=2), pages=4)
    for turn in range(6):
        serve(story, 20 * turn, 1 + turn % 2)
    story(ModelReady(story.now, 1, spec(3, runs=(1,))))
    assert told(story.at(400).request(3)[1]) == [("unload", 2), ("load", 3)]


def test_adaptive_finds_the_least_asked_for_where_many_have_to_go() -> None:
    # execution times of 1 to 20 ms, in no order
    times = {model: 1 + 7 * model % 20 for model in range(1, 21)}
    story = story_of("adaptive", *(spec(model, runs=(1,)) for model in times), pages=20)
    turns = [model for turn in range(20) for model in times if times[model] > turn]
    for place, model in enumerate(turns):
        serve(story, 10 * place, model)
    story(ModelReady(story.now, 1, spec(21, runs=(1,) * 12)))
    *unloads, load = told(story.at(10 * len(turns)).request(21, 1000)[1])
    assert load == ("load", 21)
    least = sorted(times, key=lambda model: times[model])[:12]
    assert sorted(unloads) == sorted(("unload", model) for model in least)


def serve_two(story: Story, ms: float) -> list[SendLoad]:
    """Two requests at once, with loose SLOs, of which one waits for the other; return the loads ordered
    meanwhile."""
    _, [send] = story.at(ms).request(1, 500)
    _, loads = story.request(1, 500)
    _, send, *_ = story.at(ms + 2.2).done(send, 2)
    story.at(ms + 4.4).done(send, 2)
    return loads


def test_adaptive_copies_a_model_that_is_asked_for_all_the_time_into_free_pages_of_an_idle_device() -> None:
    """Nothing is late, but the second device would stay idle."""
    story = story_of("adaptive", spec(1, exec_ms=2, load_ms=20), devices=2, pages=2, run_ahead=1)
    loads: list[SendLoad] = []
    for turn in range(1000):
        loads += serve_two(story, 5 * turn)
        if loads:
            break
    assert [(one.model_id, one.device) for one in loads] == [(1, 1)]


def test_adaptive_leaves_an_idle_device_empty_for_who_comes_once_in_a_while() -> None:
    story = story_of("adaptive", spec(1, exec_ms=2, load_ms=20), devices=2, pages=2, run_ahead=1)
    assert [serve_two(story, 500 * turn) for turn in range(10)] == [[]] * 10


def test_devices_that_share_a_link_fill_evenly() -> None:
    story = story_of("adaptive", *(spec(model) for model in range(1, 5)), devices=4, pages=8, resident=False)
    places, loads = [], []
    for model in range(1, 5):
        loads += story.request(model)[1]
    while loads:
        load = loads.pop(0)
        places.append(load.device)
        loads += [one for one in story.at(4 * len(places)).done(load, 4) if isinstance(one, SendLoad)]
    assert sorted(places) == [0, 1, 2, 3]


def test_a_model_that_found_no_room_gets_it_when_the_other_is_idle_again() -> None:
    """No event happens on the device then that would start a check."""
    story = story_of("adaptive", spec(1, exec_ms=1), pages=2)
    story(ModelReady(story.now, 1, spec(2)))
    _, [send] = story.request(1)
    story.ask(2)
    assert len(story.at(1.2).done(send, 1)) == 1
    assert told([order for _, order in story.until(10)]) == [("unload", 1), ("load", 2)]


def test_adaptive_replicates_a_model_onto_an_idle_device_as_soon_as_a_request_would_be_late() -> None:
    story = story_of("adaptive", spec(1, exec_ms=20, load_ms=4), devices=2, pages=2)
    _, [send] = story.request(1, 100)
    waiting = story.ask(1, 1, 1, slo_ms=100)  # the fourth ends after 80.4 ms
    _, [load] = story.request(1, 100)
    assert told([load]) == [("load", 1)]
    assert load.device == 1
    [send] = story.at(4.4).done(load, 4)
    assert (send.device, send.requests) == (1, (waiting[0],))


def test_adaptive_looks_for_a_device_again_when_more_requests_of_a_model_that_asks_would_be_late() -> None:
    """The model asks already, since one waits for long that no copy would serve sooner."""
    story = story_of("adaptive", spec(1, exec_ms=10, load_ms=8), devices=3, pages=2, run_ahead=1)
    story.request(1, 60)
    story.ask(1, slo_ms=60)
    assert story.at(9).request(1, 60)[1] == []
    assert story.at(9.6).request(1, 21)[1] == []
    _, [load] = story.request(1, 21)  # the first device would end it after 30.4 ms
    assert told([load]) == [("load", 1)]


def test_adaptive_expects_a_waiting_request_on_the_device_that_is_free_first() -> None:
    """Half of it on each of two devices made the one that it occupies look free."""
    story = story_of("adaptive", spec(1, exec_ms=10, load_ms=1), devices=2, pages=4, run_ahead=1)
    story(ModelReady(story.now, 1, spec(2, exec_ms=10, load_ms=1)))
    _, [here] = story.request(1, 18)
    _, [load] = story.request(1, 18)
    [there] = story.at(1.4).done(load, 1)
    story.at(10.2).done(here)
    story.at(11.8).done(there)
    _, [first] = story.at(20).request(1)
    _, [second] = story.at(26).request(1)
    assert story.at(28).request(1, 22)[1] == []  # behind the first
    _, [load] = story.at(28.1).request(2, 40)
    assert first.device != second.device == load.device


def test_the_link_of_a_worker_has_run_ahead_loads_at_once() -> None:
    story = story_of("adaptive", *(spec(model) for model in range(1, 5)), devices=2, pages=8, resident=False)
    sent = [told(story.request(model)[1]) for model in range(1, 5)]
    assert sent == [[("load", 1)], [("load", 2)], [], []]


def test_no_load_is_sent_behind_one_that_is_overdue() -> None:
    """It would wait in the worker, and its request might be over before it begins."""
    story = story_of("adaptive", *(spec(model) for model in range(1, 6)), devices=2, pages=10, resident=False)
    first, *_ = [order for model in range(1, 6) for order in story.request(model, 1000)[1]]
    assert [order for _, order in story.until(100) if isinstance(order, SendLoad)] == []
    assert ("load", 3) in told(story.at(100).done(first, 100))


def test_adaptive_keeps_a_far_link_filled_for_a_round_trip() -> None:
    story = story_of("adaptive", *(spec(model, load_ms=2) for model in range(1, 5)), pages=8, resident=False)
    story(LinkMeasured(story.now, 1, 3 * MS, 3 * MS))
    sent = [told(story.request(model, 500)[1]) for model in range(1, 5)]
    assert sent == [[("load", 1)], [("load", 2)], [], []]
    story.at(
        1
    )  # the second ends at 7.2 ms: an order that leaves now arrives in time, before the first result is back
    assert told(story(Tick(story.now))) == [("load", 3)]
    assert story.wake == story.now + 2.1 * MS


def test_paper_loads_where_the_link_is_free_within_schedule_ahead() -> None:
    story = story_of("paper", *(spec(model) for model in range(1, 5)), devices=2, pages=8, resident=False)
    sent = [told(story.request(model)[1]) for model in range(1, 5)]
    assert sent == [[("load", 1)], [("load", 2)], [], []]


def test_paper_stops_loading_a_model_whose_devices_suffice() -> None:
    """The original never stopped: it compared a pointer with zero."""
    story = story_of("paper", spec(1), workers=3, pages=2)
    for turn in range(20):
        _, [send] = story.at(10 * turn).request(1)
        assert isinstance(send, SendInfer)
        assert len(story.at(10 * turn + 5.2).done(send)) == 1


def asked_while_the_link_is_busy(story: Story, *asked: tuple[int, float]) -> list[int]:
    """Return the models loaded one after the other, of those requested (with an SLO, ms) while another is."""
    _, [load] = story.request(1, 500)
    for model, slo_ms in asked:
        assert story.request(model, slo_ms)[1] == []
    order = []
    for turn in range(len({model for model, _ in asked})):
        commands = story.at(10 * turn + 10).done(load, 10)
        [load] = [one for one in commands if isinstance(one, SendLoad)]
        order.append(load.model_id)
    return order


def test_adaptive_loads_first_what_has_to_begin_the_soonest() -> None:
    story = story_of(
        "adaptive", *(spec(model, load_ms=10) for model in (1, 2, 3)), resident=False, run_ahead=1, pages=9
    )
    assert asked_while_the_link_is_busy(story, (2, 400), (3, 100)) == [3, 2]


def test_adaptive_puts_back_a_long_load_that_would_make_two_others_late() -> None:
    specs = [spec(1, load_ms=10), spec(2, load_ms=60), spec(3, load_ms=10), spec(4, load_ms=10)]
    story = story_of("adaptive", *specs, resident=False, run_ahead=1, pages=9)
    assert asked_while_the_link_is_busy(story, (2, 90), (3, 60), (4, 65)) == [3, 4, 2]


def test_adaptive_orders_loads_by_when_they_have_to_be_done() -> None:
    """The long load (2) has to begin before the short one (3), and both are in time if the short one goes
    first."""
    specs = [spec(1, load_ms=10), spec(2, load_ms=60), spec(3, load_ms=10), spec(4, load_ms=10)]
    story = story_of("adaptive", *specs, resident=False, run_ahead=1, pages=9)
    asked = [(2, 110.0)] * 7 + [(3, 68.0), (4, 215.0)]
    assert asked_while_the_link_is_busy(story, *asked) == [3, 2, 4]


def test_a_pressed_model_that_all_devices_have_puts_nobody_back() -> None:
    """A load of model 1 and one of model 2, which has few requests, could not both be in time; but 1 can be
    loaded nowhere else."""
    story = story_of("adaptive", spec(1, exec_ms=100, load_ms=60), pages=8, run_ahead=1)
    for model, load_ms in ((2, 30), (3, 10), (4, 10)):
        story(ModelReady(story.now, 1, spec(model, load_ms=load_ms)))
    _, [send] = story.request(1, 290)
    story.ask(*[1] * 8, slo_ms=290)
    [_, send] = story.at(100.2).done(send, 100)
    assert send.model_id == 1, "late: more than a quarter of its time is over"
    _, [load] = story.at(101).request(4, 200)
    story.ask(2, slo_ms=87)
    story.ask(3, slo_ms=200)
    assert told(story.at(111).done(load, 10)) == [("load", 2)]


def test_a_model_that_has_to_go_from_the_only_device_that_has_it_is_loaded_elsewhere_at_once() -> None:
    """The request is not late; but nothing new is sent to a device on which it is doomed."""
    one = spec(1, exec_ms=6)
    story = Story("fifo", one, pages=2, memory="adaptive", options={"schedule_ahead_ms": 10})
    story(ModelReady(story.now, 1, spec(2)))
    story(WorkerJoined(story.now, 2, (("cpu", 1 << 20, 2, 1),)))
    story(LinkMeasured(story.now, 2, LINK, LINK))
    story(ModelReady(story.now, 2, one))
    _, [send] = story.request(1, 1000)
    assert len(story.request(1, 1000)[1]) == 1, "it is sent ahead"
    story.ask(1, slo_ms=1000)
    story.ask(2, slo_ms=40)
    [_, load] = story.at(6.2).done(send, 6)
    assert (load.model_id, load.worker) == (1, 2)


def strangers(story: Story, count: int) -> None:
    """More workers, of one device each, that have prepared a model other than 1, and are idle."""
    for worker in range(2, 2 + count):
        story(WorkerJoined(story.now, worker, (("cpu", 1 << 20, 4, 1),)))
        story(LinkMeasured(story.now, worker, LINK, LINK))
        story(ModelReady(story.now, worker, spec(2)))


def test_a_spare_copy_finds_its_device_behind_many_that_cannot_have_it() -> None:
    one = spec(1, exec_ms=2, load_ms=20)
    story = story_of("adaptive", one, pages=2, run_ahead=1)
    strangers(story, 20)
    story(ModelReady(story.now, 21, one))
    loads: list[SendLoad] = []
    for turn in range(1000):
        loads += serve_two(story, 5 * turn)
        if loads:
            break
    assert [(load.model_id, load.worker) for load in loads] == [(1, 21)]


def test_a_device_with_fewer_models_is_preferred_to_one_that_would_be_a_moment_sooner() -> None:
    """A difference of 10 us is negligible against demand for more models."""
    story = story_of("adaptive", spec(1), spec(2), pages=8)
    story(WorkerJoined(story.now, 2, (("cpu", 1 << 20, 8, 2),)))
    story(LinkMeasured(story.now, 2, LINK + 5_000, LINK))
    story(ModelReady(story.now, 1, spec(3)))
    story(ModelReady(story.now, 2, spec(3)))
    _, [load] = story.at(100).request(3)
    assert load.worker == 2


def test_edf_says_why_it_takes_no_other_memory_rules() -> None:
    with pytest.raises(ValueError, match="promises times on loads"):
        Story("edf", spec(1), memory="paper")
