"""Makes the tables of the documents from the files of the figures, with a column for each policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

LOOSE_MS = 100.0
"""SLO from which latency-sensitive clients leave the same room to batch clients at every SLO."""

Found = dict[str, Any]
BOUND = "bound"
"""The policy of rows that are an upper bound."""


def fig5(found: Found) -> list[str]:
    """Goodput by SLO."""
    by = {(row["policy"], row["slo_ms"]): row["goodput/s"] for row in found["rows"]}
    bounds = found["facts"]["bound, requests/s by SLO in ms"]
    slos = sorted({slo for _, slo in by})
    return _lines(
        "SLO (goodput/s)",
        found,
        [
            (f"{slo:g} ms", [*(f"{by[policy, slo]:,.0f}" for policy in _policies(found)), f"{bounds[f'{slo:g}']:,.0f}"])
            for slo in slos
        ],
    )  # fmt: skip


def fig6(found: Found) -> list[str]:
    """Goodput over the whole experiment, and that of minor clients at the end; no bound."""
    by = {row["policy"]: row for row in found["rows"]}
    return _lines(
        "requests/s",
        found,
        [
            (title, [*(f"{by[policy][name]:,.0f}" for policy in _policies(found)), "-"])
            for title, name in (
                ("goodput", "goodput/s"),
                ("minor clients at the end, of 200", "minor_at_end/s"),
            )
        ],
    )


def fig7(found: Found) -> list[str]:
    """Floors by rate, for 12 and 48 models. A floor: the tightest SLO from which on all are met.

    One ladder raises the SLO by a factor of 1.5 in each step, a finer ladder by 1.05.
    """
    facts = found["facts"]
    rates = sorted({row["rate"] for row in found["rows"]})
    models = sorted({row["models"] for row in found["rows"]})
    columns = [*_policies(found), BOUND]
    return _lines(
        f"floor in ms, {' and '.join(map(str, models))} models",
        found,
        [
            (
                f"{rate:,}/s{'' if sweep == 'ladder' else ', in steps of 5 %'}",
                [
                    ", ".join(
                        _ms(facts[f"floor in ms, {sweep}, {column}"][f"R={rate} N={n}"]) for n in models
                    )
                    for column in columns
                ],
            )
            for sweep in dict.fromkeys(row["sweep"] for row in found["rows"])
            for rate in rates
        ],
    )


def fig8(found: Found) -> list[str]:
    """Floors of sensitive clients, beside batch clients."""
    by = {(row["policy"], row["batch"]): row["floor_ms"] for row in found["rows"]}
    kinds = list(dict.fromkeys(row["batch"] for row in found["rows"]))

    def batch(kind: str) -> list[str]:
        rows = {row["policy"]: row for row in found["rows"] if row["batch"] == kind}
        loose = [place for place, slo in enumerate(rows[_policies(found)[0]]["slo_ms"]) if slo >= LOOSE_MS]
        return [
            f"{sum(rows[policy]['batch/s'][place] for place in loose) / len(loose):,.0f}"
            for policy in _policies(found)
        ]

    return _lines(
        "floor in ms of sensitive clients",
        found,
        [
            (
                "alone" if kind == "0x0" else f"beside {kind}",
                [
                    *(_ms(by[policy, kind]) for policy in _policies(found)),
                    _ms(by[BOUND, kind]) if (BOUND, kind) in by else "-",
                ],
            )
            for kind in kinds
        ]
        + [
            (f"batch answers/s beside {kind}, at {LOOSE_MS:g} ms and more", [*batch(kind), "-"])
            for kind in kinds[1:]
        ],
    )


def fig2(found: Found) -> list[str]:
    """Percentiles above the median."""
    return _columns(found["rows"], {
        "executions": "where", "count": "count", "p50, ms": "p50_ms", "p99 above it, %": "p99_above_%",
        "p99.9, %": "p99.9_above_%", "p99.99, %": "p99.99_above_%",
    })  # fmt: skip


def fig9(found: Found) -> list[str]:
    """Requests in time, and latencies, with the fewest devices that were found, and with 12."""
    return _columns(found["rows"], {
        "mapping": "mapping", "policy": "policy", "V100s": "devices", "within the SLO, %": "goodput_%",
        "bound, %": "bound_%", "late": "late", "p50, ms": "p50_ms", "p99": "p99_ms", "p99.9999": "p99.9999_ms",
        "cold, %": "cold_%", "executing, %": "device_busy_%",
    })  # fmt: skip


def fig11(found: Found) -> list[str]:
    """Emulated workers, and the scheduler's processor time for them."""
    return _columns(found["rows"], {
        "policy": "policy", "workers": "devices", "offered/s": "rate", "bad, %": "bad_%",
        "most with 90 % in time, /s": "peak/s", "scheduler, us a request": "scheduler_us",
    })  # fmt: skip


TABLES: dict[str, Callable[[Found], list[str]]] = {
    "fig2": fig2, "fig5": fig5, "fig6": fig6, "fig7": fig7, "fig8": fig8, "fig9": fig9, "fig11": fig11,
}  # fmt: skip


def _policies(found: Found) -> list[str]:
    return [policy for policy in dict.fromkeys(row["policy"] for row in found["rows"]) if policy != BOUND]


def _columns(rows: Sequence[Found], names: dict[str, str]) -> list[str]:
    """A table of rows. names: the key of a column in a row, by the column's title."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:,.7g}"
        return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)

    return [
        f"| {' | '.join(names)} |",
        "|---" * len(names) + "|",
        *(f"| {' | '.join(cell(row.get(name)) for name in names.values())} |" for row in rows),
    ]


def _ms(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _lines(head: str, found: Found, rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """A table with a column for each policy, and for the bound if any row has it."""
    heads = [*(f"`{policy}`" for policy in _policies(found)), BOUND]
    count = len(heads) if any(cells[-1] != "-" for _, cells in rows) else len(heads) - 1
    return [
        f"| {head} | {' | '.join(heads[:count])} |",
        "|---" * (count + 1) + "|",
        *(f"| {title} | {' | '.join(cells[:count])} |" for title, cells in rows),
    ]
