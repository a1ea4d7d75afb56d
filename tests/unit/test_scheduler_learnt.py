"""The learnt state of schedulers, as status shows it, and how it is forgotten."""

from __future__ import annotations

import pytest

from tests.unit.stories import Story, spec

MODEL = spec(1, exec_ms=10, batch_max=8, row_ms=0.5)
PERCENT = 0.01


def margin(story: Story) -> float:
    return float(story.scheduler.devices()[0]["margin"])


def run(story: Story, begin_ms: float, took_ms: list[float]) -> float:
    """Run executions one after another, 50 ms apart; return when the next may begin."""
    for took in took_ms:
        _, [send] = story.at(begin_ms).request(1, slo_ms=1000)
        story.at(begin_ms + took + 0.2).done(send, took)
        begin_ms += 50
    return begin_ms


def raised(story: Story) -> float:
    """Every tenth execution takes more than an eighth longer than the others."""
    return run(story, 0, [11.4 if number % 10 == 0 else 10 for number in range(400)])


def test_what_one_in_ten_executions_needs_becomes_the_margin() -> None:
    story = Story("adaptive", MODEL)
    raised(story)
    assert 6 * PERCENT < margin(story) < 15 * PERCENT


def test_without_executions_the_rest_of_it_halves_every_two_seconds() -> None:
    story = Story("adaptive", MODEL)
    end_ms = raised(story)
    learnt = margin(story)
    for halves in range(1, 6):
        story.at(end_ms + 2_000 * halves).tick()
        assert abs(margin(story) - (1 * PERCENT + (learnt - 1 * PERCENT) / 2**halves)) < 1e-9
    story.at(end_ms + 200_000).tick()
    assert abs(margin(story) - 1 * PERCENT) < 1e-9


@pytest.mark.parametrize("policy", ["edf", "adaptive"])
def test_who_asks_for_more_than_its_share_of_a_device_is_shown(policy: str) -> None:
    story = Story(policy, spec(1, exec_ms=20), spec(2, exec_ms=20))
    quiet = story.scheduler.devices()[0]
    assert (quiet["contested_ns"], quiet["level"], quiet["shares"], quiet["beyond"]) == (0, 0, [], 0)
    for number in range(600):  # three seconds of 200/s, four times the device's capacity, and of 5/s
        story.at(number * 5).request(1)
        if number % 40 == 0:
            story.request(2)
    flooded = story.scheduler.devices()[0]
    assert 0 < flooded["contested_ns"] <= 2_000_000_000
    assert [(one["model"], one["standing"]) for one in flooded["shares"]] == [(1, "beyond"), (2, "within")]
    assert 3.5 < flooded["shares"][0]["asked"] < 4.5
    assert flooded["beyond"] == 1
    assert flooded["level"] == pytest.approx(1 - flooded["shares"][1]["asked"], abs=0.01)
    assert story.scheduler.devices()[0] == flooded  # reading changes nothing


def test_what_arrives_is_shown_as_a_need_that_fades() -> None:
    story = Story("adaptive", MODEL)
    run(story, 0, [10] * 100)
    now = story.now
    learnt = story.scheduler.policy_status(now)
    assert 0 < learnt["need"] < 1
    assert 0.5 <= learnt["pace"] <= 1
    later = story.scheduler.policy_status(now + 14_000_000_000)  # a time ten half-lives later
    assert later["need"] < learnt["need"] / 500
    assert story.scheduler.policy_status(now) == learnt
    assert Story("edf", MODEL).scheduler.policy_status(now) == {}
