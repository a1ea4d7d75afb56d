"""The servers with thousands of models: for each its start, its requests, and who loads its models."""

from __future__ import annotations

import dataclasses
import sys
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bench.cluster import Cluster, loads_of
from bench.many.models import Model, input_of, optimised
from bench.many.sender import Loader
from bench.peers import systems as peers
from bench.peers.environments import Environment
from bench.peers.roads import Http, floats, oip_http_request
from bench.peers.systems import Launch, Transport
from clockwork.client.blocking import Client

SMALL_PAGE_BYTES = 64 << 10
"""Clockwork's page size: a page of 1 MiB would waste a third of a small model's memory."""

UPLOADS_AT_ONCE = 8
CLIENT_S = 600.0
ARENA_TO_REGISTER = "1GiB"


@dataclasses.dataclass(frozen=True, slots=True)
class Site:
    """The models and resources with which a server is started."""

    directory: Path  # for the server's own files, removed at its end
    kept: Path  # for files that later starts of any server of this kind need
    models: Sequence[Model]
    budget_bytes: int  # memory for weights
    ports: Mapping[Transport, int]
    control: int  # a free port, before two others, for Clockwork's clients

    @property
    def optimised(self) -> list[Path]:
        """The files of the models for the peers."""
        return [self.kept / OPTIMISED / f"{model.name}.onnx" for model in self.models]

    @property
    def names(self) -> list[str]:
        return [model.name for model in self.models]

    @property
    def room(self) -> int:
        """The number of models that fit into the memory on average."""
        return max(
            1, int(len(self.models) * self.budget_bytes / sum(model.weights_bytes for model in self.models))
        )


class System(Protocol):
    """A server that can be measured with many models."""

    name: str
    title: str
    environment: str  # name of its lock file, or "" for this interpreter's packages

    def prepare(self, site: Site, say: Callable[[str], None]) -> None:
        """Make what all starts need."""
        ...

    def launch(self, site: Site, environment: Environment | None) -> Launch: ...
    def ready_path(self, site: Site) -> str: ...
    def requests(self, site: Site) -> Http: ...
    def loader(self, site: Site) -> Loader | None: ...
    def files(self, site: Site) -> Iterable[Path]:
        """The files of the models that the server reads; they are in the OS's cache when it starts."""
        ...

    def loads(self, site: Site) -> int | None:
        """Loads since the start; None: the loader counts them."""
        ...


