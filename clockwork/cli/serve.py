"""`clockwork up`, `controller` and `worker`: commands that run processes of a cluster."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clockwork import config
from clockwork.cli.common import (
    PATH,
    Connect,
    Duration,
    as_usage,
    client_options,
    grouped,
    log_format_option,
    parent_option,
    policy_numbers,
    print_line,
    print_said,
)
from clockwork.cli.gateway import (
    RepositoryFlags,
    allowed_host_option,
    repository_options,
    status_codes_option,
)
from clockwork.config import cli as bounds
from clockwork.config.controller import PACKAGE_CACHE_BYTES, PACKAGE_CACHE_BYTES_LEAST
from clockwork.config.observe import TELEMETRY_BYTES
from clockwork.config.wire import ENDPOINTS_MAX, EXECUTION_THREADS_MAX
from clockwork.config.worker import WIDE_CORES_LEAST
from clockwork.errors import ConfigError
from clockwork.gateway.settings import StatusCodes
from clockwork.system.clock import SECOND

if TYPE_CHECKING:
    from clockwork.launch.cores import DividedCores


def _size(context: click.Context, parameter: click.Parameter, value: str | None) -> int:
    """Parse a size in bytes; 0 if the flag was not given."""
    try:
        return 0 if value is None else config.parse_bytes(value)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None


def _size_or_none(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """Parse a size in bytes, or "0"."""
    return 0 if value.strip() == "0" else _size(context, parameter, value)


def _executors(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """Return a number of executors; 0 for ``auto``."""
    if value == "auto":
        return 0
    if not re.fullmatch("[0-9]{1,9}", value) or not 1 <= int(value) <= config.EXECUTORS_MAX:
        raise click.BadParameter(
            f"{value[:40]!r} is neither auto nor a number from 1 to {config.EXECUTORS_MAX}"
        )
    return int(value)


def _processors(context: click.Context, parameter: click.Parameter, value: str | None) -> frozenset[int]:
    """Return the processors of a list such as 0-3,8-11; an empty set if the flag was not given."""
    from clockwork.worker.settings import parse_processors

    try:
        return frozenset() if value is None else parse_processors(value)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None


def _device(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Return the names of devices. ``auto`` becomes cpu or cuda, and the choice is printed."""
    from clockwork.worker.settings import device_names, first_gpu, why_no_gpu

    if value == "auto":
        reason = why_no_gpu()
        value = "cpu" if reason else "cuda"
        print_line(f"Serving from the CPU: {reason}" if reason else f"Serving from {first_gpu()}.", err=True)
    try:
        device_names(value)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None
    return value


def _choose_demo(device: str) -> bool:
    """Choose whether the demo model, an ONNX file, is served. On a GPU that needs the compiler; if it
    is missing, that is printed."""
    if not device.startswith("cuda"):
        return device == "cpu"
    has_compiler = find_spec("tinygrad") is not None
    if not has_compiler:
        print_line(
            "No demo model: on a GPU, ONNX models need the compiler: pip install 'clockwork-serving[compile]'",
            err=True,
        )
    return has_compiler


def _choose_gateway(asked: bool | None) -> bool:
    """Choose whether `up` starts a gateway. Raises ConfigError if it was requested and packages are
    missing."""
    if asked is False:
        return False
    from clockwork.gateway.process import require_packages

    try:
        require_packages()
    except ConfigError as error:
        if asked:
            raise
        print_line(f"No gateway: {error}", err=True)
        return False
    return True


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerFlags:
    """The devices of a worker; worker_options has the meaning of each field. Sizes are in bytes."""

    device: str
    devices: int
    executors: int
    emulate: tuple[str, ...]
    arena: int
    page_size: int
    host_bytes: int
    store_bytes: int
    pinned_bytes: int
    threads: int
    lock_store: bool

    def arguments(self) -> tuple[str, ...]:
        """Return the same flags for a worker's command line."""
        sizes = {
            "--arena": self.arena, "--page-size": self.page_size, "--host-bytes": self.host_bytes,
            "--store-bytes": self.store_bytes, "--pinned-bytes": self.pinned_bytes,
        }  # fmt: skip
        return (
            "--device", self.device, "--executors", str(self.executors or "auto"), "--threads", str(self.threads),
            *(["--devices", str(self.devices)] if self.devices else []),
            *(word for flag, size in sizes.items() if size for word in (flag, str(size))),
            *(word for setting in self.emulate for word in ("--emulate", setting)),
            *(["--lock-store"] if self.lock_store else []),
        )  # fmt: skip


