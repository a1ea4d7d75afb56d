"""The servers: for each its environment, its start with the models, and its transports.

Each has one executor (where its number can be set; more, if that is asked for), each with one thread for
ONNX Runtime, and the cheapest request that it accepts.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np

from bench.peers.environments import Environment
from bench.peers.roads import INPUT, OUTPUT, Grpc, Http, base64_json, floats, oip_grpc, oip_http
from clockwork.config import PAGE_BYTES
from clockwork.launch.local import held_ports

Transport = Literal["http", "grpc"]
SERVERS = Path(__file__).parent / "servers"


@dataclasses.dataclass(frozen=True, slots=True)
class Site:
    """The models and resources with which a server is started."""

    directory: Path  # directory for the server's own files
    models: Mapping[str, Path]  # ONNX files by name of the model
    weights_bytes: int  # bytes of the weights of each model
    room: int  # number of models that fit into memory; 0: all
    shape: tuple[int, ...]  # shape of the input
    outputs: int
    slo_ns: int
    ports: Mapping[Transport, int]
    executors: int = 1  # executions at once, on one thread each

    @property
    def names(self) -> list[str]:
        return list(self.models)


@dataclasses.dataclass(frozen=True, slots=True)
class Launch:
    """The command that the keeper runs."""

    command: Sequence[str]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    directory: Path | None = None


class System(Protocol):
    """A server that can be measured."""

    name: str
    title: str
    environment: str  # name of its lock file, or "" for this interpreter's packages
    transports: tuple[Transport, ...]
    limits_memory: bool  # whether the number of models in memory can be bounded
    many: bool  # whether the system is measured with many models
    scales: bool  # whether it can be given more than one executor

    def launch(self, site: Site, environment: Environment | None) -> Launch: ...
    def ready_paths(self, site: Site) -> list[str]: ...
    def speak(self, transport: Transport, site: Site, image: np.ndarray) -> Http | Grpc: ...


class Oip:
    """The transports of servers that speak the Open Inference Protocol."""

    __slots__ = ()

    def ready_paths(self, site: Site) -> list[str]:
        """For each model the URL that answers 200 as soon as the model is ready."""
        return [f"/v2/models/{name}/ready" for name in site.names]

    def speak(self, transport: Transport, site: Site, image: np.ndarray) -> Http | Grpc:
        """The requests, with the SLO as timeout."""
        make = oip_http if transport == "http" else oip_grpc
        return make(site.names, image, site.slo_ns // 1000)


# ----- Clockwork --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Clockwork(Oip):
    """This checkout: a controller, a worker of one CPU device, and a gateway."""

    name: str
    title: str
    policy: str = ""  # policy; "": the default
    environment: str = ""
    transports: tuple[Transport, ...] = ("http", "grpc")
    limits_memory: bool = True
    many: bool = True
    scales: bool = True

    def launch(self, site: Site, environment: Environment | None) -> Launch:
        repository = site.directory / "repository"
        for name, path in site.models.items():
            place = repository / name / "1"
            place.mkdir(parents=True)
            os.link(path, place / "model.onnx")
        # Each model has a page more, because page ends stay unused where a tensor straddles no pages. If all
        # models are to fit, there is room for twice as many.
        pages = (-(-site.weights_bytes // PAGE_BYTES) + 1) * (site.room or 2 * len(site.models))
        command = [
            *(sys.executable, "-m", "clockwork", "up", "--workers", "1", "--no-demo", "--port", "0"),
            *("--data", str(site.directory / "data"), "--arena", str(pages * PAGE_BYTES)),
            *("--executors", str(site.executors)),
            *("--http-port", str(site.ports["http"]), "--grpc-port", str(site.ports["grpc"])),
            *("--metrics-port", "off", "--model-repository", str(repository), "--model-control-mode", "none"),
            *(("--policy", self.policy) if self.policy else ()),
        ]
        return Launch(command)


# ----- Triton -----------------------------------------------------------------------------------------

QUEUE_POLICY = """dynamic_batching {{
  default_queue_policy {{ timeout_action: REJECT default_timeout_microseconds: {timeout_us} }}
}}
"""
QUEUE_SHARE = 0.9
"""Part of the SLO for which a request may wait in Triton's queue; an execution or two fit into the rest."""

TRITON_MODEL = """backend: "python"
max_batch_size: 1
input [ {{ name: "{input}" data_type: TYPE_FP32 dims: [ {dims} ] }} ]
output [ {{ name: "{output}" data_type: TYPE_FP32 dims: [ {outputs} ] }} ]
instance_group [ {{
  kind: KIND_CPU count: {executors}
  rate_limiter {{ resources [ {{ name: "executor" global: true count: 1 }} ] }}
}} ]
"""


def taking_turns(executors: int = 1) -> tuple[str, ...]:
    """Arguments with which the models of Triton take turns on so many executors."""
    return ("--rate-limit", "execution_count", "--rate-limit-resource", f"executor:{executors}")


