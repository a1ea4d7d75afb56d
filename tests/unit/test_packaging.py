"""A newcomer's first steps: missing tools are named, pins agree with bounds, the Makefile explains itself."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
NEEDS = ROOT / "tools" / "needs.sh"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def needs(python: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(NEEDS), python],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
    )


def python_without(directory: Path, *, modules: str = "", headers: bool = True) -> str:
    """A Python that acts as if these modules, or its headers, were not installed."""
    (directory / "sitecustomize.py").write_text(
        f"import sys, sysconfig\nfor name in {modules.split()!r}: sys.modules[name] = None\n"
        + ("" if headers else "sysconfig.get_paths = lambda: {'include': '/nonexistent'}\n")
    )
    path = directory / "python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{directory}" exec "{sys.executable}" "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_no_extension_has_typed_memoryviews() -> None:
    """Cython's code for memoryviews is as large as a middling extension, in each module that has it; see
    clockwork/sim/_arrays.pxd."""
    typed = re.compile(r"\[(:, *)*::1\]|\[:(, *:)*\] +\w|<\w+ *\[:")
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted((ROOT / "clockwork").rglob("*.p[yx][xd]"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if typed.search(line)
    ]
    assert found == []


def test_a_machine_that_has_everything_passes_in_silence() -> None:
    done = needs(sys.executable)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_missing_python_is_named_with_its_packages() -> None:
    done = needs("python3.99")
    assert done.returncode == 1
    assert "python3.99" in done.stdout
    assert re.search(r"apt install .*python3 python3-venv python3-dev", done.stdout)
    assert "dnf install python3 python3-devel" in done.stdout


def test_missing_venv_and_headers_are_listed_together(tmp_path: Path) -> None:
    done = needs(python_without(tmp_path, modules="ensurepip", headers=False))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert done.returncode == 1
    assert "ensurepip" in done.stdout
    assert "Python.h" in done.stdout
    assert f"apt install python{version}-venv python{version}-dev" in done.stdout


def test_an_old_python_is_refused(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text(
        # the answers of Python 3.9 to both questions
        '#!/bin/sh\ncase "$2" in *exit*) exit 1;; esac\necho 3.9\n'
    )
    old.chmod(0o755)
    done = needs(str(old))
    assert done.returncode == 1
    assert "3.9" in done.stdout
    assert "3.11 or newer" in done.stdout


@pytest.mark.parametrize(("variable", "package"), [("CC", "build-essential"), ("CXX", "build-essential")])
def test_a_missing_compiler_is_named_with_its_package(variable: str, package: str) -> None:
    done = needs(sys.executable, **{variable: "no-such-compiler"})
    assert done.returncode == 1
    assert "no-such-compiler" in done.stdout
    assert package in done.stdout


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {
        line.split("==")[0].lower().replace("_", "-"): line.split("==")[1].rstrip(" \\")
        for line in lines
        if line and not line.startswith(("#", "-r", "    --hash="))
    }


@pytest.mark.parametrize(
    "name",
    ["requirements.lock", *(f"requirements-{one}.lock" for one in ("compile", "test", "ray", "sources"))],
)
def test_every_pinned_release_is_held_to_the_files_that_were_seen(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", "")
    lines = [line for line in text.splitlines() if not line.startswith(("#", "-r"))]
    assert len(lines) == len(pins(name)) > 0
    assert [
        line for line in lines if not re.fullmatch(r"\S+==\S+( +--hash=sha256:[0-9a-f]{64})+", line)
    ] == []


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    run, compiling, test = (pins(f"requirements{name}.lock") for name in ("", "-compile", "-test"))
    assert len({**run, **compiling, **test}) == len(run) + len(compiling) + len(test)
    wanted = [*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"]]
    extras = PROJECT["project"]["optional-dependencies"]
    for pinned, texts in (
        (run, wanted),
        (compiling, extras["compile"]),
        ({**run, **test}, extras["test"]),
        (pins("requirements-ray.lock"), extras["ray"]),
        (
            {**run, **test, **pins("requirements-sources.lock")},
            [one for extra in ("s3", "gs", "az", "hf", "http", "test-sources") for one in extras[extra]],
        ),
    ):
        for text in texts:
            requirement = Requirement(text)
            version = pinned[requirement.name.lower().replace("_", "-")]
            assert requirement.specifier.contains(version), f"{text} is pinned to {version}"
            assert re.search(r"<\d|==", text) or text.startswith("setuptools"), f"{text} has no upper bound"


def test_other_servers_run_what_is_pinned_and_our_onnx_runtime() -> None:
    """These environments are installed without dependencies, so that each line must give its version."""
    ours = pins("requirements.lock")["onnxruntime"]
    locks = sorted((ROOT / "bench" / "peers" / "requirements").glob("*.lock"))
    assert locks
    for lock in locks:
        lines = [line for line in lock.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in lines), lock
        assert pins(str(lock.relative_to(ROOT)))["onnxruntime"] == ours, lock


@pytest.mark.parametrize("target", ["run-cluster", "test-gpu", "bench"])
def test_what_a_gpu_takes_is_installed_where_there_is_one(target: str, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    for found in ("", "/dev/nvidiactl"):
        command = ["make", "-C", str(ROOT), "-n", target, f"NVIDIA={found}", f"VENV={tmp_path}"]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=PATIENCE_S
        )
        for name in ("cupy", "compile"):
            assert (f"-r requirements-{name}.lock" in done.stdout) == bool(found)
        # Serving does not need the tests' packages, which may be unavailable on machines with GPUs.
        assert ("-r requirements-test.lock" in done.stdout) == (target != "run-cluster")
    assert {"cupy-cuda12x", "nvidia-ml-py"} <= set(pins("requirements-cupy.lock"))


def test_the_compiler_is_installed_where_a_fake_gpu_is_served_from(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    for driver in ("", "fake"):
        command = ["make", "-C", str(ROOT), "-n", "run-cluster", f"VENV={tmp_path}", "NVIDIA="]
        done = subprocess.run(
            command,
            env=environment | {"CLOCKWORK_CUDA_DRIVER": driver},
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE_S,
        )
        assert ("-r requirements-compile.lock" in done.stdout) == bool(driver)
    assert "tinygrad" in pins("requirements-compile.lock")


def test_help_is_the_default_and_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert phony
    targets = phony[1].replace("\\\n", " ").split()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    shown = subprocess.run(
        ["make", "-C", str(ROOT)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    ).stdout
    for target in targets:
        assert re.search(rf"^  {target} +\S", shown, re.MULTILINE), target


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_wheel_has_the_package_and_nothing_of_the_tests(tmp_path: Path) -> None:
    """No test double may be in the wheel, above all not the fake driver.

    The wheel is made from the objects of `make build`; only stale sources are compiled anew."""
    left = tmp_path / "lib/clockwork/device/_left.so"  # a file left by an earlier build
    left.parent.mkdir(parents=True)
    left.touch()
    command = [
        sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(tmp_path), "build", "--build-lib",
        str(tmp_path / "lib"), "bdist_wheel", "--bdist-dir", str(tmp_path / "bdist"), "--dist-dir", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        naming = [name for name in names if re.search(rb"fake_?(driver|cuda)", archive.read(name))]
    assert {name.split("/")[0].split("-")[0] for name in names} == {"clockwork", "clockwork_serving"}
    assert any(name.startswith("clockwork/device/_cuda.") for name in names)
    assert [name for name in names if "fake" in name or "_tested" in name or "_left" in name] == []
    assert naming == []


def test_extensions_run_with_the_glibc_of_debian_12() -> None:
    """A call that the newest headers redirect, as they do strtol() and sscanf(), needs the glibc of the build
    machine."""
    built = sorted((ROOT / "clockwork").rglob("*.so"))
    assert built
    newer = re.compile(rb"GLIBC_2\.(?:3[7-9]|[4-9]\d)")
    assert [str(path.relative_to(ROOT)) for path in built if newer.search(path.read_bytes())] == []


def test_the_demo_model_is_package_data() -> None:
    assert "data/*.onnx" in PROJECT["tool"]["setuptools"]["package-data"]["clockwork.models"]
    assert (ROOT / "clockwork" / "models" / "data" / "digits.onnx").is_file()


def test_whatever_says_how_to_install_names_this_distribution_and_its_extras() -> None:
    """`clockwork` on the index is an unrelated package, and would overwrite this package's files."""
    project = PROJECT["project"]
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    found, of_folders = [], []
    for name in filter(None, tracked.decode().split("\0")):
        path = ROOT / name
        if (
            path.suffix not in {".py", ".md", ".pyx", ".toml", ".yaml", ".yml", ".sh", ".service", ""}
            or not path.is_file()
        ):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        lines = re.findall(r"^.*'\.\[[a-z0-9,]+\]'.*$", text, re.M)
        of_folders += [(name, line) for line in lines if "checkout" not in line]
        for match in re.finditer(
            r"(?<![\w./-])([\w.-]+)\[([a-z0-9,]+)\]|pip install '?([\w.-]+)(?=['\s`\"])", text
        ):
            whole, extras, alone = match.groups()
            if whole in {"clockwork", "clockwork-serving"}:
                found.append((name, whole, extras))
            elif alone in {"clockwork", "clockwork-serving"}:
                found.append((name, alone, ""))
    assert len(found) > 8
    assert [one for one in found if one[1] != project["name"]] == []
    known = {"", *project["optional-dependencies"]}
    assert [one for one in found if not set(one[2].split(",")) <= known] == []
    assert of_folders == [], "which works in a checkout alone, and does not say so"


@pytest.mark.slow
def test_what_only_tests_call_is_built_where_tests_run_and_is_in_no_wheel() -> None:
    ask = (
        "import distutils.core, sys; dist = distutils.core.run_setup('setup.py', sys.argv[1:], stop_after='commandline');"
        "build = dist.get_command_obj('build_ext'); build.ensure_finalized(); print(*(one.name for one in build.extensions))"
    )

    def built(*arguments: str, build: str = "") -> list[str]:
        environment = os.environ | {"CLOCKWORK_BUILD": build}
        done = subprocess.run(
            [sys.executable, "-c", f"import setuptools; {ask}", "--quiet", "build_ext", *arguments],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    whole = built()
    assert set(built("--inplace")) - set(whole) == {"tests.native._tested"}
    assert built("--inplace", build="serving") == whole
