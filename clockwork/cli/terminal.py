"""A console that foreign texts cannot control. It is imported on demand, because rich is slow to import."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import TextColumn
from rich.segment import Segment

from clockwork.wire.telling import visible


class Terminal(Console):
    """A console that ignores markup in strings, and makes unprintable characters visible."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of a renderable. Colours are styles of segments, so unprintable characters are
        foreign."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(visible(segment.text, "\n"), segment.style)


def description() -> TextColumn:
    """Return the column of a progress display with the task's description."""
    return TextColumn("{task.description}", markup=False)