worker_options = grouped(
    "flags",
    WorkerFlags,
    click.option("--device", callback=_device, default="cpu", show_default=True, metavar="NAMES",
                 help="The devices: cpu; cuda, cuda:1, cuda:0,cuda:1, or a MIG instance's UUID; auto, a "
                      "GPU where one is usable; emulated, which takes profiled times and computes nothing."),
    click.option("--devices", type=click.IntRange(1, config.EMULATED_DEVICES_MAX), default=None,
                 callback=lambda context, parameter, value: value or 0,
                 help="Number of devices of each worker. A CPU device is an arena with executors.  [default: 1; "
                      "cpu: one for each NUMA node with executors]"),
    click.option("--executors", callback=_executors, default="auto", show_default=True, metavar="auto|N",
                 help="Executors on a CPU: they execute at the same time from one arena, in which a model is loaded "
                      "once. Each is a device in `status`. With --devices: of each device, 1 by default; without: of "
                      "each worker, by default as many as the machine's cores have room for."),
    click.option("--emulate", multiple=True, metavar="NAME=VALUE",
                 help="A setting of emulated devices: seed, exec_noise, load_noise, outlier, outlier_factor, "
                      "slow_factor, slow_ns, slow_every_ns, failures, unending, copy_bandwidth, disk_bandwidth, shared_link, spin, "
                      "executors, slowdown."),
    click.option("--arena", callback=_size, metavar="SIZE",
                 help="Memory for weights of each device; of a CPU without --devices: of all NUMA nodes together.  "
                      "[default: 1GiB for each; cuda: most of the free memory; emulated: 21.5GiB]"),
    click.option("--page-size", callback=_size, metavar="SIZE",
                 help="Size of the arena's pages.  [default: 1MiB; cuda and emulated: 16MiB]"),
    click.option("--host-bytes", callback=_size, metavar="SIZE",
                 help="Budget of the host store, into which models are fetched from disk before they can be "
                      "loaded; not with policy edf.  [default: none, every model can be loaded]"),
    click.option("--store-bytes", callback=_size, metavar="SIZE",
                 help="Bound of the prepared models on a worker's disk (CPU devices): the controller decides which lie "
                      "there, and others are fetched from other workers.  [default: none, every worker has "
                      "every model]"),
    click.option("--pinned-bytes", callback=_size, metavar="SIZE",
                 help="Pinned memory for the weights of CUDA models, allocated at start, into which all of them must "
                      "fit unless --host-bytes is given.  [default: a quarter of the RAM, at most 16GiB]"),
    click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True,
                 help="Threads of an execution on a CPU."),
    click.option("--lock-store", is_flag=True, help="Keep every model's weights in RAM."),
)  # fmt: skip
"""Adds the options that `worker` and `up` share; the command gets ``flags``, WorkerFlags."""


