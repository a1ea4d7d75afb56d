"""The dashboard's figures, which Bokeh draws from the columns of picture.py.

The page sets the colours of text and lines, because only the page knows whether it is light or dark.
"""

from __future__ import annotations

from typing import Any

from bokeh.models import (
    BoxZoomTool,
    ColumnDataSource,
    CustomJSTickFormatter,
    FixedTicker,
    HoverTool,
    NumeralTickFormatter,
    PanTool,
    Plot,
    Range1d,
    ResetTool,
)
from bokeh.plotting import figure

from clockwork.config.dashboard import DASHBOARD_LANES_PX
from clockwork.observe.dashboard.picture import Columns, LanesPicture, MemoryPicture, PredictionsPicture
from clockwork.observe.palette import ANSWERED, FAILED, IDLE_WITH_WORK, MISSED, REFUSED, WAITING

AXIS = 34  # Height of an axis below a figure, with its label, in pixels
LABEL = 74  # Width left of every figure, in pixels. It is the same for all, so that figures are aligned.
LABEL_CHARACTERS = 12  # Longest label of a device that is shown in full


def _figure(name: str, height: int, label: str, **more: Any) -> Any:
    """Return a figure without border and toolbar, as wide as its place. label: a description for screen
    readers."""
    found = figure(
        name=name, height=height, sizing_mode="stretch_width", toolbar_location=None, outline_line_color=None,
        background_fill_color=None, border_fill_color=None, min_border_right=12, min_border_top=6,
        min_border_left=LABEL, tools="", **more,
    )  # fmt: skip
    found.tags = [{"label": label}]
    found.grid.grid_line_alpha = 0.6
    found.axis.axis_line_color = None
    found.axis.major_tick_line_color = None
    found.axis.minor_tick_line_color = None
    found.axis.axis_label_text_font_style = "normal"
    for axis in found.axis:
        axis.axis_label_text_font_size = axis.major_label_text_font_size = "11px"
        axis.axis_label_standoff = 4
    return found


def _zoomed(plot: Plot, dimensions: str) -> None:
    """Add tools to a plot: drag zooms, double-click resets, shift and drag moves."""
    plot.add_tools(BoxZoomTool(dimensions=dimensions), ResetTool(), PanTool(dimensions=dimensions))


def _tips(*rows: tuple[str, str]) -> str:
    """Return HTML for the text under the pointer, in the page's own colours. rows: (name, value with Bokeh's
    @columns)."""
    cells = "".join(
        f'<tr><td style="opacity: .7; padding: 1px 10px 1px 0">{name}</td><td>{value}</td></tr>'
        for name, value in rows
    )
    return f'<table style="border-spacing: 0; font-size: 12px">{cells}</table>'


def _source(columns: Columns | None = None, *names: str) -> ColumnDataSource:
    return ColumnDataSource(columns or {name: [] for name in names})


BARS = (
    "left",
    "right",
    "top",
    "bottom",
    "color",
    "model",
    "device",
    "batch",
    "predicted",
    "measured",
    "began",
    "status",
)


