"""Numbers in sentences."""

from __future__ import annotations


def say_count(count: int, noun: str, plural: str = "") -> str:
    """Return a count with its noun: 1 page, 2 pages; or 2 batches if the plural is given."""
    return f"{count} {noun}" if count == 1 else f"{count} {plural or noun + 's'}"


def say_figure(value: float, digits: int = 2) -> str:
    """Return a positive figure rounded to some digits, without an exponent: 0.05, 3.2, 1,200. Below 0.01:
    "less than 0.01"."""
    if 0 < value < 0.01:
        return "less than 0.01"
    text = f"{float(f'{value:.{digits}g}'):,.2f}"
    return text.rstrip("0").rstrip(".")
