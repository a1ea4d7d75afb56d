"""Runs the tests on a build that checks itself: ASan, UBSan and libstdc++'s assertions (``make debug``).

    python tools/debug.py [pytest's arguments]

The package is built a second time, with CLOCKWORK_BUILD=debug (setup.py), into build/debug/lib; the ordinary build
stays as it is. Whatever the tests start, processes included, takes that one. A finding ends the process that has it,
with a stack, and so fails the test. Leaks are not looked for here: Python, NumPy and ONNX Runtime keep much until the
end on purpose; the native programs of tests/native are checked for them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "build" / "debug"
LIBRARY = PLACE / "lib"
CHOSEN = ["tests/unit", "tests/sim", "tests/device/test_cpu.py", "tests/process/test_controller.py",
          "tests/process/test_worker.py", "tests/process/test_roads.py"]  # fmt: skip
LEFT_OUT = "not packaging and not memory and not starts_soon"
"""Of these: what looks at the ordinary build, and what measures memory or lateness, both of which checks cost."""


def build() -> None:
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "--build-base", str(PLACE), "--build-lib", str(LIBRARY),
         "--build-temp", str(PLACE / "temp")],
        cwd=ROOT, env={**os.environ, "CLOCKWORK_BUILD": "debug"}, check=True,
    )  # fmt: skip


def environment() -> dict[str, str]:
    """That of processes which import the checked build, also those that tests start in the checkout."""
    asan = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    return {
        **os.environ,
        "LD_PRELOAD": asan.stdout.strip(),  # before Python, whose allocations it has to see
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:detect_stack_use_after_return=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONPATH": os.pathsep.join([str(LIBRARY), str(ROOT)]),
        "PYTHONSAFEPATH": "1",  # else `python -m` would take what lies in the working directory
    }


def main() -> int:
    build()
    arguments = sys.argv[1:] or [*CHOSEN, "-k", LEFT_OUT]
    command = [
        sys.executable, "-m", "pytest", "-o", f"pythonpath={LIBRARY} .", "-o", "timeout=600", "-m",
        "not slow and not conformance and not long", *arguments,
    ]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, env=environment()).returncode


if __name__ == "__main__":
    sys.exit(main())
