"""The dashboard in a real browser: it shows what it should, in light and dark, on a phone and by keyboard,
and reports no error. CLOCKWORK_PICTURES names a folder for the screenshots."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import urllib.parse
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE_S
from tests.process.cluster import running_cluster
from tests.process.test_dashboard import TOKEN, recording_in, running_dashboard
from tests.sim.harness import SECOND, World, spec
from tests.sim.test_dashboard import recorded, steps_of

pytest.importorskip("bokeh", reason="the extra [dashboard] is not installed")

from tools.browser import Tab, browser, program

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(program() is None, reason="no Chromium is on the path"),
]

READY = "document.body?.dataset.ready"
LIVE = (
    f"{READY} && document.body.dataset.state === 'live' && document.querySelectorAll('#rows tr').length > 5"
)
DRAWN = "[...Bokeh.index].length > 5 && [...Bokeh.index].every((view) => view.has_finished())"


def in_a_browser(test: Callable[[Tab], Awaitable[None]]) -> Tab:
    async def run() -> Tab:
        async with browser() as tab:
            await test(tab)
            return tab

    return asyncio.run(run())


async def colors(tab: Tab) -> tuple[str, Any]:
    """Colours of the page and of an axis's text."""
    found = await tab.run(
        "[getComputedStyle(document.body).backgroundColor, Bokeh.documents[0].roots()[0].below[0].major_label_text_color]"
    )
    return found[0], found[1]


async def overflow(tab: Tab) -> int:
    """Return the pixels by which the page is wider than the window."""
    return int(await tab.run("document.documentElement.scrollWidth - innerWidth"))


def test_it_is_shown_in_light_and_dark_on_a_desktop_and_on_a_phone(tmp_path: Path) -> None:
    pictures = Path(os.environ.get("CLOCKWORK_PICTURES", tmp_path))
    with running_dashboard("--recording", str(recording_in(tmp_path)), "--from", "10") as (_, url):

        async def look(tab: Tab) -> None:
            for name, width, height, dark in (
                ("light", 1280, 900, False),
                ("dark", 1280, 900, True),
                ("phone", 390, 844, False),
            ):
                await tab.open(url, width, height, dark, phone=name == "phone")
                await tab.until(LIVE)
                await tab.until(DRAWN)
                assert await overflow(tab) <= 0, name
                back, ink = await colors(tab)
                assert (back, ink) == (
                    ("rgb(14, 17, 21)", "#98a3b0") if dark else ("rgb(244, 245, 247)", "#5b6470")
                ), name
                assert float(await tab.run("parseFloat(document.getElementById('good').textContent)")) >= 0
                assert await tab.run("document.querySelectorAll('#models li').length") >= 3
                labelled = "Bokeh.documents[0].get_model_by_name('lanes').renderers.find((one) => one.name === 'batches').visible"
                assert await tab.run(labelled) == (name != "phone"), "batches are written where there is room"
                await tab.screenshot(pictures / f"{name}.png", whole=True)
            await tab.size(1280, 900)
            await tab.run("document.getElementById('theme').click()")
            assert (await colors(tab))[0] == "rgb(14, 17, 21)", "the switch"

        tab = in_a_browser(look)
        host = urllib.parse.urlsplit(url).netloc
        assert {
            urllib.parse.urlsplit(one).netloc for one in tab.requested if not one.startswith("data:")
        } == {host}
        assert tab.complaints == []


BUSY = """(() => {
  const source = Bokeh.documents[0].get_model_by_name("state"), state = JSON.parse(source.data.json[0]);
  source.data = { json: [JSON.stringify({ ...state, share: 0.383, behind: 2.34,
    endpoint: "tcp://10.120.130.140:55555", requests: state.requests.map((row) => [100200300 + row[0], ...row.slice(1)]) })] };
  const boxes = [...document.querySelectorAll("header .brand, header .pill, #share, header .controls")].map((one) => one.getBoundingClientRect());
  return { said: document.getElementById("share").textContent, tops: boxes.map((box) => box.top + box.height / 2),
    overlaps: boxes.some((a, i) => boxes.some((b, j) => i < j && a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)),
    wide: document.querySelector(".table").scrollWidth - document.querySelector(".table").clientWidth };
})()"""
"""Have the page show a part of the time, with long numbers of requests."""


def recording_of_many_devices(folder: Path, count: int) -> Path:
    world = World()
    world.now = SECOND
    world.join(1, [("cpu", 8, 1.0)] * count)
    world.ready(*(spec(model, exec_ms=3, batch_max=8, row_ms=1, load_ms=2) for model in range(1, 21)))
    world.poisson(40 * count, 4 * SECOND, lambda: world.request(world.random.randint(1, 20), slo_ms=100))
    world.settle()
    path = folder / "many.rec"
    path.write_bytes(recorded(steps_of(world)))
    return path


