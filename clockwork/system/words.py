"""Numbers of things, as people say them."""

from __future__ import annotations


def say_count(count: int, noun: str, plural: str = "") -> str:
    """1 page, 2 pages; 2 batches where the plural is given."""
    return f"{count} {noun}" if count == 1 else f"{count} {plural or noun + 's'}"
