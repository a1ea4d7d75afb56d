"""Builds the native extensions. Everything else about the package is in pyproject.toml."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

BUILDS = {
    "": [],
    # See tools/debug.py. An overflow, a load past an end or an index out of range ends the process, with its stack.
    "debug": ["-O1", "-g", "-fno-omit-frame-pointer", "-D_GLIBCXX_ASSERTIONS", "-fsanitize=address,undefined",
              "-fno-sanitize=vptr", "-fno-sanitize-recover=undefined"],
}  # fmt: skip
BUILD = os.environ.get("CLOCKWORK_BUILD", "")
if BUILD not in BUILDS:
    raise SystemExit(f"CLOCKWORK_BUILD is '{BUILD}'; there is {', '.join(name for name in BUILDS if name)}")
CHECKS = BUILDS[BUILD]
"""Behind all other options, which they override."""

CORE = ["-O3", "-std=c++20", "-ffp-contract=off", "-Wall", "-Wextra", "-fvisibility=hidden", *CHECKS]
"""Of what decides and simulates: the same sums on every processor, so no fused multiply-add."""

SCHEDULER = sorted(glob("csrc/scheduler/*.cpp"))
"""Every policy; each extension that schedules holds them all."""

ACTIONS = ["csrc/worker/actions.cpp"]
WORLD = [*sorted(glob("csrc/sim/*.cpp")), *ACTIONS, *SCHEDULER]
EXCHANGE = sorted(glob("csrc/controller/*.cpp"))
ALLOCATION = ["csrc/device/allocation.cpp"]
HEADERS = glob("csrc/**/*.h", recursive=True)


SHARED = {
    "clockwork.scheduler._core": SCHEDULER,
    "clockwork.controller._exchange": EXCHANGE,
    "clockwork.worker._actions": ACTIONS,
    "clockwork.sim._world": WORLD,
    "clockwork.sim._bounds": [],
}
"""Extensions around the C++ of csrc/; each of those files is compiled once for all of them."""

OBJECTS = {**SHARED, "clockwork.device._ort": ALLOCATION}
"""Of each extension, the C++ that is linked to it."""


class BuildExtensions(build_ext):
    """Compiles what extensions share beforehand, as many files at a time as there are processors."""

    def build_extensions(self) -> None:
        root = Path(self.build_temp)

        def is_stale(source: str) -> bool:
            made = (root / source).with_suffix(".o")
            noted = made.with_suffix(".d")  # by the compiler: what was read to make it
            if not made.exists() or not noted.exists():
                return True
            needed = [*noted.read_text().replace("\\\n", " ").split()[1:], "setup.py"]
            age = made.stat().st_mtime
            return any(not os.path.exists(one) or os.path.getmtime(one) > age for one in needed)

        def compile_one(source: str) -> None:
            self.compiler.compile(
                [source], output_dir=self.build_temp, include_dirs=["csrc"], extra_postargs=[*CORE, "-MMD"]
            )

        stale = sorted(source for source in {*WORLD, *SCHEDULER, *EXCHANGE, *ALLOCATION} if is_stale(source))
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(compile_one, stale))
        for one in self.extensions:
            one.extra_link_args += [flag for flag in CHECKS if flag.startswith("-fsanitize=")]
            shared = OBJECTS.get(one.name, [])
            one.extra_objects += [str((root / source).with_suffix(".o")) for source in shared]
        self.parallel = len(os.sched_getaffinity(0))
        super().build_extensions()


extensions: list[Extension] = [
    Extension("clockwork._wait", ["clockwork/_wait.pyx"], extra_compile_args=["-O2", *CHECKS]),
    Extension(
        "clockwork._zmq",
        ["clockwork/_zmq.pyx"],
        include_dirs=["csrc"],
        extra_compile_args=["-O2", *CHECKS],
        libraries=["dl"],
        depends=["csrc/zmq_api.h"],
    ),
    Extension(
        "clockwork._wire",
        ["clockwork/_wire.pyx"],
        include_dirs=["csrc"],
        language="c++",
        extra_compile_args=CORE,
        depends=["csrc/msgpack.h"],
    ),
    *(
        Extension(
            f"clockwork.device.{name}",
            [f"clockwork/device/{name}.pyx"],
            include_dirs=["csrc"],
            extra_compile_args=["-O3", "-std=gnu11", "-Wall", "-Wextra", "-fvisibility=hidden", *CHECKS],
            libraries=["dl", "pthread", *(["stdc++"] if name == "_ort" else [])],
            depends=["csrc/claims.h", "csrc/lane.h", *headers],
        )
        for names, headers in (
            (("_parts", "_orders", "_crash"), ("csrc/crash.h",)),
            (("_ort", "_pages", "_cpu"), ("csrc/ort_api.h", "csrc/workspace.h", *ALLOCATION)),
            (
                ("_cudriver", "_cuda_host", "_cuda_model", "_cuda_lanes", "_cuda"),
                ("csrc/cuda_api.h", "csrc/host_pages.h", "csrc/link.h"),
            ),
        )
        for name in names
    ),
    Extension(  # no module of Python's, but a library that stands in for libcuda.so.1
        "clockwork.device._fake_driver",
        ["csrc/cuda/fake_driver.cpp", "csrc/cuda/fake_machine.cpp"],
        include_dirs=["csrc"],
        language="c++",
        extra_compile_args=CORE,
        libraries=["dl", "pthread"],
        depends=["csrc/cuda_api.h", "csrc/cuda/fake_driver.h", "csrc/cuda/fake_machine.h"],
    ),
    *(
        Extension(
            name,
            [f"{name.replace('.', '/')}.pyx"],
            include_dirs=["csrc"],
            language="c++",
            extra_compile_args=CORE,
            depends=[*HEADERS, *shared],
        )
        for name, shared in SHARED.items()
    ),
]

setup(
    ext_modules=cythonize(extensions, compiler_directives={"language_level": "3"}),
    cmdclass={"build_ext": BuildExtensions},
)
