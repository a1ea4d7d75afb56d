"""Stories of workers and clients that obey the highest epoch, and of a new active's inheritance."""

from __future__ import annotations

from clockwork.config.takeover import (
    BEAT_NS,
    ORDERS_REMEMBERED_MAX,
    RECONNECT_NS,
    RESULTS_KEPT_MAX,
    RESULTS_KEPT_NS,
    SETTLE_NS,
    WORKER_SEEN_NS,
)
from clockwork.takeover.asker import Asker, Deliver, RequestMade
from clockwork.takeover.follower import LedWorker, OrderDone, RunOrder
from clockwork.takeover.inheritance import Inheritance
from clockwork.takeover.messages import (
    ActiveIs,
    Admitted,
    AskedRequest,
    AskOutcome,
    Beat,
    Deed,
    Heard,
    Holdings,
    KeepNotes,
    LearntNotes,
    LedOrder,
    Linked,
    NotActive,
    OrderEnded,
    Superseded,
    TellPeer,
    TimeCame,
    ToldAnswer,
    Unlinked,
)
from clockwork.takeover.obedience import NO_LEADER, Leader, Obedience

MS = 1_000_000
ALICE = Leader(1, "alice/1", ("alice",))
BOB = Leader(2, "bob/1", ("bob",))
BOTH = ("alice", "bob")
REQUEST = ("client", 7)


def infer(leader: Leader, action: int = 1) -> LedOrder:
    return LedOrder(leader, action, Deed.INFER, "model", 3, REQUEST)


def load(leader: Leader, action: int = 1) -> LedOrder:
    return LedOrder(leader, action, Deed.LOAD, "model", 3, None)


# ----- obedience -----------------------------------------------------------------------------------


def test_the_highest_epoch_is_obeyed() -> None:
    obedience = Obedience()
    assert obedience.see(BOB)
    assert not obedience.see(ALICE)
    assert not obedience.see(BOB)
    assert obedience.leader == BOB
    assert obedience.refuses(ALICE)
    assert not obedience.refuses(BOB)
    assert not obedience.refuses(Leader(3, "carol/1", ()))


def test_a_second_holder_of_an_epoch_is_refused() -> None:
    obedience = Obedience()
    obedience.see(BOB)
    assert obedience.refuses(Leader(2, "carol/1", ("carol",)))


def test_epochs_of_another_cluster_are_its_own() -> None:
    """A worker outlives its cluster, whose successor begins with epoch 1 again."""
    obedience = Obedience()
    obedience.see(BOB)
    other = Leader(1, "dave/1", ("dave",), "another")
    assert not obedience.refuses(other)
    assert obedience.see(other)
    assert obedience.leader == other


def test_a_controller_without_an_epoch_is_no_leader() -> None:
    obedience = Obedience()
    obedience.see(BOB)
    assert not obedience.see(NO_LEADER._replace(cluster="another"))
    assert obedience.leader == BOB


# ----- a worker ------------------------------------------------------------------------------------


def worker() -> LedWorker:
    """A worker that alice has admitted."""
    made = LedWorker(BOTH, ("model", "other"), 0)
    for name in BOTH:
        made.step(Linked(name), 0)
    [report] = made.step(Heard("alice", ActiveIs(ALICE)), 0)
    assert report == TellPeer("alice", Holdings(ALICE, ("model", "other"), (), ()))
    assert made.step(Heard("alice", Admitted(ALICE)), 0) == []
    return made


def test_a_worker_reports_to_a_new_active_what_it_holds_and_does() -> None:
    made = worker()
    loaded = load(ALICE)
    made.step(Heard("alice", loaded), MS)
    made.step(OrderDone(loaded, 0), 2 * MS)
    running = infer(ALICE, 2)
    assert made.step(Heard("alice", running), 3 * MS) == [RunOrder(running)]
    commands = made.step(Heard("bob", ActiveIs(BOB)), 4 * MS)
    assert commands == [TellPeer("bob", Holdings(BOB, ("model", "other"), ("model",), (running,)))]


def test_a_worker_refuses_a_former_active_and_tells_it_the_higher_epoch() -> None:
    made = worker()
    made.step(Heard("bob", ActiveIs(BOB)), MS)
    assert made.step(Heard("alice", infer(ALICE)), MS) == [TellPeer("alice", Superseded(BOB))]


def test_a_result_goes_to_the_active_of_now_once_it_has_admitted_the_worker() -> None:
    made = worker()
    order = infer(ALICE)
    made.step(Heard("alice", order), MS)
    made.step(Heard("bob", ActiveIs(BOB)), MS)
    assert made.step(OrderDone(order, 42), 2 * MS) == []
    commands = made.step(Heard("bob", Admitted(BOB)), 3 * MS)
    assert commands == [TellPeer("bob", OrderEnded(BOB, order, 42))]


