"""Rewrites requirements.lock, -compile.lock, -test.lock, -ray.lock and -sources.lock with the newest releases
that pyproject.toml allows.

    python3.11 tools/lock.py

The script must run with the oldest supported Python: the newest releases drop old Pythons, whereas a release
that runs there has so far run on every newer Python. After `make lock`, try `make test` with each Python.
Each release is written with the SHA-256 of its files on the index; pip installs no other file.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)

SOURCES = ("s3", "gs", "az", "hf", "http", "test-sources")
"""Extras of requirements-sources.lock. The tests run in its environment, too."""

SHARED = ("python-dateutil<3",)
"""Bounds of the extras in SOURCES on packages that the tests need for another reason."""


UV = "uv>=0.9,<1"
"""The tool that reads the hashes of releases for every platform from the index. pip knows only the files that
it fetched.
"""

HEADER = (
    "# Written by `make lock` from pyproject.toml. Has wheels for Python 3.11 to 3.14 on x86-64 and aarch64."
)


def freeze(requirements: list[str]) -> list[str]:
    """Install the requirements into a new environment, and return all its packages as name==version."""
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        pip = [str(Path(directory) / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run(
            [*pip, "install", "--quiet", "--upgrade", "--only-binary=:all:", *requirements], check=True
        )
        frozen = subprocess.run(
            [*pip, "freeze", "--all"], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
    return sorted((line for line in frozen.splitlines() if not line.startswith("pip==")), key=str.lower)


def with_hashes(pinned: list[str]) -> list[str]:
    """Return the lines, each followed by lines with the SHA-256 of every file of that release."""
    if not pinned:
        return []
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        inside = Path(directory) / "bin"
        subprocess.run([inside / "python", "-m", "pip", "install", "--quiet", UV], check=True)
        written = subprocess.run(
            [inside / "uv", "pip", "compile", "-", "--quiet", "--no-deps", "--universal", "--generate-hashes",
             "--no-annotate", "--no-header", "--only-binary=:all:", f"--python-version={'.'.join(map(str, OLDEST))}"],
            check=True, input="\n".join(pinned), stdout=subprocess.PIPE, text=True,
        ).stdout  # fmt: skip
    return written.splitlines()


def main() -> None:
    if sys.version_info[:2] != OLDEST:
        sys.exit(
            f"run this with Python {OLDEST[0]}.{OLDEST[1]}, the oldest supported; this is {sys.version.split()[0]}"
        )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    run = [*project["build-system"]["requires"], *project["project"]["dependencies"], *extras["gateway"]]
    test = [
        *extras["test"],
        *extras["dashboard"],
        *extras["plots"],
        *extras["telemetry"],
        *extras["otel"],
        *extras["postgres"],
        *SHARED,
    ]
    base = freeze(run)
    compiling = freeze([*base, *extras["compile"]])
    everything = freeze([*compiling, *test])
    for name, lines, before, on in (
        ("", base, [], ""),
        ("-compile", compiling, base, "requirements.lock"),
        ("-test", everything, compiling, "requirements-compile.lock"),
        ("-ray", freeze([*everything, *extras["ray"]]), everything, "requirements-test.lock"),
        (
            "-sources",
            freeze([*everything, *(requirement for extra in SOURCES for requirement in extras[extra])]),
            everything,
            "requirements-test.lock",
        ),
    ):
        more = [f"-r {on}"] if on else []
        more += with_hashes([line for line in lines if line not in before])
        (ROOT / f"requirements{name}.lock").write_text("\n".join([HEADER, *more, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