@dataclasses.dataclass(frozen=True, slots=True)
class PolicyFlags:
    """A controller's scheduling; policy_options has the meaning of each field."""

    policy: str
    memory: str | None
    options: tuple[str, ...]
    save_devices: bool
    stored_copies: int

    def further_options(self) -> tuple[str, ...]:
        """Return the options of the policy that flags of their own set, each NAME=NUMBER."""
        return (
            *(["save_devices=1"] if self.save_devices else []),
            *([f"stored_copies={self.stored_copies}"] if self.stored_copies else []),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class PackageFlags:
    """Where a controller keeps packages and the catalogue; package_options has the meaning of each field."""

    catalog: str
    packages: str
    package_cache: int

    def check(self) -> None:
        """Raise ConfigError unless the cache has a use and a size."""
        if not self.package_cache:
            return
        if "://" not in self.packages:
            raise ConfigError("--package-cache is for packages in an object store: --packages URL")
        if self.package_cache < PACKAGE_CACHE_BYTES_LEAST:
            raise ConfigError(
                f"--package-cache of {self.package_cache} bytes: it is {PACKAGE_CACHE_BYTES_LEAST} bytes or more"
            )

    def arguments(self) -> tuple[str, ...]:
        """Return the same flags for a controller's command line."""
        return (
            *(("--catalog", self.catalog) if self.catalog else ()),
            *(("--packages", self.packages) if self.packages else ()),
            *(("--package-cache", str(self.package_cache)) if self.package_cache else ()),
        )


def _packages(context: click.Context, parameter: click.Parameter, value: str | None) -> str:
    """Return the URL of an object store, or an absolute path; "" if the flag was not given."""
    from clockwork.sources.objects import store_location

    if value is None:
        return ""
    try:
        location = store_location(value)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None
    if location is None and not value:
        raise click.BadParameter("it is empty; it is a directory or a URL such as s3://bucket/prefix")
    return str(Path(value).absolute()) if location is None else location.url


def _catalog(context: click.Context, parameter: click.Parameter, value: str | None) -> str:
    """Return the URL of a catalogue in PostgreSQL; "" if the flag was not given."""
    from clockwork.controller.catalog.postgres import check_url

    if value is None:
        return ""
    try:
        check_url(value)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None
    return value


package_options = grouped(
    "kept",
    PackageFlags,
    click.option("--catalog", callback=_catalog, metavar="URL",
                 help="Where the catalogue is kept: postgresql://USER@HOST/DATABASE, with the password in a file or the "
                      "environment (PGPASSFILE, PGPASSWORD).  [default: in --data]"),
    click.option("--packages", callback=_packages, metavar="DIR|URL",
                 help="Where packages of models are kept: a directory of this controller alone, or s3://bucket/prefix, "
                      "gs://bucket/prefix, az://container/prefix, with credentials from the environment.  [default: in "
                      "--data]"),
    click.option("--package-cache", callback=_size, metavar="SIZE",
                 help="Bound of the copies of packages on this disk, where they are kept in an object store.  "
                      f"[default: {PACKAGE_CACHE_BYTES >> 30}GiB]"),
)  # fmt: skip
"""Adds the options of a controller's packages; the command gets ``kept``, PackageFlags."""

policy_options = grouped(
    "scheduling",
    PolicyFlags,
    click.option("--policy", default=config.POLICY, show_default=True,
                 help="Scheduling policy: adaptive, edf, deferred, fifo or paper; or MODULE:CLASS, a class in "
                      "Python, which is slower (docs/policies/python.md)."),
    click.option("--memory", type=click.Choice(["paper", "adaptive"]), default=None,
                 help="Policy of loads and evictions, except with policy edf, which has its own.  "
                      "[default: the policy's own]"),
    click.option("--option", "options", metavar="NAME=NUMBER", multiple=True,
                 help="A constant of the policy. A wrong name prints all names."),
    click.option("--save-devices", is_flag=True,
                 help="At low load, keep as few devices busy as SLOs allow (with --policy adaptive)."),
    click.option("--stored-copies", type=click.IntRange(1, config.STORED_COPIES_MAX), default=None,
                 callback=lambda context, parameter, value: value or 0,
                 help="Copies of each model that workers with --store-bytes keep, or as many as there are such workers.  "
                      "[default: 2]"),
)  # fmt: skip
"""Adds the options of a controller's scheduling; the command gets ``scheduling``, PolicyFlags."""


def _check_ports(port: int, gateway_ports: Sequence[str]) -> None:
    """Raise UsageError if two ports of a cluster are equal."""
    taken = {}
    if port:
        more = f"(--port {port} takes the next two, too)"
        own = ("for clients", f"for workers {more}", f"for events {more}")
        taken = {str(number): what for number, what in enumerate(own, port)}
    for option, given in zip(("--http-port", "--grpc-port", "--metrics-port"), gateway_ports, strict=True):
        if given in taken:
            raise click.UsageError(f"{option} {given} is the port {taken[given]}")
        if given.isdigit() and int(given):
            taken[given] = f"of {option}"


def divided_cores(workers: int) -> DividedCores | None:
    """Return how so many CPU workers of this machine divide its cores as models need them; None: not."""
    from clockwork.launch.cores import DividedCores
    from clockwork.worker.settings import cores_to_divide, share_machine

    cores = cores_to_divide(workers)
    if not cores:
        return None
    return DividedCores(
        cores, workers, lambda division: share_machine(workers, 0, division.threads, division.wide)
    )


def _wide(context: click.Context, parameter: click.Parameter, value: str) -> int | None:
    """Return the threads of --wide: 0, or 2 and more; None: as models need them."""
    if value == "auto":
        return None
    if not re.fullmatch("[0-9]{1,4}", value) or not (
        value == "0" or 2 <= int(value) <= EXECUTION_THREADS_MAX
    ):
        raise click.BadParameter(f"{value!r} is not auto, 0, or 2 to {EXECUTION_THREADS_MAX} threads")
    return int(value)


@click.command()
@log_format_option
@click.option("--workers", type=click.IntRange(0, config.WORKERS_MAX), default=1, show_default=True)
@click.option("--controllers", type=click.IntRange(1, ENDPOINTS_MAX), default=1, show_default=True,
              help="One serves, and another takes its place when it ends.")  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65533), default=5555, show_default=True,
              help="Port for clients; workers and events have the next two, and further controllers three each behind "
                   "them. 0: any free ports.")  # fmt: skip
