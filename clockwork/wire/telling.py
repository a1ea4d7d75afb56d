"""Bounded texts for values that an untrusted peer sent.

The peer decides the cost of ``repr()`` of such a value: a list of lists a thousand levels deep raises
RecursionError, a text of megabytes is copied, and a class of its own runs its own code. So sentences about
values that this program did not make use tell() or printable(). Where a text is printed, in a log (wire.logs)
or on a terminal (cli.common), visible() is applied to all of it, whatever its source.
"""

from __future__ import annotations

from collections.abc import Iterable

from clockwork.config import FAILURE_CHARS_MAX
from clockwork.config.wire import TOLD_CHARS
from clockwork.errors import InvalidInput

_LEVELS = 4  # depth of nested containers that is shown
_CUT = "..."


def tell(value: object, chars: int = TOLD_CHARS) -> str:
    """The value as Python writes it, in at most ``chars`` characters (and "..." where something is left out).

    The cost depends on ``chars`` alone: only the first elements of a container and the beginning of a text
    are read. The result is printable and has no line breaks.
    """
    parts: list[str] = []
    left = _tell(value, parts, chars, _LEVELS)
    text = "".join(parts)
    return text if left >= 0 else text[:chars] + _CUT


def printable(text: str, chars: int = TOLD_CHARS) -> str:
    """An untrusted text for a log line: at most ``chars`` characters, with unprintable ones replaced."""
    cut = text[:chars]
    if not cut.isprintable():
        cut = "".join(
            character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in cut
        )
    return cut if len(text) <= chars else cut + _CUT


def visible(text: str, keep: str = "") -> str:
    """The text with every unprintable character escaped as in a Python string, except those in ``keep``.

    For untrusted texts that are printed: the result has no control character that a terminal would obey, no
    line break that would begin a line of a log, no character that turns the direction of writing, and no half
    of a surrogate pair, which has no bytes.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in keep else _escaped(character)
        for character in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def no_such_input(model: str, name: str, inputs: Iterable[str]) -> InvalidInput:
    """The error of a request that names an input which the model does not have."""
    listed, came = ", ".join(map(repr, inputs)), name[:FAILURE_CHARS_MAX]
    return InvalidInput(
        f"{model} has no input {tell(name, 200)}; its inputs are {listed}", came, listed, came
    )


def _tell(value: object, parts: list[str], left: int, levels: int) -> int:
    """Append as much of the value as fits. Returns the characters left, negative if something is left out."""
    kind = type(value)
    if kind is str or kind is bytes:
        shown = repr(value[: max(left, 0)])  # type: ignore[index]
        parts.append(shown)
        return left - len(shown) if len(value) <= left else -1  # type: ignore[arg-type]
    if kind is list or kind is tuple or kind is dict:
        return _tell_container(value, parts, left, levels)
    # Python may refuse to write it
    if kind is int and value.bit_length() > 256:  # type: ignore[attr-defined]
        shown = f"<integer of {value.bit_length()} bits>"  # type: ignore[attr-defined]
    elif value is None or kind is int or kind is float or kind is bool:
        shown = repr(value)
    else:
        shown = f"<{kind.__name__}>"
    parts.append(shown)
    return left - len(shown)


def _tell_container(value: object, parts: list[str], left: int, levels: int) -> int:
    assert isinstance(value, (list, tuple, dict))
    begin, end = "[]" if type(value) is list else "()" if type(value) is tuple else "{}"
    if value and levels == 0:
        parts.append(begin + _CUT + end)
        return left - len(_CUT) - 2
    parts.append(begin)
    left -= 2
    first = True
    for element in value:
        if not first:
            parts.append(", ")
            left -= 2
        if left <= 0:
            return -1
        first = False
        left = _tell(element, parts, left, levels - 1)
        if type(value) is dict and left > 0:
            parts.append(": ")
            left = _tell(value[element], parts, left - 2, levels - 1)
        if left < 0:
            return left
    parts.append(end)
    return left
