"""Native test programs, built beside the package with a sanitizer: ``build(program, flavour)`` gives an
executable.

Objects lie in build/native/<flavour>, and are built again when a source or a header of theirs has changed.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
COMPILE_S = 300.0
"""Time limit for the build of a file, on a busy machine."""

WARNINGS = ["-Wall", "-Wextra", "-g", "-O1", "-fno-omit-frame-pointer"]
CPP = ["-std=c++20", "-D_GLIBCXX_ASSERTIONS", "-ffp-contract=off"]
INCLUDES = ["-Icsrc", "-Itests/native"]


@dataclasses.dataclass(frozen=True)
class Flavour:
    """The options with which a program is compiled and linked."""

    name: str
    flags: tuple[str, ...]
    link: tuple[str, ...] = ()
    compiler: str = "g++"


THREAD = Flavour("thread", ("-fsanitize=thread",))
ADDRESS = Flavour("address", ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"))
FUZZER = Flavour(
    "fuzzer",
    ("-fsanitize=fuzzer-no-link,address,undefined", "-fno-sanitize-recover=all"),
    ("-fsanitize=fuzzer,address,undefined",),
    "clang++",
)

EXCHANGE = [
    path for room in ("controller", "recording", "wire") for path in sorted(ROOT.glob(f"csrc/{room}/*.cpp"))
]
CONTROLLER = [*EXCHANGE, *sorted(ROOT.glob("csrc/scheduler/*.cpp"))]
WORKER = [*sorted(ROOT.glob("csrc/worker/*.cpp")), ROOT / "csrc/wire/messages.cpp"]
PROGRAMS: dict[str, Sequence[Path]] = {
    "exchange_parts": [HERE / "exchange_parts.cpp", *EXCHANGE],
    "threads_arena": [HERE / "threads_arena.cpp"],
    "threads_executors": [HERE / "threads_executors.cpp"],
    "threads_lanes": [HERE / "threads_lanes.cpp"],
    "threads_road": [HERE / "threads_road.cpp", *WORKER],
    "road_allocations": [HERE / "road_allocations.cpp", *WORKER],
    "worker_parts": [HERE / "worker_parts.cpp", *WORKER],
    "threads_recorder": [HERE / "threads_recorder.cpp", ROOT / "csrc/recording/recorder.cpp"],
    "fuzz_exchange": [HERE / "fuzz_exchange.cpp", *CONTROLLER],
    "fuzz_headers": [HERE / "fuzz_headers.cpp", *CONTROLLER],
    "fuzz_jpeg": [HERE / "fuzz_jpeg.cpp"],
}
"""The sources of each program. A fuzz target's main() is libFuzzer's, or else replay.cpp."""


class CannotBuild(Exception):
    """A compiler or sanitizer is missing on this machine."""


@cache
def why_not(flavour: Flavour) -> str:
    """Return what is missing for this flavour; empty if nothing is."""
    if shutil.which(flavour.compiler) is None:
        return f"{flavour.compiler} is not installed"
    directory = ROOT / "build" / "native" / flavour.name
    directory.mkdir(parents=True, exist_ok=True)
    source, made = directory / "empty.cpp", directory / "empty"
    target = "#include <cstddef>\n#include <cstdint>\n" + (
        'extern "C" int LLVMFuzzerTestOneInput(const uint8_t*, size_t) { return 0; }'
        if flavour is FUZZER
        else "int main() { return 0; }"
    )
    source.write_text(target)
    link = [flavour.compiler, *(flavour.link or flavour.flags), str(source), "-o", str(made)]
    done = subprocess.run(link, capture_output=True, text=True, timeout=COMPILE_S)
    if done.returncode == 0:
        done = subprocess.run(
            [str(made), *(["-runs=1"] if flavour is FUZZER else [])],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
    return (
        "" if done.returncode == 0 else f"no {flavour.name} sanitizer: {(done.stderr or done.stdout)[-300:]}"
    )


def build(program: str, flavour: Flavour) -> Path:
    """Return the program, up to date. Raises CannotBuild where the compiler or its sanitizer is missing."""
    if reason := why_not(flavour):
        raise CannotBuild(reason)
    sources = list(PROGRAMS[program])
    if program.startswith("fuzz_") and flavour is not FUZZER:
        sources.append(HERE / "replay.cpp")
    directory = ROOT / "build" / "native" / flavour.name
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(lambda source: _compile(source, directory, flavour), sources))
    made = directory / program
    if not made.exists() or made.stat().st_mtime < max(one.stat().st_mtime for one in objects):
        link = flavour.link or flavour.flags
        _run([flavour.compiler, *link, *(str(one) for one in objects), "-o", str(made), "-lpthread"])
    return made


def _compile(source: Path, directory: Path, flavour: Flavour) -> Path:
    made = directory / f"{source.parent.name}-{source.stem}.o"
    if not _is_stale(made):
        return made
    _run([
        flavour.compiler, *CPP, *WARNINGS, *flavour.flags, *INCLUDES, "-MMD", "-c",
        str(source.relative_to(ROOT)), "-o", str(made),
    ])  # fmt: skip
    return made


def _is_stale(made: Path) -> bool:
    noted = made.with_suffix(".d")  # written by the compiler: the files read to make the object
    if not made.exists() or not noted.exists():
        return True
    needed = [Path(one) for one in noted.read_text().replace("\\\n", " ").split()[1:]]
    age = made.stat().st_mtime
    paths = [ROOT / one for one in needed]  # absolute paths stay absolute
    return any(not one.exists() or one.stat().st_mtime > age for one in [*paths, Path(__file__)])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=COMPILE_S)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