@click.option("--data", type=PATH, help="Directory of the models (or CLOCKWORK_DATA).")
@package_options
@policy_options
@click.option("--keys", type=PATH, help="A directory made by `clockwork keys new`.")
@click.option("--insecure", is_flag=True, help="Listen beyond this machine without keys.")
@click.option("--no-demo", is_flag=True, help="Do not register the demo model.")
@click.option("--profiles", metavar="FILE",
              help="Register the models of a profile file, or `paper`, on emulated devices.")  # fmt: skip
@click.option(
    "--copies", type=click.IntRange(1), default=1, show_default=True, help="Copies of each such model."
)
@click.option("--gateway/--no-gateway", default=None,
              help="Serve HTTP and gRPC, too.  [default: yes, if their libraries are installed]")  # fmt: skip
@click.option("--http-port", help="Port of the gateway, like the next two; off: none.  [default: 8000]")
@click.option("--grpc-port", help="[default: 8001]")
@click.option("--metrics-port", help="[default: 8002]")
@allowed_host_option
@status_codes_option
@repository_options
@click.option("--verbose", "-v", is_flag=True, help="Show the log of every process.")
@click.option("--ray", "on_ray", is_flag=True, help="Place controller and workers on a Ray cluster.")
@click.option("--ray-address", default="", metavar="HOST:PORT",
              help="Address of its head.  [default: RAY_ADDRESS, a local cluster, or a new one]")  # fmt: skip
@click.option("--wide", default="auto", show_default=True, metavar="THREADS", callback=_wide,
              help="One more CPU worker, whose only executor has as many cores to itself: for models that one core "
                   "executes too slowly for their SLOs. auto: such executors are started as models need them, on a "
                   f"machine of at least {WIDE_CORES_LEAST} cores; 0: never.")  # fmt: skip
