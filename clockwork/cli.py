"""The command line. What is heavy is imported by the command that needs it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from clockwork import __version__, config
from clockwork.errors import ClockworkError, ConfigError, InvalidInput, Refused

if TYPE_CHECKING:
    from clockwork.client import Client

F = TypeVar("F", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


class _Failure(click.ClickException):
    """An error that a person is told in one line."""

    def show(self, file: Any = None) -> None:
        click.echo(f"clockwork: {self.message}", err=True)


class Commands(click.Group):
    """A group in which what goes wrong is one line on stderr and exit status 1, never a traceback."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except Refused as error:
            more = [f"reason: {error.reason}"] if error.reason else []
            if error.feasible_slo is not None:
                more.append(f"an SLO of {error.feasible_slo:g} s would have been admitted")
            if error.retry_after is not None:
                more.append(f"retry after {error.retry_after:g} s")
            raise _Failure(f"refused: {error}" + (f" ({'; '.join(more)})" if more else "")) from None
        except ClockworkError as error:
            raise _Failure(str(error) or type(error).__name__) from None


class _Root(Commands):
    """All commands; those of a file of their own are imported when they are asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted([*super().list_commands(context), "plan"])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name == "plan":
            from clockwork.cli_plan import plan

            return plan
        return super().get_command(context, name)


def main() -> None:
    """The program."""
    cli(prog_name="clockwork")


@click.group(cls=_Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="clockwork")
def cli() -> None:
    """Serve deep-learning models, each request by its deadline.

    \b
    Start here:
      clockwork up                                      a cluster on this machine
      clockwork infer digits examples/digits/7.png      ask it something
      clockwork models add resnet50 resnet50.onnx       serve a model of your own
    """


# ----- options that several commands have ----------------------------------------------------


def _size(context: click.Context, parameter: click.Parameter, value: str | None) -> int:
    """A count of bytes; 0 where none was given."""
    try:
        return 0 if value is None else config.parse_bytes(value)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None


def client_options(command: F) -> F:
    command = click.option("--timeout", type=float, help="Seconds to wait for an answer.  [default: 30]")(
        command
    )
    command = click.option("--key", type=PATH, help="This peer's key file (or CLOCKWORK_KEY).")(command)
    return click.option(
        "--endpoint", help=f"The controller (or CLOCKWORK_ENDPOINT).  [default: {config.CLIENT_ENDPOINT}]"
    )(command)


def worker_options(command: F) -> F:
    """What `worker` and `up` have in common."""
    for option in reversed([
        click.option("--device", type=click.Choice(["cpu", "emulated"]), default="cpu", show_default=True,
                     help="What it serves from; emulated devices take profiled times and compute nothing."),
        click.option("--devices", type=click.IntRange(1, config.EMULATED_DEVICES_MAX), default=1,
                     show_default=True, help="How many of them each worker has."),
        click.option("--emulate", multiple=True, metavar="NAME=VALUE",
                     help="A setting of emulated devices: seed, exec_noise, load_noise, outlier, outlier_factor, "
                          "failures, copy_bandwidth, shared_link, spin."),
        click.option("--arena", callback=_size, metavar="SIZE",
                     help="Memory for weights, of each device.  [default: 1GiB; emulated: 21.5GiB]"),
        click.option("--page-size", callback=_size, metavar="SIZE",
                     help="Pages that the arena is divided into.  [default: 1MiB; emulated: 16MiB]"),
        click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True,
                     help="Threads of one execution on a CPU."),
        click.option("--lock-store", is_flag=True, help="Keep every model's weights in RAM."),
    ]):  # fmt: skip
        command = option(command)
    return command


def new_client(endpoint: str | None, key: Path | None, timeout: float | None) -> Client:
    from clockwork.client import Client

    return Client(endpoint, keys=key, timeout=30.0 if timeout is None else timeout, name="cli")


def print_json(body: Any) -> None:
    click.echo(json.dumps(body, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    """What JSON does not know of numpy and paths."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _numbers(settings: Sequence[str]) -> dict[str, float]:
    """NAME=NUMBER, parsed. Raises ConfigError."""
    found = {}
    for setting in settings:
        name, equals, number = setting.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            raise ConfigError(f"a policy's option is NAME=NUMBER, not {setting!r}") from None
        if not equals or not name:
            raise ConfigError(f"a policy's option is NAME=NUMBER, not {setting!r}")
    return found


