"""`clockwork top` in a terminal: sorted tables of devices and models that are refreshed, and details of a
row.

The screen shows readings from a function that a thread calls, so a controller that does not answer never
blocks the keys. The note shows the controller's state: asking (no reading yet), live, paused, away (with the
last numbers and the error) or restarted (counts began anew).
"""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Input, Static

from clockwork.config.observe import TOP_ROWS_MAX
from clockwork.observe.overview import DeviceRow, ModelRow, Overview
from clockwork.observe.palette import MISSED
from clockwork.observe.reading import PeriodicReader
from clockwork.observe.rows import (
    DEVICES,
    FIRST_SORT,
    MODELS,
    Column,
    about_device,
    about_model,
    legend,
    sorted_rows,
    summary,
)
from clockwork.wire.telling import visible


class _Table(DataTable[Text | str]):
    """A table that is rewritten with each reading and keeps its cursor on the same row."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select_cursor", "Look into"),
        Binding("tab", "screen.focus_next", "Other table"),
    ]

    def __init__(self, name: str, columns: Any) -> None:
        super().__init__(id=name, cursor_type="row", zebra_stripes=True)
        self._columns: list[Column[Any]] = list(columns)
        self._sort = FIRST_SORT[name]
        self._is_reversed = False
        self._rows: list[Any] = []
        self._keyed: dict[str, Any] = {}
        self._filter = ""

    def on_mount(self) -> None:
        for number, column in enumerate(self._columns):
            self.add_column(f"{column.title}  ", key=str(number))  # two spaces, with room for the mark
        self._mark()

    def show_rows(self, rows: Any) -> None:
        self._rows = list(rows)
        self._write()

    def sort_next(self, step: int) -> None:
        self.sort_by((self._sort + step) % len(self._columns))

    def sort_by(self, number: int) -> None:
        """Sort by a column. A second call for the same column reverses the order."""
        self._is_reversed = not self._is_reversed if number == self._sort else False
        self._sort = number
        self._mark()
        self._write()

    def turn(self) -> None:
        self.sort_by(self._sort)

    def filter_by(self, text: str) -> None:
        self._filter = text.casefold()
        self._write()

    def row_at_cursor(self) -> Any | None:
        if not self.row_count:
            return None
        key = self.coordinate_to_cell_key(self.cursor_coordinate).row_key.value
        return self._keyed.get(key or "")

    def _mark(self) -> None:
        for number, column in enumerate(self._columns):
            down = column.largest_first != self._is_reversed
            mark = (" ▼" if down else " ▲") if number == self._sort else ""
            self.ordered_columns[number].label = Text(column.title + mark)

    def _write(self) -> None:
        found = [row for row in self._rows if self._filter in _key(row).casefold()]
        chosen = self.row_at_cursor()
        at, offset = self.cursor_row, self.scroll_y
        self.clear()
        self._keyed = {}
        for row in sorted_rows(found, self._columns[self._sort], self._is_reversed)[:TOP_ROWS_MAX]:
            self._keyed[_key(row)] = row
            # DataTable reads a plain string as markup, so each cell is a Text
            cells = (column.cell(row) for column in self._columns)
            self.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells), key=_key(row))
        left_out = len(found) - self.row_count
        self.border_title = f"{self.id}: {len(found)}" + (f", {left_out} not shown" if left_out else "")
        if self._filter:
            self.border_title += f", with {self._filter!r}"
        if chosen is not None and _key(chosen) in self._keyed:
            at = self.get_row_index(_key(chosen))
        self.move_cursor(row=min(at, max(0, self.row_count - 1)), scroll=False)
        self.scroll_to(y=offset, animate=False)


def _key(row: DeviceRow | ModelRow) -> str:
    return row.model if isinstance(row, ModelRow) else f"{row.worker}/{row.device} {row.kind}"


class _Details(ModalScreen[None]):
    """All numbers of a device or model."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,q", "dismiss", "Back")]
    CSS = """
    _Details { align: center middle; }
    #details { width: 80%; max-width: 110; height: auto; max-height: 80%; border: round $primary; padding: 1 2; background: $surface; }
    """

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="details"):
            yield Static(id="text")
        yield Footer()

    def show(self, overview: Overview | None) -> None:
        rows: list[DeviceRow | ModelRow] = [*overview.devices, *overview.models] if overview else []
        row = next((row for row in rows if _key(row) == self.key), None)
        if overview is None or row is None:
            text = Text(f"{self.key} is not there now")
        else:
            text = about_model(row) if isinstance(row, ModelRow) else about_device(row, overview)
        self.query_one("#text", Static).update(text)


