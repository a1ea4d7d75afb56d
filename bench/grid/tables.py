"""Evaluates a book: each cell's ratios, the lost cells, geometric means, and the plot."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.grid import policies, run
from bench.grid.cells import CELLS
from bench.grid.policies import OTHERS, OURS
from bench.grid.search import NOTHING
from bench.grid.statistics import geometric_mean, paired_ratio

LOST_BELOW = 0.98
"""A cell is lost if the interval of the ratio of our goodput to the best other's begins below this."""
EXPLAIN_BELOW = 0.8
"""Part of the bound below which a cell needs an explanation."""
DRIFT_MAX = 0.005
"""Mean difference between the bad parts of a window's halves above which a run was not stationary."""
REFERENCES = ("paper", "edf")


@dataclasses.dataclass(frozen=True)
class Row:
    """A cell with a memory manager."""

    cell: str
    memory: str
    bound: float  # mean over seeds, requests a second; 0: not computed
    goodput: dict[str, float]  # goodput by policy, mean over seeds at its best setting
    setting: dict[str, str]
    # ratio of our goodput to each other policy's: mean, and its 95 % interval
    ratio: dict[str, tuple[float, float, float]]
    # by policy and multiple of its goodput: good answers per second, as a part of the goodput
    overload: dict[str, dict[str, float]]
    # by policy and multiple: the 99th percentile of the latency of refusals
    refusal_ms: dict[str, dict[str, float]]
    drift: dict[str, float]  # by policy: the difference between the halves of its windows, at its goodput

    @property
    def best_other(self) -> str:
        """The other policy with the highest goodput; "" if none was measured.

        Under the paper's memory manager only policies that can use it count, because dispatch is compared
        there, not loading.
        """
        others = [
            policy
            for policy in OTHERS
            if policy in self.goodput and (self.memory != "paper" or policy not in policies.OWN_MEMORY)
        ]
        return max(others, key=lambda policy: self.goodput[policy]) if others else ""

    @property
    def lost(self) -> bool:
        other = self.best_other
        return other in self.ratio and self.ratio[other][1] < LOST_BELOW


def rows(book: dict[str, Any]) -> Iterator[Row]:
    """The rows of a book that have measurements, in the order of the grid."""
    places = {name: place for place, name in enumerate(CELLS)}
    ordered = sorted(book["cells"].items(), key=lambda item: (places.get(item[0], len(places)), item[0]))
    for name, found in ordered:
        names = {policies.Setting.of_key(key).memory for key in found["settings"]}
        for memory in sorted(names - {""}) or [""]:
            row = _row(name, memory, found)
            if row.goodput:
                yield row


def commits(book: dict[str, Any]) -> str:
    """The commits that measured a book's results."""
    return ", ".join(
        sorted(
            {
                seed["commit"]
                for cell in book["cells"].values()
                for setting in cell["settings"].values()
                for seed in setting["seeds"].values()
            }
        )
    )


def bound(found: dict[str, Any]) -> float:
    """The mean over seeds of a cell's least bound, requests a second; 0 if none was computed."""
    return _mean(min(bounds.values()) for bounds in found["bounds"].values())


def published(kept: Sequence[dict[str, Any]]) -> list[Row]:
    """The rows from what markdown.kept() made of them, where None stands for infinities and NaNs."""
    names = [field.name for field in dataclasses.fields(Row)]

    def ratio(interval: Sequence[float | None]) -> tuple[float, float, float]:
        mean, low, high = (math.inf if value is None else value for value in interval)
        return mean, low, high

    return [
        Row(
            **{name: row[name] for name in names}
            | {"ratio": {of: ratio(row["ratio"][of]) for of in row["ratio"]}}
        )
        for row in kept
    ]


