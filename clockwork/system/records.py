"""The fields of dataclasses, for records that are written by the thousand."""

from __future__ import annotations

import dataclasses
from typing import Any

_NAMES: dict[type, tuple[str, ...]] = {}  # dataclasses.fields() takes longer than reading the fields


def fields_of(record: Any) -> dict[str, Any]:
    """Return a dataclass's fields without copies. dataclasses.asdict() would copy the elements of lists one
    by one."""
    kind = type(record)
    names = _NAMES.get(kind)
    if names is None:
        names = _NAMES[kind] = tuple(field.name for field in dataclasses.fields(record))
    return {name: getattr(record, name) for name in names}
