"""Runs the tests on a build with ASan, UBSan and libstdc++'s assertions (``make debug``).

    python tools/debug.py [pytest's arguments]

The package is built a second time, with CLOCKWORK_BUILD=debug (setup.py), into build/debug/lib; the ordinary
build stays as it is. The tests and all processes that they start use the checked build. A finding ends its
process, and so fails the test; its stack is printed at the end. Leaks are not checked here, because Python,
NumPy and ONNX Runtime keep much memory until the end on purpose. The native programs of tests/native are
checked for leaks.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from clockwork.models.compile import nvrtc

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "build" / "debug"
LIBRARY = PLACE / "lib"
FINDINGS = PLACE / "findings"
"""A file for each process with findings. pytest captures stderr, and loses it at an abort."""

FINDING_CHARS_MAX = 20_000
CHOSEN = ["tests/unit", "tests/sim", "tests/device/test_cpu.py", "tests/device/test_cuda.py",
          "tests/device/test_cuda_graphs.py", "tests/device/test_fake_driver.py", "tests/device/test_fake_graphs.py",
          "tests/process/test_controller.py", "tests/process/test_worker.py",
          "tests/process/test_wrong_messages.py"]  # fmt: skip
LEFT_OUT = " and ".join(f"not {name}" for name in (
    "packaging", "(memory and not graphs)", "starts_soon", "load_overlaps_an_execution", "input_waits_for_a_few_pieces",
    "on_the_device_before_the_last", "keeps_every_other_call_waiting",
))  # fmt: skip
"""Tests left out of CHOSEN: those of the ordinary build, and those that measure memory or time, which the
checks increase.
"""


def build() -> None:
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "--build-base", str(PLACE), "--build-lib", str(LIBRARY),
         "--build-temp", str(PLACE / "temp")],
        cwd=ROOT, env={**os.environ, "CLOCKWORK_BUILD": "debug"}, check=True,
    )  # fmt: skip


def _folders_of_libraries() -> str:
    """Return LD_LIBRARY_PATH with NVRTC's folder. NVRTC finds its other parts by its own rpath, which the
    loader ignores under ASan.
    """
    given = [os.environ.get("LD_LIBRARY_PATH", "")]
    if nvrtc.is_installed():
        given.insert(0, str(Path(nvrtc.places()["NVRTC_PATH"]).parent))
    return os.pathsep.join(filter(None, given))


def _library_of_gcc(name: str) -> str:
    found = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def environment() -> dict[str, str]:
    """Return the environment of processes that import the checked build, including those that tests start in
    the checkout.
    """
    return {
        **os.environ,
        # ASan must be loaded before Python to see its allocations. libstdc++ is loaded with it: otherwise
        # ASan does not find the function that throws exceptions, and ends the process at the first exception.
        "LD_PRELOAD": " ".join(_library_of_gcc(name) for name in ("libasan.so", "libstdc++.so")),
        # SIGSEGV and SIGBUS are left alone: tests send them, and a real fault ends a process without ASan as
        # well.
        "ASAN_OPTIONS": "handle_segv=0:handle_sigbus=0:detect_leaks=0:abort_on_error=1:"
        f"detect_stack_use_after_return=1:log_path={FINDINGS / 'asan'}",
        "UBSAN_OPTIONS": f"print_stacktrace=1:halt_on_error=1:log_path={FINDINGS / 'ubsan'}",
        "LD_LIBRARY_PATH": _folders_of_libraries(),
        "PYTHONPATH": os.pathsep.join([str(LIBRARY), str(ROOT)]),
        "PYTHONSAFEPATH": "1",  # otherwise `python -m` would import from the working directory
    }


def pytest_configure() -> None:
    """Check that pytest, with this plugin, runs on the checked build."""
    import clockwork

    if not Path(clockwork.__file__).is_relative_to(LIBRARY):
        raise RuntimeError(f"{clockwork.__file__} is not the checked build")


def main() -> int:
    build()
    arguments = sys.argv[1:] or [*CHOSEN, "-k", LEFT_OUT]
    # `-p clockwork` imports the checked build before pytest meets a conftest.py in a package and puts the
    # checkout first on the path.
    command = [
        sys.executable, "-m", "pytest", "-p", "clockwork", "-p", "tools.debug", "-o", f"pythonpath={LIBRARY} .", "-o",
        "timeout=600", "-m", "not slow and not conformance and not long", *arguments,
    ]  # fmt: skip
    shutil.rmtree(FINDINGS, ignore_errors=True)
    FINDINGS.mkdir(parents=True)
    status = subprocess.run(command, cwd=ROOT, env=environment()).returncode
    found = sorted(FINDINGS.iterdir())
    for path in found:
        print(f"----- {path}", path.read_text(errors="replace")[:FINDING_CHARS_MAX], sep="\n")
    return status or bool(found)


if __name__ == "__main__":
    sys.exit(main())