def _row(name: str, memory: str, found: dict[str, Any]) -> Row:
    floor = NOTHING * found["rough_bound"]
    seeds: dict[str, dict[str, Any]] = {}
    chosen: dict[str, str] = {}
    for policy in (*policies.POLICIES, *_in_python(found)):
        best = run.best_setting(found, policy, memory)
        if best is not None:
            seeds[policy] = found["settings"][best.key]["seeds"]
            chosen[policy] = best.key
    ratio = {}
    for other in OTHERS:
        if OURS in seeds and other in seeds:
            both = sorted(set(seeds[OURS]) & set(seeds[other]), key=int)
            if both:
                # A goodput of 0 has no logarithm: it counts as the lowest rate that was tried.
                ratio[other] = paired_ratio(
                    [max(seeds[OURS][seed]["goodput"], floor) for seed in both],
                    [max(seeds[other][seed]["goodput"], floor) for seed in both],
                )
    return Row(
        name,
        memory,
        bound(found),
        {
            policy: _mean(measured["goodput"] for measured in entry.values())
            for policy, entry in seeds.items()
        },
        chosen,
        ratio,
        {
            policy: _overload(entry, lambda point, goodput: point["good_rate"] / goodput)
            for policy, entry in seeds.items()
        },
        {
            policy: _overload(entry, lambda point, _: point.get("refusal_p99_ms", math.nan))
            for policy, entry in seeds.items()
        },
        {policy: _mean(_drift(measured) for measured in entry.values()) for policy, entry in seeds.items()},
    )


def _in_python(found: dict[str, Any]) -> list[str]:
    """The policies of a cell that are classes in Python: the table shows them, but does not compare them."""
    return sorted({run.Setting.of_key(key).policy for key in found["settings"]} - set(policies.POLICIES))


def _shown(found: Sequence[Row]) -> list[str]:
    """The policies that are columns of a table."""
    return [
        *policies.POLICIES,
        *sorted({policy for row in found for policy in row.goodput} - set(policies.POLICIES)),
    ]


def _drift(measured: dict[str, Any]) -> float:
    return next(
        (
            point["drift"]
            for point in measured["points"]
            if point["rate"] == float(f"{measured['goodput']:.6g}")
        ),
        0.0,
    )


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


def _overload(seeds: dict[str, Any], value: Callable[[dict[str, Any], float], float]) -> dict[str, float]:
    """The mean over seeds of value(point, goodput), by the point's multiple of the goodput."""
    found: dict[str, list[float]] = {}
    for entry in seeds.values():
        for times, point in entry["overload"].items():
            found.setdefault(times, []).append(value(point, entry["goodput"]))
    return {times: _mean(values) for times, values in found.items()}


def gap_closed(found: Sequence[Row]) -> float:
    """The part of the gap between best other policy and bound that ours closes, in geometric means."""
    useful = [
        row for row in found if row.bound and row.goodput.get(OURS) and row.goodput.get(row.best_other, 0) > 0
    ]
    if not useful:
        return math.nan
    ours = geometric_mean([row.goodput[OURS] / row.goodput[row.best_other] for row in useful])
    whole = geometric_mean([max(row.bound / row.goodput[row.best_other], 1.0) for row in useful])
    return math.log(ours) / math.log(whole) if whole > 1 else math.nan


def show(book: dict[str, Any], console: Console) -> None:
    """Print the table of cells and policies, and its summary."""
    found = list(rows(book))
    conditions = book["conditions"]
    console.print(
        f"commit {conditions['commit']}, {conditions['machine']}; "
        f"{book['plan']['seeds']} seeds from {book['plan']['first_seed']}, "
        f"{book['plan']['requests']} requests a point"
    )
    table = Table(title="goodput: requests a second, and parts of the bound", title_justify="left")
    for title in (
        "cell",
        "memory",
        "bound",
        *_shown(found),
        "ours / best other",
        *REFERENCES,
        "1.2x",
        "1.5x",
        "refused in ms, 1.2x",
        "1.5x",
        "",
    ):
        table.add_column(title, justify="left" if title in ("cell", "memory") else "right", no_wrap=True)
    for row in found:
        table.add_row(*_cells(row, _shown(found)))
    console.print(table)
    show_gaps(found, console)
    for title, part in _groups(found):
        for other in ("best other", *REFERENCES):
            ratios = [
                row.ratio[name][0]
                for row in part
                if (name := row.best_other if other == "best other" else other) in row.ratio
            ]
            if ratios:
                console.print(
                    f"{title}: geometric mean of ours / {other}: {geometric_mean(ratios):.3f} ({len(ratios)})"
                )
    lost = [f"{row.cell} {row.memory}".strip() for row in found if row.lost]
    console.print(f"lost: {', '.join(lost) or 'none'}")
    below = [
        f"{row.cell} {row.memory}".strip()
        for row in found
        if row.bound and OURS in row.goodput and row.goodput[OURS] < EXPLAIN_BELOW * row.bound
    ]
    console.print(f"below {EXPLAIN_BELOW:g} of the bound: {', '.join(below) or 'none'}")
    drifting = [
        f"{row.cell} {row.memory} {policy}"
        for row in found
        for policy, drift in row.drift.items()
        if abs(drift) > DRIFT_MAX
    ]
    console.print(f"not stationary: {', '.join(drifting) or 'none'}")


