"""The cluster that is attacked, and the description of an attack."""

from __future__ import annotations

import collections
import contextlib
import secrets
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import onnx

from bench import gateway
from bench.cluster import Cluster
from bench.shared_memory import model as model_of
from clockwork.client.blocking import Client
from clockwork.models import zoo

SEED = 7
MIB = 1 << 20
SAME_WIDTH = 1 << 15
"""float32 values of the tensor that an honest client passes and gets back in shared memory: 128 KiB."""

ATTACK_S_MAX = 60.0
"""Longest time of an attack; a row says if it was stopped for this."""


class Site(NamedTuple):
    """An attacker's view of a cluster and a gateway."""

    endpoint: str
    worker_endpoint: str
    events_endpoint: str
    http_port: int
    grpc_port: int
    token: str
    packages: dict[str, str]  # digests of packages, by the name of the first model with each
    worker_pid: int

    def client(self, **options: Any) -> Client:
        return Client(self.endpoint, **{"timeout": 120.0, "name": "attacker", **options})


class Attacked(NamedTuple):
    """A cluster and a gateway to attack."""

    cluster: Cluster
    gateway: subprocess.Popen[str]
    site: Site


class Attack(NamedTuple):
    """An attack: the attacked process, the attack itself, and the models that it needs."""

    on: str  # "controller", "gateway" or "worker": the process whose memory is reported
    # gets a site, and whether this is the quick form; returns how the attack ended
    throw: Callable[[Site, bool], str]
    models: Callable[[bool], dict[str, onnx.ModelProto]] = lambda quick: {}
    arguments: tuple[str, ...] = ()  # arguments of the controller, beyond the usual


@contextlib.contextmanager
def attacked(attacks: Iterable[Attack], quick: bool) -> Iterator[Attacked]:
    """A cluster with the models of these attacks, and a gateway that requires a token."""
    models = {"digits": zoo.digits(), "same": model_of("same", SAME_WIDTH)}
    arguments: list[str] = []
    for attack in attacks:
        models |= attack.models(quick)
        arguments += attack.arguments
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(Cluster(controller_arguments=arguments))
        packages: dict[str, str] = {}
        with cluster.client() as client:
            for name, model in models.items():
                before = set((cluster.data / "packages").iterdir()) if packages else set()
                client.register(name, model)
                for package in set((cluster.data / "packages").iterdir()) - before:
                    packages[name] = package.name
        token = secrets.token_hex(16)
        path = cluster.data / "token"
        path.write_text(token)
        process, http_port, grpc_port = gateway.started(cluster.endpoint, "--token-file", str(path))
        assert process.stderr is not None
        stack.enter_context(process.stderr)
        # A thread reads the log, so that a full pipe does not block the process.
        log = threading.Thread(target=collections.deque, args=(process.stderr, 0))
        log.start()
        stack.callback(log.join)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        yield Attacked(cluster, process, Site(
            cluster.endpoint, cluster.worker_endpoint, cluster.events_endpoint, http_port, grpc_port, token, packages,
            cluster.workers[0].pid,
        ))  # fmt: skip
