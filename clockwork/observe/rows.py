"""Tables of an overview for `clockwork top`: their columns, the text of cells, and the order of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from rich.text import Text

from clockwork.observe.overview import DeviceRow, ModelRow, Overview
from clockwork.observe.palette import (
    ANSWERED,
    DEVICE_LOOKS,
    EXECUTING,
    FAILED,
    IDLE,
    IDLE_WITH_WORK,
    MISSED,
    REFUSED,
    StateStyle,
)
from clockwork.system.clock import duration
from clockwork.system.words import say_count, say_figure

Row = TypeVar("Row")

BAR = 16  # Characters of a device's bar


class Column(NamedTuple, Generic[Row]):
    """A column of a table. value: sort key of a row. cell: its text. largest_first: direction of the first
    sort."""

    title: str
    value: Callable[[Row], Any]
    cell: Callable[[Row], Text | str]
    largest_first: bool = True


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value else "-"


def _said(value: float) -> str:
    """Return a rate for use in a sentence."""
    return _rate(value) if value else "0"


def _coloured(value: float, look: StateStyle) -> Text:
    return Text(_rate(value), look.color if value else "")


def _time(value_ns: int | None) -> str:
    return "-" if value_ns is None else duration(value_ns)


def _part(value: float) -> str:
    return f"{value:.0%}"


def bar(row: DeviceRow) -> Text:
    """Return a device's time as a bar of BAR characters."""
    text = Text()
    left = BAR
    for look, share in ((EXECUTING, row.executing), (IDLE_WITH_WORK, row.idle_with_work)):
        width = min(left, round(share * BAR))
        text.append(look.sign * width, look.color)
        left -= width
    return text.append(IDLE.sign * left, IDLE.color)


def legend() -> Text:
    """Return the meaning of a bar's signs, in their colours."""
    text = Text()
    for look in DEVICE_LOOKS:
        if look.word != "loading":  # loading runs beside execution, and has a column of its own
            text.append(f"{look.sign * 2} ", look.color).append(f"{look.word}   ")
    return text


DEVICES: Sequence[Column[DeviceRow]] = (
    Column("worker", lambda row: row.worker, lambda row: row.worker, largest_first=False),
    Column("device", lambda row: row.device, lambda row: str(row.device), largest_first=False),
    Column("kind", lambda row: row.kind, lambda row: row.kind, largest_first=False),
    Column("time", lambda row: row.executing + row.idle_with_work, bar),
    Column("executing", lambda row: row.executing, lambda row: _part(row.executing)),
    Column("idle with work", lambda row: row.idle_with_work, lambda row: _part(row.idle_with_work)),
    Column("loading", lambda row: row.loading, lambda row: _part(row.loading)),
    Column("exec/s", lambda row: row.executions, lambda row: _rate(row.executions)),
    Column("loads/s", lambda row: row.loads, lambda row: _rate(row.loads)),
    Column("models", lambda row: row.models, lambda row: str(row.models)),
    Column(
        "memory used", lambda row: row.pages - row.free_pages,
        lambda row: _part((row.pages - row.free_pages) / row.pages) if row.pages else "-",
    ),
    Column("state", lambda row: row.state, lambda row: row.state, largest_first=False),
)  # fmt: skip

MODELS: Sequence[Column[ModelRow]] = (
    Column("model", lambda row: row.model, lambda row: row.model, largest_first=False),
    Column("asked/s", lambda row: row.rates.ended, lambda row: _rate(row.rates.ended)),
    Column("answered/s", lambda row: row.rates.answered, lambda row: _coloured(row.rates.answered, ANSWERED)),
    Column("refused/s", lambda row: row.rates.refused, lambda row: _coloured(row.rates.refused, REFUSED)),
    Column("missed/s", lambda row: row.rates.missed, lambda row: _coloured(row.rates.missed, MISSED)),
    Column("failed/s", lambda row: row.rates.failed, lambda row: _coloured(row.rates.failed, FAILED)),
    Column("waiting", lambda row: row.waiting, lambda row: str(row.waiting)),
    Column("p50", lambda row: row.p50_ns or 0, lambda row: _time(row.p50_ns)),
    Column("p99", lambda row: row.p99_ns or 0, lambda row: _time(row.p99_ns)),
    Column("batch", lambda row: row.batch, lambda row: f"{row.batch:.1f}" if row.batch else "-"),
    Column("devices", lambda row: len(row.resident), lambda row: str(len(row.resident))),
    Column("state", lambda row: row.state, lambda row: row.state, largest_first=False),
)

