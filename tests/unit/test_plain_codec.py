"""The reader of headers in Python agrees with the compiled one: the same messages, the same sentences."""

from __future__ import annotations

import random
from typing import Any

import pytest

from clockwork.wire import _codec, _plain_codec, codec
from tests.unit.test_wire import TABLES, edges

SEED = 20_261_127

_PLAIN = {
    kind: _plain_codec.Layout(kind, forms, codec.bytes_max_of(kind), *codec.tolerance(kind))
    for kind, forms in codec._FORMS.items()
}


def told(reader: Any, header: bytes, layouts: dict[int, Any]) -> str:
    """Return a reader's result for a header; NaN is written as text, because it is not equal to itself."""
    try:
        return repr(reader.read(header, layouts))
    except reader.Odd as error:
        return f"odd: {error}"


def both(header: bytes, table: dict[int, type]) -> tuple[str, str]:
    plain = {tag: _PLAIN[kind] for tag, kind in table.items()}
    return told(_codec, header, codec._LAYOUTS[id(table)]), told(_plain_codec, header, plain)


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_at_every_bound_of_every_field(table: dict[int, type]) -> None:
    headers = [edge.header for kind in table.values() for edge in edges(kind)]
    assert headers
    for header in headers:
        compiled, plain = both(header, table)
        assert plain == compiled


def test_of_headers_that_were_changed_by_chance() -> None:
    rng = random.Random(SEED)
    good = [(edge.header, table) for table in TABLES.values() for kind in table.values() for edge in edges(kind)
            if edge.is_good and len(edge.header) < 2_000]  # fmt: skip
    taken = 0
    for _ in range(10_000):
        header, table = rng.choice(good)
        body = bytearray(header)
        for _ in range(rng.randint(1, 2)):
            if body:
                place = rng.randrange(len(body))
                near = (body[place] + rng.choice([1, -1])) % 256
                body[place] = rng.choice(
                    [near, near, rng.randrange(256), rng.choice(b"\xc1\xcb\xd9\xdd\xdf")]
                )
        compiled, plain = both(bytes(body), table)
        assert plain == compiled
        taken += not compiled.startswith("odd: ")
    assert taken > 500, "the changes are too wild to say anything"
