"""The wheels of `make wheels` serve without a checkout and a compiler, and a client with the client's wheel
can use them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S
from tests.unit.test_documented_types import PROMISED, check, examples

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

ASK = """
import sys
import numpy as np
from clockwork import Client, ClockworkError
x = np.zeros((1, 1, 8, 8), np.float32)
with Client(sys.argv[1]) as client:
    print(client.infer("digits", x).shape, [m.reference for m in client.models()])
    client.register("mine", sys.argv[2], examples=x)
    print(np.array_equal(client.infer("mine", x), client.infer("digits", x)))
    try:
        client.register("m", sys.argv[0])
    except ClockworkError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tag of this Python."""
    into = tmp_path_factory.mktemp("wheels")
    done = subprocess.run(
        [sys.executable, "tools/release.py", "--python", sys.executable, "--into", str(into)],
        cwd=ROOT, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return into


class Place:
    """A fresh environment in a directory of its own, whose PATH has no compiler."""

    def __init__(self, root: Path, wheels: Path, *requirements: str) -> None:
        self.root = root
        venv.create(root / "venv", with_pip=True)
        self.bin = root / "venv" / "bin"
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "CLOCKWORK_", "VIRTUAL"))
        } | {"PATH": str(self.bin), "HOME": str(root)}
        assert shutil.which("gcc", path=str(self.bin)) is None
        self.run("pip", "install", "--quiet", "--find-links", str(wheels), *requirements)

    def start(self, program: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.bin / program, *arguments], cwd=self.root, env=self._environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, program: str, *arguments: str) -> str:
        process = self.start(program, *arguments)
        text, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, text
        return text


@pytest.fixture(scope="module")
def served(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, str]]:
    """Run `clockwork up` in a directory and yield its endpoint."""
    place = Place(tmp_path_factory.mktemp("server"), wheels, "clockwork-serving")
    up = place.start("clockwork", "up", "--port", "0", "--no-gateway", "--data", str(place.root / "data"))
    assert up.stdout is not None
    said = []
    for line in up.stdout:
        said.append(line)
        if "Ctrl-C ends it" in line:
            break
    else:
        raise AssertionError("".join(said))
    (endpoint,) = re.findall(r"^  clients +(tcp://\S+)", "".join(said), re.M)
    yield place, endpoint
    up.send_signal(signal.SIGINT)
    assert up.wait(PATIENCE_S) == 0
    up.stdout.close()


def test_a_fresh_environment_serves(served: tuple[Place, str]) -> None:
    place, endpoint = served
    assert place.run("clockwork", "infer", "digits", "--example", "7", "--endpoint", endpoint).startswith(
        "digits: 7"
    )
    assert not list((place.root / "venv").rglob("*_tested*")), "what only tests call is in no wheel"


def test_type_checkers_see_the_types_of_what_is_installed(served: tuple[Place, str], tmp_path: Path) -> None:
    check(tmp_path, {**examples(), "promised.py": PROMISED}, served[0].bin / "python")


def test_the_client_asks_and_brings_nothing_else(
    served: tuple[Place, str], wheels: Path, tmp_path: Path
) -> None:
    place = Place(tmp_path, wheels, "clockwork-client")
    installed = {line.partition("==")[0] for line in place.run("pip", "freeze").splitlines()}
    assert {re.split(r"[ @]", one)[0] for one in installed} == {
        "clockwork-client",
        "numpy",
        "msgpack",
        "pyzmq",
    }
    (tmp_path / "ask.py").write_text(ASK, encoding="utf-8")
    said = place.run(
        "python", "ask.py", served[1], str(ROOT / "clockwork" / "models" / "data" / "digits.onnx")
    )
    assert said.startswith("(1, 10) ['digits@1']\nTrue\nask.py is not an ONNX model, or damaged")
