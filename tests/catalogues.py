"""Catalogues as tests open them: the one place that knows how."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from clockwork.controller.catalog.database import FILE
from clockwork.controller.catalog.packages import Packages
from clockwork.controller.catalog.records import Change, ModelRecord
from clockwork.controller.catalog.store import Catalog
from clockwork.formats.checksums import seal
from clockwork.formats.durable import run_alone
from clockwork.formats.package import rows_of


@contextmanager
def open_catalog(root: Path, packages: Packages | None = None, url: str = "") -> Iterator[Catalog]:
    """A catalogue that is open until the block ends."""
    catalog = Catalog(root, packages, url)
    catalog.open()
    try:
        yield catalog
    finally:
        catalog.close()


def apply(catalog: Catalog, change: Change) -> int:
    """Make a change at once. Returns its number."""
    return run_alone(catalog.change(change))


def records_of(root: Path) -> list[ModelRecord]:
    """The records that a controller finds that starts here. They must be in order."""
    with open_catalog(root) as catalog:
        records, complaints = catalog.records()
        _, more = catalog.routes()
        assert complaints + more == []
        return records


def sql(root: Path, statement: str, *values: object) -> list[tuple[object, ...]]:
    """Run a statement on the database of a data directory that no controller has open."""
    with closing(sqlite3.connect(root / FILE, isolation_level=None)) as connection:
        return connection.execute(statement, values).fetchall()


def sealed(record: ModelRecord) -> bytes:
    """A record as releases before the database wrote it into a file."""
    body = {
        "name": record.name,
        "version": record.version,
        "digest": record.digest,
        "files": rows_of(record.files),
        "options": record.options,
        "offered": record.offered,
        "aside": record.aside,
    }
    if record.is_read:
        body["declares"] = None if record.interface is None else record.interface.to_dict()
    return seal(body)
