"""The image of deploy/Containerfile is built and serves, alone and by deploy/compose.yaml with two workers.

The tests use the tools that Debian packages, and skip, with a reason, where a tool cannot be had. `make
image-test` runs these tests, as does `make test-long`. The images stay, so that the next run is quick:
`podman rmi` with the names in podman.py removes them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from typing import Any, BinaryIO

import pytest

from clockwork.launch.local import held_ports
from tests.deployment.podman import IMAGE, ROOT, Podman, build, skip_without_podman
from tests.patience import eventually
from tests.process.gateways import Http, tensor

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

COMPOSE = ROOT / "deploy" / "compose.yaml"
MODEL = ROOT / "clockwork" / "models" / "data" / "digits.onnx"
PICTURE = {"inputs": [tensor(shape=(1, 1, 8, 8), data=[0.5] * 64, name="image")]}
KEYS = "/etc/clockwork/keys"
LOCKED_DOWN = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Podman:
    found = Podman(tmp_path_factory.mktemp("podman"))
    skip_without_podman(found)
    build(found)
    return found


def status_of(port: int, path: str, body: Any = None) -> int:
    """Return the status of the answer to a request to a gateway; 0 if there is none."""
    http = Http(port)
    try:
        return http.ask("GET" if body is None else "POST", path, body).status
    except OSError:
        return 0
    finally:
        http.close()


def is_ready(port: int) -> bool:
    return status_of(port, "/v2/health/ready") == 200


def infer(port: int) -> int:
    return status_of(port, "/v2/models/digits/infer", PICTURE)


def test_the_image_serves_read_only_and_without_rights(podman: Podman) -> None:
    with held_ports(1) as [port]:
        pass
    container = podman.run(
        *("run", "--detach", *LOCKED_DOWN, "--volume", "/var/lib/clockwork"),
        *("--publish", f"127.0.0.1:{port}:8000", IMAGE),
        *("up", "--host", "0.0.0.0", "--insecure"),
    )
    try:
        eventually(lambda: is_ready(port), "it is ready")
        assert infer(port) == 200, "at once"
        said = podman.run("exec", container, "clockwork", "infer", "digits", "--example", "7")
        assert said.startswith("digits: 7"), said
        assert podman.run("exec", container, "id", "-u") == "10001"
        for absent in ("g++", "cc", "cython"):
            assert podman.call("exec", container, "sh", "-c", f"command -v {absent}").returncode
        assert podman.call("exec", container, "touch", "/opt/clockwork/file").returncode, "it is read-only"
        podman.run("stop", "--time", "30", container)
        assert podman.inspect(container, ".State.ExitCode") == "0", podman.logs(container)
        assert "Traceback" not in podman.logs(container)
    except BaseException:
        print(podman.logs(container))
        raise
    finally:
        podman.run("rm", "--force", "--volumes", container)


class Compose:
    """deploy/compose.yaml, run by one of the programs that read such files."""

    def __init__(self, podman: Podman, program: str, workers: int, **more: str) -> None:
        self.podman = podman
        with held_ports(3) as [self.port, grpc, metrics]:
            pass
        self.project = f"clockwork-image-test-{os.getpid()}"
        self._program = program
        self._more = {
            "CLOCKWORK_IMAGE": IMAGE,
            "CLOCKWORK_WORKERS": str(workers),
            "CLOCKWORK_HTTP_PORT": str(self.port),
            "CLOCKWORK_GRPC_PORT": str(grpc),
            "CLOCKWORK_METRICS_PORT": str(metrics),
            **more,
        }

    def __call__(self, *words: str, stdin: BinaryIO | int = subprocess.DEVNULL) -> str:
        arguments = ("--file", str(COMPOSE), "--project-name", self.project)
        return self.podman.run(*arguments, *words, program=self._program, stdin=stdin, **self._more)

    def containers(self, service: str = "") -> list[str]:
        """Return the names of its containers, including those that have ended."""
        label = f"label=com.docker.compose.project={self.project}"
        more = ("--filter", f"label=com.docker.compose.service={service}") if service else ()
        words = ("ps", "--all", "--format", "{{.Names}}", "--filter", label, *more)
        return sorted(self.podman.run(*words).split())

    def workers(self) -> list[dict[str, Any]]:
        [controller] = self.containers("controller")
        done = self.podman.call(
            "exec", controller, "clockwork", "status", "--json", "--key", f"{KEYS}/client.key"
        )
        return json.loads(done.stdout)["workers"] if done.returncode == 0 else []


@contextlib.contextmanager
def running_compose(podman: Podman, program: str, workers: int) -> Iterator[Compose]:
    with contextlib.ExitStack() as stack:
        more = {"DOCKER_HOST": stack.enter_context(podman.service())} if program == "docker-compose" else {}
        compose = Compose(podman, program, workers, **more)
        try:
            compose("up", "--detach")
            yield compose
        except BaseException:
            for name in compose.containers():
                print(f"--- {name}\n{podman.logs(name)[-3000:]}")
            raise
        finally:
            compose("down", "--volumes")
    assert not compose.containers()


@pytest.mark.parametrize("program", ["podman-compose", "docker-compose"])
def test_compose_serves_with_two_workers_of_which_one_is_killed(podman: Podman, program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed: apt-get install --no-install-recommends {program}")
    with running_compose(podman, program, workers=2) as compose:
        eventually(lambda: is_ready(compose.port), "it is ready")
        eventually(lambda: len(compose.workers()) == 2, "both workers are there")
        [controller] = compose.containers("controller")
        with open(MODEL, "rb") as model:
            compose("exec", "-T", "controller", "sh", "-c", "cat > /tmp/digits.onnx", stdin=model)
        add = ("clockwork", "models", "add", "digits", "/tmp/digits.onnx", "--key", f"{KEYS}/operator.key")
        compose("exec", "-T", "controller", *add)
        assert infer(compose.port) == 200
        podman.run("healthcheck", "run", controller)
        assert [one["models"]["ready"] for one in compose.workers()] == [1, 1]
        assert len(compose.containers("worker")) == 2

        killed, _ = compose.containers("worker")
        before = podman.inspect(killed, ".State.Pid")
        os.kill(int(before), signal.SIGKILL)
        assert [infer(compose.port) for _ in range(20)] == [200] * 20, "the other one serves"
        eventually(lambda: podman.inspect(killed, ".State.Pid") not in ("0", before), "it is started again")
        eventually(
            lambda: [one["models"]["ready"] for one in compose.workers()] == [1, 1], "both workers serve"
        )

        compose("stop")
        for name in compose.containers():
            assert podman.inspect(name, ".State.ExitCode") == "0", f"{name}: {podman.logs(name)[-3000:]}"