def oip_requests(site: Site) -> Http:
    """A request for each model by the Open Inference Protocol, with its SLO as timeout."""
    made: dict[int, tuple[bytes, dict[str, str]]] = {}
    for model in site.models:
        if model.architecture not in made:
            made[model.architecture] = oip_http_request(
                {model.input: input_of(model)}, [model.output], model.slo_ns // 1000
            )
    bodies, headers = zip(*(made[model.architecture] for model in site.models))
    return Http(
        [f"/v2/models/{name}/infer" for name in site.names], headers, bodies,
        lambda reply: floats(reply.body[reply.header_bytes :]),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Clockwork:
    """This checkout: a controller, a worker of one CPU device, and a gateway."""

    name: str
    title: str
    policy: str = ""  # policy; "": the default
    environment: str = ""

    def prepare(self, site: Site, say: Callable[[str], None]) -> None:
        """Register the models that the data directory lacks."""
        data = self._data(site)
        data.mkdir(parents=True, exist_ok=True)
        arguments = ("--arena", ARENA_TO_REGISTER, "--page-size", str(SMALL_PAGE_BYTES))
        with (
            Cluster(data=data, worker_arguments=arguments) as cluster,
            cluster.client(timeout=CLIENT_S) as client,
        ):
            known = {info.name for info in client.models()}

            def register(model: Model) -> None:
                client.register(model.name, model.build())

            with ThreadPoolExecutor(UPLOADS_AT_ONCE) as pool:
                list(pool.map(register, [model for model in site.models if model.name not in known]))

    def launch(self, site: Site, environment: Environment | None) -> Launch:
        pages = -(-site.budget_bytes // SMALL_PAGE_BYTES)
        command = [
            *(sys.executable, "-m", "clockwork", "up", "--workers", "1", "--executors", "1", "--no-demo"),
            *("--port", str(site.control), "--data", str(self._data(site))),
            *("--arena", str(pages * SMALL_PAGE_BYTES), "--page-size", str(SMALL_PAGE_BYTES)),
            *("--http-port", str(site.ports["http"]), "--grpc-port", "off", "--metrics-port", "off"),
            *(("--policy", self.policy) if self.policy else ()),
        ]
        return Launch(command)

    def ready_path(self, site: Site) -> str:
        return f"/v2/models/{site.names[-1]}/ready"

    def requests(self, site: Site) -> Http:
        return oip_requests(site)

    def loader(self, site: Site) -> Loader | None:
        return None

    def files(self, site: Site) -> Iterable[Path]:
        return self._data(site).glob("prepared/*/*")

    def loads(self, site: Site) -> int:
        with self.client(site) as client:
            return loads_of(client)

    def client(self, site: Site) -> Client:
        return Client(f"tcp://127.0.0.1:{site.control}", timeout=CLIENT_S, name="bench")

    def _data(self, site: Site) -> Path:
        return site.kept / "clockwork"


OPTIMISED = "optimised"
"""Directory of the models' files for the peers."""

IS_OPTIMISED = 'parameters { key: "is_optimised" value: { string_value: "yes" } }\n'
LOADER_SHED = peers.QUEUE_SHARE
EXPLICIT_MODELS_MAX = 96
"""Models that Triton's explicit mode may have loaded: its Python backend takes a process for each."""

EXPLICIT_LOADS_MAX = 2
"""Loads under way at once: a process start each, on two cores."""


class Peer:
    """A server of optimised files, which loads models by itself unless it says otherwise."""

    def prepare(self, site: Site, say: Callable[[str], None]) -> None:
        optimised(site.models, site.kept / OPTIMISED, say)

    def loader(self, site: Site) -> Loader | None:
        return None

    def files(self, site: Site) -> Iterable[Path]:
        return site.optimised


@dataclasses.dataclass(frozen=True)
class TritonExplicit(Peer):
    """Triton in explicit mode, with a loader in front of it (bench/many/sender.cpp)."""

    name: str = "triton-explicit"
    title: str = "Triton, explicit mode, LRU loader"
    environment: str = "triton"

    def launch(self, site: Site, environment: Environment | None) -> Launch:
        assert environment is not None
        for model, path in zip(site.models, site.optimised, strict=True):
            config = peers.triton_model(model.input, model.output, model.shape, model.outputs) + IS_OPTIMISED
            config += peers.QUEUE_POLICY.format(timeout_us=int(peers.QUEUE_SHARE * model.slo_ns) // 1000)
            peers.add_triton_model(site.directory, model.name, config, path)
        explicit = ("--model-control-mode", "explicit")
        return peers.launch_triton(
            environment, site.directory, site.ports, (*explicit, *peers.taking_turns())
        )

    def ready_path(self, site: Site) -> str:
        return "/v2/health/ready"

    def requests(self, site: Site) -> Http:
        return oip_requests(site)

    def loader(self, site: Site) -> Loader | None:
        paths = [f"/v2/repository/models/{name}" for name in site.names]
        return Loader(
            [f"{path}/load" for path in paths], [f"{path}/unload" for path in paths],
            [model.weights_bytes for model in site.models], site.budget_bytes, EXPLICIT_MODELS_MAX,
            EXPLICIT_LOADS_MAX, LOADER_SHED,
        )  # fmt: skip

    def loads(self, site: Site) -> int | None:
        return None


SESSIONS = "sessions"
TRITON_SESSIONS = """backend: "python"
max_batch_size: 1
input [ { name: "model" data_type: TYPE_INT32 dims: [ 1 ] }, { name: "x" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ -1 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
dynamic_batching {
  default_queue_policy { timeout_action: REJECT default_timeout_microseconds: 90000 allow_timeout_override: true }
}
"""


@dataclasses.dataclass(frozen=True)
class TritonSessions(Peer):
    """Triton with a single model of its Python backend, which holds sessions of all others as they fit."""

    name: str = "triton-sessions"
    title: str = "Triton, LRU of sessions in its Python backend"
    environment: str = "triton"

    def launch(self, site: Site, environment: Environment | None) -> Launch:
        assert environment is not None
        peers.add_triton_model(site.directory, SESSIONS, TRITON_SESSIONS, None, "triton_sessions")
        variables = {
            "PEER_MANIFEST": peers.write_manifest(site.directory, entries(site)),
            "PEER_BUDGET_BYTES": str(site.budget_bytes),
        }
        return peers.launch_triton(environment, site.directory, site.ports, (), variables)

    def ready_path(self, site: Site) -> str:
        return f"/v2/models/{SESSIONS}/ready"

    def requests(self, site: Site) -> Http:
        bodies, headers = zip(
            *(self._request(index, input_of(model), model.slo_ns) for index, model in enumerate(site.models))
        )
        return Http(
            [f"/v2/models/{SESSIONS}/infer"] * len(bodies), headers, bodies,
            lambda reply: floats(reply.body[reply.header_bytes :]),
        )  # fmt: skip

    def _request(self, index: int, image: np.ndarray, slo_ns: int) -> tuple[bytes, dict[str, str]]:
        number = np.array([[index]], np.int32)
        timeout_us = int(peers.QUEUE_SHARE * slo_ns) // 1000
        return oip_http_request({"model": number, "x": image.reshape(1, -1)}, ["y"], timeout_us)

    def loads(self, site: Site) -> int:
        body, headers = self._request(-1, np.zeros(1, np.float32), 10**10)
        asked = urllib.request.Request(
            f"http://127.0.0.1:{site.ports['http']}/v2/models/{SESSIONS}/infer", body, headers
        )
        with urllib.request.urlopen(asked, timeout=CLIENT_S) as response:
            found = response.read()[int(response.headers["Inference-Header-Content-Length"]) :]
        return int(floats(found)[0])


RAY_QUEUED = 2
"""Requests that may wait, beside the five that a replica has begun. With memory for 5 %, at 0.3 of capacity,
74 % of the requests are in time; with 4 it is 61 %, with 32 1 %.
"""


@dataclasses.dataclass(frozen=True)
class RayServe(Peer):
    """Ray Serve with model multiplexing: one replica, which holds as many models as fit on average."""

    name: str = "ray"
    title: str = "Ray Serve, multiplexed"
    environment: str = "ray"

    def launch(self, site: Site, environment: Environment | None) -> Launch:
        assert environment is not None
        return peers.launch_ray(
            environment, site.directory, site.ports["http"], site.room, entries(site), {}, RAY_QUEUED
        )

    def ready_path(self, site: Site) -> str:
        return "/"

    def requests(self, site: Site) -> Http:
        made = {model.architecture: input_of(model).tobytes() for model in site.models}
        return peers.ray_requests(site.names, [made[model.architecture] for model in site.models])

    def loads(self, site: Site) -> int:
        url = f"http://127.0.0.1:{site.ports['http']}/"
        with urllib.request.urlopen(url, timeout=CLIENT_S) as response:
            return int(response.read())


def entries(site: Site) -> dict[str, dict[str, Any]]:
    """The models as a peer's manifest."""
    return {
        model.name: peers.manifest_entry(
            path, model.input, model.shape, model.weights_bytes, is_optimised=True
        )
        for model, path in zip(site.models, site.optimised, strict=True)
    }


SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        Clockwork("clockwork", "Clockwork"),
        Clockwork("clockwork-edf", "Clockwork, `edf`", policy="edf"),
        TritonSessions(),
        TritonExplicit(),
        RayServe(),
    )
}
