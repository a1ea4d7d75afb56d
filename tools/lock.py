"""Writes requirements.lock, -test.lock and -ray.lock anew: the newest releases that pyproject.toml allows.

    python3.11 tools/lock.py

Run it with the oldest Python that is supported: a release that runs there has so far run on every newer one,
while the newest releases drop old Pythons. `make lock` does, then try `make test` with each Python.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)


def freeze(python: Path, requirements: list[str]) -> list[str]:
    """Installs the requirements and answers with every package that is then there, as name==version."""
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "install", "--quiet", "--upgrade", "--only-binary=:all:", *requirements], check=True
    )
    frozen = subprocess.run([*pip, "freeze", "--all"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return sorted((line for line in frozen.splitlines() if not line.startswith("pip==")), key=str.lower)


def main() -> None:
    if sys.version_info[:2] != OLDEST:
        sys.exit(
            f"run this with Python {OLDEST[0]}.{OLDEST[1]}, the oldest supported; this is {sys.version.split()[0]}"
        )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    run = [*project["build-system"]["requires"], *project["project"]["dependencies"], *extras["gateway"]]
    test = [*extras["test"], *extras["plots"], *extras["compile"], *extras["otel"]]
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        python = Path(directory) / "bin" / "python"
        base = freeze(python, run)
        everything = freeze(python, [*base, *test])
        with_ray = freeze(python, [*everything, *extras["ray"]])
    header = "# Written by `make lock` from pyproject.toml. Has wheels for Python 3.11 to 3.14 on x86-64 and aarch64.\n"
    (ROOT / "requirements.lock").write_text(header + "\n".join(base) + "\n", encoding="utf-8")
    extra = [line for line in everything if line not in base]
    (ROOT / "requirements-test.lock").write_text(
        header + "-r requirements.lock\n" + "\n".join(extra) + "\n", encoding="utf-8"
    )
    more = [line for line in with_ray if line not in everything]
    (ROOT / "requirements-ray.lock").write_text(
        header + "-r requirements-test.lock\n" + "\n".join(more) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
