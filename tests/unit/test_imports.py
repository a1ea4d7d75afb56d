"""The allowed imports between rooms: ARCHITECTURE's "imports go one way", read from the sources with ast.

Every folder of clockwork/ is a room, which imports itself and the rooms that are listed for it. A new file
beside the folders, or a new folder, fails here until it is assigned to a room.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "clockwork"

MAY_IMPORT = {
    "base": [],
    "system": ["base"],
    "wire": ["base", "system"],
    "web": ["base"],
    "takeover": ["base"],
    "scheduler": ["base", "wire"],
    "observe": ["base", "system", "wire", "web", "scheduler"],
    "formats": ["base", "system", "wire", "scheduler"],
    "device": ["base", "system", "wire", "formats"],
    # preparation measures on the device itself
    "models": ["base", "system", "wire", "scheduler", "formats", "device"],
    "client": ["base", "system", "wire", "takeover", "formats", "models"],
    "workloads": ["base", "system", "wire", "models", "client"],
    "sources": ["base", "system", "wire", "formats"],
    "protocol": ["base", "wire"],
    "repository": ["base", "system", "wire", "formats", "models", "client", "sources", "protocol"],
    "controller": ["base", "system", "wire", "takeover", "scheduler", "formats", "sources"],
    "worker": ["base", "system", "wire", "takeover", "formats", "device", "models"],
    "gateway": ["base", "system", "wire", "web", "client", "sources", "protocol", "repository"],
    "sim": ["base", "system", "wire", "takeover", "scheduler", "observe", "formats", "workloads", "device"],
    "launch": ["base", "system", "wire", "scheduler", "formats", "client", "sim"],
    "cli": ["base", "system", "wire", "formats", "models", "workloads", "client", "sources", "controller", "worker", "repository", "gateway", "sim", "observe", "launch", "web"],
    "face": ["base", "wire", "formats", "client", "cli"],
}  # fmt: skip
"""For each room, the rooms that it may import.

A room is a folder of its name, except for the two rooms of the files beside the folders.
"""

NATIVE_MAY_INCLUDE = {
    "base": [],
    "wire": ["base"],
    "scheduler": ["base", "wire"],
    "recording": ["base", "wire", "scheduler"],
    "device": ["base", "wire", "scheduler"],
    "controller": ["base", "wire", "scheduler", "recording"],
    "worker": ["base", "wire", "scheduler", "device"],
    "sim": ["base", "wire", "scheduler", "recording", "device", "worker"],
}
"""The same for csrc/, whose files beside the folders are the room `base`."""

LOOSE = {
    "": "face",
    "__main__": "face",
    "profiles": "face",
    "errors": "base",
    "config": "base",
}

PURE = ["takeover", "scheduler", "web"]
IMPURE_MODULES = {
    "asyncio", "concurrent", "multiprocessing", "os", "pathlib", "select", "signal", "socket", "subprocess",
    "threading", "time", "clockwork.system", "clockwork.wire.tensors", "clockwork.wire.codec", "clockwork.wire.keys",
    "clockwork.wire.transport", "clockwork.wire.inflow",
}  # fmt: skip
"""Modules that a pure room must not import: sockets, threads, clocks, files, bytes of tensors."""

PURE_FILES = [
    f"controller.{name}"
    for name in (
        "catalog.options", "catalog.records", "catalog.routes", "effects", "models.accounts", "models.lifecycle",
        "models.version", "registration.bundles", "registration.core_waits", "registration.preparation_book", "registration.registrar", "registration.releases",
        "registration.table", "registration.tasks", "registration.turns", "registration.uploads",
        "registration.versions", "standing", "troubles",
    )
]  # fmt: skip
"""Modules that the controller's decisions about models must not import; looking up the name of a dtype is
allowed."""

CONTROLLER = [
    ["troubles", "settings", "standing"],
    ["catalog"],
    ["lease"],
    ["models"],
    ["effects"],
    ["registration"],
    ["storage"],
    ["recording"],
    ["peers"],
    ["context", "mirror"],
    ["views"],
    ["ports"],
    ["fellows", "outlet"],
    ["process"],
]
"""The folders of the controller and the modules beside them; each imports those of earlier lines alone."""

OBEDIENT = ["client", "worker"]
"""Rooms that import nothing of takeover but its obedience: they neither hold nor claim a lease."""

NO_SOCKETS = ["scheduler", "formats", "workloads", "device", "models", "sim"]
"""Rooms that import no module of wire's that opens a socket."""

ONLY_IN = {
    "zmq": ["wire.transport", "wire._zmq", "wire._plain_zmq"],
    "onnxruntime": ["models", "device"],
    "sklearn": [],
    "torch": [],
    "aiohttp": ["gateway"],
    "bokeh": ["observe.dashboard"],
    "fsspec": ["sources.reader"],
    "grpc": ["gateway"],
    "google": ["gateway", "models", "protocol", "repository"],
    "prometheus_client": ["gateway"],
    "psycopg": ["controller.catalog.postgres", "controller.lease"],
    "ray": ["launch.ray"],
    "tornado": ["observe.dashboard"],
    "tinygrad": ["models.compile.lower", "models.compile.interpret", "models.compile.replaced"],
}
"""Outside packages, and the modules (a package stands for all its modules) that may import them."""