# ----- processes -----------------------------------------------------------------------------


def policy_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say how a controller schedules."""
    for option in (
        click.option(
            "--save-devices", is_flag=True, help="At low load, keep as few devices busy as SLOs allow."
        ),
        click.option(
            "--option",
            "options",
            metavar="NAME=NUMBER",
            multiple=True,
            help="A constant of the policy; a wrong name is answered with those that there are.",
        ),
        click.option(
            "--memory",
            type=click.Choice(["paper", "adaptive"]),
            default=None,
            help="Whose rules load and evict models.  [default: the policy's own]",
        ),
        click.option(
            "--policy",
            default=config.POLICY,
            show_default=True,
            help="How the controller schedules: adaptive, edf, deferred, fifo or paper.",
        ),
    ):
        command = option(command)
    return command


@cli.command()
@click.option("--workers", type=click.IntRange(0, config.WORKERS_MAX), default=1, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65533), default=5555, show_default=True,
              help="For clients; the next two are for workers and events. 0: any that are free.")  # fmt: skip
@click.option("--data", type=PATH, help="Where models are kept (or CLOCKWORK_DATA).")
@policy_options
@click.option("--keys", type=PATH, help="A directory made by `clockwork keys new`.")
@click.option("--insecure", is_flag=True, help="Listen beyond this machine without keys.")
@click.option("--no-demo", is_flag=True, help="Do not register the demo model.")
@click.option("--profiles", metavar="FILE",
              help="Register the models of a profile file, or `paper`, on emulated devices.")  # fmt: skip
@click.option("--copies", type=click.IntRange(1), default=1, show_default=True, help="Of each such model.")
@click.option("--verbose", "-v", is_flag=True, help="Show the log of every process.")
@worker_options
def up(
    workers: int, host: str, port: int, data: Path | None, policy: str, memory: str | None,
    options: tuple[str, ...], save_devices: bool, keys: Path | None, insecure: bool,
    no_demo: bool, profiles: str | None, copies: int, verbose: bool, device: str, devices: int,
    emulate: tuple[str, ...], arena: int, page_size: int, threads: int, lock_store: bool,
) -> None:  # fmt: skip
    """Run a whole cluster on this machine, in the foreground: a controller and workers.

    Ctrl-C ends all of it. Models that were registered are there again at the next start.

    \b
    Examples:
      clockwork up
      clockwork up --workers 2 --arena 4GiB
      clockwork up --port 6000 --data /var/lib/clockwork --no-demo
      clockwork up --host 0.0.0.0 --keys keys/
      clockwork up --device emulated --devices 12 --profiles paper --copies 66
    """
    from clockwork import cluster

    if profiles and not workers:
        raise ConfigError("--profiles needs a worker that takes them")
    arguments = ["--device", device, "--devices", str(devices), "--threads", str(threads)]
    for name, size in (("--arena", arena), ("--page-size", page_size)):
        arguments += [name, str(size)] if size else []
    for setting in emulate:
        arguments += ["--emulate", setting]
    if lock_store:
        arguments += ["--lock-store"]
    settings = cluster.UpSettings(
        workers=workers, host=host, port=port, data=(data or config.data_directory()).absolute(), policy=policy,
        memory=memory or "", options=(*options, *(["save_devices=1"] if save_devices else [])),
        keys=keys, insecure=insecure, demo=not no_demo and workers > 0 and device != "emulated",
        profiles=profiles or "", copies=copies,
        verbose=verbose, worker_arguments=tuple(arguments),
    )  # fmt: skip
    sys.exit(cluster.up(settings, lambda line: click.echo(line)))


@cli.command()
@click.option("--listen", help=f"For clients.  [default: {config.CLIENT_ENDPOINT}]")
@click.option("--worker-listen", help=f"For workers.  [default: {config.WORKER_ENDPOINT}]")
@click.option("--events", help=f"For those who watch.  [default: {config.EVENTS_ENDPOINT}]")
@click.option("--data", type=PATH, help="Where models are kept (or CLOCKWORK_DATA).")
@policy_options
@click.option("--key", type=PATH, help="Its key file, controller.key (or CLOCKWORK_KEY).")
@click.option("--insecure", is_flag=True, help="Listen beyond this machine without keys.")
@click.option("--record", type=PATH, help="Write down what the scheduler is told, for `clockwork replay`.")
@click.option(
    "--record-max",
    callback=_size,
    metavar="SIZE",
    default="1GiB",
    show_default=True,
    help="Where a recording ends.",
)
@click.option("--parent", type=int, hidden=True)
def controller(
    listen: str | None, worker_listen: str | None, events: str | None, data: Path | None, policy: str,
    memory: str | None, options: tuple[str, ...], save_devices: bool, key: Path | None, insecure: bool, record: Path | None, record_max: int, parent: int | None,
) -> None:  # fmt: skip
    """Run a controller: it holds the models and decides what every worker does when.

    \b
    Examples:
      clockwork controller
      clockwork controller --listen tcp://0.0.0.0:5555 --worker-listen tcp://0.0.0.0:5556 --key controller.key
    """
    if parent is not None:
        from clockwork.cluster import die_with

        die_with(parent)
    from clockwork.controller import process
    from clockwork.controller.settings import ControllerSettings

    settings = ControllerSettings(
        client_endpoint=listen or config.client_endpoint(),
        worker_endpoint=worker_listen or config.worker_endpoint(),
        events_endpoint=events or config.events_endpoint(),
        data=data or config.data_directory(),
        policy=policy,
        memory=memory or "",
        options=_numbers(options) | ({"save_devices": 1.0} if save_devices else {}),
        key=key or config.key_file(),
        insecure=insecure,
        record=record,
        record_bytes_max=record_max,
    )
    sys.exit(process.main(settings))


@cli.command()
@click.argument("recording", type=PATH)
@click.option("--policy", default="", help="Another than the recorded one, to see where they part.")
def replay(recording: Path, policy: str) -> None:
    """Have a recorded controller's decisions again, and say whether they are the same.

    \b
    Example:
      clockwork controller --record monday.rec
      clockwork replay monday.rec
    """
    from clockwork.sim.replay import replay as replay_file

    found = replay_file(recording, policy)
    click.echo(
        f"{found.steps} steps, {found.events} events, {found.orders} orders of policy {found.header.policy}, "
        f"recorded by version {found.header.version}"
    )
    if found.identical:
        click.echo("The decisions are identical.")
        return
    click.echo(f"They part at step {found.parted_at}. It was told:")
    for event in found.parted_events:
        click.echo(f"  {event}")
    click.echo("and now orders:")
    for order in found.parted_orders:
        click.echo(f"  {order}")
    sys.exit(1)


@cli.command()
@click.option("--connect", help=f"The controller's workers' endpoint.  [default: {config.WORKER_ENDPOINT}]")
@click.option("--name", help="How it is called in `status`.  [default: host-pid]")
@worker_options
@click.option("--store", type=PATH, help="Where prepared models are kept (or CLOCKWORK_DATA).")
@click.option("--key", type=PATH, help="Its key file, peer.key (or CLOCKWORK_KEY).")
@click.option("--parent", type=int, hidden=True)
def worker(
    connect: str | None, name: str | None, device: str, devices: int, emulate: tuple[str, ...], arena: int,
    page_size: int, threads: int, lock_store: bool, store: Path | None, key: Path | None, parent: int | None,
) -> None:  # fmt: skip
    """Run a worker: it does what the controller orders, on the devices of this machine.

    \b
    Examples:
      clockwork worker --arena 8GiB --threads 4
      clockwork worker --connect tcp://10.0.0.1:5556 --key peer.key
      clockwork worker --device emulated --devices 100 --emulate exec_noise=0.01
    """
    if parent is not None:
        from clockwork.cluster import die_with

        die_with(parent)
    from clockwork.worker import process
    from clockwork.worker.settings import WorkerSettings

    settings = WorkerSettings(
        endpoint=connect or config.worker_endpoint(),
        devices=(device,),
        device_count=devices,
        emulate=emulate,
        arena_bytes=arena,
        page_bytes=page_size,
        threads=threads,
        store=store or config.data_directory(),
        lock_store=lock_store,
        key=key or config.key_file(),
    )
    if name:
        settings.name = name
    sys.exit(process.main(settings))


# ----- models --------------------------------------------------------------------------------


@cli.group(cls=Commands)
def models() -> None:
    """Add, list, show and remove models."""


@models.command("add")
@click.argument("name", required=False)
@click.argument("file", type=FILE, required=False)
@click.option(
    "--profiles", metavar="FILE", help="For emulated devices: every model of a profile file, or `paper`."
)
@click.option("--copies", type=click.IntRange(1), default=1, show_default=True, help="Of each such model.")
@click.option("--slo", type=float, help="The default SLO of its requests, in seconds.")
@click.option(
    "--examples", type=FILE, help="Real inputs for profiling and checks: .npz by input name, or .npy."
)
@click.option("--batching", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True)
@click.option("--batch-max", type=click.IntRange(1), help="An upper bound of its batches.")
@client_options
def add(
    name: str | None, file: Path | None, profiles: str | None, copies: int, slo: float | None,
    examples: Path | None, batching: Any, batch_max: int | None, endpoint: str | None, key: Path | None,
    timeout: float | None,
) -> None:  # fmt: skip
    """Register an ONNX FILE as NAME; returns once it is ready to serve.

    Or, for emulated devices, models that are only profiles: of a file, or of the paper's table.

    External data beside the file is taken along. Other content under a known name becomes its next
    version and takes over without a failed request.

    \b
    Examples:
      clockwork models add resnet50 resnet50.onnx --slo 0.1
      clockwork models add bert bert.onnx --examples inputs.npz --batching off
      clockwork models add --profiles paper --copies 66 --slo 0.1
    """
    from clockwork import cli_files, cli_profiles

    cli_profiles.check_arguments(name, file, profiles)
    if profiles is not None:
        found = cli_profiles.read_profiles(profiles, copies)
        with new_client(endpoint, key, timeout) as client, _progress("Registering profiles") as tell:
            cli_profiles.register_profiles(client, found, slo, timeout, tell)
        click.echo(f"{len(found)} models are ready")
        return
    assert name is not None, "check_arguments() lets only --profiles go without"
    given = cli_files.read_examples(examples) if examples is not None else None
    with new_client(endpoint, key, timeout) as client, _progress(f"Registering {name}") as tell:
        info = client.register(
            name, file, slo=slo, examples=given, batching=batching, batch_max=batch_max, timeout=timeout,
            progress=tell,
        )  # fmt: skip
    click.echo(f"{info.name}@{info.version} is ready: {_summary(info)}")


@contextmanager
def _progress(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on a terminal, a line for each stage elsewhere; on stderr either way."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        seen: set[str] = set()

        def say(stage: str, done: int, total: int) -> None:
            if stage not in seen:
                seen.add(stage)
                click.echo(f"{title}: {stage} ...", err=True)

        yield say
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=None)

        def show(stage: str, done: int, total: int) -> None:
            progress.update(task, description=f"{title}: {stage}", completed=done, total=total or None)

        yield show


def _summary(info: Any) -> str:
    shapes = ", ".join(f"{one.name} {one.dtype}{list(one.shape)}" for one in info.inputs)
    batching = f"batches of up to {info.batch_max}" if info.batches else "one by one"
    fastest = min((point.exec_ns for point in info.profile), default=0)
    return f"{shapes}; {batching}; {fastest / 1e6:.2f} ms; {info.weights_bytes / 2**20:.1f} MiB of weights"


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@client_options
def list_models(as_json: bool, endpoint: str | None, key: Path | None, timeout: float | None) -> None:
    """List the registered models.

    \b
    Example:
      clockwork models list --json
    """
    with new_client(endpoint, key, timeout) as client:
        infos = client.models()
    if as_json:
        print_json([info.raw for info in infos])
        return
    rows = [
        [
            f"{info.name}@{info.version}" + ("" if info.raw.get("current", True) else " (older)"),
            info.state,
            f"{info.slo * 1e3:g} ms" if info.slo is not None else "-",
            f"{info.raw.get('exec_ns', 0) / 1e6:.2f} ms",
            f"{info.load_ns / 1e6:.2f} ms",
            f"{info.weights_bytes / 2**20:.1f} MiB",
            info.holding,
            "yes" if info.batches else "no",
            info.text,
        ]
        for info in infos
    ]
    _table(["model", "state", "SLO", "execution", "load", "weights", "holding", "batches", ""], rows)


def _table(titles: list[str], rows: list[list[str]]) -> None:
    """A table that is as wide as it must be where nobody looks at a terminal."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*titles, box=SIMPLE, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell, no_wrap=True) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)