class LanesFigure:
    """Executions above loads, with a row for each device."""

    def __init__(self, name: str, seconds: float, axis: str, is_marked: bool = False) -> None:
        """axis: label of the time axis. is_marked: whether there is room for words above the rows."""
        self._top = -0.6 if is_marked else 0
        self.executions, self.loads = _source(None, *BARS), _source(None, *BARS)
        self.idle = _source(None, "left", "right", "top", "bottom", "device")
        self.gaps = _source(None, "left", "right")
        self.batches = _source(None, "x", "y", "text", "color")
        self.marks = _source(None, "x", "text")
        self.plot = plot = _figure(
            name, 200, "What each device executed and loaded, by time", x_range=Range1d(-seconds, 0),
            y_range=Range1d(1, 0),
        )  # fmt: skip
        plot.xaxis.axis_label = axis
        plot.ygrid.grid_line_color = None
        plot.yaxis.ticker = FixedTicker(ticks=[])
        plot.quad(
            left="left", right="right", top=0, bottom=10_000, source=self.gaps, fill_color="#888888",
            fill_alpha=0.12, line_color=None,
        )  # fmt: skip
        self.rows = _source(None, "row")
        plot.hspan(y="row", source=self.rows, line_width=1, name="rule")
        idle = plot.quad(
            left="left", right="right", top="top", bottom="bottom", source=self.idle, line_color=None,
            fill_color=IDLE_WITH_WORK.color, fill_alpha=0.12, hatch_pattern="right_diagonal_line",
            hatch_color=IDLE_WITH_WORK.color, hatch_alpha=0.75, hatch_scale=7, hatch_weight=1,
        )  # fmt: skip
        bars = [
            plot.quad(
                left="left", right="right", top="top", bottom="bottom", source=source, fill_color="color",
                line_color=None, hover_fill_alpha=0.7,
            )
            for source in (self.executions, self.loads)
        ]  # fmt: skip
        plot.text(
            x="x", y="y", text="text", source=self.batches, name="batches", text_font_size="9px", text_align="center",
            text_baseline="middle", text_color="color",
        )  # fmt: skip
        for which, words in zip(bars, ("executed", "loaded")):
            rows = [("device", "@device"), ("model", f"@model, {words}")]
            if words == "executed":
                rows.append(("batch", "@batch"))
            plot.add_tools(HoverTool(renderers=[which], tooltips=_tips(
                *rows, ("predicted", "@predicted{0.00} ms"), ("measured", "@measured{0.00} ms"),
                ("began", "@began"), ("", "@status"),
            )))  # fmt: skip
        plot.add_tools(
            HoverTool(renderers=[idle], tooltips=_tips(("device", "@device"), ("", IDLE_WITH_WORK.word)))
        )
        plot.vspan(x="x", source=self.marks, line_width=1.5, line_dash=[4, 3], name="ink")
        plot.text(
            x="x", y=-0.6, text="text", source=self.marks, x_offset=4, y_offset=2, text_baseline="top",
            text_font_size="11px", name="ink text", background_fill_color="#ffffff", background_fill_alpha=0.8,
        )  # fmt: skip
        _zoomed(plot, "width")

    def show_marks(self, marks: list[tuple[float, str]]) -> None:
        """Draw a line with a word at each moment."""
        self.marks.data = {"x": [at for at, _ in marks], "text": [text for _, text in marks]}

    def show(self, lanes: LanesPicture, seconds: float | None = None) -> None:
        """Show lanes. seconds: width of the time range, which ends now; None: the range stays as it is."""
        rows = max(len(lanes.labels), 1)
        row_px = min(34.0, max(9.0, DASHBOARD_LANES_PX / rows))
        self.plot.height = round((rows - self._top) * row_px) + AXIS + 14
        if self.plot.y_range.start != rows:
            self.plot.y_range.start, self.plot.y_range.end = rows, self._top
        _label_rows(self.plot, lanes.labels, row_px)
        if seconds is not None and (self.plot.x_range.start, self.plot.x_range.end) != (-seconds, 0):
            self.plot.x_range.start, self.plot.x_range.end = -seconds, 0
        if len(self.rows.data["row"]) != len(lanes.labels):
            self.rows.data = {"row": [row + 0.97 for row in range(len(lanes.labels))]}
        self.executions.data = _placed(lanes.executions, lanes.labels, top=0.06, bottom=0.76)
        self.loads.data = _placed(lanes.loads, lanes.labels, top=0.82, bottom=0.94, is_full=True)
        idle = lanes.idle
        self.idle.data = {
            "left": idle["left"], "right": idle["right"], "top": [row + 0.06 for row in idle["row"]],
            "bottom": [row + 0.76 for row in idle["row"]], "device": [lanes.labels[row] for row in idle["row"]],
        }  # fmt: skip
        self.gaps.data = lanes.gaps
        self.batches.data = _batch_labels(self.executions.data, seconds or -lanes.from_s, row_px)


def _label_rows(plot: Any, labels: list[str], row_px: float) -> None:
    every = 1 if row_px >= 11 else 2 if row_px >= 6 else 5
    ticks = [row + 0.5 for row in range(0, len(labels), every)]
    overrides = {row + 0.5: _shortened(label) for row, label in enumerate(labels)}
    if plot.yaxis[0].ticker.ticks != ticks:
        plot.yaxis[0].ticker.ticks = ticks
    if plot.yaxis[0].major_label_overrides != overrides:
        plot.yaxis[0].major_label_overrides = overrides


def _shortened(label: str) -> str:
    """Cut a device's label to the room that it has. Its end is kept, because the end tells devices apart."""
    return label if len(label) <= LABEL_CHARACTERS else f"…{label[-LABEL_CHARACTERS + 1 :]}"


def _placed(columns: Columns, labels: list[str], top: float, bottom: float, is_full: bool = False) -> Columns:
    """Return the columns with a top and bottom for each bar within its row."""
    high = bottom - top
    heights = [1.0] * len(columns["row"]) if is_full else columns["height"]
    placed = {name: value for name, value in columns.items() if name not in ("row", "height")}
    placed["top"] = [row + bottom - high * part for row, part in zip(columns["row"], heights)]
    placed["bottom"] = [row + bottom for row in columns["row"]]
    placed["device"] = [labels[row] for row in columns["row"]]
    return placed


