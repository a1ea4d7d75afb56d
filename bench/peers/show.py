"""The measured cells as tables and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def of(rows: Sequence[Row], transport: str, models: int) -> list[Row]:
    return [row for row in rows if (row["transport"], row["models"]) == (transport, models)]


def cells(rows: Sequence[Row]) -> tuple[list[str], list[float], dict[tuple[str, float], Row]]:
    """Titles of systems and loads in the order of their appearance, and the rows by both."""
    titles = list(dict.fromkeys(row["title"] for row in rows))
    loads = sorted({row["load"] for row in rows})
    return titles, loads, {(row["title"], row["load"]): row for row in rows}


def markdown(rows: Sequence[Row]) -> list[str]:
    """A table of goodput as a part of capacity, with the p99 of answers; a line for each system."""
    titles, loads, by = cells(rows)
    lines = [
        f"| offered, of capacity | {' | '.join(f'{load:g}' for load in loads)} | busy after all clients left its highest load |",
        "|---" * (len(loads) + 2) + "|",
    ]
    for title in titles:
        texts = [_goodput(by.get((title, load))) for load in loads]
        highest = max(load for load in loads if (title, load) in by)
        texts.append(f"{by[title, highest]['gone_busy_s']:.1f} s")
        lines.append(f"| {title} | {' | '.join(texts)} |")
    return lines


def quiet(found: dict[str, Any]) -> str:
    """The other load on the machine, as a sentence."""
    capacities = found["capacity/s"]
    return (
        f"Plain ONNX Runtime: {min(capacities):,.0f} to {max(capacities):,.0f} requests/s. Other work on the machine:"
        f" at most {max(row['other_cores'] for row in found['rows']):.2f} cores in any cell."
    )


def _goodput(row: Row | None) -> str:
    if row is None:
        return "-"
    p99 = f", {row['p99_ms']:,.0f} ms" if row["p99_ms"] is not None else ""
    return f"{row['of_capacity']:.2f}{p99}"


def details(rows: Sequence[Row]) -> list[str]:
    """All counts, a line for each cell."""
    heads = (
        "server", "over", "models", "load", "requests", "in time", "late", "refused", "failed", "gave up", "p50",
        "p99", "refusals' p99", "of capacity, round by round", "busy after clients left",
        "cores: server, client, others",
    )  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        by_round = ", ".join(f"{part:.2f}" for part in row["of_capacity_by_round"])
        cores = ", ".join(f"{row[name]:.2f}" for name in ("server_cores", "client_cores", "other_cores"))
        lines.append(
            f"| {row['title']} | {row['transport']} | {row['models']} | {row['load']:g} | {row['offered']:,} |"
            f" {row['within_slo']:,} | {row['late']:,} | {row['refused']:,} | {row['failed']:,} |"
            f" {row['gave_up']:,} | {_ms(row['p50_ms'])} | {_ms(row['p99_ms'])} | {_ms(row['refused_p99_ms'])} |"
            f" {by_round} | {row['gone_busy_s']:.1f} s | {cores} |"
        )
    return lines


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f} ms"


def draw(found: dict[str, Any], path: Path) -> None:
    """Plot goodput and p99 against the load, in a column for each transport and number of models."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    rows = found["rows"]
    groups = list(dict.fromkeys((row["transport"], row["models"]) for row in rows))
    titles = list(dict.fromkeys(row["title"] for row in rows))
    figure = Figure(figsize=(4.6 * len(groups) + 1.5, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(groups), squeeze=False)
    lines: dict[str, Any] = {}
    for column, (transport, models) in enumerate(groups):
        mine = of(rows, transport, models)
        _, loads, by = cells(mine)
        above, below = axes[0][column], axes[1][column]
        above.plot(loads, [min(load, 1.0) for load in loads], color="lightgrey", linewidth=4, zorder=0)
        for title in dict.fromkeys(row["title"] for row in mine):
            here = [by[title, load] for load in loads if (title, load) in by]
            style = {"color": f"C{titles.index(title) % 10}", "marker": "o", "markersize": 4}
            xs = [row["load"] for row in here]
            [lines[title]] = above.plot(xs, [row["of_capacity"] for row in here], label=title, **style)
            below.plot(xs, [row["p99_ms"] for row in here], **style)
        above.set_title(f"{'HTTP' if transport == 'http' else 'gRPC'}, {models} model{'s' * (models > 1)}")
        above.set_ylim(0, 1.15 * max(1.0, *(row["of_capacity"] for row in mine)))
        below.axhline(found["slo_ms"], color="grey", linewidth=0.8)
        below.set_yscale("log")
        for axis in (below.yaxis.set_major_formatter, below.yaxis.set_minor_formatter):
            axis(LogFormatter(minor_thresholds=(2, 0.5)))
        below.set_xlabel("offered, of capacity")
    axes[0][0].set_ylabel("answered within the SLO, of capacity")
    axes[1][0].set_ylabel("p99 of the answers (ms)")
    figure.legend(
        [lines[title] for title in titles],
        [title.replace("`", "") for title in titles],
        loc="outside right upper",
    )
    figure.savefig(path, dpi=120)