@pytest.mark.parametrize(("width", "height", "is_phone"), [(1280, 900, False), (390, 844, True)])
@pytest.mark.parametrize("is_dark", [False, True])
def test_a_hundred_lanes_and_what_is_left_out_are_legible(
    tmp_path: Path, width: int, height: int, is_phone: bool, is_dark: bool
) -> None:
    pictures = Path(os.environ.get("CLOCKWORK_PICTURES", tmp_path))
    path = recording_of_many_devices(tmp_path, 100)
    with running_dashboard("--recording", str(path), "--from", "2") as (_, url):

        async def look(tab: Tab) -> None:
            await tab.open(url, width, height, is_dark, phone=is_phone)
            await tab.until(LIVE)
            await tab.until(DRAWN)
            lanes = "Bokeh.documents[0].get_model_by_name('lanes')"
            assert await tab.run(f"{lanes}.y_range.start") == 100
            row_px = await tab.run(f"{lanes}.height / 100")
            labels = await tab.run(f"{lanes}.left[0].ticker.ticks.length")
            assert row_px * 100 / labels >= 11, "a label is as high as that"
            assert await tab.run(f"Math.max(...{lanes}.left[0].ticker.ticks)") > 95
            assert await overflow(tab) <= 0
            found = await tab.run(BUSY)
            assert found["said"] == "38 % of the time shown, 2.3 s behind"
            assert not found["overlaps"]
            assert found["wide"] <= 0, "no column of the requests is cut off"
            assert is_phone or max(found["tops"]) - min(found["tops"]) < 4, "the head is one line"
            assert await overflow(tab) <= 0
            await tab.screenshot(pictures / f"hundred-{width}{'-dark' * is_dark}.png", whole=True)

        assert in_a_browser(look).complaints == []