def triton_model(
    given: str, answer: str, shape: Sequence[int], outputs: int, executors: int = 1
) -> str:  # fmt: skip
    """The configuration of a model with a batch of 1 and an instance for each executor."""
    return TRITON_MODEL.format(
        input=given, output=answer, dims=", ".join(map(str, shape[1:])), outputs=outputs, executors=executors
    )


def add_triton_model(
    directory: Path, name: str, config: str, model: Path | None, program: str = "triton_model"
) -> None:
    """Add a model to the repository in a directory: configuration, a program of SERVERS, and an ONNX file."""
    place = directory / "repository" / name / "1"
    place.mkdir(parents=True)
    (place.parent / "config.pbtxt").write_text(config)
    shutil.copy(SERVERS / f"{program}.py", place / "model.py")
    for module in ("session.py", "manifest.py"):
        shutil.copy(SERVERS / module, place)
    if model is not None:
        (place / "model.onnx").symlink_to(model)


def launch_triton(
    environment: Environment, directory: Path, ports: Mapping[Transport, int], more: Sequence[str],
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Launch:  # fmt: skip
    """Triton with the models of the repository in a directory."""
    home = environment.packages / "pytriton" / "tritonserver"
    backends = directory / "backends"
    shutil.copytree(home / "backends", backends, symlinks=True)
    stub = home / "python_backend_stubs" / "3.11" / "triton_python_backend_stub"
    shutil.copy(stub, backends / "python" / stub.name)
    command = [
        str(home / "bin" / "tritonserver"),
        *("--model-repository", str(directory / "repository"), "--backend-directory", str(backends)),
        *("--http-address", "127.0.0.1", "--http-port", str(ports["http"])),
        *("--grpc-address", "127.0.0.1", "--grpc-port", str(ports["grpc"])),
        *("--allow-metrics", "false", "--exit-timeout-secs", "2"),
        *more,
    ]
    return Launch(
        command,
        {
            "PATH": f"{environment.path / 'bin'}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": str(environment.packages / "nvidia_pytriton.libs"),
            **variables,
        },
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Triton(Oip):
    """Triton from its wheel, Python backend; its rate limiter has its models take turns on the executors."""

    name: str
    title: str
    queue_policy: bool
    environment: str = "triton"
    transports: tuple[Transport, ...] = ("http", "grpc")
    limits_memory: bool = False
    many: bool = True
    scales: bool = True

    def launch(self, site: Site, environment: Environment | None) -> Launch:
        assert environment is not None
        for name, path in site.models.items():
            config = triton_model(INPUT, OUTPUT, site.shape, site.outputs, site.executors)
            if self.queue_policy:
                config += QUEUE_POLICY.format(timeout_us=int(QUEUE_SHARE * site.slo_ns) // 1000)
            add_triton_model(site.directory, name, config, path)
        turns = taking_turns(site.executors) if len(site.models) > 1 else ()
        return launch_triton(environment, site.directory, site.ports, turns)


# ----- servers of Python ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class MlServer(Oip):
    """MLServer with one inference worker, over gRPC, whose tensors are bytes; over HTTP they are JSON."""

    name: str = "mlserver"
    title: str = "MLServer"
    environment: str = "mlserver"
    transports: tuple[Transport, ...] = ("grpc",)
    limits_memory: bool = False
    many: bool = False
    scales: bool = False

    def launch(self, site: Site, environment: Environment | None) -> Launch:
        assert environment is not None
        with held_ports(1) as [metrics_port]:
            pass  # the port is free again here, because the server may not share it
        settings = {
            "host": "127.0.0.1", "http_port": site.ports["http"], "grpc_port": site.ports["grpc"],
            "metrics_port": metrics_port, "parallel_workers": 1,
        }  # fmt: skip
        (site.directory / "settings.json").write_text(json.dumps(settings))
        for name, path in site.models.items():
            (site.directory / name).mkdir()
            model = {
                "name": name,
                "implementation": "mlserver_model.OnnxModel",
                "parameters": {"uri": str(path)},
            }
            (site.directory / name / "model-settings.json").write_text(json.dumps(model))
        command = [str(environment.path / "bin" / "mlserver"), "start", str(site.directory)]
        return Launch(command, _python(environment), site.directory)


@dataclasses.dataclass(frozen=True, slots=True)
class LitServe:
    """LitServe with one worker."""

    name: str = "litserve"
    title: str = "LitServe"
    environment: str = "litserve"
    transports: tuple[Transport, ...] = ("http",)
    limits_memory: bool = False
    many: bool = False
    scales: bool = False

    def launch(self, site: Site, environment: Environment | None) -> Launch:
        assert environment is not None
        [model] = site.models.values()
        script = str(SERVERS / "litserve_app.py")
        command = [str(environment.python), script, str(site.ports["http"]), str(model)]
        return Launch(command, _python(environment), site.directory)

    def ready_paths(self, site: Site) -> list[str]:
        return ["/health"]

    def speak(self, transport: Transport, site: Site, image: np.ndarray) -> Http | Grpc:
        return base64_json(["/predict"], image)


@dataclasses.dataclass(frozen=True, slots=True)
class BentoMl:
    """BentoML with one worker, and a configured number of concurrent requests (0: any number)."""

    name: str
    title: str
    concurrency: int
    environment: str = "bentoml"
    transports: tuple[Transport, ...] = ("http",)
    limits_memory: bool = False
    many: bool = False
    scales: bool = False

    def launch(self, site: Site, environment: Environment | None) -> Launch:
        assert environment is not None
        [model] = site.models.values()
        command = [
            *(str(environment.path / "bin" / "bentoml"), "serve", "bentoml_app:Peer"),
            *("--host", "127.0.0.1", "--port", str(site.ports["http"]), "--working-dir", str(SERVERS)),
        ]
        more = {
            "PEER_MODEL": str(model),
            "PEER_CONCURRENCY": str(self.concurrency),
            "BENTOML_HOME": str(site.directory / "home"),
            "BENTOML_DO_NOT_TRACK": "True",
        }
        return Launch(command, _python(environment) | more, site.directory)

    def ready_paths(self, site: Site) -> list[str]:
        return ["/readyz"]

    def speak(self, transport: Transport, site: Site, image: np.ndarray) -> Http | Grpc:
        return base64_json(["/infer"], image)


RAY_HIGH_THROUGHPUT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_EXPERIMENTAL_PIP_HAPROXY": "1",  # use the binary of the environment
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
}
"""The settings of Ray's guide to high throughput."""


@dataclasses.dataclass(frozen=True, slots=True)
class RayServe:
    """Ray Serve with one replica, which holds as many models as fit."""

    name: str
    title: str
    high_throughput: bool  # whether HAProxy stands before it, with gRPC within it
    environment: str = "ray"
    transports: tuple[Transport, ...] = ("http",)
    limits_memory: bool = True
    many: bool = True
    scales: bool = False

    def launch(self, site: Site, environment: Environment | None) -> Launch:
        assert environment is not None
        entries = {
            name: manifest_entry(path, INPUT, site.shape, site.weights_bytes)
            for name, path in site.models.items()
        }
        more = RAY_HIGH_THROUGHPUT if self.high_throughput else {}
        return launch_ray(environment, site.directory, site.ports["http"], site.room, entries, more)

    def ready_paths(self, site: Site) -> list[str]:
        return ["/"]

    def speak(self, transport: Transport, site: Site, image: np.ndarray) -> Http | Grpc:
        return ray_requests(site.names, [image.tobytes()] * len(site.names))


def launch_ray(
    environment: Environment, directory: Path, port: int, room: int,
    entries: Mapping[str, dict[str, Any]], more: Mapping[str, str], queued: int = -1,
) -> Launch:  # fmt: skip
    """Ray Serve with models, which are entries of a manifest by name.

    queued: most requests that wait; -1: any number.
    """
    # The path is short, because Ray's sockets lie below it.
    command = [
        str(environment.python),
        str(SERVERS / "ray_app.py"),
        str(port),
        str(directory / "r"),
        str(room),
        str(queued),
    ]
    variables = {"RAY_USAGE_STATS_ENABLED": "0", "PEER_MANIFEST": write_manifest(directory, entries), **more}
    return Launch(command, _python(environment) | variables, directory)


def ray_requests(names: Sequence[str], bodies: Sequence[bytes]) -> Http:
    return Http(
        ["/"] * len(names),
        [{"Content-Type": "application/octet-stream", "serve_multiplexed_model_id": name} for name in names],
        bodies, lambda reply: floats(reply.body),
    )  # fmt: skip


def manifest_entry(
    path: Path, given: str, shape: Sequence[int], weights_bytes: int, is_optimised: bool = False
) -> dict[str, Any]:
    """A model as servers/manifest.py reads it."""
    return {
        "path": str(path), "input": given, "shape": shape, "weights_bytes": weights_bytes, "is_optimised": is_optimised
    }  # fmt: skip


def write_manifest(directory: Path, entries: Mapping[str, dict[str, Any]]) -> str:
    """The path of a file that names the models."""
    path = directory / "manifest.json"
    path.write_text(json.dumps(entries))
    return str(path)


def _python(environment: Environment) -> dict[str, str]:
    """Environment variables by which a server in Python finds its packages and the session module."""
    return {
        "PATH": f"{environment.path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(SERVERS),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        Clockwork("clockwork", "Clockwork"),
        Clockwork("clockwork-edf", "Clockwork, `edf`", policy="edf"),
        Triton("triton", "Triton", queue_policy=False),
        Triton("triton-policy", "Triton, queue policy", queue_policy=True),
        MlServer(),
        LitServe(),
        BentoMl("bentoml", "BentoML", concurrency=0),
        RayServe("ray", "Ray Serve", high_throughput=False),
        RayServe("ray-haproxy", "Ray Serve, HAProxy", high_throughput=True),
        BentoMl("bentoml-limit", "BentoML, 8 at once", concurrency=8),
    )
}
