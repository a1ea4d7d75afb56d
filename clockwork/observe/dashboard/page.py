"""A page of the dashboard: its figures and texts, kept up to date for one browser.

The page's HTML, style and script (page/) exchange two sources with the server: "state" is JSON that the
server writes, "control" is JSON that the browser writes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bokeh.document import Document
from bokeh.models import ColumnDataSource
from jinja2 import Template

from clockwork.config import VERSION
from clockwork.config.dashboard import DASHBOARD_LOOK_S, DASHBOARD_WINDOWS_S
from clockwork.errors import InvalidInput
from clockwork.observe.dashboard import picture
from clockwork.observe.dashboard.around import around
from clockwork.observe.dashboard.figures import LanesFigure, MemoryFigure, PredictionsFigure, SeriesFigure
from clockwork.observe.dashboard.follower import AWAY, LOADING, Follower
from clockwork.observe.palette import ANSWERED, FAILED, IDLE_WITH_WORK, MISSED, OTHER_MODELS, REFUSED, WAITING

FILES = Path(__file__).parent / "page"

OUTCOME_LOOKS = {
    "answered": ANSWERED,
    "refused": REFUSED,
    "missed": MISSED,
    "failed": FAILED,
    "cancelled": OTHER_MODELS,
}

WINDOW_S = 2  # Seconds that the lanes of a new page show


class Board:
    """The data of all pages, computed once for each look at the controller."""

    def __init__(self, follower: Follower, endpoint: str) -> None:
        self.follower = follower
        self.endpoint = endpoint
        self.colors = picture.ModelColors()
        self.number = -1
        self.state: dict[str, Any] = {}
        self._lanes: dict[float, picture.LanesPicture] = {}

    def update(self) -> None:
        """Compute the data anew if a look has changed the history."""
        follower, history = self.follower, self.follower.history
        if self.number == follower.number:
            return
        self.number = follower.number
        state = {
            "state": follower.state, "note": follower.note, "since": follower.since_s,
            "restarted": follower.restarted_s, "endpoint": self.endpoint, "now": time.time(),
        }  # fmt: skip
        if follower.state in (AWAY, LOADING):  # the last picture stays on the page
            self.state = {**self.state, **state}
            return
        self._lanes.clear()
        self.colors.update(picture.busy_times(history))
        gaps = list(follower.gaps)
        self.series = picture.series(history, gaps)
        self.memory = picture.memory(history, self.colors)
        self.predictions = picture.predictions(history, self.colors)
        self.state = {
            **state,
            "share": follower.share,
            "standing": follower.standing,
            "behind": follower.behind_ns / 1e9,
            "tiles": picture.tiles(history, gaps)._asdict(),
            "models": [[history.label(model), color] for model, color in self.colors.holders()],
            "reasons": picture.reasons(history),
            "requests": picture.recent_requests(history),
            "unplaced": self.memory.unplaced,
            "used": self.memory.used,
            "predicted": [self.predictions.within, self.predictions.worst, self.predictions.executed],
        }

    def lanes(self, seconds: float) -> picture.LanesPicture:
        found = self._lanes.get(seconds)
        if found is None:
            follower = self.follower
            found = self._lanes[seconds] = picture.lanes(
                follower.history, self.colors, seconds, list(follower.gaps)
            )
        return found


class Page:
    """A page in one browser."""

    def __init__(
        self, document: Document, board: Board, is_watched: Callable[[], bool], look: Callable[[], None]
    ) -> None:
        """is_watched: whether a browser is connected. look: requests another look at the controller; the page
        calls it as long as it can be seen."""
        self._board = board
        self._is_watched = is_watched
        self._look = look
        self._is_hidden = False  # whether the page is behind other tabs
        self._document = document
        self._seconds: float = WINDOW_S
        self._is_paused = False
        self._shown = -1
        self._asked: object = None  # number that the browser gave its last question
        self._lanes = LanesFigure("lanes", WINDOW_S, "seconds before now")
        self._around = LanesFigure("around", 0.2, "milliseconds from its arrival", is_marked=True)
        self._series = SeriesFigure()
        self._memory = MemoryFigure()
        self._predictions = PredictionsFigure()
        self._state = ColumnDataSource({"json": ["{}"]}, name="state")
        self._about = ColumnDataSource({"json": ["{}"]}, name="about")
        self._control = ColumnDataSource({"json": ["{}"]}, name="control")
        self._control.on_change("data", self._controlled)
        _say_time(self._lanes, "return tick == 0 ? 'now' : String(-tick)")
        _say_time(self._around, "return (tick * 1000).toFixed(0)")
        # Bokeh sends only sources that belong to a root: the tags of a figure carry these.
        self._lanes.plot.tags = [*self._lanes.plot.tags, self._state, self._about, self._control]
        document.template = Template((FILES / "page.html").read_text(encoding="utf-8"))
        document.template_variables.update(
            style=(FILES / "page.css").read_text(encoding="utf-8"),
            script=(FILES / "page.js").read_text(encoding="utf-8"), version=VERSION, windows=DASHBOARD_WINDOWS_S,
            window=WINDOW_S, outcomes=OUTCOME_LOOKS, waiting=WAITING, idle=IDLE_WITH_WORK, other=OTHER_MODELS,
        )  # fmt: skip
        document.title = "Clockwork"
        for plot in (
            self._lanes.plot, self._series.plot, self._series.waiting, self._memory.plot, self._predictions.plot,
            self._around.plot,
        ):  # fmt: skip
            document.add_root(plot)
        self.update()
        self._ticks = document.add_periodic_callback(self._tick, round(DASHBOARD_LOOK_S * 1000))

    def end(self) -> None:
        """Stop the periodic update."""
        self._document.remove_periodic_callback(self._ticks)

    def _tick(self) -> None:
        if self._is_watched():
            if not self._is_hidden:
                self._look()
            self.update()

    def update(self) -> None:
        """Show the data of a new look."""
        board = self._board
        board.update()
        if self._shown == board.number:
            return
        self._shown = board.number
        is_live = board.follower.state not in (AWAY, LOADING)
        if is_live and not self._is_paused:
            self._show_lanes()
            self._series.show(board.series)
            self._memory.show(board.memory)
            self._predictions.show(board.predictions)
        is_whole = len(self._lanes.gaps.data["left"]) == 0
        self._state.data = {"json": [json.dumps({**board.state, "whole": is_whole})]}

    def _show_lanes(self) -> None:
        self._lanes.show(self._board.lanes(self._seconds), self._seconds)

    def _controlled(self, attribute: str, old: object, new: dict[str, Any]) -> None:
        """Take a message of the browser. A malformed message is ignored: only a foreign page sends one."""
        try:
            wish = json.loads(new["json"][0])
            seconds, is_paused, is_hidden, request, self._asked = (
                wish.get(name) for name in ("seconds", "paused", "hidden", "request", "asked")
            )
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            return
        if seconds in DASHBOARD_WINDOWS_S:
            self._seconds = seconds
            if self._board.follower.state != LOADING:
                self._show_lanes()
        if isinstance(is_paused, bool):
            self._is_paused = is_paused
            self._shown = -1
            self.update()
        if isinstance(is_hidden, bool):
            self._is_hidden = is_hidden
            if not is_hidden:
                self._look()
        if isinstance(request, int):
            self._show_request(request)

    def _show_request(self, request_id: int) -> None:
        board = self._board
        try:
            found = around(board.follower.history, board.colors, request_id, list(board.follower.gaps))
        except InvalidInput as error:
            said = {
                "id": request_id,
                "title": f"Request {request_id}",
                "sentences": [f"{error}."],
                "devices": [],
            }
        else:
            extent = self._around.plot.x_range
            extent.start, extent.end = found.from_s, found.until_s
            self._around.show(found.lanes)
            self._around.show_marks(found.marks)
            said = {
                "id": request_id, "title": found.title, "sentences": list(found.sentences), "devices": list(found.devices),
            }  # fmt: skip
        self._about.data = {"json": [json.dumps({**said, "asked": self._asked})]}


def _say_time(lanes: LanesFigure, code: str) -> None:
    from bokeh.models import CustomJSTickFormatter

    lanes.plot.xaxis.formatter = CustomJSTickFormatter(code=code)
