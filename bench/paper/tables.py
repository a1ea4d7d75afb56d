"""What the figures' files say, policy by policy, as the tables of the documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

LOOSE_MS = 100.0
"""From this SLO on, sensitive clients leave the same room to batch clients."""

Found = dict[str, Any]
BOUND = "bound"
"""Stands among the policies where a figure has a bound for each row."""


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
    """Goodput over all of it, and minor clients at the end. There is no bound for it."""
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
    """Floors by rate, of 12 and of 48 models; in rungs of 1.5, and in steps of 5 %."""
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
            f"{sum(rows[one]['batch/s'][place] for place in loose) / len(loose):,.0f}"
            for one in _policies(found)
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


TABLES: dict[str, Callable[[Found], list[str]]] = {"fig5": fig5, "fig6": fig6, "fig7": fig7, "fig8": fig8}


def _policies(found: Found) -> list[str]:
    return [one for one in dict.fromkeys(row["policy"] for row in found["rows"]) if one != BOUND]


def _ms(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _lines(head: str, found: Found, rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """One column for each policy, and one for the bound if any row has it."""
    heads = [*(f"`{policy}`" for policy in _policies(found)), BOUND]
    count = len(heads) if any(cells[-1] != "-" for _, cells in rows) else len(heads) - 1
    return [
        f"| {head} | {' | '.join(heads[:count])} |",
        "|---" * (count + 1) + "|",
        *(f"| {title} | {' | '.join(cells[:count])} |" for title, cells in rows),
    ]
