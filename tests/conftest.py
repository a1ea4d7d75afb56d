"""Set-up of all tests, wherever pytest was started, and the choice of the tests that `make test` runs."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.inner_loop import COMPUTING, STORIES

TESTS = Path(__file__).resolve().parent
REASON_CHARACTERS = 1000


class Failures:
    """Names each failure when it happens: a run that is ended from outside has no summary."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = str(report.longrepr if crash is None else crash.message).strip()
            terminal = self._config.pluginmanager.get_plugin("terminalreporter")
            terminal.ensure_newline()
            terminal.write_line(f"{report.nodeid} failed in its {report.when}: {reason[:REASON_CHARACTERS]}")


def pytest_configure(config: pytest.Config) -> None:
    """Restore the default action of SIGINT: a shell has background processes ignore it, and the processes of
    tests would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):  # the process that writes to the terminal
        config.pluginmanager.register(Failures(config))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Mark tests ``outer`` that `make test` leaves to `make test-all`, before pytest chooses by marks."""
    for item in items:
        if not item.path.is_relative_to(TESTS) or item.path.relative_to(TESTS).parts[0] in COMPUTING:
            continue
        if item.originalname not in STORIES.get(item.path.stem, ()):
            item.add_marker(pytest.mark.outer)
