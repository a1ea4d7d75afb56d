"""Work beside the loop: one job at a time, the smallest first."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from clockwork.gateway.aside import Aside


def check(story: Callable[[Aside, threading.Event, list[str]], Awaitable[None]]) -> list[str]:
    """The jobs done, in order, in a story that begins with a job which ends when the event is set."""
    done: list[str] = []

    async def told() -> None:
        aside, end = Aside("aside"), threading.Event()
        try:
            first = asyncio.create_task(aside.run(1 << 40, wait, end, done))
            await asyncio.sleep(0)
            await story(aside, end, done)
            await first
            assert await aside.run(1, str.upper, "after all") == "AFTER ALL"
        finally:
            end.set()
            aside.close()

    def wait(end: threading.Event, done: list[str]) -> None:
        end.wait()
        done.append("first")

    asyncio.run(told())
    return done


async def ask(aside: Aside, done: list[str], *sizes: int) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(aside.run(size, done.append, str(size))) for size in sizes]
    await asyncio.sleep(0)
    return tasks


def test_the_smallest_is_done_first_and_equals_in_their_order() -> None:
    async def story(aside: Aside, end: threading.Event, done: list[str]) -> None:
        tasks = await ask(aside, done, 30, 10, 20)
        end.set()
        await asyncio.gather(*tasks)

    assert check(story) == ["first", "10", "20", "30"]


def test_whoever_gives_up_is_passed_over() -> None:
    async def story(aside: Aside, end: threading.Event, done: list[str]) -> None:
        tasks = await ask(aside, done, 10, 20, 30)
        tasks[0].cancel()
        end.set()
        await asyncio.gather(*tasks[1:])
        assert tasks[0].cancelled()

    assert check(story) == ["first", "20", "30"]


def test_a_turn_that_comes_together_with_its_end_is_passed_on() -> None:
    async def story(aside: Aside, end: threading.Event, done: list[str]) -> None:
        tasks = await ask(aside, done, 10, 20)
        aside._pass_on()  # passes the turn of job 10, which has not taken it yet
        tasks[0].cancel()
        end.set()
        await tasks[1]
        assert tasks[0].cancelled()

    assert sorted(check(story)) == ["20", "first"]


def test_an_error_is_the_callers_and_the_next_has_its_turn() -> None:
    async def story(aside: Aside, end: threading.Event, done: list[str]) -> None:
        wrong = asyncio.create_task(aside.run(1, int, "no number"))
        [right] = await ask(aside, done, 2)
        end.set()
        with pytest.raises(ValueError, match="no number"):
            await wrong
        await right

    assert check(story) == ["first", "2"]
