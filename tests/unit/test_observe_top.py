"""`clockwork top` as a screen, with its keys pressed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from clockwork.errors import ConnectionLost

pytest.importorskip("textual", reason="textual is not installed")

from textual.pilot import Pilot
from textual.widgets import DataTable, Static

from clockwork.observe.reading import PeriodicReader
from clockwork.observe.top import Top
from clockwork.system.clock import SECOND
from tests.unit.test_observe_overview import busy_pair


class Readings:
    """The controller's answers: each is given when the test lets it."""

    def __init__(self) -> None:
        self.next: list[Any] = list(busy_pair())
        self._may = threading.Semaphore(2)

    def let(self, answer: Any) -> None:
        self.next.append(answer)
        self._may.release()

    def __call__(self) -> Any:
        self._may.acquire()
        answer = self.next.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def on_screen(story: Callable[[Pilot[None], Readings], Awaitable[None]]) -> None:
    async def run() -> None:
        readings = Readings()
        app = Top(PeriodicReader(readings, interval_s=0.0), "tcp://here:1")
        async with app.run_test(size=(140, 40)) as pilot:
            await until(pilot, lambda: rows(pilot, "models") == ["a@1", "b@1"])
            await story(pilot, readings)
            readings.let(ConnectionLost("the test is over"))  # ends the reader's wait

    asyncio.run(asyncio.wait_for(run(), 30))


async def until(pilot: Pilot[None], holds: Callable[[], bool]) -> None:
    while not holds():
        await pilot.pause(0.005)


def rows(pilot: Pilot[None], name: str) -> list[str]:
    table: DataTable[Any] = pilot.app.screen_stack[0].query_one(f"#{name}", DataTable)
    return [str(table.get_row_at(place)[0]) for place in range(table.row_count)]


def said(pilot: Pilot[None], name: str) -> str:
    return str(pilot.app.screen.query_one(f"#{name}", Static).content)


@pytest.mark.parametrize("before", [[], ["slash", "b"], ["enter"]], ids=["tables", "filter", "details"])
def test_ctrl_c_ends_it_wherever_it_is(before: list[str]) -> None:
    async def story(pilot: Pilot[None], readings: Readings) -> None:
        await pilot.press(*before, "ctrl+c")
        assert not pilot.app.is_running

    on_screen(story)


@pytest.mark.slow
def test_keys_sort_reverse_and_look_into_a_row() -> None:
    async def story(pilot: Pilot[None], readings: Readings) -> None:
        await pilot.press("r")
        assert rows(pilot, "models") == ["b@1", "a@1"]
        for _ in range(4):  # sorts by answered, refused, missed, failed
            await pilot.press("s")
        assert rows(pilot, "models") == ["b@1", "a@1"]  # model b has failed requests
        table = pilot.app.query_one("#models", DataTable)
        assert [
            str(column.label).strip() for column in table.ordered_columns if "▼" in str(column.label)
        ] == ["failed/s ▼"]
        await pilot.press("down", "enter")
        await until(pilot, lambda: bool(pilot.app.screen.query("#text")))
        await until(pilot, lambda: said(pilot, "text").startswith("a@1, ready"))
        await pilot.press("escape")
        await pilot.press("tab", "tab", "enter")
        await until(pilot, lambda: bool(pilot.app.screen.query("#text")))

    on_screen(story)


def test_a_reading_that_comes_while_it_ends_is_shown_to_nobody() -> None:
    async def run() -> None:
        readings = Readings()
        app = Top(PeriodicReader(readings, interval_s=0.0), "tcp://here:1")
        async with app.run_test() as pilot:
            await until(pilot, lambda: rows(pilot, "models") == ["a@1", "b@1"])
            readings.let(ConnectionLost("the test is over"))
            await until(pilot, lambda: "the test is over" in said(pilot, "note"))
        app.show(None, "too late")
        assert not app.is_running

    asyncio.run(asyncio.wait_for(run(), 30))


def test_a_filter_leaves_the_rows_with_a_part_of_a_name() -> None:
    async def story(pilot: Pilot[None], readings: Readings) -> None:
        await pilot.press("slash", "b")
        await until(pilot, lambda: rows(pilot, "models") == ["b@1"])
        await pilot.press("enter")
        assert rows(pilot, "models") == ["b@1"]
        await pilot.press("slash", "escape")
        await until(pilot, lambda: rows(pilot, "models") == ["a@1", "b@1"])

    on_screen(story)


def test_a_controller_that_is_away_leaves_the_last_numbers_and_says_so() -> None:
    async def story(pilot: Pilot[None], readings: Readings) -> None:
        readings.let(ConnectionLost("no controller at tcp://here:1"))
        await until(
            pilot,
            lambda: "no answer from the controller: no controller at tcp://here:1" in said(pilot, "note"),
        )
        assert rows(pilot, "models") == ["a@1", "b@1"]
        readings.let(busy_pair()[1] | {"started_ns": 1})
        await until(pilot, lambda: "the controller was started anew" in said(pilot, "note"))

    on_screen(story)


def test_a_pause_keeps_the_screen_as_it_is() -> None:
    async def story(pilot: Pilot[None], readings: Readings) -> None:
        await pilot.press("space")
        assert "paused" in said(pilot, "note")
        later = busy_pair()[1]
        later["now_ns"] += 1_000_000_000
        later["models"] = later["models"][:1]
        readings.let(later)
        await until(pilot, lambda: not readings.next)
        assert rows(pilot, "models") == ["a@1", "b@1"]
        await pilot.press("space")
        readings.let(later | {"now_ns": later["now_ns"] + 1_000_000_000})
        await until(pilot, lambda: rows(pilot, "models") == ["a@1"])

    on_screen(story)


HOSTILE = "\x1b[2J\x9b\n\u202e[red]x[/red]"
SHOWN = r"\x1b[2J\x9b\n\u202e[red]x[/red]"


def test_texts_of_others_are_shown_and_are_no_markup() -> None:
    async def story(pilot: Pilot[None], readings: Readings) -> None:
        _, after = busy_pair()
        after["policy"] += HOSTILE
        for worker in after["workers"]:
            worker["name"] += HOSTILE
            for device in worker["devices"]:
                device["kind"] += HOSTILE
                device["lost"] = HOSTILE
        for model in after["models"]:
            model["state"] += HOSTILE
        readings.let(after | {"now_ns": after["now_ns"] + SECOND})
        await until(pilot, lambda: rows(pilot, "devices") == [f"w{SHOWN}"] * 2)
        table: DataTable[Any] = pilot.app.screen_stack[0].query_one("#devices", DataTable)
        cells = [str(cell) for place in range(table.row_count) for cell in table.get_row_at(place)]
        assert sum(SHOWN in cell for cell in cells) == 4
        await pilot.press("tab", "enter")
        await until(pilot, lambda: SHOWN in said(pilot, "text"))
        assert said(pilot, "text").replace("\n", "").isprintable()
        readings.let(ConnectionLost(HOSTILE))
        await until(pilot, lambda: SHOWN in str(pilot.app.screen_stack[0].query_one("#note", Static).content))

    on_screen(story)