@worker_options
def up(
    workers: int, controllers: int, host: str, port: int, data: Path | None, kept: PackageFlags, scheduling: PolicyFlags,
    keys: Path | None, insecure: bool,
    no_demo: bool, profiles: str | None, copies: int, gateway: bool | None, http_port: str | None,
    grpc_port: str | None, metrics_port: str | None, allowed_host: tuple[str, ...], status_codes: StatusCodes,
    repositories: RepositoryFlags, verbose: bool, on_ray: bool, ray_address: str, wide: int | None,
    flags: WorkerFlags,
) -> None:  # fmt: skip
    """Run a whole cluster on this machine, in the foreground: a controller, workers and a gateway.

    Ctrl-C ends the cluster. Registered models are there again at the next start. A process that ends is
    restarted while the others go on. A process that fails at its first start ends the cluster with its
    message.

    \b
    Examples:
      clockwork up
      clockwork up --workers 2 --arena 4GiB
      clockwork up --executors 8 --arena 4GiB
      clockwork up --wide 4
      clockwork up --wide 0
      clockwork up --port 6000 --data /var/lib/clockwork --no-demo
      clockwork up --host 0.0.0.0 --keys keys/
      clockwork up --model-repository /srv/models
      clockwork up --no-demo --model-repository s3://bucket/models
      clockwork up --device emulated --devices 12 --profiles paper --copies 66
      clockwork up --no-demo --packages s3://bucket/packages
      clockwork up --ray --workers 8 --device cuda
    """
    from clockwork.controller.settings import check_policy
    from clockwork.launch import local
    from clockwork.wire.transport import is_local
    from clockwork.worker.settings import check_executors, check_store, device_names, share_machine

    device, data = flags.device, data or config.data_directory()
    with as_usage():
        names = device_names(device, flags.devices or 1)
        check_executors(names, flags.executors, flags.threads)
        check_store(names, flags.store_bytes)
        check_policy(scheduling.policy, scheduling.save_devices, flags.host_bytes)
        kept.check()
    if repositories.model_repository and not _choose_gateway(gateway):
        raise click.UsageError("--model-repository needs a gateway, which registers its models")
    if profiles and not workers:
        raise click.UsageError("--profiles needs a worker that takes them")
    if profiles and device != "emulated":
        raise click.UsageError(
            f"--profiles is for --device emulated; {device} computes, and needs the models"
        )
    on_ray = on_ray or bool(ray_address)  # on Ray, keys are made for the cluster
    if not (on_ray or keys or insecure or is_local(f"tcp://[{host}]:{port}")):
        raise click.UsageError(
            f"--host {host} is reachable from other machines: give --keys DIR (clockwork keys new DIR makes them), "
            "or say --insecure"
        )
    ports = [http_port or "8000", grpc_port or "8001", metrics_port or "8002"]
    if port == 0:  # any free ports, for the gateway too
        ports = [given or "0" for given in (http_port, grpc_port, metrics_port)]
    if gateway is not False:
        _check_ports(port, ports)
    if on_ray and not flags.executors:  # Ray reserves as many CPUs, so that their number must be known here
        flags = dataclasses.replace(flags, executors=1)
    if controllers > 1 and on_ray:
        raise click.UsageError("--controllers is for one machine, without --ray")
    if port and port + 3 * controllers > 65536:
        raise click.UsageError(
            f"--port {port} leaves too few ports for {controllers} controllers, which take three each"
        )
    may_share = device == "cpu" and not on_ray and not flags.devices and flags.threads == 1
    if wide and not (may_share and workers):
        raise click.UsageError("--wide is for CPU workers of one thread on this machine, without --devices")
    # With a store of its own, a worker that takes another's place would begin with an empty one.
    is_divided = wide is None and may_share and workers and not (flags.executors or flags.store_bytes)
    own: tuple[tuple[str, ...], ...] = ()
    if wide or (may_share and workers > 1 and flags.executors != 1):
        with as_usage():
            own = share_machine(workers, flags.executors, wide or 0)
    elif on_ray and device == "cpu":  # Ray counts the CPUs of its actors, and does not say which they are
        own = (("--no-pin",),) * workers
    settings = local.UpSettings(
        workers=workers + bool(wide), cores=divided_cores(workers) if is_divided else None, controllers=controllers, host=host, port=port, data=data.absolute(), package_arguments=kept.arguments(),
        policy=scheduling.policy,
        memory=scheduling.memory or "",
        options=(*scheduling.options, *scheduling.further_options()),
        keys=keys, insecure=insecure, demo=not no_demo and workers > 0 and _choose_demo(device),
        profiles=profiles or "", copies=copies, own_stores=flags.store_bytes > 0,
        verbose=verbose, worker_arguments=flags.arguments(),
        own_arguments=own,
        gateway=_choose_gateway(gateway),
        gateway_ports=tuple(ports),
        gateway_arguments=(
            *(word for name in allowed_host for word in ("--allowed-host", name)),
            "--status-codes", status_codes.value,
            *repositories.arguments(data),
        ),
    )  # fmt: skip
    if not on_ray:
        sys.exit(local.up(settings, print_said))
    from clockwork.launch import ray

    wanted = ray.RaySettings(
        address=ray_address,
        cpus=flags.threads * flags.executors * len(names) if device == "cpu" else 1,
        gpus=len(names) if device.startswith("cuda") else 0,
    )
    sys.exit(ray.up(settings, wanted, print_said))


