"""A controller of which only the lease and the catalogue are there: it makes changes while it is active.

    python -m tests.process.contending_writer URL DIR NAME

Prints ``active EPOCH``, then for each change ``yes KEY`` once it is acknowledged, ``no KEY`` where it is
refused, and ``unknown KEY`` where nobody knows. Ends when another is active.
"""

from __future__ import annotations

import os
import selectors
import sys
from pathlib import Path

from clockwork.controller.catalog.postgres import Fence
from clockwork.controller.catalog.records import Change
from clockwork.controller.catalog.store import Catalog
from clockwork.controller.lease.keeper import LeaseKeeper, LeaseLost, LeaseWon
from clockwork.formats.durable import NotUndone
from clockwork.system.clock import SECOND, now_ns
from tests.catalogues import apply
from tests.patience import PATIENCE_S
from tests.process.test_catalog_databases import record


def tell(line: str) -> None:
    """Print a line at once, so that the log's lines of other threads do not get into it."""
    os.write(1, f"{line}\n".encode())


def keeper_of(url: str, name: str) -> LeaseKeeper:
    """Return a keeper once the database lets it read the catalogue; a controller is started anew instead."""
    deadline_ns = now_ns() + round(PATIENCE_S * SECOND)
    while True:
        try:
            return LeaseKeeper(url, (name,))
        except OSError:
            if now_ns() > deadline_ns:
                raise


def main(url: str, directory: Path, name: str) -> None:
    keeper = keeper_of(url, name)
    keeper.start()
    with selectors.DefaultSelector() as selector:
        selector.register(keeper.fileno(), selectors.EVENT_READ)
        while not (news := keeper.news()):
            selector.select()
    (won,) = news
    assert isinstance(won, LeaseWon)
    epoch, holder, *_ = won.leader
    catalog = Catalog(directory, None, url, Fence(epoch, holder), won.rows)
    catalog.open()
    tell(f"active {epoch}")
    key = 0
    while not any(isinstance(found, LeaseLost) for found in keeper.news()):
        keeper.beat()
        key += 1
        try:
            apply(catalog, Change(save=[record(f"e{epoch}-{key}")], by=str(epoch)))
            tell(f"yes e{epoch}-{key}")
        except NotUndone:
            tell(f"unknown e{epoch}-{key}")
        except OSError:
            tell(f"no e{epoch}-{key}")
    catalog.close()
    keeper.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
