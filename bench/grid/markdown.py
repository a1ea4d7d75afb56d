"""The grid's table for the documents, and the part of the measurements (the book) that is published."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from bench.grid import tables
from bench.grid.policies import OURS
from bench.grid.statistics import geometric_mean

Kept = dict[str, Any]


def kept(book: dict[str, Any]) -> Kept:
    """The part of a book that is published: plan, commits, and each cell's and memory manager's results.

    The commits are those that measured, not the one that publishes. Results are goodputs, ratios and
    overload, without the single points.
    """
    return {
        "plan": book["plan"],
        "commit": tables.commits(book),
        "rows": [
            _finite(dataclasses.asdict(row))
            | {
                "best_other": row.best_other,
                "lost": row.lost,
                "spec": book["cells"][row.cell].get("spec", ""),
            }
            for row in tables.rows(book)
        ],
    }


def with_bounds(published: Kept, book: dict[str, Any], command: str, *, sharpen: bool = False) -> Kept:
    """Published results with the bounds of a book, and the commit, command and time of their computation.

    sharpen: the book may lack bounds of cells, and a bound that was published stays where the book's is no
    lower. Raises ValueError unless the bounds are those of the published seeds and requests, for a cell that
    was published otherwise, and, unless `sharpen`, for a cell of which the book lacks bounds.
    """
    for name in ("first_seed", "seeds", "requests"):
        if book["plan"][name] != published["plan"][name]:
            raise ValueError(f"{name}={book['plan'][name]}: published are {name}={published['plan'][name]}")
    first = book["plan"]["first_seed"]
    seeds = {str(seed) for seed in range(first, first + book["plan"]["seeds"])}
    complete = {name for name, found in book["cells"].items() if seeds <= set(found["bounds"])}
    missing = {row["cell"] for row in published["rows"]} - complete
    if missing and not sharpen:
        raise ValueError(f"no bounds for the published cells {', '.join(sorted(missing))}")
    rows = []
    for row in published["rows"]:
        if row["cell"] in missing:
            rows.append(row)
            continue
        found = book["cells"][row["cell"]]
        if row["spec"] != found["spec"]:
            raise ValueError(f"cell {row['cell']} was published as {row['spec']}")
        bound = tables.bound(found)
        rows.append(row | {"bound": min(bound, row["bound"]) if sharpen else bound})
    made = {
        "commit": book["conditions"]["commit"],
        "command": command,
        "took_s": round(book["took_s"]),
    }
    if sharpen:
        return published | {"rows": rows, "sharpened": made}
    kept = {name: value for name, value in published.items() if name != "sharpened"}
    return kept | {"rows": rows, "bounds": made}


def title(kept: Kept) -> str:
    """The title of the plot."""
    return f"commit {kept['commit']}, seeds from {kept['plan']['first_seed']}"


def _finite(value: Any) -> Any:
    """The value, with None in the place of infinities and NaNs, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(element) for name, element in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(element) for element in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(rows: Sequence[Kept], resident: bool) -> list[str]:
    """The rows of cells where every device holds every model, or of the others."""
    shown = [row for row in rows if (row["memory"] == "") == resident and row["best_other"] in row["ratio"]]
    titles = [
        "cell", *([] if resident else ["memory"]), "bound", f"`{OURS}`", "of bound", "best other", "ratio",
        "to `paper`", "to `edf`", "at 1.2x", "at 1.5x",
    ]  # fmt: skip
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in shown:
        other, bound, ours = row["best_other"], row["bound"], row["goodput"][OURS]
        mean, low, high = row["ratio"][other]
        cells = [
            row["cell"],
            *([] if resident else [row["memory"]]),
            f"{bound:,.0f}",
            f"{ours:,.0f}",
            f"{ours / bound:.2f}" if bound else "-",
            other,
            f"{mean:.3f}" if high is None else f"{mean:.3f} [{low:.3f}, {high:.3f}]",
            *(f"{row['ratio'][name][0]:.3g}" if name in row["ratio"] else "-" for name in tables.REFERENCES),
            *(_beyond(row, times) for times in ("1.2", "1.5")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for memory in dict.fromkeys(row["memory"] for row in shown):
        lines += ["", _means([row for row in shown if row["memory"] == memory], memory)]
    return lines


def drawn_table(rows: Sequence[Kept]) -> list[str]:
    """The rows of cells that were drawn at random; with our memory rules where not all models fit."""
    shown = [row for row in rows if row["memory"] in ("", OURS)]
    served = [row for row in shown if max(row["goodput"].values()) > 0]
    lines = [f"| cell | `{OURS}` | best other | ratio | to `edf` | at 1.5x |", "|---|---|---|---|---|---|"]
    for row in served:
        mean, low, high = row["ratio"][row["best_other"]]
        spec = row["spec"].replace("devices=", "").replace("models=", "").replace(",priorities=1", "")
        cells = [
            f"{row['cell'].rpartition('-')[2]}: {spec.replace(',', ', ')}",
            f"{row['goodput'][OURS]:,.0f}",
            row["best_other"],
            f"{mean:.3f}" if high is None else f"{mean:.3f} [{low:.3f}, {high:.3f}]",
            f"{row['ratio']['edf'][0]:.3g}" if "edf" in row["ratio"] else "-",
            _beyond(row, "1.5"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    unserved = len(shown) - len(served)
    return [
        *lines,
        "",
        _means(served, ""),
        *(["", f"In {unserved} more cells no policy has a goodput."] * (unserved > 0)),
    ]


def _means(shown: Sequence[Kept], memory: str) -> str:
    """Geometric means over cells, and the lost cells, for a single memory manager."""
    means = ", ".join(
        f"{geometric_mean(ratios):.2f} of {title}"
        for title, ratios in (
            ("the best other", [row["ratio"][row["best_other"]][0] for row in shown]),
            ("`edf`", [row["ratio"]["edf"][0] for row in shown if "edf" in row["ratio"]]),
        )
        if ratios
    )
    closed = tables.gap_closed(tables.published(shown))
    if math.isfinite(closed) and closed > 0:
        means += f"; {100 * closed:.0f} % of the gap between the best other and the bound is closed"
    lost = ", ".join(row["cell"] for row in shown if row["lost"])
    whose = f"With the memory rules of `{memory}`: geometric means" if memory else "Geometric means"
    return f"{whose}: {means}. Lost: {lost or 'none'}."


def extent(plan: Kept) -> str:
    """The numbers of seeds and requests, as a line."""
    return (
        f"{plan['seeds']} seeds from {plan['first_seed']}, at least {plan['requests']:,} requests in every window;"
        f" settings chosen with {plan['screen_requests']:,}."
    )


def bounds_line(found: Kept) -> list[str]:
    """The origin of bounds that were computed after the measurement, as lines."""
    lines = []
    for name, title in (("bounds", "Bounds"), ("sharpened", "Sharpened bounds")):
        if name in found:
            made = found[name]
            took = f"{made['took_s'] / 60:.0f} min"
            lines += ["", f"{title}: commit {made['commit']}: `{made['command']}` ({took})."]
    return lines


def _beyond(row: Kept, times: str) -> str:
    """The ratio of our good answers/s to the best other policy's, each at a multiple of its own goodput."""
    ours, other = (
        row["overload"].get(policy, {}).get(times, 0.0) * row["goodput"][policy]
        for policy in (OURS, row["best_other"])
    )
    return f"{ours / other:.2f}" if other else "-"
