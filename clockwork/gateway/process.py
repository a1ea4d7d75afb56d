"""A gateway's process: its servers on one event loop, from start to end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import gc
import importlib.util
import logging
import signal
import socket
from collections.abc import Callable
from typing import Any

from clockwork.client.blocking import Client
from clockwork.client.loop import LoopClient
from clockwork.config import CLIENT_TIMEOUT_NS, VERSION, data_directory
from clockwork.config import gateway as bounds
from clockwork.errors import ConfigError
from clockwork.gateway import security
from clockwork.gateway.answers import AnswerMemory
from clockwork.gateway.metrics import MetricsSource
from clockwork.gateway.regions import Regions
from clockwork.gateway.service import InferenceService
from clockwork.gateway.settings import OFF, GatewaySettings
from clockwork.gateway.tracing import start_tracing
from clockwork.repository.keeper import RepositoryKeeper
from clockwork.sources.cache import Cache
from clockwork.sources.location import Location
from clockwork.system.clock import now_ns, to_seconds
from clockwork.system.limits import raise_descriptor_limit
from clockwork.wire.logs import start_log

log = logging.getLogger("clockwork.gateway")

NEEDED = {"aiohttp": "aiohttp", "grpc": "grpcio", "google.protobuf": "protobuf", "uvloop": "uvloop"}
"""By module: the package that the gateway needs for it."""


def require_packages() -> None:
    """Raise ConfigError where a package is missing, with the command that installs it."""
    missing = []
    for module, package in NEEDED.items():
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            missing.append(package)
    if missing:
        raise ConfigError(f"the gateway needs {', '.join(missing)}: pip install 'clockwork-serving[gateway]'")


def listen(host: str, port: int, flag: str) -> socket.socket:
    """Return a bound socket, so that a port in use is reported before anything starts. Raises ConfigError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        hint = f"; {flag} 0 takes one that is free" if error.errno == errno.EADDRINUSE else ""
        raise ConfigError(f"cannot listen on {host} port {port} ({flag}): {error.strerror}{hint}") from None
    return bound


class Gateway:
    """The servers of one gateway, and its connection to the cluster."""

    def __init__(self, settings: GatewaySettings) -> None:
        """Bind the sockets. Raises ConfigError for settings that are wrong."""
        security.require_security_beyond_loopback(settings)
        if {settings.http_port, settings.grpc_port, settings.metrics_port} == {
            OFF
        } and not settings.repositories:
            raise ConfigError(
                "all three ports are off, and there is no --model-repository: nothing is left to do"
            )
        self._settings = settings
        self._tokens = security.read_tokens(settings)
        self._tls = security.tls_context(settings)
        self._keeper = _keeper(settings)
        self._seats = seats_of(settings, raise_descriptor_limit())
        self._sockets: dict[str, socket.socket] = {}
        self.ports: dict[str, int] = {}  # ports of the running servers, by name
        try:
            for name, port in (
                ("http", settings.http_port),
                ("grpc", settings.grpc_port),
                ("metrics", settings.metrics_port),
            ):
                if port != OFF:
                    # The system lets bound sockets share a port until one of them listens.
                    if other := next((other for other, taken in self.ports.items() if taken == port), ""):
                        raise ConfigError(f"--{name}-port {port} is the port of --{other}-port")
                    bound = self._sockets[name] = listen(settings.host, port, f"--{name}-port")
                    self.ports[name] = int(bound.getsockname()[1])
        except ConfigError:
            self._release()
            raise
        self._closers: list[Callable[[], Any]] = []

    async def serve(
        self, stop: asyncio.Event, started: Callable[[], None], hurry: asyncio.Event | None = None
    ) -> None:
        """Serve until ``stop`` is set, and for the time of notice, then drain the requests under way.

        started: called when clients can connect. hurry: ends the notice once it is set.
        """
        from clockwork.gateway.grpc import GrpcServer
        from clockwork.gateway.http import HttpServer
        from clockwork.gateway.metrics_http import MetricsServer

        settings = self._settings
        timeout_s = to_seconds(CLIENT_TIMEOUT_NS)
        client = operator = LoopClient(
            settings.endpoint, timeout=timeout_s, keys=settings.key, name="gateway"
        )
        client.start()
        if settings.operator_key is not None:
            operator = LoopClient(
                settings.endpoint, timeout=timeout_s, keys=settings.operator_key, name="gateway"
            )
            operator.start()
        tracing = start_tracing(settings.otlp_endpoint or None, codes=settings.status_codes)
        regions = Regions() if security.shares_memory(settings) else None
        answers = AnswerMemory(settings.body_s)
        sweeping = [asyncio.create_task(_sweep(answers))]
        if regions is not None:
            sweeping.append(asyncio.create_task(_sweep_regions(regions)))
        service = InferenceService(
            client, answers, settings.requests_max, settings.requests_bytes_max, tracing, self._keeper, operator, regions
        )  # fmt: skip
        for connected in (client, operator):
            connected.discount(lambda: answers.bytes + service.request_bytes)
        calls: list[Callable[[], int]] = [lambda: service.requests]
        sweeping.append(asyncio.create_task(_collect_garbage(lambda: sum(count() for count in calls))))
        try:
            if (bound := self._sockets.get("http")) is not None:
                http = HttpServer(service, settings, self._tokens, self._seats["http"])
                await http.start(bound, self._tls)
                self._closers.append(http.close)
            if (bound := self._sockets.get("grpc")) is not None:
                grpc = GrpcServer(service, settings, self._tokens, self._seats["grpc"])
                await grpc.start(bound, security.read_pair(settings))
                self._closers.append(grpc.close)
                calls.append(grpc.calls)
            if (bound := self._sockets.get("metrics")) is not None:
                source = MetricsSource(
                    lambda: client.metrics(timeout=bounds.METRICS_TIMEOUT_S), service.counters
                )
                metrics = MetricsServer(service, settings, self._tokens, self._seats["metrics"], source)
                await metrics.start(bound, self._tls)
                self._closers.append(metrics.close)
            started()
            if self._keeper is not None:
                self._keeper.start()
            await stop.wait()
            service.is_leaving = True
            if settings.notice_s:
                log.info("leaving: not ready any more, and serving for %g s yet", settings.notice_s)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for((hurry or asyncio.Event()).wait(), settings.notice_s)
            log.info("shutting down")
            await asyncio.gather(*(close() for close in self._closers))
        finally:
            for task in sweeping:
                task.cancel()
            if self._keeper is not None:
                # Not to_thread(): all of its threads may wait for calls that close() ends.
                with concurrent.futures.ThreadPoolExecutor(1, "closing") as closing:
                    await asyncio.get_running_loop().run_in_executor(closing, self._keeper.close)
            await client.close()
            if operator is not client:
                await operator.close()
            service.close()
            if regions is not None:
                regions.close()
            self._release()
            if tracing is not None:
                await asyncio.to_thread(tracing.close)

    def _release(self) -> None:
        for bound in self._sockets.values():
            bound.close()

    def greeting(self) -> str:
        """Return the URLs at which the servers listen."""
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        scheme = "https" if self._tls is not None else "http"
        before = {"http": f"{scheme}://{host}:", "grpc": f"{host}:", "metrics": f"{scheme}://{host}:"}
        behind = {"metrics": "/metrics"}
        return ", ".join(
            f"{name} on {before[name]}{port}{behind.get(name, '')}" for name, port in self.ports.items()
        )