def test_a_page_that_is_hidden_is_said_to_be_live_when_it_is_seen_again(tmp_path: Path) -> None:
    hide = (
        "Object.defineProperty(document, 'hidden', {{ value: {}, configurable: true }});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    told = "JSON.parse(Bokeh.documents[0].get_model_by_name('state').data.json[0]).now"
    with running_dashboard("--recording", str(recording_in(tmp_path)), "--from", "10") as (_, url):

        async def look(tab: Tab) -> None:
            await tab.open(url, 1280, 900)
            await tab.until(LIVE)
            await tab.run(hide.format("true"))
            await tab.until("document.body.dataset.state === 'disconnected'", PATIENCE_S)
            before = await tab.run(told)
            await tab.run(hide.format("false"))
            assert await tab.run("document.getElementById('banner').hidden")
            await tab.until(f"{told} > {before}")
            assert await tab.run("document.body.dataset.state") == "live"

        assert in_a_browser(look).complaints == []


def test_a_refused_request_is_followed_by_keyboard(tmp_path: Path) -> None:
    with running_dashboard("--recording", str(recording_in(tmp_path)), "--from", "10") as (_, url):

        async def follow(tab: Tab) -> None:
            await tab.open(url, 1280, 900)
            await tab.until(LIVE)
            await tab.until(DRAWN)
            reached = []
            for _ in range(40):
                await tab.press("Tab", 9)
                reached.append(
                    await tab.run(
                        "[document.activeElement.textContent.trim() || document.activeElement.id,"
                        " getComputedStyle(document.activeElement).outlineStyle]"
                    )
                )
                if reached[-1][0] == "refused":
                    break
            names = [name for name, _ in reached]
            assert names[:8] == [
                "Skip to the devices",
                "0.5 s",
                "1 s",
                "2 s",
                "5 s",
                "10 s",
                "Pause",
                "theme",
            ]
            assert names[-1] == "refused"
            assert [name for name, outline in reached if outline != "solid"] == [], "the focus is not seen"
            await tab.press("Enter", 13)
            await tab.until(
                "[...document.querySelectorAll('#rows td:nth-child(3)')].every((one) => one.textContent.includes('refused'))"
            )
            for _ in range(6):  # three more outcomes, the search, the table, and its first row
                await tab.press("Tab", 9)
            await tab.press("Enter", 13)
            await tab.until("document.querySelectorAll('#sentences p').length > 3")
            assert "was refused" in await tab.run("document.getElementById('sentences').textContent")
            assert await tab.run("document.activeElement.id") == "title"
            await tab.until("!document.getElementById('f-around').hidden")
            await tab.run("document.getElementById('close').click()")
            assert await tab.run("document.getElementById('f-around').hidden")

        assert in_a_browser(follow).complaints == []


def test_a_request_is_followed_by_a_click_anywhere_in_its_row(tmp_path: Path) -> None:
    with running_dashboard("--recording", str(recording_in(tmp_path)), "--from", "10") as (_, url):

        async def click(tab: Tab) -> None:
            await tab.open(url, 1280, 900)
            await tab.until(LIVE)
            for column in (1, 3, 6):
                number = await tab.run(
                    f"(() => {{ const row = document.querySelector('#rows tr:nth-child({column + 1})');"
                    f" row.querySelector('td:nth-child({column})').click(); return row.querySelector('button').textContent; }})()"
                )
                await tab.until(
                    f"document.getElementById('title').textContent.startsWith('Request {number},')"
                )
                marked = "[...document.querySelectorAll('#rows tr[aria-selected=true] button')].map((one) => one.textContent).join()"
                assert await tab.run(marked) == number
            await tab.run("document.getElementById('close').click()")
            await tab.run("getSelection().selectAllChildren(document.querySelector('#rows td:nth-child(2)'))")
            await tab.run("document.querySelector('#rows td:nth-child(2)').click()")
            assert await tab.run("document.getElementById('chosen').hidden"), "text that was marked stays"

        assert in_a_browser(click).complaints == []


def test_the_time_that_lanes_show_is_chosen_and_paused(tmp_path: Path) -> None:
    with running_dashboard("--recording", str(recording_in(tmp_path)), "--from", "10") as (_, url):
        span = "Bokeh.documents[0].get_model_by_name('lanes').x_range.start"

        async def choose(tab: Tab) -> None:
            await tab.open(url, 1280, 900)
            await tab.until(LIVE)
            assert await tab.run(span) == -2
            await tab.run("document.querySelector('[data-seconds=\"10\"]').click()")
            await tab.until(f"{span} === -10")
            await tab.run("document.getElementById('pause').click()")
            await tab.until("document.querySelector('#pill b').textContent === 'Paused'")
            await tab.run("document.getElementById('pause').click()")
            await tab.until("document.querySelector('#pill b').textContent === 'Live'")

        assert in_a_browser(choose).complaints == []


def test_a_dashboard_that_is_gone_is_said(tmp_path: Path) -> None:
    pictures = Path(os.environ.get("CLOCKWORK_PICTURES", tmp_path))
    with running_dashboard("--recording", str(recording_in(tmp_path)), "--from", "10") as (program, url):

        async def look(tab: Tab) -> None:
            await tab.open(url, 1280, 900)
            await tab.until(LIVE)
            await tab.until(DRAWN)
            program.send(signal.SIGSTOP)
            try:
                await tab.until("document.body.dataset.state === 'disconnected'", PATIENCE_S)
                assert "has heard nothing" in await tab.run("document.getElementById('banner').textContent")
                assert not await tab.run("document.getElementById('reload').hidden")
                await tab.screenshot(pictures / "disconnected.png")
            finally:
                program.send(signal.SIGCONT)
            await tab.until("document.body.dataset.state === 'live'")

        in_a_browser(look)


def test_a_token_is_typed_in(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    options = ("--recording", str(recording_in(tmp_path)), "--from", "10", "--token-file", str(token))
    with running_dashboard(*options) as (_, url):

        async def type_in(tab: Tab) -> None:
            await tab.open(url, 390, 844, phone=True)
            await tab.until("document.getElementById('token') !== null")
            await tab.run(f"document.getElementById('token').value = {TOKEN!r}")
            await tab.run("document.querySelector('form').requestSubmit()")
            await tab.until(LIVE)

        assert in_a_browser(type_in).complaints == []


NOT_YET = """(() => {
  Bokeh.documents[0].get_model_by_name("state").data = { json: [JSON.stringify({ state: "loading", endpoint: "tcp://127.0.0.1:1" })] };
  return document.getElementById("banner").textContent;
})()"""
"""Have the page show its state before the first answer is due: when it opens late, that is over."""


def test_a_controller_that_never_answered_is_said() -> None:
    with running_dashboard("--endpoint", "tcp://127.0.0.1:1") as (_, url):

        async def look(tab: Tab) -> None:
            await tab.open(url, 1280, 900)
            await tab.until(READY)
            assert "Waiting for the first steps of tcp://127.0.0.1:1." in await tab.run(NOT_YET)
            await tab.until("document.body.dataset.state === 'disconnected'")
            said = await tab.run("document.getElementById('banner').textContent")
            assert said.startswith("No answer from the controller at tcp://127.0.0.1:1 since ")
            assert "The page shows" not in said, "there is no state yet"

        assert in_a_browser(look).complaints == []


def test_an_empty_cluster_and_a_restart_are_said(tmp_path: Path) -> None:
    pictures = Path(os.environ.get("CLOCKWORK_PICTURES", tmp_path))
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(running_cluster(tmp_path / "cluster", workers=0))
        _, url = stack.enter_context(running_dashboard("--endpoint", cluster.endpoint))

        async def look(tab: Tab) -> None:
            await tab.open(url, 1280, 900)
            await tab.until(f"{READY} && document.body.dataset.state === 'empty'")
            assert "Start one with: clockwork worker" in await tab.run(
                "document.getElementById('banner').textContent"
            )
            await tab.screenshot(pictures / "empty.png")
            assert cluster.controller.stop() == 0
            cluster.start_controller()
            cluster.start_worker("--device", "emulated", "--page-size", "16MiB", arena="128MiB")
            await tab.until("document.body.dataset.state === 'live'")
            said = await tab.run("document.getElementById('banner').textContent")
            assert said.startswith("The controller was started anew at "), said
            await tab.screenshot(pictures / "restarted.png")

        assert in_a_browser(look).complaints == []
