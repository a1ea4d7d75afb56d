"""Builds the native extensions. Everything else about the package is in pyproject.toml."""

from __future__ import annotations

from Cython.Build import cythonize
from setuptools import Extension, setup

COMPILE = ["-O3", "-std=c++17", "-Wall", "-Wextra", "-fvisibility=hidden"]

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
]

setup(ext_modules=cythonize(extensions, compiler_directives={"language_level": "3"}))
