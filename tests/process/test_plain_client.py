"""The client's own tests once more, without its compiled modules and on a Python without the features of
Linux."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.process.cluster import ROOT, clean_environment

SUITE = ("tests/process/test_client.py", "tests/process/test_client_async.py")


@pytest.mark.parametrize("poll", ["poll", pytest.param("select", marks=pytest.mark.slow)])
def test_the_clients_tests_pass_without_extensions(poll: str) -> None:
    """select: also without poll(), as on Windows."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.process.without_extensions", *SUITE]
    environment = {**clean_environment(), **({"WITHOUT_POLL": "1"} if poll == "select" else {})}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 40


def test_nothing_compiled_is_imported_then() -> None:
    program = (
        "import tests.process.without_extensions, sys\n"
        "from clockwork import AsyncClient, Client\n"
        "from clockwork.wire import codec\n"
        "compiled = [name for name, module in sys.modules.items() if name.startswith('clockwork')"
        " and str(getattr(module, '__file__', '')).endswith('.so')]\n"
        "print(codec.reader.__name__, compiled)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "clockwork.wire._plain_codec []"
