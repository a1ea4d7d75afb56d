"""Draws with matplotlib, without its global state and without a display."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench.paper.common import COLOURS, Result
from clockwork.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BOUND: dict[str, Any] = {"color": "black", "linestyle": ":", "linewidth": 1.2}
"""Style of an upper bound."""

PAPER: dict[str, Any] = {"color": "0.45", "linestyle": "--", "linewidth": 1.2}
"""Style of the paper's numbers."""

MARKS = (50, 90, 99, 99.9, 99.99, 99.999, 99.9999)


def sheet(result: Result, rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A titled figure and its axes, row by row. Raises ConfigError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("drawing needs matplotlib: pip install 'clockwork-serving[plots]'") from None
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(f"{result.title}\n{result.setting.form} form, seed {result.setting.seed}", fontsize=11)
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, [column for row in axes for column in row]


def colour(policy: str) -> str:
    return COLOURS.get(policy.partition(":")[0], "tab:blue")


def label(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Label the axes, and add a light grid."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3, linewidth=0.5)


def legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, framealpha=0.5)


def tail_axis(axes: Axes) -> None:
    """Make a y axis of percentiles whose upper end is stretched; tail_point() gives the places of points."""
    axes.set_yticks([tail_point(mark) for mark in (0, *MARKS)], [f"{mark:g}" for mark in (0, *MARKS)])
    axes.set_ylim(0, tail_point(MARKS[-1]))


def tail_point(percent: float) -> float:
    """The place of a percentile on tail_axis(): every further nine has the same height."""
    from math import log10

    return -log10(max(1e-9, 1 - percent / 100))


def draw_tail(axes: Axes, points: Sequence[Sequence[float]], **style: Any) -> None:
    """Draw [percent, ms] points of a latency's CDF."""
    axes.plot([x for _, x in points], [tail_point(percent) for percent, _ in points], **style)
