"""The tables of the documents: requests outside of their SLO, simulated and live, and the fate of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

Found = dict[str, Any]

LISTED_MAX = 10
"""Requests outside of their SLO that a document names for each row; the file has all."""


def simulated(found: Found) -> list[str]:
    lines = [
        "| workload | policy | requests | rate, of capacity | outside | in a million; 95 % bound | p50 | p99 | p99.9999 | max | busy, devices and links |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        lines.append(
            f"| {row['workload']} | `{row['policy']}` | {row['requests']:,} | {row['rate/s']:,.0f} of"
            f" {row['capacity/s']:,.0f}/s | {row['outside']:,} | {row['in a million']:.3g}; {row['at most, 95 %']:.2g} |"
            f" {row['p50_ms']:.1f} ms | {row['p99_ms']:.1f} ms | {row['p99.9999_ms']:.1f} ms | {row['max_ms']:.1f} ms |"
            f" {row['executing_%']:.0f} %, {row['loading_%']:.0f} % |"
        )
    lines += ["", *_sentences(found["facts"]["workloads"])]
    for row in found["rows"]:
        if row["listed"]:
            fates = ", ".join(f"{count:,} {fate}" for fate, count in row["fates"].items())
            lines += [
                "",
                f"Outside, {row['workload']}, `{row['policy']}`: {fates}.",
                "",
                *_listed(row["listed"], row["outside"]),
            ]
    return lines


def live(found: Found) -> list[str]:
    lines = [
        "| policy | requests | rate | outside | machine | contention | client | scheduler | p50 | p99 | p99.99 | max | others |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        verdicts = " | ".join(
            f"{row[f'outside, {verdict}']:,}" for verdict in ("machine", "contention", "client", "scheduler")
        )
        lines.append(
            f"| `{row['policy']}` | {row['requests']:,} | {row['rate/s']:,.0f}/s | {row['outside']:,} | {verdicts} |"
            f" {_ms(row['p50_ms'])} | {_ms(row['p99_ms'])} | {_ms(row['p99.99_ms'])} | {_ms(row['max_ms'])} |"
            f" {row['all other processes, cores']:.2f} cores |"
        )
    for row in found["rows"]:
        told = row["machine"]
        lines += [
            "",
            (
                f"`{row['policy']}`: in {told['seconds']:,.0f} s a core stood still for a millisecond or more"
                f" {told['cores stood still, times of 1 ms and more']:,} times,"
                f" {told['cores stood still, longest ms']:.1f} ms at most; an ordinary process got its core late"
                f" {told['an ordinary process got its core late, times of 1 ms and more']:,} times,"
                f" {told['an ordinary process got its core late, longest ms']:.1f} ms at most. Controller, worker and"
                f" client used {row['controller, cores']:.2f}, {row['worker, cores']:.2f} and"
                f" {row['client, cores']:.2f} cores."
            ),
        ]
        if row["listed"]:
            lines += ["", f"Outside, `{row['policy']}`:", "", *_listed(row["listed"], row["outside"])]
    return lines


def _ms(time_ms: float | None) -> str:
    return "-" if time_ms is None else f"{time_ms:.1f} ms"


def _sentences(workloads: dict[str, str]) -> Iterator[str]:
    yield "; ".join(f"*{name}*: {text}" for name, text in workloads.items()) + "."


def _listed(rows: Sequence[Found], outside: int) -> Iterator[str]:
    """A line for each request, the first of them."""
    for row in rows[:LISTED_MAX]:
        where = f"shard {row['shard']}, " if "shard" in row else ""
        reason = f" ({row['reason']})" if row.get("reason") else ""
        blamed = f"; {row['verdict']}" if "verdict" in row else ""
        yield (
            f"- {where}request {row['request']} for {row['model']} at {row['at_s']:.3f} s: {row['outcome']}{reason} after"
            f" {row['after_ms']:.1f} ms{blamed}"
        )
    if outside > LISTED_MAX:
        yield f"- and {outside - LISTED_MAX:,} more"
