"""Coverage-guided fuzzing of every reader of untrusted bytes: ``make fuzz``, or ``python -m tests.fuzz``.

Targets in C++ (tests/native/fuzz_*.cpp) are built with clang's libFuzzer, ASan and UBSan. Targets in Python
(targets.py) run under atheris where it is installed (requirements-fuzz.lock), and otherwise under seeded
changes without guidance. New inputs are kept in build/fuzz/<target>. An input that breaks a target lies in
build/fuzz/broken, and belongs into tests/fuzz/corpus/<target> once the defect is mended.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

from clockwork.system.clock import SECOND, now_ns
from tests.fuzz import mutate
from tests.fuzz.targets import TARGETS
from tests.native.building import FUZZER, ROOT, CannotBuild, build

CORPUS = ROOT / "tests" / "fuzz" / "corpus"
WORK = ROOT / "build" / "fuzz"
NATIVE = {
    "native-headers": ("fuzz_headers", 400),
    "exchange": ("fuzz_exchange", 4000),
    "jpeg": ("fuzz_jpeg", 4000),
}
"""The program of each target, and the bound on its input."""

BYTES_MAX = 4000
GRACE_S = 120
"""Time beyond a target's own: for the start of its build, and its last input."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n")[0])
    names = [*NATIVE, *TARGETS]
    parser.add_argument("targets", nargs="*", metavar="target", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each target (default 10)")
    arguments = parser.parse_args()
    if unknown := [one for one in arguments.targets if one not in names]:
        parser.error(f"there is no target {unknown[0]}; there are {', '.join(names)}")
    broken = []
    for name in arguments.targets or names:
        print(f"--- {name}", flush=True)
        if not _fuzz(name, arguments.minutes * 60):
            broken.append(name)
    print(f"broken: {', '.join(broken)}; see {WORK / 'broken'}" if broken else "nothing was found")
    return 1 if broken else 0


def _fuzz(name: str, seconds: float) -> bool:
    """Run a target; return whether it held."""
    found, broken = WORK / name, WORK / "broken"
    found.mkdir(parents=True, exist_ok=True)
    broken.mkdir(exist_ok=True)
    if name in NATIVE:
        program, longest = NATIVE[name]
        try:
            command = [str(build(program, FUZZER))]
        except CannotBuild as error:
            print(f"not run: {error}")
            return True
    else:
        longest = BYTES_MAX
        with tempfile.TemporaryDirectory() as directory:
            for number, data in enumerate(mutate.changed(name, 0, 0, Path(directory))):
                (found / f"example-{number}").write_bytes(data)
        if importlib.util.find_spec("atheris") is None:
            print("atheris is not installed (requirements-fuzz.lock): seeded changes, without guidance")
            return _unguided(name, seconds, broken)
        command = [sys.executable, "-m", "tests.fuzz.guided", name]
    corpora = [str(found), *([str(CORPUS / name)] if (CORPUS / name).is_dir() else [])]
    options = [
        f"-max_total_time={int(seconds)}", f"-max_len={longest}", f"-artifact_prefix={broken}/{name}-",
        "-print_final_stats=1", "-verbosity=0", "-timeout=10", "-rss_limit_mb=4096",
    ]  # fmt: skip
    return subprocess.run([*command, *options, *corpora], cwd=ROOT, timeout=seconds + GRACE_S).returncode == 0


def _unguided(name: str, seconds: float, broken: Path) -> bool:
    end_ns = now_ns() + int(seconds * SECOND)
    seed = 0
    with tempfile.TemporaryDirectory() as directory:
        while now_ns() < end_ns:
            for data in mutate.changed(name, seed, 1000, Path(directory)):
                try:
                    TARGETS[name](data)
                except Exception as error:
                    path = broken / f"{name}-seed-{seed}"
                    path.write_bytes(data)
                    print(f"{type(error).__name__}: {error}\n{path}")
                    return False
            seed += 1
    print(f"{seed} seeds of 1000 inputs")
    return True


if __name__ == "__main__":
    sys.exit(main())