def test_a_report_that_was_not_confirmed_is_repeated_with_each_beat() -> None:
    made = worker()
    made.step(Heard("bob", ActiveIs(BOB)), MS)
    commands = made.step(TimeCame(), BEAT_NS)
    report = TellPeer("bob", Holdings(BOB, ("model", "other"), (), ()))
    assert commands == [TellPeer("alice", Beat(BOB)), TellPeer("bob", Beat(BOB)), report]
    # A standby that was given the lease may not have known it when the first report came.
    assert made.step(Heard("bob", ActiveIs(BOB)), BEAT_NS) == [report]
    made.step(Heard("bob", Admitted(BOB)), BEAT_NS)
    assert made.step(Heard("bob", ActiveIs(BOB)), BEAT_NS) == []


def notes(epoch: int, serial: int) -> LearntNotes:
    return LearntNotes(epoch, serial, b"%d/%d" % (epoch, serial))


def test_a_worker_keeps_the_newest_notes_for_the_next_active() -> None:
    made = worker()
    for serial in (2, 1):  # the first was overtaken
        assert made.step(Heard("alice", KeepNotes(ALICE, notes(1, serial))), MS) == []
    [report] = made.step(Heard("bob", ActiveIs(BOB)), MS)
    assert report == TellPeer("bob", Holdings(BOB, ("model", "other"), (), (), notes(1, 2)))
    made.step(Heard("bob", KeepNotes(BOB, notes(2, 1))), MS)
    assert made.step(Heard("alice", KeepNotes(ALICE, notes(1, 3))), MS) == [
        TellPeer("alice", Superseded(BOB))
    ]
    assert made.notes == notes(2, 1)


def test_a_worker_reports_over_every_new_connection() -> None:
    made = worker()
    made.step(Unlinked("alice"), MS)
    assert made.step(Linked("alice"), MS) == [TellPeer("alice", Holdings(ALICE, ("model", "other"), (), ()))]


def test_an_order_that_comes_twice_is_done_once() -> None:
    made = worker()
    assert made.step(Heard("alice", infer(ALICE)), MS) == [RunOrder(infer(ALICE))]
    assert made.step(Heard("alice", infer(ALICE)), MS) == []
    for action in range(2, ORDERS_REMEMBERED_MAX + 2):
        made.step(Heard("alice", infer(ALICE, action)), MS)
    # The first has been forgotten by now; its number comes from the active, which does not use it again.
    assert made.step(Heard("alice", infer(ALICE)), MS) == [RunOrder(infer(ALICE))]


# ----- a client ------------------------------------------------------------------------------------


def client(*, asks_again: bool = True) -> Asker:
    """A client of alice's."""
    made = Asker(BOTH, asks_again, 0)
    for name in BOTH:
        made.step(Linked(name), 0)
    made.step(Heard("alice", ActiveIs(ALICE)), 0)
    return made


def made_request(made: Asker) -> None:
    commands = made.step(RequestMade(7, "model", 100 * MS), 0)
    assert commands == [TellPeer("alice", AskedRequest(ALICE, 7, "model", 100 * MS))]


def test_a_client_asks_the_new_active_with_the_same_number_and_the_time_that_is_left() -> None:
    made = client()
    made_request(made)
    commands = made.step(Heard("bob", ActiveIs(BOB)), 40 * MS)
    assert commands == [TellPeer("bob", AskedRequest(BOB, 7, "model", 60 * MS))]
    answer = ToldAnswer(BOB, 7, 3, 42)
    assert made.step(Heard("bob", answer), 50 * MS) == [Deliver(7, AskOutcome.OK, answer)]
    assert made.step(Heard("bob", answer), 51 * MS) == []
    assert made.step(TimeCame(), 100 * MS) == []


def test_an_answer_of_a_former_active_is_dropped_and_its_sender_told() -> None:
    made = client()
    made_request(made)
    made.step(Heard("bob", ActiveIs(BOB)), 40 * MS)
    assert made.step(Heard("alice", ToldAnswer(ALICE, 7, 3, 42)), 41 * MS) == [
        TellPeer("alice", Superseded(BOB))
    ]


def test_a_request_past_its_deadline_is_missed_even_if_its_answer_comes_with_it() -> None:
    made = client()
    made_request(made)
    late = ToldAnswer(ALICE, 7, 3, 42)
    assert made.step(Heard("alice", late), 100 * MS) == [Deliver(7, AskOutcome.MISSED, None)]


def test_a_broken_connection_is_asked_over_again_when_it_is_back() -> None:
    made = client()
    made_request(made)
    assert made.step(Unlinked("alice"), 10 * MS) == []
    commands = made.step(Linked("alice"), 20 * MS)
    assert TellPeer("alice", AskedRequest(ALICE, 7, "model", 80 * MS)) in commands