def show_gaps(found: Sequence[Row], console: Console) -> None:
    """Print the part of the gap to the bound that ours closes."""
    resident = [row for row in found if row.memory == ""]
    for title, part in (*([("all models resident", resident)] if resident else []), *_groups(found)):
        console.print(f"{title}: part of the gap to the bound closed: {gap_closed(part):.2f}")


def show_bounds(found: Sequence[Row], console: Console) -> None:
    """Print each cell's bound and ours, relative to the best other policy."""
    for row in found:
        if row.bound and row.goodput.get(row.best_other, 0) > 0:
            other = row.goodput[row.best_other]
            console.print(
                f"{row.cell:28} {row.memory:9} bound {row.bound:9,.0f}"
                f"  ours / best other {row.goodput.get(OURS, 0.0) / other:.3f}  bound / best other {row.bound / other:.3f}"
            )


def _groups(found: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """The resident cells with the cells of a memory manager, for each memory manager."""
    for memory in policies.MEMORIES:
        part = [row for row in found if row.memory in ("", memory)]
        if part:
            yield f"memory {memory}", part


def _cells(row: Row, shown: Sequence[str]) -> list[str]:
    def goodput(policy: str) -> str:
        if policy not in row.goodput:
            return ""
        rate = row.goodput[policy]
        return f"{rate:.4g} ({rate / row.bound:.2f})" if row.bound else f"{rate:.4g}"

    def ratio(other: str) -> str:
        if other not in row.ratio:
            return ""
        mean, low, high = row.ratio[other]
        return f"{mean:.3f} [{low:.3f}, {high:.3f}]" if high < math.inf else f"{mean:.3f}"

    def overload(found: dict[str, dict[str, float]], times: str, form: str) -> str:
        parts = [found.get(policy, {}).get(times) for policy in (OURS, row.best_other)]
        return " / ".join("-" if part is None else format(part, form) for part in parts)

    return [
        row.cell,
        row.memory,
        f"{row.bound:.4g}" if row.bound else "",
        *(goodput(policy) for policy in shown),
        f"{ratio(row.best_other)} {row.best_other}",
        *(ratio(policy).partition(" ")[0] for policy in REFERENCES),
        *(overload(row.overload, times, ".2f") for times in ("1.2", "1.5")),
        *(overload(row.refusal_ms, times, ".3g") for times in ("1.2", "1.5")),
        "lost" if row.lost else "",
    ]


def plot(found: Sequence[Row], title: str, path: Path) -> None:
    """Draw every policy's part of the bound in each cell, or of the best policy's goodput where no bounds are
    known, as a PNG file. Needs the extra [plots].
    """
    try:
        import matplotlib
    except ImportError:
        raise ValueError("plots need matplotlib: install the extra [plots]") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(11, 0.32 * len(found) + 1.6), layout="constrained")
    marks = dict(zip(policies.POLICIES, "svxD*"))
    for policy in _shown(found):
        points = [
            (row.goodput[policy] / (row.bound or max(row.goodput.values()) or 1.0), index)
            for index, row in enumerate(found)
            if policy in row.goodput
        ]
        axes.scatter(
            [x for x, _ in points],
            [y for _, y in points],
            s=60 if policy == OURS else 26,
            marker=marks.get(policy, "P"),
            label=policy,
            zorder=3 if policy == OURS else 2,
        )
    axes.set_yticks(range(len(found)), [f"{row.cell} {row.memory}".strip() for row in found], fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlim(0, 1.05)
    whole = "the upper bound" if any(row.bound for row in found) else "the best policy's"
    axes.set_xlabel(f"goodput as a part of {whole}")
    axes.set_title(title, fontsize=8)
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
