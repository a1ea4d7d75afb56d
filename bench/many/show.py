"""The measured cells as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def of(rows: Sequence[Row], share: float, pattern: str) -> list[Row]:
    return [row for row in rows if (row["share"], row["pattern"]) == (share, pattern)]


def markdown(rows: Sequence[Row]) -> list[str]:
    """Requests in time as parts of the offered, with the p99 of answers; a line for each server."""
    loads = sorted({row["load"] for row in rows})
    titles = list(dict.fromkeys(row["title"] for row in rows))
    by = {(row["title"], row["load"]): row for row in rows}
    lines = [
        (
            f"| in time, of the offered; p99 | {' | '.join(f'{load:g} of capacity' for load in loads)} |"
            " cold p99 at the lowest | loads a request |"
        ),
        "|---" * (len(loads) + 3) + "|",
    ]
    for title in titles:
        found = [by.get((title, load)) for load in loads]
        first = next(row for row in found if row is not None)
        lines.append(
            f"| {title} | {' | '.join(_goodput(row) for row in found)} | {_ms(first['cold_p99_ms'])} |"
            f" {first['loads/request']:.2f} |"
        )
    return lines


def facts(found: Row) -> str:
    """The models, and the load on the machine, as sentences."""
    rows = found["rows"]
    capacities = found["capacity/s"]
    return (
        f"{found['models']:,} models of {found['architectures']} architectures, {found['bytes'] / 1e9:.1f} GB of weights"
        f" (median {found['median_bytes'] / 1e6:.1f} MB, largest {found['largest_bytes'] / 1e6:.0f} MB); popularity by"
        f" Zipf's law ({found['zipf']:g}); SLO {found['slo_ms']:g} ms, {found['large_slo_ms']:g} ms for the largest."
        f" Capacity is what a core executes of this mix with every model in memory: {min(capacities):,.0f} to"
        f" {max(capacities):,.0f} requests/s. The client took at most"
        f" {max(row['client_cores'] for row in rows):.2f} cores, other work on the machine"
        f" {max(row['other_cores'] for row in rows):.2f} in any cell.{_beside_the_best(rows)}"
    )


def _beside_the_best(rows: Sequence[Row]) -> str:
    """Clockwork's goodput as a multiple of the best peer's where memory is shortest, as a sentence."""
    share = min(row["share"] for row in rows)
    said = []
    for load in sorted({row["load"] for row in rows}):
        by = {row["system"]: row["goodput/s"] for row in of(rows, share, "zipf") if row["load"] == load}
        best = max((rate for name, rate in by.items() if not name.startswith("clockwork")), default=0.0)
        if best > 0 and "clockwork" in by:
            said.append(f"{by['clockwork'] / best:.1f} at {load:g}")
    return (
        f" Clockwork's goodput in multiples of the best peer's: {', '.join(said)} of capacity."
        if said
        else ""
    )


def details(rows: Sequence[Row]) -> list[str]:
    """All counts, a line for each cell."""
    heads = (
        "server", "memory", "arrivals", "load", "requests", "in time", "late", "refused", "failed", "gave up", "p50",
        "p99", "cold", "cold in time", "cold p99", "beyond load and execution, p99", "loads a request",
        "in time, round by round", "cores: server, client, others", "memory of all processes",
    )  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        by_round = ", ".join(f"{100 * part:.2f}" for part in row["of_offered_by_round"])
        cores = ", ".join(f"{row[name]:.2f}" for name in ("server_cores", "client_cores", "other_cores"))
        lines.append(
            f"| {row['title']} | {100 * row['share']:g} % | {row['pattern']} | {row['load']:g} | {row['offered']:,} |"
            f" {row['within_slo']:,} | {row['late']:,} | {row['refused']:,} | {row['failed']:,} |"
            f" {row['gave_up']:,} | {_ms(row['p50_ms'])} | {_ms(row['p99_ms'])} | {row['cold']:,} |"
            f" {row['cold_within_slo']:,} | {_ms(row['cold_p99_ms'])} | {_ms(row['cold_beyond_p99_ms'])} |"
            f" {row['loads/request']:.3f} | {by_round} % | {cores} | {row['rss_mib']:,.0f} MiB |"
        )
    return lines


def _goodput(row: Row | None) -> str:
    if row is None:
        return "-"
    return f"{100 * row['of_offered']:.1f} %, {_ms(row['p99_ms'])}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} ms"