def test_a_request_without_an_active_waits_for_it() -> None:
    made = Asker(BOTH, True, 0)
    made.step(Linked("alice"), 0)
    assert made.step(RequestMade(7, "model", 100 * MS), 0)[1:] == []
    commands = made.step(Heard("alice", ActiveIs(ALICE)), 30 * MS)
    assert commands == [TellPeer("alice", AskedRequest(ALICE, 7, "model", 70 * MS))]


def test_a_controller_that_does_not_know_that_it_is_active_yet_is_asked_again_when_it_does() -> None:
    made = client()
    made.step(Heard("alice", ActiveIs(BOB)), MS)
    [asked] = made.step(RequestMade(7, "model", 100 * MS), MS)
    assert asked == TellPeer("bob", AskedRequest(BOB, 7, "model", 99 * MS))
    assert made.step(Heard("bob", NotActive(ALICE, 7)), 2 * MS) == []
    commands = made.step(Heard("bob", ActiveIs(BOB)), 3 * MS)
    assert commands == [TellPeer("bob", AskedRequest(BOB, 7, "model", 97 * MS))]


def test_a_client_that_is_told_not_to_ask_again_gives_up_what_it_had_sent() -> None:
    made = client(asks_again=False)
    made_request(made)
    assert made.step(Heard("bob", ActiveIs(BOB)), 40 * MS) == [Deliver(7, AskOutcome.LOST, None)]
    # A request that was never sent is not asked again by being sent.
    commands = made.step(RequestMade(8, "model", 100 * MS), 41 * MS)
    assert commands == [TellPeer("bob", AskedRequest(BOB, 8, "model", 59 * MS))]


# ----- a new active --------------------------------------------------------------------------------


def test_a_new_active_loads_nothing_before_its_workers_have_reported() -> None:
    inheritance = Inheritance()
    inheritance.saw("left", 0)
    inheritance.saw("right", WORKER_SEEN_NS)
    inheritance.saw("far", WORKER_SEEN_NS)
    inheritance.begin(2 * WORKER_SEEN_NS)
    begun_ns = 2 * WORKER_SEEN_NS
    assert not inheritance.may_load(begun_ns)
    inheritance.report("right", Holdings(BOB, (), (), ()))
    assert not inheritance.may_load(begun_ns)
    inheritance.report("far", Holdings(BOB, (), (), ()))
    assert inheritance.may_load(begun_ns)  # left had been silent for too long to be expected


def test_the_newest_notes_of_all_reports_are_taken_over() -> None:
    inheritance = Inheritance()
    inheritance.begin(0)
    for name, found in (("left", notes(1, 7)), ("right", notes(2, 1)), ("far", notes(1, 9))):
        inheritance.report(name, Holdings(BOB, (), (), (), found))
    assert inheritance.notes == notes(2, 1)


def test_it_waits_for_them_for_a_bounded_time() -> None:
    inheritance = Inheritance()
    inheritance.saw("right", 0)
    inheritance.begin(0)
    assert not inheritance.may_load(SETTLE_NS - 1)
    assert inheritance.may_load(SETTLE_NS)


def test_a_worker_whose_connection_breaks_may_be_back_soon() -> None:
    inheritance = Inheritance()
    inheritance.saw("right", 0)
    inheritance.begin(0)
    inheritance.report("right", Holdings(BOB, (), (), (infer(ALICE),)))
    inheritance.lose("right", MS)
    assert not inheritance.is_running(REQUEST)
    assert not inheritance.may_load(MS + RECONNECT_NS - 1)
    assert inheritance.may_load(MS + RECONNECT_NS)


def test_a_result_of_the_former_actives_order_waits_for_its_client() -> None:
    inheritance = Inheritance()
    inheritance.begin(0)
    inheritance.report("right", Holdings(BOB, (), (), (infer(ALICE), load(ALICE, 2))))
    assert inheritance.is_running(REQUEST)
    ended = OrderEnded(BOB, infer(ALICE), 42)
    inheritance.keep(ended, MS)
    assert not inheritance.is_running(REQUEST)
    assert inheritance.take(REQUEST) == ended
    assert inheritance.take(REQUEST) is None


def test_kept_results_are_bounded_in_time_and_number() -> None:
    inheritance = Inheritance()
    inheritance.begin(0)
    for number in range(RESULTS_KEPT_MAX + 1):
        order = infer(ALICE)._replace(request=("client", number))
        inheritance.keep(OrderEnded(BOB, order, number), MS)
    assert inheritance.take(("client", 0)) is None
    assert inheritance.take(("client", 1)) is not None
    inheritance.keep(OrderEnded(BOB, infer(ALICE), 42), 2 * MS + RESULTS_KEPT_NS)
    assert inheritance.take(("client", 2)) is None


def test_nobody_is_the_leader_at_first() -> None:
    assert worker().obedience.leader == ALICE
    assert LedWorker(BOTH, (), 0).obedience.leader == Asker(BOTH, True, 0).obedience.leader == NO_LEADER
