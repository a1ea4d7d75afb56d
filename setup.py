"""Builds the native extensions. Everything else about the package is in pyproject.toml."""

from __future__ import annotations

from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

CORE = ["-O3", "-std=c++20", "-ffp-contract=off", "-Wall", "-Wextra", "-fvisibility=hidden"]
"""Of what decides and simulates: the same sums on every processor, so no fused multiply-add."""

SCHEDULER = sorted(glob("csrc/scheduler/*.cpp"))
"""Every policy; each extension that schedules holds them all."""

WORLD = ["csrc/sim/devices.cpp", "csrc/sim/world.cpp", "csrc/worker/actions.cpp"]

extensions: list[Extension] = [
    Extension("clockwork._wait", ["clockwork/_wait.pyx"], extra_compile_args=["-O2"]),
    Extension("clockwork._zmq", ["clockwork/_zmq.pyx"], extra_compile_args=["-O2"], libraries=["dl"]),
    *(
        Extension(
            f"clockwork.device.{name}",
            [f"clockwork/device/{name}.pyx"],
            include_dirs=["csrc"],
            extra_compile_args=["-O3", "-std=gnu11", "-Wall", "-Wextra", "-fvisibility=hidden"],
            libraries=["dl", "pthread"],
            depends=["csrc/ort_api.h", "csrc/workspace.h", "csrc/lane.h"],
        )
        for name in ("_ort", "_cpu")
    ),
    Extension(
        "clockwork.worker._actions",
        ["clockwork/worker/_actions.pyx", "csrc/worker/actions.cpp"],
        include_dirs=["csrc"],
        language="c++",
        extra_compile_args=CORE,
        depends=["csrc/id_table.h", "csrc/scheduler/types.h", "csrc/worker/actions.h"],
    ),
    Extension(
        "clockwork.sim._world",
        ["clockwork/sim/_world.pyx", *WORLD, *SCHEDULER],
        include_dirs=["csrc"],
        language="c++",
        extra_compile_args=CORE,
        depends=[
            *glob("csrc/*.h"),
            *glob("csrc/scheduler/*.h"),
            *glob("csrc/sim/*.h"),
            "csrc/worker/actions.h",
        ],
    ),
    Extension(
        "clockwork.scheduler._core",
        ["clockwork/scheduler/_core.pyx", *SCHEDULER],
        include_dirs=["csrc"],
        language="c++",
        extra_compile_args=CORE,
        depends=sorted(glob("csrc/scheduler/*.h")),
    ),
    Extension(
        "clockwork.sim._bounds",
        ["clockwork/sim/_bounds.pyx"],
        include_dirs=["csrc"],
        language="c++",
        extra_compile_args=CORE,
        depends=["csrc/sim/bounds.h"],
    ),
]

setup(ext_modules=cythonize(extensions, compiler_directives={"language_level": "3"}))