@click.group(invoke_without_command=True)
@log_format_option
@click.option("--listen", help=f"Endpoint for clients.  [default: {config.CLIENT_ENDPOINT}]")
@click.option("--worker-listen", help=f"Endpoint for workers.  [default: {config.WORKER_ENDPOINT}]")
@click.option("--events", help=f"Endpoint of events.  [default: {config.EVENTS_ENDPOINT}]")
@click.option("--data", type=PATH, help="Directory of the models (or CLOCKWORK_DATA).")
@click.option(
    "--standby",
    is_flag=True,
    help="Wait while another controller of this machine uses --data, and serve once that has ended.",
)
@package_options
@policy_options
@click.option("--key", type=PATH, help="Its key file, controller.key (or CLOCKWORK_KEY).")
@click.option("--allowed", type=PATH, metavar="FILE",
              help="The list of accepted keys, read again when it changes (or CLOCKWORK_ALLOWED).  [default: "
                   "allowed.keys beside the key file]")  # fmt: skip
@click.option("--insecure", is_flag=True, help="Listen beyond this machine without keys.")
@click.option("--await-model", "await_models", multiple=True, metavar="NAME",
              help="Report the cluster as not ready until a model of that name is registered, and is served or has "
                   "failed. Repeatable.")  # fmt: skip
@click.option("--threads-max", type=click.IntRange(0, EXECUTION_THREADS_MAX), default=0, show_default=True,
              help="A launcher starts workers of up to so many threads where a model needs them: a registration whose "
                   "SLO fewer threads cannot meet waits for one.")  # fmt: skip
@click.option("--record", type=PATH, help="Record the scheduler's events, for `clockwork replay`.")
@click.option(
    "--record-max",
    callback=_size,
    metavar="SIZE",
    default="1GiB",
    show_default=True,
    help="Bound of a recording's size.",
)
@click.option("--recorder-bytes", callback=_size_or_none, metavar="SIZE", default="64MiB", show_default=True,
              help="Memory of the flight recorder, which keeps a minute at most; 0: none.")  # fmt: skip
@click.option("--telemetry", type=PATH, metavar="FOLDER",
              help="Write every request and action to Parquet files there: docs/telemetry.md.")  # fmt: skip
@click.option("--telemetry-max", callback=_size, metavar="SIZE", default=f"{TELEMETRY_BYTES >> 30}GiB", show_default=True,
              help="Bound of these files together; the oldest are removed first.")  # fmt: skip
@parent_option
@click.pass_context
def controller(
    context: click.Context,
    listen: str | None, worker_listen: str | None, events: str | None, data: Path | None, standby: bool,
    kept: PackageFlags,
    scheduling: PolicyFlags, key: Path | None,
    allowed: Path | None, insecure: bool, await_models: tuple[str, ...], threads_max: int, record: Path | None, record_max: int,
    recorder_bytes: int, telemetry: Path | None, telemetry_max: int,
) -> None:  # fmt: skip
    """Run a controller, which holds the models and schedules all workers.

    \b
    Examples:
      clockwork controller
      clockwork controller --listen tcp://0.0.0.0:5555 --worker-listen tcp://0.0.0.0:5556 --key controller.key
      clockwork controller hand-over
    """
    if context.invoked_subcommand is not None:
        return
    from clockwork.controller import process
    from clockwork.controller.settings import ControllerSettings, check_policy, check_recorder

    with as_usage():
        check_policy(scheduling.policy, scheduling.save_devices)
        numbers = policy_numbers((*scheduling.options, *scheduling.further_options()))
        check_recorder(recorder_bytes, record, telemetry)
        kept.check()
    settings = ControllerSettings(
        client_endpoint=listen or config.client_endpoint(),
        worker_endpoint=worker_listen or bounds.worker_endpoint(),
        events_endpoint=events or bounds.events_endpoint(),
        data=data or config.data_directory(),
        catalog=kept.catalog,
        standby=standby,
        packages=kept.packages,
        package_cache=kept.package_cache or PACKAGE_CACHE_BYTES,
        policy=scheduling.policy,
        memory=scheduling.memory or "",
        options=numbers,
        key=key or config.key_file(),
        allowed=allowed or bounds.allowed_file(),
        insecure=insecure,
        await_models=await_models,
        threads_max=threads_max,
        record=record,
        record_bytes_max=record_max,
        recorder_bytes=recorder_bytes,
        telemetry=telemetry,
        telemetry_bytes_max=telemetry_max,
    )
    sys.exit(process.main(settings))


