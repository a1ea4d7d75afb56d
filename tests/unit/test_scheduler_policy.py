"""Policies in Python: how they are named and called, what their hooks see and may do, and when they are
ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from clockwork.controller.settings import check_policy
from clockwork.errors import ConfigError, PolicyFailed
from clockwork.scheduler import known_options, make_scheduler
from clockwork.scheduler.policy import Batch, Device, Policy, Queue
from clockwork.wire.messages import Reason, Status
from tests.unit import policies
from tests.unit.stories import LINK, MS, Story, spec, told

HERE = "tests.unit.policies"
FIFO = "examples.fifo_policy:Fifo"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (":Fifo", "policy ':Fifo' is not MODULE:CLASS"),
        ("examples.fifo_policy:", "policy 'examples.fifo_policy:' is not MODULE:CLASS"),
        ("nowhere.at_all:Fifo", "policy 'nowhere.at_all:Fifo': there is no module 'nowhere.at_all'"),
        ("examples.fifo_policy:Lifo", "policy 'examples.fifo_policy:Lifo': module 'examples.fifo_policy' has no 'Lifo'"),
        ("json:JSONDecoder", "JSONDecoder is not a subclass of clockwork.scheduler.policy.Policy"),
        ("json:loads", "loads is not a subclass of"),
        (f"{HERE}:Incomplete", "Incomplete lacks choose"),
        (f"{HERE}:HALF_DONE", "HALF_DONE lacks choose, rank_ns"),
    ],
)  # fmt: skip
def test_what_is_no_policy_is_named(name: str, words: str) -> None:
    for use in (make_scheduler, known_options, lambda one: check_policy(one, save_devices=False)):
        with pytest.raises(ConfigError, match=words):
            use(name)


def test_a_module_that_lacks_another_says_which(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_alone.py").write_text("import not_installed_here\n")
    monkeypatch.chdir(tmp_path)  # modules are also looked for there
    with pytest.raises(ConfigError, match="no module 'mine_alone': it imports not_installed_here"):
        make_scheduler("mine_alone:Mine")


def test_options_reach_the_class_and_no_others_do() -> None:
    assert known_options(FIFO) == (
        "batch_cap",
        "queue_delay_ms",
        "schedule_ahead_ms",
        "drop",
        "stored_copies",
    )
    story = Story(FIFO, spec(1, batch_max=4), options={"batch_cap": 2, "schedule_ahead_ms": 0})
    [first] = story.request()[1]
    asked = story.ask(1, 1, 1)
    assert told(story.at(5.2).done(first))[1:] == [("infer", 1, (asked[0], asked[1]))]
    with pytest.raises(ConfigError, match=f"policy {FIFO} has no option 'speed' \\(it has batch_cap, queue"):
        make_scheduler(FIFO, options={"speed": 1})
    with pytest.raises(ConfigError, match="batch_cap is not between 0 and a million"):
        make_scheduler(FIFO, options={"batch_cap": -1})
    with pytest.raises(ConfigError, match=r"'greedy' \(there are paper, adaptive\)"):
        make_scheduler(FIFO, memory="greedy")
    with pytest.raises(ConfigError, match="cannot keep few devices busy"):
        check_policy(FIFO, save_devices=True)


def test_hooks_see_what_there_is() -> None:
    story = Story(f"{HERE}:Looks", spec(1, batch_max=4), spec(2), workers=1, options={"schedule_ahead_ms": 0})
    [busy] = story.request(2)[1]
    first, _ = story.at(1).request(1, 50, priority=3)
    others = [story.at(2).request(1, 60, priority=3, rows=2)[0], story.request(1, 70, priority=3)[0]]
    story.ask(2, priority=5)
    [_, *sent] = story.at(5.2).done(busy)
    assert told(sent) == [("infer", 1, (first, *others))]
    seen, begin = policies.Looks.seen, 1000 * MS
    assert seen["now_ns"] == begin + 5.2 * MS
    assert seen["device"] == (1, 0, 0, LINK, LINK)
    assert seen["free_ns"] == seen["now_ns"] + LINK
    assert seen["queues"] == [(1, 3, 4, 3), (2, 1, 1, 5)]
    assert seen["first"] == (first, begin + 1 * MS, begin + 51 * MS, 1, 3, False)
    assert seen["ids"] == [first, *others]
    assert seen["last"] == others[-1]
    assert seen["batch_max"] == (4, 4)
    assert 6 * MS < seen["planned_ns"] == seen["least_ns"] < 6.5 * MS
    assert begin + 45 * MS < seen["last_start_ns"] < begin + 46 * MS
    assert seen["fit"] == (1, 3, 2)
    assert not seen["is_plain"]
    assert seen["devices"] == [(1, 0)]
    assert seen["shape"] > 0


def test_a_request_is_refused_at_arrival_with_what_would_do() -> None:
    for feasible_ms, feasible_ns in ((250, 250 * MS), (0, 0)):
        story = Story(
            f"{HERE}:Refuses",
            spec(1),
            options={"schedule_ahead_ms": 0, "queue_delay_ms": 50, "feasible_ms": feasible_ms},
        )
        story.request(1)
        story.request(1)
        story.request(1)
        request, [answer] = story.request(1)
        assert (answer.request_id, answer.status, answer.reason) == (
            request,
            Status.REFUSED,
            Reason.DEADLINE,
        )
        assert answer.feasible_slo_ns == feasible_ns


def asked_once(policy: str) -> None:
    Story(policy, spec(1)).request()


@pytest.mark.parametrize(
    ("name", "hook", "cause"),
    [
        ("FailsInChoose", "choose", LookupError),
        ("FailsInRank", "rank_ns", IndexError),
        ("FailsInReady", "ready_ns", TypeError),
        ("FailsInHopeless", "hopeless_ns", OverflowError),
        ("FailsInAdmit", "admit", TypeError),
        ("Keeps", "choose", RuntimeError),
        ("DropsTooEarly", "rank_ns", RuntimeError),
    ],
)
def test_a_hook_that_fails_ends_the_step_with_its_error(name: str, hook: str, cause: type) -> None:
    with pytest.raises(
        PolicyFailed, match=f"^policy {HERE}:{name}: {hook}\\(\\) failed: {cause.__name__}: "
    ) as found:
        asked_once(f"{HERE}:{name}")
    assert type(found.value.__cause__) is cause


def test_a_failure_within_a_hook_is_raised_although_that_hook_goes_on() -> None:
    story = Story(f"{HERE}:Swallows", spec(1), options={"schedule_ahead_ms": 0})
    [busy] = story.request()[1]
    story.ask(1, 1)
    with pytest.raises(PolicyFailed, match=r"hopeless_ns\(\) failed: LookupError: the red one"):
        story.at(5.2).done(busy)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (lambda device, queue: queue, "which is neither a Batch nor None"),
        (lambda device, queue: Batch(queue, 0), "it chose 0 requests from place 0 on, of a queue of 1"),
        (lambda device, queue: Batch(queue, 2), "it chose 2 requests from place 0 on, of a queue of 1"),
        (lambda device, queue: Batch(queue, 1, -1), "it chose 1 requests from place -1 on"),
        (lambda device, queue: Batch(queue, 1 << 40), "of a queue of 1"),
        (lambda device, queue: device.planned_ns(queue, -1), "a batch of -1 rows"),
        (lambda device, queue: queue.fit(1, 1), "a queue of 1 requests has none at 1"),
        (lambda device, queue: Device().free_ns, "a Device is kept for after the hook that saw it"),
        (lambda device, queue: Queue()[0], "a Queue is kept for after the hook that saw it"),
        (lambda device, queue: (first := queue[0], queue.drop(first), queue.drop(first)), "does not wait in this queue"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_not_chosen(
    chosen: Callable[[Device, Queue], Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies.Chooses, "chosen", staticmethod(chosen))
    story = Story(f"{HERE}:Chooses", spec(1), resident=False)
    [load] = story.request()[1]
    with pytest.raises(PolicyFailed, match=words):
        story.done(load, 4)


def test_a_batch_is_no_larger_than_the_model_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        policies.Chooses, "chosen", staticmethod(lambda device, queue: Batch(queue, len(queue)))
    )
    story = Story(f"{HERE}:Chooses", spec(1, batch_max=2), options={"schedule_ahead_ms": 0})
    [busy] = story.request()[1]
    story.ask(1, 1, 1)
    with pytest.raises(
        PolicyFailed, match="it chose 3 requests from place 0 on, of which 2 may share a batch"
    ):
        story.at(5.2).done(busy)


def test_hooks_that_a_class_leaves_alone_are_the_bases() -> None:
    """Defaults equal the native ones: read here from the base class, which C++ does not ask."""

    class Plain(Policy):
        def choose(self, now_ns: int, device: Device) -> Batch | None:
            return None

        def rank_ns(self, now_ns: int, queue: Queue) -> int:
            return 0

    plain: Any = Plain({})
    request: Any = type("Waiting", (), {"deadline_ns": 7})()
    assert (plain.ready_ns(5, None), plain.hopeless_ns(5, None, request), plain.admit(5, None, request)) == (
        0,
        7,
        None,
    )