FIRST_SORT = {"devices": 4, "models": 1}
"""Columns by which the tables are sorted at first: executing, and asked/s."""


def sorted_rows(rows: Sequence[Row], column: Column[Row], is_reversed: bool) -> list[Row]:
    """Sort rows by a column. Equal rows stay in the controller's order in both directions."""
    return sorted(rows, key=column.value, reverse=column.largest_first != is_reversed)


def summary(overview: Overview) -> Text:
    """Return two lines about the whole cluster, and one about its controllers where there are several."""
    rates = overview.rates
    text = Text(f"policy {overview.policy}   up {_uptime(overview.uptime_s)}   "
                f"{say_count(len(overview.devices), 'device')}, the load needs {say_figure(overview.wanted)}   "
                f"{say_count(overview.clients, 'client')}   {overview.waiting} waiting   "
                f"loop's lateness p99 {_time(overview.late_p99_ns)}")  # fmt: skip
    if not overview.ready:
        text.append("   not ready", MISSED.color)
    if overview.troubles:
        text.append(f"   kinds of trouble: {overview.troubles} (clockwork status)", MISSED.color)
    text.append(f"\nrequests/s {_said(rates.ended)}:")
    for look, rate in zip((ANSWERED, REFUSED, MISSED, FAILED), rates):
        text.append(f"  {look.sign} ", look.color).append(f"{_said(rate)} {look.word}")
    if overview.reasons:
        told = ", ".join(f"{reason} {_said(rate)}" for reason, rate in sorted(overview.reasons.items()))
        text.append(f"   refused for: {told}")
    if overview.standing:
        text.append(f"\n{overview.standing}")
    return text


def about_model(row: ModelRow) -> Text:
    """Return all numbers of a model, line by line."""
    rates = row.rates
    what = zip(rates, (ANSWERED, REFUSED, MISSED, FAILED))
    asked = ", ".join(f"{_said(rate)} {look.word}" for rate, look in what)
    parts = f"waiting p99 {_time(row.queue_p99_ns)}, execution p50 {_time(row.execute_p50_ns)}"
    lines = [
        f"{row.model}, {row.state}, {row.share:.0%} of the requests to its name",
        f"asked {_said(rates.ended)}/s: {asked}; {row.waiting} waiting",
        *(f"  refused for {reason}: {_said(rate)}/s" for reason, rate in sorted(row.reasons.items())),
        f"latency p50 {_time(row.p50_ns)}, p99 {_time(row.p99_ns)}; of that {parts}",
        f"{row.batch:.1f} rows to an execution" if row.batch else "no execution",
        f"{say_count(row.pages, 'page')}, {row.weights_bytes / 2**20:.1f} MiB of weights",
        "resident on " + (", ".join(f"{worker}/{device}" for worker, device in row.resident) or "no device"),
    ]
    return Text("\n".join(lines))


def about_device(row: DeviceRow, overview: Overview) -> Text:
    """Return all numbers of a device, with its resident models, the busiest first."""
    there = [model for model in overview.models if (row.worker, row.device) in model.resident]
    there.sort(key=lambda model: -model.rates.ended)
    text = Text(f"{row.worker}/{row.device}, {row.kind}, {row.state}{': ' + row.text if row.text else ''}\n")
    text.append_text(bar(row)).append(
        f"  executing {_part(row.executing)}, idle with work {_part(row.idle_with_work)}, loading {_part(row.loading)}\n"
        f"{_said(row.executions)} executions/s, {_said(row.loads)} loads/s\n"
        f"{row.pages - row.free_pages} of {row.pages} pages used ({row.page_bytes / 2**20:.0f} MiB each); "
        f"{row.early} models made room too early\n\n{say_count(len(there), 'model')} here:\n"
    )
    for model in there:
        text.append(
            f"  {model.model}: asked {_said(model.rates.ended)}/s of all its devices, {say_count(model.pages, 'page')}\n"
        )
    return text


def _uptime(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