@controller.command("hand-over")
@client_options
def hand_over(connect: Connect) -> None:
    """Have the active controller end in favour of a standby, between two turns of its loop.

    Clients and gateways ask again, workers keep what they have loaded, and no request fails. It is refused
    where no standby is there, and while models are registered or changed.

    \b
    Example:
      clockwork controller hand-over --endpoint tcp://10.0.0.1:5555,tcp://10.0.0.1:5565
    """
    with connect() as client:
        active = client.status()["standing"]["active"]
        standbys = client.hand_over()
    print_line(f"{active} gives way to {' or '.join(standbys)}")


@click.command()
@log_format_option
@click.option(
    "--connect",
    help=f"The controller's endpoint of workers; of several, with commas.  [default: {config.WORKER_ENDPOINT}]",
)
@click.option("--name", help="Its name in `status`.  [default: host-pid]")
@worker_options
@click.option("--processors", callback=_processors, metavar="LIST",
              help="Processors that the worker runs on, as in 0-7,16-23, for several workers of one machine.  [default: "
                   "all that it may]")  # fmt: skip
@click.option("--pin/--no-pin", "is_pinned", default=True,
              help="Whether executors may have processors of their own and arenas NUMA nodes.  [default: yes] No: for "
                   "a machine on which others pin, too, as workers that do not know of each other.")  # fmt: skip
@click.option("--store", type=PATH, help="Directory of prepared models (or CLOCKWORK_DATA).")
@click.option("--drain", type=Duration(0, config.SECONDS_MAX), default=f"{config.DRAIN_LIMIT_NS / SECOND:g}s",
              show_default=True,
              help="Time to finish its actions after SIGTERM or SIGINT; a second one ends it.")  # fmt: skip
@click.option("--key", type=PATH, help="Its key file, worker.key (or CLOCKWORK_KEY).")
@parent_option
def worker(
    connect: str | None, name: str | None, flags: WorkerFlags, processors: frozenset[int], is_pinned: bool,
    store: Path | None, drain: float, key: Path | None,
) -> None:  # fmt: skip
    """Run a worker, which executes the controller's orders on the devices of this machine.

    After a signal it drains: it tells the controller, finishes its actions, and leaves.

    \b
    Examples:
      clockwork worker --arena 8GiB --threads 4
      clockwork worker --arena 8GiB --executors 8
      clockwork worker --connect tcp://10.0.0.1:5556 --key worker.key
      clockwork worker --device emulated --devices 100 --emulate exec_noise=0.01
    """
    from clockwork.worker import process
    from clockwork.worker.settings import WorkerSettings, check_executors, check_store, device_names

    devices = device_names(flags.device, flags.devices or 1)
    with as_usage():
        check_executors(devices, flags.executors, flags.threads)
        check_store(devices, flags.store_bytes)
    settings = WorkerSettings(
        endpoint=connect or bounds.worker_endpoint(),
        devices=devices,
        executors=flags.executors,
        by_node=flags.device == "cpu" and not flags.devices,
        processors=processors,
        is_pinned=is_pinned,
        emulate=flags.emulate,
        arena_bytes=flags.arena,
        page_bytes=flags.page_size,
        host_bytes=flags.host_bytes,
        store_bytes=flags.store_bytes,
        pinned_bytes=flags.pinned_bytes,
        threads=flags.threads,
        store=store or config.data_directory(),
        lock_store=flags.lock_store,
        drain_ns=round(drain * SECOND),
        key=key or config.key_file(),
    )
    if name:
        settings.name = name
    sys.exit(process.main(settings))
