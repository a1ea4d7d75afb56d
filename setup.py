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
    # Without the debugger's symbols, which Python's own flags ask for: half of the time, and a tenth of the size.
    "": ["-g0"],
    # The same without what only tests call; `make build` begins with it, so that the first answer does not wait for them.
    "serving": ["-g0"],
    # See tools/debug.py. An overflow, a load past an end or an index out of range ends the process, with its stack.
    "debug": ["-O1", "-g", "-fno-omit-frame-pointer", "-D_GLIBCXX_ASSERTIONS", "-fsanitize=address,undefined",
              "-fno-sanitize=vptr", "-fno-sanitize-recover=undefined"],
    # What lies there is taken as it is: `make build` compiles first, where it can be watched, and then installs.
    "none": [],
}  # fmt: skip
BUILD = os.environ.get("CLOCKWORK_BUILD", "")
if BUILD not in BUILDS:
    raise SystemExit(f"CLOCKWORK_BUILD is '{BUILD}'; there is {', '.join(name for name in BUILDS if name)}")
CHECKS = BUILDS[BUILD]
"""Behind all other options, which they override."""

HOT = ["-O3", "-std=gnu11", "-Wall", "-Wextra", "-fvisibility=hidden", *CHECKS]
CORE = ["-O3", "-std=c++20", "-ffp-contract=off", "-Wall", "-Wextra", "-fvisibility=hidden", *CHECKS]
"""Of what decides and simulates: the same sums on every processor, so no fused multiply-add."""

COLD = ["-Os" if one == "-O3" else one for one in CORE]
"""Of Cython's code between Python and C++ whose loops are in csrc/, or that runs once: half the size."""

SCHEDULER = sorted(glob("csrc/scheduler/*.cpp"))
"""Every policy; each extension that schedules holds them all."""

ACTIONS = ["csrc/actions/queue.cpp"]
EMULATED = ["csrc/device/emulated.cpp", "csrc/device/emulated_machine.cpp"]
WORLD = [*sorted(glob("csrc/sim/*.cpp")), "csrc/controller/recorder.cpp", *ACTIONS, *EMULATED, *SCHEDULER]
EXCHANGE = sorted([*glob("csrc/controller/*.cpp"), *glob("csrc/wire/*.cpp")])
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
    "tests.native._tested": EXCHANGE,
    "clockwork.controller._values": ["csrc/controller/models.cpp"],
    "clockwork.actions._queue": ACTIONS,
    "clockwork.sim._world": WORLD,
    "clockwork.device._emulated": EMULATED,
    "clockwork.device._operators": OPERATORS,
    "clockwork.device._ort": WORKSPACE,
}
"""Of each extension, the C++ of csrc/ that is linked to it; each of those files is compiled once for all of them."""

FAKE_DRIVER = sorted(glob("tests/native/fake_driver/*.cpp"))
"""A library that stands in for libcuda.so.1, for tests and benchmarks; no wheel has it."""

TESTED = "tests.native._tested"
"""The extension that only tests import; no wheel has it, and a container image is built without its source."""

PROCESSORS = len(os.sched_getaffinity(0))


class BuildExtensions(build_ext):
    """Compiles what is older than anything that was read to make it, as many files at a time as there are processors;
    then links the extensions whose objects are new.

    Where tests will run on what is built (in place, or for ``make debug``), what only they call is built, too, unless
    CLOCKWORK_BUILD is "serving". After each file it says how many are compiled, of how many, and since when."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.is_tested = BUILD == "debug" or (bool(self.inplace) and BUILD != "serving")
        if not self.is_tested:
            self.extensions = [one for one in self.extensions if one.name != TESTED]

    def run(self) -> None:
        self.tests = Path("." if self.inplace else self.build_lib, "tests/device")
        super().run()
        if not (self.is_tested or self.inplace):
            # Else a wheel would have what a build in place, or of another day, has left there.
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
            noted = made.with_suffix(".d")  # by the compiler: what was read to make it
            if not made.exists() or not noted.exists():
                return True
            needed = [*noted.read_text().replace("\\\n", " ").split()[1:], "setup.py"]
            age = made.stat().st_mtime
            return any(not os.path.exists(one) or os.path.getmtime(one) > age for one in needed)

        linked = [LINKED[one.name] for one in self.extensions if one.name in LINKED]
        if self.is_tested:
            linked.append(FAKE_DRIVER)
        arguments = {source: CORE for shared in linked for source in shared}
        for one in self.extensions:
            arguments |= dict.fromkeys(one.sources, one.extra_compile_args)

        def compile_one(source: str) -> None:
            self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                include_dirs=["csrc", *self.include_dirs],
                extra_postargs=[*arguments[source], "-MMD"],
            )

        # The longest first, so that none of them is left over at the end.
        stale = sorted(filter(is_stale, arguments), key=os.path.getsize, reverse=True)
        begun = time.monotonic()
        with ThreadPoolExecutor(PROCESSORS) as pool:
            under_way = {pool.submit(compile_one, source): source for source in stale}
            done = 0
            try:
                for one in as_completed(under_way):
                    one.result()
                    done += 1
                    seconds = round(time.monotonic() - begun)
                    print(f"compiled {done} of {len(stale)} files, {seconds} s: {under_way[one]}", flush=True)
            except KeyboardInterrupt:
                pool.shutdown(cancel_futures=True)
                raise SystemExit(
                    f"Interrupted: {done} of {len(stale)} files are compiled, and the next build goes on from there."
                ) from None
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        for one in self.extensions:
            one.extra_link_args += [flag for flag in CHECKS if flag.startswith("-fsanitize=")]
            # What is compiled for speed comes first: of functions that several have, the linker takes the first.
            one.extra_objects += [
                str(made_of(source)) for source in [*LINKED.get(one.name, []), *one.sources]
            ]
            one.sources, one.depends = [], one.extra_objects
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
    *(extension(f"clockwork.{name}", CORE) for name in ("scheduler._policy", "actions._queue")),
    *(
        extension(f"clockwork.{name}", COLD)
        for name in (
            "scheduler._core", "controller._exchange", "controller._values", "device._emulated", "sim._world",
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