DARK_COLORS = ("#0072B2", "#009E73")
"""Colours of bars on which white text is easier to read than black."""


def _batch_labels(bars: Columns, seconds: float, row_px: float) -> Columns:
    """Return labels for the batches whose bars have room for them, on a page about as wide as a desktop's."""
    found: Columns = {"x": [], "y": [], "text": [], "color": []}
    if row_px < 18:
        return found
    for left, right, top, bottom, batch, color in zip(
        bars["left"], bars["right"], bars["top"], bars["bottom"], bars["batch"], bars["color"]
    ):
        wide_px = (right - left) / seconds * 1000
        if batch > 1 and wide_px >= 8 * len(str(batch)) + 2 and (bottom - top) * row_px >= 10:
            found["x"].append((left + right) / 2)
            found["y"].append((top + bottom) / 2)
            found["text"].append(str(batch))
            found["color"].append("#ffffff" if color in DARK_COLORS else "#111111")
    return found


class SeriesFigure:
    """Answers per second, stacked by outcome, and the arrivals as a line."""

    STACKED = (("answered", ANSWERED), ("refused", REFUSED), ("missed", MISSED), ("failed", FAILED))

    def __init__(self) -> None:
        self.source = _source(
            None, "at", "arrived", "waiting", "cancelled", *(name for name, _ in self.STACKED)
        )
        self.plot = plot = _figure(
            "answers", 222, "Answers per second by outcome, over the last minute", x_range=Range1d(-60, 0)
        )
        plot.y_range.start, plot.y_range.min_interval = 0, 10
        plot.varea_stack(
            [name for name, _ in self.STACKED], x="at", source=self.source,
            color=[look.color for _, look in self.STACKED], fill_alpha=0.85,
        )  # fmt: skip
        line = plot.line(
            x="at", y="arrived", source=self.source, line_width=1.5, line_dash=[3, 3], name="ink"
        )
        plot.add_tools(HoverTool(renderers=[line], mode="vline", tooltips=_tips(
            ("arrived", "@arrived{0,0}/s"),
            *((look.word, f"@{name}{{0,0}}/s") for name, look in self.STACKED),
        )))  # fmt: skip
        plot.yaxis.formatter = NumeralTickFormatter(format="0,0")
        plot.yaxis.axis_label = "per second"
        plot.yaxis.ticker.desired_num_ticks = 4
        plot.xaxis.visible = False

        self.waiting = waiting = _figure(
            "waiting", 96, "Requests that wait, over the last minute", x_range=plot.x_range
        )
        waiting.y_range.start, waiting.y_range.min_interval = 0, 4
        waiting.varea(
            x="at", y1=0, y2="waiting", source=self.source, fill_color=WAITING.color, fill_alpha=0.35
        )
        line = waiting.line(x="at", y="waiting", source=self.source, line_color=WAITING.color, line_width=2)
        waiting.add_tools(HoverTool(renderers=[line], mode="vline", tooltips=_tips(("waiting", "@waiting"))))
        waiting.yaxis.ticker.desired_num_ticks = 2
        waiting.yaxis.axis_label = "waiting"
        waiting.yaxis.formatter = NumeralTickFormatter(format="0,0")
        _seconds_ago(waiting)

    def show(self, columns: Columns) -> None:
        # Bokeh draws no axes without a point.
        self.source.data = columns if columns["at"] else {name: [0.0] for name in columns}


def _seconds_ago(plot: Any) -> None:
    plot.xaxis.axis_label = "seconds before now"
    plot.xaxis.formatter = CustomJSTickFormatter(
        code="return tick == 0 ? 'now' : String(-tick).replace('-', '')"
    )


