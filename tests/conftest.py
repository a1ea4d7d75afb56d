"""Set-up of all tests, wherever pytest was started, and the choice of the tests that `make test` runs."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.inner_loop import COMPUTING, STORIES

TESTS = Path(__file__).resolve().parent


def pytest_configure() -> None:
    """Restore the default action of SIGINT: a shell has background processes ignore it, and the processes of
    tests would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Mark tests ``outer`` that `make test` leaves to `make test-all`, before pytest chooses by marks."""
    for item in items:
        if not item.path.is_relative_to(TESTS) or item.path.relative_to(TESTS).parts[0] in COMPUTING:
            continue
        if item.originalname not in STORIES.get(item.path.stem, ()):
            item.add_marker(pytest.mark.outer)