@models.command()
@click.argument("name")
@click.option(
    "--profile",
    type=PATH,
    metavar="FILE",
    help="Write what it takes, as measured, for emulation and planning: JSON (- for stdout).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@client_options
def show(
    name: str,
    profile: Path | None,
    as_json: bool,
    endpoint: str | None,
    key: Path | None,
    timeout: float | None,
) -> None:
    """Show one model: NAME, or NAME@VERSION.

    \b
    Examples:
      clockwork models show resnet50
      clockwork models show resnet50@1 --profile resnet50.json
    """
    from clockwork import profiles

    with new_client(endpoint, key, timeout) as client:
        info = client.model(name)
    if profile is not None:
        text = profiles.dump_profiles([profiles.from_info(info)])
        if str(profile) == "-":
            click.echo(text, nl=False)
        else:
            _write(profile, text.encode())
            click.echo(f"wrote {profile}")
        return
    if as_json:
        print_json(info.raw)
        return
    click.echo(f"{info.name}@{info.version}: {info.state} {info.text}".rstrip())
    facts = [
        *(("input", f"{one.name}  {one.dtype} {list(one.shape)}") for one in info.inputs),
        *(("output", f"{one.name}  {one.dtype} {list(one.shape)}") for one in info.outputs),
        ("SLO", f"{info.slo:g} s" if info.slo is not None else "none"),
        ("batching", f"up to {info.batch_max}" if info.batches else "no"),
        ("", info.batching_note),
        (
            "weights",
            f"{info.weights_bytes / 2**20:.2f} MiB, {info.raw.get('pages', 0)} pages, {info.holding}",
        ),
        ("", str(info.raw.get("constants_note", ""))),
        ("load", f"{info.load_ns / 1e6:.3f} ms"),
        ("program", str(info.raw.get("program", ""))),
        ("package", info.digest),
        *(
            ("on", f"{one.get('worker')} device {one.get('device')}: {one.get('state')}")
            for one in info.devices
        ),
        ("requests", ", ".join(f"{count} {what}" for what, count in info.counts.items())),
    ]
    for title, text in facts:
        if text:
            click.echo(f"  {title:<10}{text}")
    if info.profile:
        rows = [[str([list(shape) for shape in point.shape]), str(point.batch), f"{point.exec_ns / 1e6:.3f} ms",
                 f"{point.exec_ns / 1e6 / max(1, point.batch):.3f} ms"] for point in info.profile]  # fmt: skip
        _table(["shape", "batch", "execution", "a row"], rows)


@models.command()
@click.argument("names", nargs=-1, required=True)
@client_options
def remove(names: tuple[str, ...], endpoint: str | None, key: Path | None, timeout: float | None) -> None:
    """Remove models: NAME, or NAME@VERSION. What was admitted is still answered.

    \b
    Example:
      clockwork models remove resnet50 bert@1
    """
    with new_client(endpoint, key, timeout) as client:
        for name in names:
            client.unregister(name)
            click.echo(f"removed {name}")


# ----- requests ------------------------------------------------------------------------------


@cli.command()
@click.argument("model")
@click.argument("inputs", nargs=-1, required=True)
@click.option("--output", "-o", type=PATH, help="Write the outputs: .npy, .npz or .json.")
@click.option("--json", "as_json", is_flag=True, help="Print the outputs as JSON.")
@click.option("--slo", type=float, help="Seconds in which the answer is due.")
@click.option("--priority", type=click.IntRange(0, config.PRIORITY_MAX), default=0, help="1 is the highest.")
@client_options
def infer(
    model: str, inputs: tuple[str, ...], output: Path | None, as_json: bool, slo: float | None, priority: int,
    endpoint: str | None, key: Path | None, timeout: float | None,
) -> None:  # fmt: skip
    """Send MODEL a request and print its answer.

    INPUTS are files: .npy, .npz (by input name), .json (nested lists, or an object by input name), or an
    image, which is fitted to the model's input as its metadata says. Of a model with several inputs,
    name each: ids=ids.npy mask=mask.npy.

    \b
    Examples:
      clockwork infer digits examples/digits/7.png
      clockwork infer bert ids=ids.npy mask=mask.npy --slo 0.1 --output answer.npz
    """
    from clockwork import cli_files

    if output is not None:
        cli_files.check_output_name(output)
    with new_client(endpoint, key, timeout) as client:
        info = client.model(model)
        outputs = client.infer(model, cli_files.read_inputs(inputs, info), slo=slo, priority=priority)
    assert isinstance(outputs, dict)
    if output is not None:
        _write(output, cli_files.pack_outputs(output, outputs))
        click.echo(f"wrote {output}")
    elif as_json:
        print_json(outputs)
    else:
        click.echo(cli_files.describe_outputs(outputs, info))


@cli.command()
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--rate", type=float, default=0.0, help="Open loop: requests per second, of all models together."
)
@click.option("--concurrency", type=int, default=0, help="Closed loop: requests under way at once.")
@click.option("--duration", type=float, default=10.0, show_default=True, help="Seconds.")
@click.option("--slo", type=float, help="Of every request, in seconds.  [default: each model's own]")
@click.option(
    "--arrivals", type=click.Choice(["poisson", "constant", "gamma"]), default="poisson", show_default=True
)
@click.option("--cv", type=float, default=4.0, show_default=True, help="Variation of gamma arrivals.")
@click.option(
    "--bursts",
    type=float,
    nargs=2,
    metavar="ON OFF",
    help="Mean seconds on and off of each model's requests.",
)
@click.option(
    "--ramp", type=float, nargs=2, metavar="FACTOR SECONDS", help="Multiply the rate every so often."
)
@click.option("--trace", default="", metavar="FILE", help="Replay an Azure Functions trace, or `synthetic`.")
@click.option(
    "--mapping",
    type=click.Choice(["original", "shuffled"]),
    default="original",
    show_default=True,
    help="Hot functions on the first models, or anywhere.",
)
@click.option("--priority", type=click.IntRange(0, config.PRIORITY_MAX), default=0, help="1 is the highest.")
@click.option("--rows", type=click.IntRange(1), default=1, show_default=True, help="Rows of each request.")
@click.option(
    "--zipf", type=click.FloatRange(0, 10), default=0.0, help="Skew of popularity, first model first."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@client_options
def load(
    models: tuple[str, ...], rate: float, concurrency: int, duration: float, slo: float | None, arrivals: Any,
    cv: float, bursts: tuple[float, float] | None, ramp: tuple[float, float] | None, trace: str, mapping: Any,
    priority: int, rows: int, zipf: float, seed: int, as_json: bool, endpoint: str | None, key: Path | None,
    timeout: float | None,
) -> None:  # fmt: skip
    """Generate load on MODELS and report what became of it.

    Open loop (--rate): requests come when they are due, whatever the cluster does, and latency counts
    from then. Closed loop (--concurrency, 1 if neither is given): the next is sent when one is answered.

    \b
    Examples:
      clockwork load digits
      clockwork load resnet50 --rate 200 --slo 0.1 --duration 30
      clockwork load a b c --concurrency 16 --json
      clockwork load a b c --rate 100 --arrivals gamma --cv 4 --zipf 0.9
      clockwork load a b c --rate 50 --duration 600 --trace invocations_per_function_md.anon.d01.csv
    """
    from clockwork import load as generator

    settings = generator.LoadSettings(
        models=models,
        rate=rate,
        concurrency=concurrency or (0 if rate else 1),
        duration_s=duration,
        arrivals=arrivals,
        cv=cv,
        bursts_s=bursts,
        ramp=ramp,
        trace=trace,
        mapping=mapping,
        slo_s=slo,
        priority=priority,
        rows=rows,
        zipf=zipf,
        seed=seed,
        timeout_s=30.0 if timeout is None else timeout,
    )
    settings.check()
    with new_client(endpoint, key, timeout) as client, generator.watching() as watch:
        report = generator.run(client, settings, watch)
    if as_json:
        print_json(report.to_json())
    else:
        click.echo(generator.describe(report))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@client_options
def status(as_json: bool, endpoint: str | None, key: Path | None, timeout: float | None) -> None:
    """Show the cluster: its workers, their devices and what became of the requests.

    \b
    Example:
      clockwork status --json
    """
    with new_client(endpoint, key, timeout) as client:
        body: dict[str, Any] = dict(client.status())
    if as_json:
        print_json(body)
        return
    states = body.get("models")
    by_state = (
        ", ".join(f"{count} {state}" for state, count in states.items())
        if isinstance(states, dict)
        else states
    )
    click.echo(f"controller {body.get('version')}, policy {body.get('policy')}, "
               f"up {body.get('uptime_ns', 0) / 1e9:.0f} s, {body.get('clients', 0)} clients")  # fmt: skip
    click.echo(f"models     {by_state or 'none'}, {body.get('programs', 0)} programs")
    counts = body.get("counts") or {}
    plain = ", ".join(f"{count} {what}" for what, count in counts.items() if not isinstance(count, dict))
    reasons = ", ".join(f"{count} {why}" for why, count in (counts.get("refusals") or {}).items())
    click.echo(f"requests   {plain}" + (f" ({reasons})" if reasons else ""))
    rows = []
    for one in body.get("workers") or ():
        stats = one.get("stats") or {}
        for index, device in enumerate(one.get("devices") or ()):
            plan = device.get("plan") or {}
            memory = (stats.get("devices") or [{}] * (index + 1))[index]
            pages, free = device.get("page_count", 0), plan.get("pages_free")
            rows.append([
                str(one.get("name")),
                f"{device.get('kind')}: {device.get('name')}",
                f"{pages * device.get('page_bytes', 0) / 2**20:.0f} MiB",
                "-" if free is None else f"{free * device.get('page_bytes', 0) / 2**20:.0f} MiB",
                str(plan.get("resident", "-")),
                str(memory.get("actions_queued", "-")),
                f"{one.get('rtt_ns', 0) / 1e6:.2f} ms",
                f"{one.get('jitter_ns', 0) / 1e6:.2f} ms",
                f"{stats.get('rss_bytes', 0) / 2**20:.0f} MiB",
            ])  # fmt: skip
    _table(["worker", "device", "arena", "free", "loaded", "queued", "round trip", "jitter", "memory"], rows)
    rows = [
        [
            kind.replace("_", " "),
            way,
            str(errors["total"]),
            *(f"{ns / 1e6:.3f} ms" for ns in errors["percentiles_ns"].values()),
            f"{errors['max_ns'] / 1e6:.3f} ms",
        ]
        for kind, both in (body.get("predictions") or {}).items()
        for way, errors in both.items()
        if errors["total"]
    ]
    if rows:
        _table(["predicted", "by", "actions", "p50", "p90", "p99", "p99.9", "p99.99", "most"], rows)


# ----- keys ----------------------------------------------------------------------------------


@cli.group(cls=Commands)
def keys() -> None:
    """Keys for clusters that listen beyond one machine."""


@keys.command("new")
@click.argument("directory", type=PATH)
def new_keys(directory: Path) -> None:
    """Write a fresh pair of key files into DIRECTORY.

    \b
    controller.key   for the controller (secret)
    peer.key         for workers and clients (secret)

    \b
    Example:
      clockwork keys new keys/
      clockwork controller --listen tcp://0.0.0.0:5555 --worker-listen tcp://0.0.0.0:5556 --key keys/controller.key
    """
    from clockwork.keys import write_keys
    from clockwork.transport import new_key_pair

    try:
        written = write_keys(directory, new_key_pair(), new_key_pair())
    except OSError as error:
        raise ConfigError(f"{directory} cannot be written: {error.strerror}") from None
    for path in written:
        click.echo(f"wrote {path}")


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}") from None