class MemoryFigure:
    """Pages of each device's memory, by model."""

    def __init__(self) -> None:
        self.runs = _source(
            None, "left", "right", "top", "bottom", "color", "model", "device", "state", "pages", "alpha"
        )
        self.free = _source(None, "left", "right", "top", "bottom")
        self.plot = plot = _figure(
            "memory", 200, "The pages of each device's memory, by model", x_range=Range1d(0, 1),
            y_range=Range1d(1, 0),
        )  # fmt: skip
        plot.ygrid.grid_line_color = None
        plot.xgrid.grid_line_color = None
        plot.yaxis.ticker = FixedTicker(ticks=[])
        plot.xaxis.axis_label = "pages"
        plot.xaxis.formatter = NumeralTickFormatter(format="0,0")
        plot.quad(
            left="left", right="right", top="top", bottom="bottom", source=self.free, fill_color="#888888",
            fill_alpha=0.14, line_color=None,
        )  # fmt: skip
        bars = plot.quad(
            left="left", right="right", top="top", bottom="bottom", source=self.runs, fill_color="color",
            fill_alpha="alpha", line_color="#888888", line_width=0.5, name="cut",
        )  # fmt: skip
        plot.add_tools(HoverTool(renderers=[bars], tooltips=_tips(
            ("device", "@device"), ("model", "@model"), ("pages", "@left to @right, @pages in all"), ("", "@state"),
        )))  # fmt: skip

    def show(self, memory: MemoryPicture) -> None:
        rows = max(len(memory.labels), 1)
        row_px = min(24.0, max(8.0, DASHBOARD_LANES_PX / rows))
        self.plot.height = round(rows * row_px) + AXIS + 14
        if self.plot.y_range.start != rows:
            self.plot.y_range.start, self.plot.y_range.end = rows, 0
        wide = max([*memory.pages, 1])
        if self.plot.x_range.end != wide:
            self.plot.x_range.end = wide
        _label_rows(self.plot, memory.labels, row_px)
        self.free.data = {
            "left": [0] * len(memory.pages), "right": memory.pages,
            "top": [row + 0.12 for row in range(len(memory.pages))],
            "bottom": [row + 0.88 for row in range(len(memory.pages))],
        }  # fmt: skip
        runs = memory.runs
        self.runs.data = {
            **{name: runs[name] for name in ("left", "right", "color", "model", "state", "pages", "alpha")},
            "top": [row + 0.12 for row in runs["row"]],
            "bottom": [row + 0.88 for row in runs["row"]],
            "device": [memory.labels[row] for row in runs["row"]],
        }


class PredictionsFigure:
    """Predicted against measured durations, with a band of 10 % above and below the prediction."""

    def __init__(self) -> None:
        columns = ("predicted", "measured", "color", "model", "batch")
        self.executions, self.loads = _source(None, *columns), _source(None, *columns)
        self.plot = plot = _figure(
            "predictions", 320, "Measured against predicted durations", x_axis_type="log", y_axis_type="log",
            x_range=Range1d(0.5, 100), y_range=Range1d(0.5, 100),
        )  # fmt: skip
        ends = [1e-3, 1e6]
        plot.varea(
            x=ends,
            y1=[0.9 * end for end in ends],
            y2=[1.1 * end for end in ends],
            fill_color="#888888",
            fill_alpha=0.18,
        )
        plot.line(x=ends, y=ends, line_width=1, line_alpha=0.6, name="ink")
        dots = [
            plot.scatter(
                x="predicted", y="measured", source=source, marker=marker, size=size, fill_color="color",
                fill_alpha=0.65, line_color=None,
            )
            for source, marker, size in ((self.executions, "circle", 5), (self.loads, "triangle", 8))
        ]  # fmt: skip
        for which, words in zip(dots, ("batch of @batch", "load")):
            plot.add_tools(HoverTool(renderers=[which], tooltips=_tips(
                ("model", f"@model, {words}"), ("predicted", "@predicted{0.00} ms"), ("measured", "@measured{0.00} ms"),
            )))  # fmt: skip
        plot.xaxis.axis_label = "predicted, ms"
        plot.yaxis.axis_label = "measured, ms"
        for axis in plot.axis:
            axis.ticker = FixedTicker(ticks=_ticks(0.5, 100))
            axis.formatter = CustomJSTickFormatter(
                code="return tick >= 1 ? tick.toLocaleString() : String(tick)"
            )

    def show(self, found: PredictionsPicture) -> None:
        self.executions.data, self.loads.data = found.executions, found.loads
        values = [
            v for c in (found.executions, found.loads) for name in ("predicted", "measured") for v in c[name]
        ]
        if values:
            low, high = _rounded(min(values)), _rounded(max(values) * 1.25, up=True)
            for extent in (self.plot.x_range, self.plot.y_range):
                if (extent.start, extent.end) != (low, high):
                    extent.start, extent.end = low, high
            ticks = _ticks(low, high)
            for axis in self.plot.axis:
                if axis.ticker.ticks != ticks:
                    axis.ticker.ticks = ticks


def _ticks(low: float, high: float) -> list[float]:
    """Return the ticks of a logarithmic axis: powers of ten, and their triples where the labels have room."""
    digits = (1, 3) if high / low < 10_000 else (1,)
    return [float(f"{digit}e{power}") for power in range(-3, 7) for digit in digits]


def _rounded(value: float, up: bool = False) -> float:
    """Return a bound of 1, 2 or 5 times a power of ten, so that the axis stays the same between small
    changes."""
    steps = [digit * 10.0**power for power in range(-3, 7) for digit in (1, 2, 5)]
    if up:
        return next((step for step in steps if step >= value), steps[-1])
    return next((step for step in reversed(steps) if step <= value), steps[0])
