"""Podman on a plain machine: without systemd, without an image registry, behind a proxy with certificates of
its own."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.patience import eventually

ROOT = Path(__file__).resolve().parents[2]
CONTAINERFILE = ROOT / "deploy" / "Containerfile"

PACKAGES = (
    "podman buildah conmon crun runc catatonit netavark aardvark-dns iptables nftables uidmap mmdebstrap "
    "podman-compose docker-compose"
)
INSTALL = f"apt-get install --no-install-recommends {PACKAGES}"

IMAGE = "localhost/clockwork-image-test"
BASE = "localhost/clockwork-image-test-base:bookworm"
BASE_PACKAGES = "ca-certificates,python3,python3-venv,python3-pip,python3-dev,python-is-python3"

COMMAND_S = 120
PULL_S = 180
BASE_S = 300
BUILD_S = 1300

HANDED_IN = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf")
"""Files of this machine that pip may need to reach its index; mounted while the image is built, and not
copied into it."""


class Podman:
    """The command `podman`, with settings for this machine. directory: holds the settings."""

    def __init__(self, directory: Path) -> None:
        limits = [
            f'"{name}={hard}:{hard}"'
            for name, number in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC))
            if (hard := resource.getrlimit(number)[1]) != resource.RLIM_INFINITY
        ]
        # crun refuses a mixture of both versions of cgroups; and without CAP_SYS_RESOURCE no process can
        # raise a limit.
        has_runc = shutil.which("runc") or Path("/usr/sbin/runc").exists()
        runtime = '[engine]\nruntime="runc"\n' if has_runc else ""
        settings = directory / "containers.conf"
        settings.write_text(
            f"{runtime}[containers]\ndefault_ulimits=[{', '.join(limits)}]\n", encoding="utf-8"
        )
        self.environment = {
            **os.environ,
            "CONTAINERS_CONF_OVERRIDE": str(settings),
            "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
        }
        self.directory = directory

    def call(
        self,
        *words: str,
        timeout_s: float = COMMAND_S,
        program: str = "podman",
        stdin: BinaryIO | int = subprocess.DEVNULL,
        **more: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command. more: additional variables of its environment."""
        return subprocess.run(
            [program, *words],
            env={**self.environment, **more},
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def run(
        self,
        *words: str,
        timeout_s: float = COMMAND_S,
        program: str = "podman",
        stdin: BinaryIO | int = subprocess.DEVNULL,
        **more: str,
    ) -> str:
        """Return the output of a command that must succeed."""
        done = self.call(*words, timeout_s=timeout_s, program=program, stdin=stdin, **more)
        assert done.returncode == 0, (
            f"{program} {' '.join(words)}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
        return done.stdout.strip()

    def inspect(self, container: str, what: str) -> str:
        return self.run("inspect", "--format", "{{" + what + "}}", container)

    def logs(self, container: str) -> str:
        done = self.call("logs", container)
        return done.stdout + done.stderr

    @contextlib.contextmanager
    def service(self) -> Iterator[str]:
        """Return the address of a server of Docker's API, which Docker's compose needs."""
        path = self.directory / "podman.sock"
        server = subprocess.Popen(
            ["podman", "system", "service", "--time", "0", f"unix://{path}"],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            eventually(path.exists, "podman's server listens")
            yield f"unix://{path}"
        finally:
            server.terminate()
            server.wait(COMMAND_S)
            path.unlink(missing_ok=True)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()
    return lines[-1][:300]


def skip_without_podman(podman: Podman) -> None:
    if shutil.which("podman") is None:
        pytest.skip(f"podman is not installed: {INSTALL}")
    done = podman.call("info")
    if done.returncode:
        pytest.skip(f"podman does not work here: {last_line(done)}")


def base_image(podman: Podman) -> str:
    """Return the base image that deploy/Containerfile names, if a registry can be reached; otherwise a base
    made of Debian's packages. Skips the test if neither can be had."""
    found = re.search(r"^ARG PYTHON=(\S+)$", CONTAINERFILE.read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    with contextlib.suppress(subprocess.TimeoutExpired):
        if podman.call("pull", f"docker.io/library/{found[1]}", timeout_s=PULL_S).returncode == 0:
            return found[1]
    if podman.call("image", "exists", BASE).returncode == 0:
        return BASE
    if shutil.which("mmdebstrap") is None:
        pytest.skip(
            f"no registry gives {found[1]}, and mmdebstrap, which makes another base, is not installed"
        )
    path = podman.directory / "base.tar"
    try:
        done = podman.call(
            *("--variant=apt", f"--include={BASE_PACKAGES}", "bookworm", str(path), *mirrors()),
            timeout_s=BASE_S,
            program="mmdebstrap",
        )
        if done.returncode:
            pytest.skip(
                f"no registry gives {found[1]}, and mmdebstrap makes no other base: {last_line(done)}"
            )
        podman.run("import", str(path), BASE)
    finally:
        path.unlink(missing_ok=True)
    return BASE


def mirrors() -> list[str]:
    """Return the source of this machine's Debian packages; empty on other distributions, where mmdebstrap
    chooses."""
    try:
        text = Path("/etc/os-release").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    if not re.search(r"^ID=debian$", text, re.MULTILINE):
        return []
    for path in sorted(Path("/etc/apt").glob("sources.list.d/*.sources")):
        if found := re.search(r"^URIs: *(http\S+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            return [found[1]]
    return []


def build(podman: Podman) -> str:
    """Return the image of deploy/Containerfile, built by the documented command."""
    base = base_image(podman)
    mounts = [
        word for path in HANDED_IN if Path(path).is_file() for word in ("--volume", f"{path}:{path}:ro")
    ]
    print(f"Building {IMAGE} from {base} (some minutes the first time) ...", flush=True)
    podman.run(
        *("build", "--network", "host", "--build-arg", f"PYTHON={base}", *mounts, "--tag", IMAGE),
        *("--file", str(CONTAINERFILE), str(ROOT)),
        timeout_s=BUILD_S,
    )
    return IMAGE
