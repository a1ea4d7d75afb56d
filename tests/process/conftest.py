"""Common fixtures of the gateway's tests; other tests have controllers of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.fake_controller import FakeController


@pytest.fixture(scope="module")
def controller() -> Iterator[FakeController]:
    """A gateway before a controller that answers every request with its inputs, shared by the tests of a
    file."""
    with FakeController() as controller:
        yield controller


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost, and its key."""
    # imported here: the test skips where the gateway's libraries are missing
    from tests.process.gateways import new_pair

    return new_pair(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    """A file with TOKEN in a line."""
    from tests.process.gateways import TOKEN

    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return path