class Import(NamedTuple):
    importer: str  # module name below clockwork, "" for clockwork itself
    target: str  # full dotted name
    line: int

    def __str__(self) -> str:
        return f"clockwork.{self.importer}:{self.line} imports {self.target}"


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[Import]:
    """Every import, including those inside functions and those for type checking alone."""
    name = module_name(path)
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".pyx":
        for number, line in enumerate(source.splitlines(), 1):
            if found := re.match(r"\s*(?:from\s+([\w.]+)\s+c?import|c?import\s+([\w.]+))\b", line):
                yield Import(name, found[1] or found[2], number)
        return
    package = ["clockwork", *name.split(".")] if name else ["clockwork"]
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:  # "from clockwork import clock" imports clockwork.system.clock
                deeper = f"{target}.{alias.name}"
                yield Import(name, deeper if is_module(deeper) else target, node.lineno)


def is_module(name: str) -> bool:
    head, *rest = name.split(".")
    place = PACKAGE.joinpath(*rest)
    return head == "clockwork" and (
        place.is_dir() or any(place.with_suffix(s).exists() for s in (".py", ".pyx"))
    )


def within(module: str, names: list[str]) -> bool:
    return any(module == name or (name and module.startswith(f"{name}.")) for name in names)


def room_of(module: str) -> str:
    """Return the room of a module below clockwork; "" if it has none."""
    folder = module.split(".")[0]
    return LOOSE.get(module) or LOOSE.get(folder) or (folder if folder in MAY_IMPORT else "")


SOURCES = sorted(path for suffix in ("py", "pyx") for path in PACKAGE.rglob(f"*.{suffix}"))
IMPORTS = [one for path in SOURCES for one in imports_of(path)]
INSIDE = [one for one in IMPORTS if one.target == "clockwork" or one.target.startswith("clockwork.")]


def test_every_module_has_a_room() -> None:
    assert [module_name(path) for path in SOURCES if not room_of(module_name(path))] == []


def test_imports_go_one_way() -> None:
    wrong = []
    for one in INSIDE:
        source, target = (
            room_of(one.importer),
            room_of(one.target.removeprefix("clockwork").removeprefix(".")),
        )
        if source != target and target not in MAY_IMPORT[source]:
            wrong.append(f"{one}: {source} must not import {target}")
    assert wrong == []


def test_the_rooms_themselves_have_no_circle() -> None:
    """No two rooms may import each other, directly or through others."""
    settled: list[str] = []
    while len(settled) < len(MAY_IMPORT):
        ready = [
            room for room, others in MAY_IMPORT.items() if room not in settled and set(others) <= set(settled)
        ]
        assert ready, f"a circle among {sorted(set(MAY_IMPORT) - set(settled))}"
        settled += ready


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports of Python's modules; a declaration that Cython reads is no import."""
    modules = {module_name(path) for path in SOURCES if path.suffix == ".py"}
    left: dict[str, set[str]] = {name: set() for name in modules}
    for one in INSIDE:
        target = one.target.removeprefix("clockwork").removeprefix(".")
        if one.importer in modules and target in modules and target != one.importer:
            left[one.importer].add(target)
    while ready := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in ready:
            del left[name]
    assert left == {}


