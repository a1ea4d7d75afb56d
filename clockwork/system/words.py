"""Numbers, as people say them."""

from __future__ import annotations


def say_count(count: int, noun: str, plural: str = "") -> str:
    """1 page, 2 pages; 2 batches where the plural is given."""
    return f"{count} {noun}" if count == 1 else f"{count} {plural or noun + 's'}"


def say_figure(value: float, digits: int = 2) -> str:
    """A figure above 0 in so many digits, without powers of ten: 0.05, 3.2, 1,200; below a hundredth, just that it is."""
    if 0 < value < 0.01:
        return "less than 0.01"
    text = f"{float(f'{value:.{digits}g}'):,.2f}"
    return text.rstrip("0").rstrip(".")
