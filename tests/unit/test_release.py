"""The published files: two distributions of one package, of which the client's works alone."""

from __future__ import annotations

import datetime
import importlib.util
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.unit.test_imports import IMPORTS, PACKAGE, is_module

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / "tools" / "release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["release"] = module
    spec.loader.exec_module(module)
    return module


def place_of(module: str) -> Path:
    """The file of a module of clockwork, below its folder."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    for file in (path.with_suffix(".py"), path / "__init__.py", path.with_suffix(".pyx")):
        if file.exists():
            return file.relative_to(PACKAGE)
    raise AssertionError(f"{module} has no file")


def test_the_client_imports_nothing_of_the_server(release: ModuleType) -> None:
    """Exceptions are the extensions that have stand-ins, and the check of models, which has a stand-in,
    too."""
    beyond = set()
    for one in IMPORTS:
        if not one.target.startswith("clockwork.") or not is_module(one.target):
            continue
        importer = place_of(f"clockwork.{one.importer}" if one.importer else "clockwork")
        if release.is_clients(importer) and not release.is_clients(place_of(one.target)):
            beyond.add((str(importer), one.target))
    assert beyond == {
        ("client/upload.py", "clockwork.models.packaging"),
        ("wire/codec.py", "clockwork.wire._codec"),
        ("wire/transport.py", "clockwork.system._wait"),
        ("wire/transport.py", "clockwork.wire._zmq"),
    }


def test_the_client_needs_three_packages_and_no_more(release: ModuleType) -> None:
    outside = {
        one.target.split(".")[0]
        for one in IMPORTS
        if release.is_clients(place_of(f"clockwork.{one.importer}" if one.importer else "clockwork"))
    } - {"clockwork", "__future__"}
    # ml_dtypes is imported for tensors of its types alone, and asked for by name where it is missing.
    assert outside - sys.stdlib_module_names == {"numpy", "msgpack", "zmq", "ml_dtypes"}


def test_both_projects_together_are_the_package_and_neither_has_the_others_files(
    release: ModuleType, tmp_path: Path
) -> None:
    client, server = release.assemble(tmp_path)

    def files(root: Path) -> set[str]:
        found = {str(path.relative_to(root)) for path in (root / "clockwork").rglob("*") if path.is_file()}
        return {name for name in found if not name.endswith("__init__.pxd")}

    assert files(client) & files(server) == set()
    tracked = {str(path) for path in release.tracked() if path.parts[0] == "clockwork"}
    assert files(client) | files(server) == tracked
    of_client = tomllib.loads((client / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    of_server = tomllib.loads((server / "pyproject.toml").read_text(encoding="utf-8"))
    assert f"clockwork-client=={of_client['version']}" in of_server["project"]["dependencies"]
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert of_server["project"]["scripts"] == whole["project"]["scripts"]
    assert of_server["tool"]["setuptools"]["package-data"] == whole["tool"]["setuptools"]["package-data"]
    assert sorted(of_client["dependencies"]) == sorted(
        need for need in whole["project"]["dependencies"] if need.startswith(("numpy", "msgpack", "pyzmq"))
    )


LOG = "# Changelog\n\n## 1.2.0 (2026-05-01)\n\n- A thing.\n\n## 1.1.0 (2026-01-01)\n\n- Another.\n"
TODAY = datetime.date(2026, 5, 2)


def test_what_is_complete_is_a_release(release: ModuleType) -> None:
    assert release.faults("1.2.0", "1.2.0", LOG, [], ["v1.1.0"], TODAY) == []


@pytest.mark.parametrize(
    ("wanted", "changes", "lacking"),
    [
        ("1.2", {"said": "1.2", "changelog": LOG.replace("1.2.0", "1.2")}, "'1.2' is no version"),
        ("1.2.0", {"said": "1.1.0"}, "has VERSION '1.1.0'"),
        (
            "1.2.0",
            {"changelog": LOG.replace("(2026-05-01)", "(unreleased)")},
            "'1.2.0 (unreleased)': it is to be '1.2.0 (2026-05-02)'",
        ),
        ("1.3.0", {"said": "1.3.0"}, "begins with the section '1.2.0 (2026-05-01)'"),
        ("1.2.0", {"changelog": LOG.replace("2026-05-01", "2026-06-01")}, "dates 1.2.0 2026-06-01"),
        ("1.2.0", {"changelog": LOG.replace("- A thing.", "")}, "lists nothing"),
        ("1.2.0", {"changed": ["README.md"]}, "not committed: README.md"),
        ("1.2.0", {"tags": ["v1.2.0"]}, "a tag v1.2.0 already"),
    ],
)
def test_what_a_release_lacks_is_named(
    release: ModuleType, wanted: str, changes: dict[str, Any], lacking: str
) -> None:
    given = {"said": "1.2.0", "changelog": LOG, "changed": [], "tags": [], "today": TODAY} | changes
    (found,) = release.faults(wanted, *given.values())
    assert lacking in found


def test_ctrl_c_ends_it_in_a_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "tools/release.py", "--python", sys.executable, "--into", str(tmp_path)]
    process = subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    with process:
        assert any(line.startswith("preparing what builds") for line in process.stdout)
        os.killpg(process.pid, signal.SIGINT)
        said = process.stderr.read() if process.stderr is not None else ""
    assert process.returncode == 130
    assert "Interrupted. Distributions that were finished stay" in said
    assert "Traceback" not in said
