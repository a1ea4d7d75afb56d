"""Makes a program package from kernels.cu and manifest.json, as a user could with another compiler.

    python examples/program/make.py DIRECTORY [host] [sm_80 ...]

For an architecture the kernels are compiled by NVRTC (the extra [compile]); for the host by g++. The manifest
describes the program, except for its modules; all targets share the same launches.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from clockwork.errors import ClockworkError
from clockwork.models.compile import nvrtc
from clockwork.models.program import parse_program, write_checks, write_program

HERE = Path(__file__).resolve().parent
HOST_KERNELS = HERE.parents[1] / "tests" / "native" / "host_kernels.h"


def compile_kernels(target: str, module: Path) -> int:
    """Write the module of a target. Returns the oldest driver that runs it."""
    source = HERE / "kernels.cu"
    if target == "host":
        command = ["g++", "-std=c++20", "-O2", "-shared", "-fPIC", "-ffp-contract=off", "-x", "c++"]
        subprocess.run([*command, "-include", HOST_KERNELS, source, "-o", module], check=True)
        return 0
    nvrtc.check_target(target)
    cubin, _, _ = nvrtc.build([source.read_text()], target)
    module.write_bytes(cubin)
    return nvrtc.driver()


def make(directory: Path, targets: list[str]) -> None:
    """Write the package into a new directory."""
    body: dict[str, Any] = json.loads((HERE / "manifest.json").read_text())
    (directory / "modules").mkdir(parents=True)
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(weight["shape"]).astype(np.float32) for weight in body["weights"]]
    with open(directory / "weights.bin", "wb") as file:
        for weight, array in zip(body["weights"], weights, strict=True):
            file.seek(weight["offset"])
            file.write(array.tobytes())
    body["targets"] = {}
    for target in targets:
        path = f"modules/{target}.{'so' if target == 'host' else 'cubin'}"
        body["targets"][target] = {"driver": compile_kernels(target, directory / path), "modules": [path]}
    body["variants"] = [{"target": target, **variant} for target in targets for variant in body["variants"]]
    x = rng.standard_normal((1, 3)).astype(np.float32)
    answer = np.maximum(x @ weights[0] + weights[1], 0)
    unknown = "0" * 64  # write_program() computes the checksums of the files named here
    modules = [path for target in body["targets"].values() for path in target["modules"]]
    body["files"] = dict.fromkeys([*modules, "weights.bin", "checks.npz"], unknown)
    program = parse_program(json.dumps(body))
    write_checks(directory, program, [([x], [answer])])
    write_program(directory, program)


if __name__ == "__main__":
    if len(sys.argv) < 2 or any(word.startswith("-") for word in sys.argv[1:]):
        sys.exit("usage: make.py DIRECTORY [host] [sm_80 ...]")
    try:
        make(Path(sys.argv[1]), sys.argv[2:] or ["host"])
    except (ClockworkError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"make.py: {error}")