def test_native_includes_go_one_way() -> None:
    native = ROOT / "csrc"
    wrong = []
    for path in sorted(path for suffix in ("h", "cpp") for path in native.rglob(f"*.{suffix}")):
        room = path.relative_to(native).parts[0] if path.parent != native else "base"
        for name in re.findall(r'^#include "([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE):
            target = name.split("/")[0] if "/" in name else "base"
            if target != room and target not in NATIVE_MAY_INCLUDE[room]:
                wrong.append(f"{path.relative_to(ROOT)} includes {name}: {room} must not include {target}")
    assert wrong == []


def test_the_controllers_folders_import_one_way() -> None:
    place = {name: place for place, names in enumerate(CONTROLLER) for name in names}
    wrong = []
    for one in INSIDE:
        if not (one.importer.startswith("controller.") and one.target.startswith("clockwork.controller.")):
            continue
        source, target = one.importer.split(".")[1], one.target.split(".")[2]
        if source.startswith("_") or target.startswith(
            "_"
        ):  # the exchange, which imports nothing else of the controller but flaws
            continue
        if source != target and place[target] >= place[source]:
            wrong.append(str(one))
    assert wrong == []
    there = {path.stem if path.is_file() else path.name for path in (PACKAGE / "controller").glob("[a-z]*")}
    assert set(place) == there


@pytest.mark.parametrize("room", PURE)
def test_what_decides_touches_no_socket_thread_clock_or_file(room: str) -> None:
    wrong = [
        str(one)
        for one in IMPORTS
        if room_of(one.importer) == room
        and (within(one.target, sorted(IMPURE_MODULES)) or one.target.split(".")[0] in IMPURE_MODULES)
    ]
    assert wrong == []


def test_what_decides_of_models_touches_none_of_these_either() -> None:
    impure = IMPURE_MODULES - {"clockwork.wire.tensors"}
    assert set(PURE_FILES) <= {module_name(path) for path in SOURCES}
    assert [
        str(one)
        for one in IMPORTS
        if one.importer in PURE_FILES
        and (within(one.target, sorted(impure)) or one.target.split(".")[0] in impure)
    ] == []


@pytest.mark.parametrize("room", OBEDIENT)
def test_peers_of_a_controller_know_of_takeovers_their_obedience_alone(room: str) -> None:
    used = {one.target for one in IMPORTS if room_of(one.importer) == room}
    assert {target for target in used if target.startswith("clockwork.takeover")} == {
        "clockwork.takeover.obedience"
    }


@pytest.mark.parametrize("room", NO_SOCKETS)
def test_what_computes_opens_no_socket(room: str) -> None:
    sockets = ["clockwork.wire.transport", "clockwork.wire.inflow", "clockwork.wire._zmq"]
    assert [
        str(one) for one in IMPORTS if room_of(one.importer) == room and within(one.target, sockets)
    ] == []


@pytest.mark.parametrize("package", ONLY_IN)
def test_outside_packages_stay_where_they_belong(package: str) -> None:
    wrong = [
        str(one)
        for one in IMPORTS
        if one.target.split(".")[0] == package and not within(one.importer, ONLY_IN[package])
    ]
    assert wrong == []


def test_only_config_reads_the_environment() -> None:
    """Passing the whole environment on to a child, {**os.environ, ...}, reads nothing."""
    wrong = []
    for path in SOURCES:
        if path.suffix != ".py" or within(module_name(path), ["config"]):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        handed_on = {
            id(value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Dict)
            for key, value in zip(node.keys, node.values, strict=True)
            if key is None
        }
        for node in ast.walk(tree):
            reads = isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv")
            if reads and id(node) not in handed_on:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert wrong == []


NO_BOUNDS = {
    "wire.forms.INT64_MAX": "of the integers that msgpack has",
    "wire.forms.INT64_MIN": "of the integers that msgpack has",
    "sim.recovery.REQUESTS_RATE_MAX": "drawn from, for the worlds that are disturbed",
    "models.runtime.EXTERNAL_MIN_BYTES": "where ONNX's own writer draws the line",
}
"""Names that look like bounds and are none, with their meaning."""


def test_bounds_are_in_config() -> None:
    """A name of a number that is called the most or the least of something, or a limit."""
    wrong = []
    for path in SOURCES:
        name = module_name(path)
        if path.suffix != ".py" or room_of(name) == "base":
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
                continue
            constant = node.targets[0].id
            numbers = all(
                isinstance(part, ast.Constant | ast.BinOp | ast.UnaryOp | ast.operator | ast.unaryop)
                for part in ast.walk(node.value)
            )
            if numbers and re.search(r"_(MAX|MIN|LIMIT|AT_ONCE)(_|$)", constant) and constant.isupper():
                wrong.append(f"{name}.{constant}")
    assert sorted(set(wrong) - set(NO_BOUNDS)) == []


def imported_by(program: str) -> set[str]:
    """Return the modules that a process has imported after these statements."""
    program += "; import sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_client_starts_without_onnx_and_onnxruntime() -> None:
    """These modules take half a second to import, and a client that only infers does not need them."""
    assert imported_by("import clockwork; clockwork.Client") & {"onnx", "onnxruntime"} == set()


def test_the_process_that_prepares_models_knows_no_gpu() -> None:
    """It may not open a device beside the worker that serves from it."""
    found = imported_by("import clockwork.worker.preparation, clockwork.models.prepare")
    assert "clockwork.device.cpu" in found
    assert {
        name for name in found if name.startswith(("clockwork.device.cuda", "clockwork.device._cu"))
    } == set()


def test_the_reader_of_imports_sees_all_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks above would pass on an empty list; this test checks that they see imports."""
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "worker").mkdir()
    (tmp_path / "system").mkdir()
    (tmp_path / "system" / "clock.py").touch()
    source = tmp_path / "worker" / "loop.py"
    source.write_text(
        "import zmq.auth\nfrom clockwork.system import clock\nfrom clockwork import nothing\nfrom ..system.clock import now\nfrom . import other\n"
        "def f():\n    import threading\n"
    )
    assert {one.target for one in imports_of(source)} == {
        "zmq.auth", "clockwork.system.clock", "clockwork", "clockwork.worker", "threading",
    }  # fmt: skip
    cython = tmp_path / "_fast.pyx"
    cython.write_text(
        "from clockwork.system.clock import now\ncimport cython\nfrom libc.stdint cimport int64_t\n  import zmq\n"
    )
    assert [one.target for one in imports_of(cython)] == [
        "clockwork.system.clock",
        "cython",
        "libc.stdint",
        "zmq",
    ]