def seats_of(settings: GatewaySettings, descriptors: int) -> dict[str, int]:
    """Return the seats of each server, bounded by the process's limit of open files.

    Raises ConfigError where the limit is too low.
    """
    if descriptors < bounds.DESCRIPTORS_MIN:
        raise ConfigError(
            f"{descriptors} open files are too few, it takes {bounds.DESCRIPTORS_MIN}: raise ulimit -n"
        )
    wanted = {
        "http": settings.connections_max,
        "grpc": settings.connections_max,
        "metrics": min(settings.connections_max, bounds.METRICS_CONNECTIONS_MAX),
    }
    # gRPC may accept a connection before the connection that was evicted for it is closed.
    room = descriptors - bounds.DESCRIPTORS_KEPT
    needed = wanted["http"] + 2 * wanted["grpc"] + wanted["metrics"]
    if needed <= room:
        return wanted
    found = {name: max(2, count * room // needed) for name, count in wanted.items()}
    log.warning(
        "this process may open %d files, so it takes %s connections at most; ulimit -n %d is enough for all",
        descriptors, ", ".join(f"{count} {name}" for name, count in found.items()), needed + bounds.DESCRIPTORS_KEPT,
    )  # fmt: skip
    return found


async def _sweep(answers: AnswerMemory) -> None:
    while True:
        await asyncio.sleep(bounds.SWEEP_S)
        answers.sweep(now_ns())


async def _sweep_regions(regions: Regions) -> None:
    while True:
        await asyncio.sleep(bounds.REGIONS_SWEEP_S)
        regions.sweep()


async def _collect_garbage(calls: Callable[[], int]) -> None:
    """Collect cycles of old objects when that is due and few calls are under way, so that few objects are
    visited."""
    while True:
        await asyncio.sleep(bounds.SWEEP_S)
        if gc.get_count()[2] >= bounds.GARBAGE_DUE and calls() <= bounds.GARBAGE_CALM_CALLS:
            gc.collect()


def _keeper(settings: GatewaySettings) -> RepositoryKeeper | None:
    """Return the keeper of the model repositories, if there are any. Raises ConfigError."""
    if not settings.repositories:
        if settings.load_models:
            raise ConfigError("--load-model needs a --model-repository")
        return None
    if settings.load_models and settings.control_mode != "explicit":
        raise ConfigError("--load-model is for --model-control-mode explicit; else every model is loaded")
    cache = None
    if any(isinstance(root, Location) for root in settings.repositories):
        folder = settings.cache or data_directory() / "repositories"
        try:
            cache = Cache(folder, settings.cache_bytes)
        except OSError as error:
            raise ConfigError(f"--repository-cache {folder} cannot be written: {error.strerror}") from None
    return RepositoryKeeper(
        settings.repositories, settings.control_mode, settings.poll_s,
        lambda: Client(settings.endpoint, keys=settings.operator_key or settings.key, name="repository"),
        settings.load_models, cache,
    )  # fmt: skip


def main(settings: GatewaySettings) -> int:
    """Run a gateway until SIGINT or SIGTERM, and return the exit status. Raises ConfigError."""
    start_log("gateway")
    require_packages()
    gateway = Gateway(settings)

    async def run() -> None:
        stop, hurry = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, lambda: (hurry if stop.is_set() else stop).set())

        def started() -> None:
            gc.collect()
            gc.freeze()
            gc.set_threshold(*bounds.GARBAGE)
            log.info("gateway %s of %s listens: %s", VERSION, settings.endpoint, gateway.greeting())

        await gateway.serve(stop, started, hurry)

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(run())
    return 0


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return uvloop's factory of event loops; a request takes a sixth less processor time than with
    asyncio's."""
    import uvloop

    found: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return found
