"""Builds the native extensions. Everything else about the package is in pyproject.toml."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from glob import glob
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

BUILDS = {
    # Without debug symbols, which Python's own flags request: half the compile time, and a tenth of the size.
    "": ["-g0"],
    # As above, without the parts for tests. `make build` begins with it, so that the first answer does not
    # wait for them.
    "serving": ["-g0"],
    # See tools/debug.py. An overflow, a load beyond an end or an index out of range ends the process, with
    # its stack.
    "debug": ["-O1", "-g", "-fno-omit-frame-pointer", "-D_GLIBCXX_ASSERTIONS", "-fsanitize=address,undefined",
              "-fno-sanitize=vptr", "-fno-sanitize-recover=undefined"],
    # Existing extensions are packaged as they are: `make build` compiles first, visibly, and then installs.
    "none": [],
}  # fmt: skip
BUILD = os.environ.get("CLOCKWORK_BUILD", "")
if BUILD not in BUILDS:
    raise SystemExit(f"CLOCKWORK_BUILD is '{BUILD}'; there is {', '.join(name for name in BUILDS if name)}")
CHECKS = BUILDS[BUILD]
"""Options after all others, which they override."""

HOT = ["-O3", "-std=gnu11", "-Wall", "-Wextra", "-fvisibility=hidden", *CHECKS]
CORE = ["-O3", "-std=c++20", "-ffp-contract=off", "-Wall", "-Wextra", "-fvisibility=hidden", *CHECKS]
"""Options of code that decides and simulates: no fused multiply-add, so that sums are equal on every
processor.
"""

COLD = ["-Os" if option == "-O3" else option for option in CORE]
"""Options of Cython's code between Python and C++ whose loops are in csrc/, or that runs once: half
the size.
"""

SCHEDULER = sorted(glob("csrc/scheduler/*.cpp"))
"""Every policy. Each extension with a scheduler links all of them."""

QUEUE = ["csrc/worker/queue.cpp"]
COPIES = [f"csrc/worker/{name}.cpp" for name in ("client_memory", "lent_copies", "snapshots")]
ROAD = [*sorted(glob("csrc/worker/*.cpp")), "csrc/wire/messages.cpp"]
RECORDING = ["csrc/recording/recorder.cpp"]
EMULATED = ["csrc/device/emulated.cpp", "csrc/device/emulated_machine.cpp"]
FLEET = [*EMULATED, "csrc/device/fleet.cpp"]
WORLD = [*sorted(glob("csrc/sim/*.cpp")), *RECORDING, *QUEUE, *EMULATED, *SCHEDULER]
EXCHANGE = [*sorted([*glob("csrc/controller/*.cpp"), *glob("csrc/wire/*.cpp")]), *RECORDING]
WORKSPACE = ["csrc/device/heap.cpp", "csrc/device/workspace.cpp"]
OPERATORS = [
    "csrc/device/operators.cpp",
    "csrc/device/images.cpp",
    "csrc/device/tokens.cpp",
    "csrc/device/wordpiece.cpp",
    "csrc/device/byte_pairs.cpp",
]

LINKED = {
    "clockwork.scheduler._core": SCHEDULER,
    "clockwork.controller._exchange": EXCHANGE,
    "tests.native._tested": [*EXCHANGE, *QUEUE, *COPIES],
    "clockwork.controller._values": ["csrc/controller/models.cpp"],
    "clockwork.worker._road": ROAD,
    "clockwork.sim._world": WORLD,
    "clockwork.device._emulated": FLEET,
    "clockwork.device._operators": OPERATORS,
    "clockwork.device._ort": WORKSPACE,
}
"""The C++ files of csrc/ that are linked to each extension. A file of several extensions is compiled once."""

FAKE_DRIVER = sorted(glob("tests/native/fake_driver/*.cpp"))
"""Sources of a library that replaces libcuda.so.1 in tests and benchmarks. It is not in wheels."""

TESTED = "tests.native._tested"
"""The extension that only tests import. It is not in wheels, and a container image is built without its
source.
"""

PROCESSORS = len(os.sched_getaffinity(0))


class BuildExtensions(build_ext):
    """Compiles outdated files in parallel, then links the extensions with new objects.

    A file is outdated if a file that it includes is newer than its object. If tests will use the build (in
    place, or for ``make debug``), the parts for tests are built, too, unless CLOCKWORK_BUILD is "serving".
    Progress is printed after each file.
    """

    def finalize_options(self) -> None:
        super().finalize_options()
        self.is_tested = BUILD == "debug" or (bool(self.inplace) and BUILD != "serving")
        if not self.is_tested:
            self.extensions = [extension for extension in self.extensions if extension.name != TESTED]

    def run(self) -> None:
        self.tests = Path("." if self.inplace else self.build_lib, "tests/device")
        super().run()
        if not (self.is_tested or self.inplace):
            # Remove files of other builds, in place or earlier, which would get into the wheel.
            made = {os.path.abspath(path) for path in self.get_outputs()}
            for path in Path(self.build_lib).rglob("*.so"):
                if os.path.abspath(path) not in made:
                    path.unlink()

    def build_extensions(self) -> None:
        root = Path(self.build_temp)

        def made_of(source: str) -> Path:
            return (root / source).with_suffix(".o")

        def is_stale(source: str) -> bool:
            made = made_of(source)
            noted = made.with_suffix(".d")  # dependencies, written by the compiler
            if not made.exists() or not noted.exists():
                return True
            needed = [*noted.read_text().replace("\\\n", " ").split()[1:], "setup.py"]
            age = made.stat().st_mtime
            return any(
                not os.path.exists(dependency) or os.path.getmtime(dependency) > age for dependency in needed
            )

        linked = [LINKED[extension.name] for extension in self.extensions if extension.name in LINKED]
        if self.is_tested:
            linked.append(FAKE_DRIVER)
        arguments = {source: CORE for shared in linked for source in shared}
        for extension in self.extensions:
            arguments |= dict.fromkeys(extension.sources, extension.extra_compile_args)

        def compile_source(source: str) -> None:
            self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                include_dirs=["csrc", *self.include_dirs],
                extra_postargs=[*arguments[source], "-MMD"],
            )

        # The largest files come first, so that no long compilation is left for the end.
        stale = sorted(filter(is_stale, arguments), key=os.path.getsize, reverse=True)
        begun = time.monotonic()
        with ThreadPoolExecutor(PROCESSORS) as pool:
            under_way = {pool.submit(compile_source, source): source for source in stale}
            done = 0
            try:
                for future in as_completed(under_way):
                    future.result()
                    done += 1
                    seconds = round(time.monotonic() - begun)
                    print(
                        f"compiled {done} of {len(stale)} files, {seconds} s: {under_way[future]}", flush=True
                    )
            except KeyboardInterrupt:
                pool.shutdown(cancel_futures=True)
                raise SystemExit(
                    f"Interrupted: {done} of {len(stale)} files are compiled, and the next build goes on from there."
                ) from None
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        for extension in self.extensions:
            extension.extra_link_args += [flag for flag in CHECKS if flag.startswith("-fsanitize=")]
            # Objects compiled for speed come first: if several objects have a function, the linker takes the
            # first.
            extension.extra_objects += [
                str(made_of(source)) for source in [*LINKED.get(extension.name, []), *extension.sources]
            ]
            extension.sources, extension.depends = [], extension.extra_objects
        self.parallel = PROCESSORS
        super().build_extensions()
        if self.is_tested:
            self.compiler.link_shared_object(
                [str(made_of(source)) for source in FAKE_DRIVER],
                str(self.tests / "libfakecuda.so"),
                libraries=["dl", "pthread"],
                extra_postargs=[flag for flag in CHECKS if flag.startswith("-fsanitize=")],
                target_lang="c++",
            )


def extension(name: str, arguments: list[str], libraries: tuple[str, ...] = ()) -> Extension:
    language = "c" if arguments is HOT else "c++"
    source = f"{name.replace('.', '/')}.pyx"
    return Extension(name, [source], extra_compile_args=arguments, language=language, libraries=[*libraries])


extensions = [
    extension("clockwork.system._wait", HOT),
    extension("clockwork.wire._zmq", HOT, ("dl",)),
    extension("clockwork.wire._codec", CORE),
    extension("clockwork.gateway._join", HOT),
    *(
        extension(f"clockwork.device.{name}", arguments, ("dl", "pthread"))
        for arguments, names in (
            (CORE, ("_parts", "_orders", "_ort", "_pages", "_cpu", "_cuda")),
            (COLD, ("_crash", "_operators", "_cudriver", "_cuda_host", "_cuda_model", "_cuda_reserve")),
        )
        for name in names
    ),
    *(extension(f"clockwork.{name}", CORE) for name in ("scheduler._policy",)),
    *(
        extension(f"clockwork.{name}", COLD)
        for name in (
            "scheduler._core", "worker._road", "controller._exchange", "controller._values", "device._emulated", "sim._world",
            "sim._bounds",
        )
    ),
]  # fmt: skip

if BUILD != "serving" and os.path.exists(f"{TESTED.replace('.', '/')}.pyx"):
    extensions.append(extension(TESTED, COLD))

setup(
    ext_modules=[]
    if BUILD == "none"
    else cythonize(
        extensions,
        include_path=["csrc"],
        compiler_directives={"language_level": "3", "auto_pickle": False},
        nthreads=PROCESSORS,
    ),
    cmdclass={"build_ext": BuildExtensions},
)
