"""A terminal for texts in colour, on which texts of others do nothing. Imported where it is needed, for what rich costs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import TextColumn
from rich.segment import Segment

from clockwork.wire.telling import visible


class Terminal(Console):
    """A console that reads no markup in strings, and shows what is not printable instead of writing it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What a thing to be shown comes to: colours are styles of segments, so whatever is not printable is a stranger's."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(visible(segment.text, "\n"), segment.style)


def description() -> TextColumn:
    """The column of a progress display that says what it is of."""
    return TextColumn("{task.description}", markup=False)
