"""Set-up of all tests, wherever pytest was started, and the choice of those that `make test` runs."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.inner_loop import COMPUTING, STORIES

TESTS = Path(__file__).resolve().parent


def pytest_configure() -> None:
    """A shell has what it starts in the background ignore SIGINT, and so would all that the tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Mark as ``outer`` what `make test` leaves to `make test-all`, before pytest chooses by marks."""
    for item in items:
        if not item.path.is_relative_to(TESTS) or item.path.relative_to(TESTS).parts[0] in COMPUTING:
            continue
        if item.originalname not in STORIES.get(item.path.stem, ()):
            item.add_marker(pytest.mark.outer)