class Top(App[None]):
    """The screen of `clockwork top`. endpoint: the controller's address, for display. reader: brings the
    readings."""

    CSS = """
    #summary { height: auto; padding: 0 1; }
    #note { height: auto; padding: 0 1; }
    #legend { height: 1; padding: 0 1; }
    #devices { height: 2fr; border: round $primary; }
    #models { height: 3fr; border: round $primary; }
    #filter { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "sort(1)", "Sort by next"),
        Binding("S", "sort(-1)", "by last", show=False),
        Binding("r", "turn", "Reverse"),
        Binding("slash", "filter", "Filter"),
        Binding("space", "pause", "Pause"),
        Binding("q", "quit", "Quit"),
        # Textual would only say which other key quits. With priority the key also works in a field or a
        # dialog.
        Binding("ctrl+c", "quit", "Quit", show=False, priority=True),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, reader: PeriodicReader, endpoint: str) -> None:
        super().__init__()
        self._reader = reader
        self._endpoint = endpoint
        self._overview: Overview | None = None
        self._note = ""
        self._is_paused = False

    def compose(self) -> ComposeResult:
        yield Static(id="summary")
        yield Static(id="note")
        yield _Table("devices", DEVICES)
        yield Static(legend(), id="legend")
        yield _Table("models", MODELS)
        yield Input(placeholder="part of a name; Enter keeps it, Escape ends it", id="filter")
        yield Footer()

    def on_mount(self) -> None:
        self.title = "clockwork top"
        self._say(f"asking {self._endpoint} ...")
        self.query_one("#models", _Table).focus()
        self._reader.start(self._heard)

    def on_unmount(self) -> None:
        self._reader.stop()

    def _heard(self, overview: Overview | None, note: str) -> None:
        with contextlib.suppress(RuntimeError):  # the app ended meanwhile
            self.call_from_thread(self.show, overview, note)

    def show(self, overview: Overview | None, note: str) -> None:
        """Show a reading. Without an overview the last one stays on the screen, and the note says why."""
        if self._is_paused or not self.is_running:  # a reading may come while the screen closes
            return
        if overview is not None:
            self._overview = overview
            self.query_one("#summary", Static).update(summary(overview))
            self.query_one("#devices", _Table).show_rows(overview.devices)
            self.query_one("#models", _Table).show_rows(overview.models)
            if isinstance(self.screen, _Details):
                self.screen.show(overview)
        self._say(note)

    def _say(self, note: str) -> None:
        if self._is_paused:
            note = "paused: space goes on"
        self.query_one("#note", Static).update(
            Text(visible(note), MISSED.color if note.startswith("no answer") else "")
        )

    def _table(self) -> _Table:
        focused = self.focused
        return focused if isinstance(focused, _Table) else self.query_one("#models", _Table)

    def action_sort(self, step: int) -> None:
        self._table().sort_next(step)

    def action_turn(self) -> None:
        self._table().turn()

    def action_pause(self) -> None:
        self._is_paused = not self._is_paused
        self._say("")

    def action_filter(self) -> None:
        box = self.query_one("#filter", Input)
        box.display = True
        box.focus()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        row = event.data_table.row_at_cursor() if isinstance(event.data_table, _Table) else None
        if row is not None:
            details = _Details(_key(row))
            self.push_screen(details)
            self.call_after_refresh(details.show, self._overview)

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        if isinstance(event.data_table, _Table):
            event.data_table.sort_by(event.column_index)

    def on_input_changed(self, event: Input.Changed) -> None:
        for table in self.query(_Table):
            table.filter_by(event.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self._end_filter()

    def on_key(self, event: Any) -> None:
        if event.key == "escape" and self.query_one("#filter", Input).has_focus:
            self.query_one("#filter", Input).value = ""
            self._end_filter()

    def _end_filter(self) -> None:
        self.query_one("#filter", Input).display = False
        self.query_one("#models", _Table).focus()
