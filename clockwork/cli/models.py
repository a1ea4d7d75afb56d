"""`clockwork models`: commands that add, show and remove models; routes.py has those that split traffic."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from clockwork import config
from clockwork.cli import routes
from clockwork.cli.common import (
    FILE,
    PATH,
    CommandGroup,
    Connect,
    Duration,
    as_usage,
    client_options,
    print_json,
    print_line,
    print_table,
    print_text,
    say_bytes,
    write_file,
)
from clockwork.config.repository import REPOSITORY_ORIGIN
from clockwork.errors import ClockworkError, ConfigError, InvalidInput, ModelNotFound
from clockwork.sources.location import Location, location_of
from clockwork.system.clock import duration
from clockwork.system.words import say_count
from clockwork.wire.messages import BATCHING, PRODUCT_DTYPES

EXISTING = click.Path(path_type=Path, exists=True)
_NUMBER = re.compile(r"[0-9]{1,3}(?:\.[0-9]{0,9})?")
PACKED_NOTED = 1.1  # A packed model's memory is shown if it is more than this multiple of its weights


@click.group(cls=CommandGroup)
def models() -> None:
    """Add, list, show and remove models; split their traffic between versions."""


for command in (routes.route, routes.promote, routes.rollback):
    models.add_command(command)


def _model(context: click.Context, parameter: click.Parameter, value: str | None) -> Path | Location | None:
    if value is None:
        return None
    try:
        location = location_of(value)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None
    return location or EXISTING.convert(value, parameter, context)


def _percent(text: str) -> float:
    """Parse ``10%`` into 0.1."""
    number = text.removesuffix("%").strip()
    share = float(number) / 100 if _NUMBER.fullmatch(number) else -1.0
    if not 0 < share <= 1:
        raise click.BadParameter(f"{text[:80]!r} is not like 10%: a share above 0 % and up to 100 %")
    return share


def _names(text: str) -> list[str]:
    """``a,b`` as names; none of an empty text."""
    return [name.strip() for name in text.split(",") if name.strip()]


@models.command("add")
@click.argument("name", required=False)
@click.argument("file", required=False, callback=_model)
@click.option(
    "--profiles", metavar="FILE", help="For emulated devices: every model of a profile file, or `paper`."
)
@click.option(
    "--copies", type=click.IntRange(1), default=1, show_default=True, help="Copies of each such model."
)
@click.option(
    "--each",
    type=EXISTING,
    multiple=True,
    metavar="PATH",
    help="In place of NAME and FILE: every ONNX file of a directory, or a file, under its name without .onnx. May be "
    "given several times.",
)
@click.option(
    "--slo", type=Duration(0), help="The default SLO of its requests: 100ms, or a number of seconds; 0: none."
)
@click.option(
    "--examples", type=FILE, help="Real inputs for profiling and checks: .npz by input name, or .npy."
)
@click.option(
    "--batching",
    type=click.Choice(BATCHING),
    help="Whether requests share executions: as registration determines, always, never, or only with equal shapes.  "
    "[default: auto]",
)
@click.option(
    "--batch-max",
    type=click.IntRange(0, config.REGISTER_BATCH_MAX),
    help="Bound of its batches; 0: as measured.",
)
@click.option(
    "--dtype",
    type=click.Choice(PRODUCT_DTYPES),
    help="Type of matrix products of an ONNX file on GPUs: tf32 and fp16 use tensor cores. CPU devices compute "
    "as the file says.  [default: fp32]",
)
@click.option(
    "--optional-inputs",
    type=_names,
    metavar="NAME,...",
    help="Inputs with a default in the ONNX file that requests may give or leave out; '' for none.  "
    "[default: all of at most 64 bytes, unless the file lists its weights as inputs]",
)
@click.option("--image", is_flag=True, help="Add JPEG decoding to the model, whose input then is JPEG files.")
@click.option(
    "--resize",
    type=click.IntRange(1),
    metavar="PIXELS",
    help="With --image: size of the shorter side, before the middle is cut out.  [default: both sides are stretched]",
)
@click.option(
    "--mean", metavar="NUMBERS", help="With --image: mean of each channel, after --scale: 0.485,0.456,0.406"
)
@click.option(
    "--std", metavar="NUMBERS", help="With --image: standard deviation of each channel: 0.229,0.224,0.225"
)
@click.option("--scale", type=float, help="With --image: factor of pixels.  [default: 1/255]")
@click.option(
    "--filter",
    "filter_",
    type=click.Choice(["bilinear", "bicubic"]),
    help="With --image: filter of resizing.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path, exists=True),
    metavar="DIRECTORY",
    help="Add tokenization by the directory's tokenizer.json to the model, whose input then is text. Needs the extra [text].",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    help="With --tokenizer: most tokens of a text.  [default: from its files]",
)
@click.option(
    "--truncate", is_flag=True, help="With --tokenizer: truncate longer texts instead of refusing them."
)
@click.option("--labels", type=FILE, help="Names of the scores: a line each, or a JSON list.")
@click.option(
    "--canary",
    type=_percent,
    metavar="SHARE%",
    help="Route this share of NAME's requests to the version once it is ready; the others keep their route.",
)
@click.option(
    "--no-route", is_flag=True, help="Route none of NAME's requests to the version until `models route` does."
)
@click.option(
    "--force",
    is_flag=True,
    help="Route NAME's requests to the version even if it cannot serve all requests that the present version can.",
)
@client_options
def add(
    name: str | None, file: Path | Location | None, profiles: str | None, copies: int, each: tuple[Path, ...],
    slo: float | None,
    examples: Path | None, batching: Any, batch_max: int | None, dtype: Any,
    optional_inputs: list[str] | None, image: bool, resize: int | None,
    mean: str | None, std: str | None, scale: float | None, filter_: str | None,
    tokenizer: Path | None, max_tokens: int | None, truncate: bool, labels: Path | None,
    canary: float | None, no_route: bool, force: bool,
    connect: Connect,
) -> None:  # fmt: skip
    """Register FILE as NAME: an ONNX file, or a directory that `clockwork compile` wrote.

    FILE may be a URL of s3://, gs://, az://, hf://, https:// or http://, from which it is fetched.

    Returns once the model is ready. With --profiles it registers models for emulated devices that are only
    profiles, from a file or the paper's table.

    External data beside the file is registered with it. Other content under a known name becomes the next
    version, which takes over without a failed request. It keeps the SLO, batching, dtype and labels of the
    serving version, except those given here. Inputs or outputs that would break that version's clients are an
    error, unless --force or --no-route is given. `models rollback` returns to the version that served before.

    With --each it registers many files in one run: hundreds of fine-tunes take little longer than their
    upload. A failure with one file stops no other.

    With --image, decoding, resizing, cropping and normalising become part of the model, so that their time is
    predicted; the model's metadata completes the flags. With --tokenizer, tokenization does
    (docs/strings-and-images.md).

    \b
    Examples:
      clockwork models add resnet50 resnet50.onnx --slo 0.1
      clockwork models add resnet50 resnet50.onnx --image --resize 256 \\
          --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
      clockwork models add resnet50 retrained.onnx --canary 10%
      clockwork models add --each fine-tunes/ --slo 0.1
      clockwork models add bert bert.onnx --examples inputs.npz --batching off
      clockwork models add sentences encoder.onnx --tokenizer all-MiniLM-L6-v2/
      clockwork models add resnet50-gpu resnet50.program --slo 0.05
      clockwork models add vit vit.onnx --dtype tf32
      clockwork models add resnet50 s3://bucket/models/resnet50.onnx
      clockwork models add minilm hf://sentence-transformers/all-MiniLM-L6-v2/onnx/model.onnx
      clockwork models add --profiles paper --copies 66 --slo 0.1
    """
    from clockwork.cli import files, joined
    from clockwork.launch.profiles import read_profiles, register_profiles

    if profiles is None and not each and (name is None or file is None):
        raise click.UsageError("models add takes a NAME and an ONNX FILE, or --each, or --profiles")
    if profiles is not None:
        if each:
            raise click.UsageError("models add takes --each or --profiles")
        if file is not None:
            raise click.UsageError("models add --profiles takes no ONNX FILE")
        if canary is not None or no_route or force:
            raise click.UsageError("models add --profiles takes no --canary, --no-route or --force")
        with as_usage():
            found = read_profiles(profiles, copies)
        with connect() as client, _progress("Registering profiles") as tell:
            register_profiles(client, found, slo, connect.timeout, tell)
        print_line(f"{say_count(len(found), 'model is', 'models are')} ready")
        return
    with as_usage():
        given = files.read_examples(examples) if examples is not None else None
    if each:
        alone = [name, image, tokenizer, labels, canary, no_route]
        if any(value not in (None, False) for value in alone):
            raise click.UsageError(
                "models add --each takes no NAME, --image, --tokenizer, --labels, --canary or --no-route"
            )
        options = {
            "slo": slo, "examples": given, "batching": batching, "batch_max": batch_max, "dtype": dtype,
            "optional_inputs": optional_inputs, "force": force,
        }  # fmt: skip
        _add_each(connect, _files_of(each), options)
        return
    assert name is not None, "only --profiles and --each go without"
    if canary is not None and no_route:
        raise click.UsageError("--canary and --no-route exclude each other")
    image_flags = {"--resize": resize, "--mean": mean, "--std": std, "--scale": scale, "--filter": filter_}
    if not image and (alone := [flag for flag, value in image_flags.items() if value is not None]):
        raise click.UsageError(f"models add {alone[0]} goes with --image")
    if image and tokenizer is not None:
        raise click.UsageError("models add takes --image or --tokenizer: a model reads images or texts")
    if tokenizer is not None:
        from clockwork.models import tokenizers

        tokenizers.require_library()  # before the model is fetched and read
    if tokenizer is None and (max_tokens is not None or truncate):
        raise click.UsageError("models add --max-tokens and --truncate go with --tokenizer")
    with (
        connect() as client,
        _progress(f"Registering {name}") as tell,
        tempfile.TemporaryDirectory(prefix="clockwork-") as folder,
    ):
        if isinstance(file, Location):
            from clockwork.cli.fetching import fetch_model

            file = fetch_model(file, Path(folder), tell)
        model: Any = file
        with as_usage():
            if image:
                model = joined.with_images(file, resize, mean, std, scale, filter_)
            elif tokenizer is not None:
                model = joined.with_texts(file, tokenizer, max_tokens, truncate)
            if labels is not None:
                model = joined.with_labels(model, labels)
        info = client.register(
            name, model, slo=slo, examples=given, batching=batching, batch_max=batch_max, dtype=dtype,
            optional_inputs=optional_inputs, share=0 if no_route else canary, force=force, timeout=connect.timeout,
            progress=tell,
        )  # fmt: skip
    print_line(f"{info.reference} is ready: {_summary(info)}")
    if canary is not None:
        from clockwork.wire.description import RouteInfo

        print_line(f"  {info.name}: {routes.say_route(RouteInfo.from_wire(info.raw.get('route')))}")
    elif not info.share:
        print_line(
            f"  {info.name} has a route, so that it gets no traffic until `clockwork models route` says so"
        )


def _files_of(paths: Sequence[Path]) -> dict[str, Path]:
    """Return the ONNX files of directories, and files, by the names of their models."""
    found: dict[str, Path] = {}
    for path in paths:
        files = sorted(path.glob("*.onnx")) if path.is_dir() else [path]
        if not files:
            raise click.UsageError(f"{path} holds no ONNX file")
        for file in files:
            if file.stem in found:
                raise click.UsageError(f"{found[file.stem]} and {file} would have the same name")
            found[file.stem] = file
    return found


def _add_each(connect: Connect, files: Mapping[str, Path], options: Mapping[str, Any]) -> None:
    """Register files, and tell of each that could not be. Exits with status 1 if there are any."""
    from clockwork.launch.many import register_each

    with connect() as client, _progress("Registering models") as tell:
        failed = register_each(
            {
                name: functools.partial(client.register, name, file, timeout=connect.timeout, **options)
                for name, file in files.items()
            },
            tell,
        )
    for name, error in failed.items():
        print_line(f"clockwork: {name}: {error}", err=True)
    print_line(f"{say_count(len(files) - len(failed), 'model is', 'models are')} ready")
    if failed:
        raise click.exceptions.Exit(1)


@contextmanager
def _progress(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback that shows progress on stderr: a bar in a terminal, else a line for each stage."""
    from rich.progress import BarColumn, Progress, TimeElapsedColumn

    from clockwork.cli.terminal import Terminal, description

    console = Terminal(stderr=True)
    if not console.is_terminal:
        seen: set[str] = set()

        def say(stage: str, done: int, total: int) -> None:
            if stage not in seen:
                seen.add(stage)
                print_line(f"{title}: {stage} ...", err=True)

        yield say
        return
    columns = (description(), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=None)

        def show(stage: str, done: int, total: int) -> None:
            progress.update(task, description=f"{title}: {stage}", completed=done, total=total or None)

        yield show


def _summary(info: Any) -> str:
    shapes = ", ".join(
        f"{tensor.name} {tensor.dtype}{list(tensor.shape)}{' (optional)' if tensor.optional else ''}"
        for tensor in info.inputs
    )
    batching = f"batches of up to {info.batch_max}" if info.batches else "one by one"
    fastest = min((point.exec_ns for point in info.profile), default=0)
    return f"{shapes}; {batching}; {duration(fastest)}; {say_bytes(info.weights_bytes)} of weights, {_holding(info)}"


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@client_options
def list_models(as_json: bool, connect: Connect) -> None:
    """List the registered models.

    \b
    Example:
      clockwork models list --json
    """
    with connect() as client:
        infos = client.models()
    if as_json:
        print_json([info.raw for info in infos])
        return
    columns: dict[str, Callable[[Any], str]] = {
        "model": lambda info: info.reference,
        "state": lambda info: info.state,
        "traffic": _traffic,
        "where": _where,
        "SLO": lambda info: f"{info.slo * 1e3:g} ms" if info.slo is not None else "-",
        "profiled": lambda info: _time(info.raw.get("exec_ns")),
        "live": lambda info: _time(info.raw.get("live_exec_ns")),
        "load": lambda info: _time(info.load_ns),
        "weights": lambda info: say_bytes(info.weights_bytes) if _is_measured(info) else "-",
        "holding": _holding,
        "batches": lambda info: ("yes" if info.batches else "no") if _is_measured(info) else "-",
        "": _remarks,
    }
    print_table(
        list(columns),
        [[cell(info) for cell in columns.values()] for info in infos],
        {
            "profiled, live": "an execution of the smallest batch: in a row at registration, and as the scheduler expects it now",
            "load": "from host memory onto a device",
            "holding": "bound: weights lie in the device's pages as they are; packed: as ONNX Runtime repacked them, which is "
            "quicker and takes more memory; none: it has no weights to load",
        },
    )


def _time(ns: Any) -> str:
    return duration(ns) if isinstance(ns, int) and ns > 0 else "-"


def _is_measured(info: Any) -> bool:
    """Return whether a worker has prepared the model, so that its size and batches are known. An unloaded
    model is unknown."""
    return bool(info.holding)


def _holding(info: Any) -> str:
    """Return how a device holds the weights, with its memory if that is much more than the weights."""
    resident = info.raw.get("resident_bytes", 0)
    more = resident > PACKED_NOTED * info.weights_bytes and info.holding == "packed"
    return f"{info.holding}, {say_bytes(resident)}" if more else info.holding


def _say_threads(info: Any) -> str:
    """Return the times of an execution with more threads; "" if they were not measured."""
    timed = info.raw.get("by_threads") or ()
    return ", ".join(f"{ns / 1e6:.3g} ms with {count}" for count, ns in timed)


def _remarks(info: Any) -> str:
    """Return why a model is not ready, or on which workers its preparation failed."""
    failed = [f"not on {worker}: {why}" for worker, why in (info.raw.get("not_prepared") or {}).items()]
    return "; ".join(filter(None, [info.text, *failed]))


def _traffic(info: Any) -> str:
    """Return a version's share of its name's requests, and the share that is copied to it."""
    parts = [f"{info.share * 100:g} %"] if info.share or not info.raw.get("shadow") else []
    if info.raw.get("shadow"):
        parts.append(f"shadow {info.raw['shadow'] * 100 / config.SHARE_WHOLE:g} %")
    return ", ".join(parts)


def _where(info: Any) -> str:
    """Return the number of devices with the model, or the state of its loading."""
    resident = sum(place.get("state") == "resident" for place in info.devices)
    if resident:
        return f"on {resident} device{'s' if resident > 1 else ''}"
    if info.devices:
        return "loading"
    if info.hosted:
        return f"in {len(info.hosted)} host store{'s' if len(info.hosted) > 1 else ''}"
    return "registered" if info.state == "ready" else ""


@models.command()
@click.argument("name")
@click.option(
    "--profile",
    type=PATH,
    metavar="FILE",
    help="Write its measured profile, for emulation and planning: JSON (- for stdout).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@client_options
def show(name: str, profile: Path | None, as_json: bool, connect: Connect) -> None:
    """Show one model: NAME, or NAME@VERSION.

    \b
    Examples:
      clockwork models show resnet50
      clockwork models show resnet50@1 --profile resnet50.json
    """
    from clockwork.formats import profiles
    from clockwork.wire.description import RouteInfo

    with connect() as client:
        info = client.model(name)
    if profile is not None:
        text = profiles.dump_profiles([profiles.from_info(info)])
        if str(profile) == "-":
            print_text(text)
        else:
            write_file(profile, text.encode())
            print_line(f"wrote {profile}")
        return
    if as_json:
        print_json(info.raw)
        return
    route = RouteInfo.from_wire(info.raw.get("route"))
    print_line(f"{info.reference}: {info.state} {info.text}".rstrip())
    facts = [
        *(("input", _input(tensor, info)) for tensor in info.inputs),
        *(("output", f"{tensor.name}  {tensor.dtype} {list(tensor.shape)}") for tensor in info.outputs),
        ("SLO", f"{info.slo:g} s" if info.slo is not None else "none"),
        ("batching", (f"up to {info.batch_max}" if info.batches else "no") if _is_measured(info) else ""),
        ("", info.batching_note),
        ("", info.lengths_note),
        (
            "weights",
            f"{say_bytes(info.weights_bytes)}, {say_count(info.raw.get('pages', 0), 'page')}, {_holding(info)}"
            if _is_measured(info)
            else "",
        ),
        ("", str(info.raw.get("constants_note", ""))),
        ("load", f"{info.load_ns / 1e6:.3f} ms" if _is_measured(info) else ""),
        ("threads", _say_threads(info)),
        ("program", str(info.raw.get("program", ""))),
        ("package", info.digest),
        ("from", _repository(info)),
        *(
            ("prepared" if index == 0 else "", _say_preparation(report))
            for index, report in enumerate(info.raw.get("preparations") or ())
        ),
        *(
            ("on", f"{place.get('worker')} device {place.get('device')}: {place.get('state')}")
            for place in info.devices
        ),
        *(("in", f"the host store of {worker}") for worker in info.hosted),
        ("traffic", f"{_traffic(info)}; {info.name}: {routes.say_route(route)}"),
        *(("", line) for line in routes.say_shadow(route.shadow)),
        *(("before", routes.say_shares(shares)) for shares in route.earlier[:1]),
        ("requests", ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in info.counts.items())),
        ("faults", ", ".join(f"{count} {kind}" for kind, count in (info.raw.get("faults") or {}).items())),
    ]
    for title, text in facts:
        if text:
            print_line(f"  {title:<10}{text}")
    if info.profile:
        live = list(info.raw.get("expected_ns") or ()) or [0] * len(info.profile)
        rows = [
            [
                _shape(point.shape, info),
                str(point.batch),
                _time(point.exec_ns),
                _time(now_ns),
                _time(point.exec_ns // max(1, point.batch)),
            ]
            for point, now_ns in zip(info.profile, live)
        ]
        print_table(
            ["shape", "batch", "profiled", "live", "profiled a row"], rows,
            {"live": "as the scheduler expects it now, from the executions of late"},
        )  # fmt: skip


def _input(tensor: Any, info: Any) -> str:
    text = f"{tensor.name}  {tensor.dtype} {list(tensor.shape)}"
    if not tensor.optional:
        return text
    from clockwork.wire.optional import array_of, read_defaults
    from clockwork.wire.tensors import code_of

    dtype = code_of(tensor.dtype)
    default = read_defaults(
        info.metadata, [(spec.name, code_of(spec.dtype), spec.shape) for spec in info.inputs]
    )
    return f"{text}  optional, by default {array_of(default[tensor.name], dtype).tolist()}"


def _shape(shape: Sequence[Sequence[int]], info: Any) -> str:
    """Return the shape that was profiled: dimensions without rows, for strings also the bytes of each, for
    optional inputs the value."""
    from clockwork.wire.optional import Default, array_of, is_value, value_of
    from clockwork.wire.tensors import code_of, tensor_bytes

    found = []
    for index, dims in enumerate(shape):
        if is_value(dims) and index < len(info.inputs) and info.inputs[index].optional:
            tensor = info.inputs[index]
            dtype = code_of(tensor.dtype)
            value = Default(tensor.shape, value_of(dims, tensor_bytes(dtype, tensor.shape)))
            found.append(f"{tensor.name}={array_of(value, dtype).tolist()}")
            continue
        is_text = index < len(info.inputs) and info.inputs[index].dtype == "string" and dims
        found.append(str([*dims[:-1], f"{dims[-1]} B"]).replace("'", "") if is_text else str(list(dims)))
    return "[" + ", ".join(found) + "]"


def _say_preparation(report: dict[str, Any]) -> str:
    """Return a worker's report on a model: its measurements, or why it does not serve it."""
    text = f"on {report.get('worker')}: {report.get('state')}"
    if "exec_ns" in report:
        text += (
            f", {report['exec_ns'] / 1e6:.3f} ms, batches of up to {report['batch_max']}, {say_count(report['pages'], 'page')} {report['holding']}, "
            f"load {report['load_ns'] / 1e6:.3f} ms"
        )
    return text


@models.command()
@click.argument("names", nargs=-1, required=True)
@client_options
def unload(names: tuple[str, ...], connect: Connect) -> None:
    """Unload models: NAME, or NAME@VERSION. They stay registered, and take no memory.

    Admitted requests are still answered. The models stay unloaded after a restart.

    \b
    Example:
      clockwork models unload resnet50 bert@1
      clockwork models load resnet50 bert@1
    """
    with connect() as client:

        def take_out(name: str) -> None:
            client.unload(name)
            print_line(f"unloaded {name}")

        _with_each(names, take_out)


@models.command("load")
@click.argument("names", nargs=-1, required=True)
@client_options
def load_again(names: tuple[str, ...], connect: Connect) -> None:
    """Load models that were unloaded or set aside, so that they serve again: NAME, or NAME@VERSION.

    \b
    Example:
      clockwork models load resnet50
    """
    with connect() as client:

        def put_in(name: str) -> None:
            client.load(name)
            print_line(f"{name} serves")

        _with_each(names, put_in)


@models.command()
@click.argument("names", nargs=-1, required=True)
@client_options
def remove(names: tuple[str, ...], connect: Connect) -> None:
    """Remove models: NAME, or NAME@VERSION. Admitted requests are still answered.

    A model that a gateway registered from a repository is registered again when its files change, or a
    gateway starts. Remove its files instead.

    \b
    Example:
      clockwork models remove resnet50 bert@1
    """
    with connect() as client:

        def take_away(name: str) -> None:
            repository = ""
            # a version that is being removed can be removed again, but not described
            with suppress(ModelNotFound):
                repository = _repository(client.model(name))
            client.unregister(name)
            print_line(f"removed {name}")
            if repository:
                print_line(
                    f"  It came from the model repository {repository}: unless its files are taken away there, it is "
                    "registered again when they change, and when a gateway starts"
                )

        _with_each(names, take_away)


def _with_each(names: Sequence[str], act: Callable[[str], None]) -> None:
    """Act on each model. Failures with some models are errors, and do not affect the others."""
    errors: list[ClockworkError] = []
    for name in names:
        try:
            act(name)
        except (ModelNotFound, InvalidInput) as error:
            errors.append(error)
    if errors:
        for earlier in errors[:-1]:
            print_line(f"clockwork: {earlier}", err=True)
        raise errors[-1]


def _repository(info: Any) -> str:
    """Return the repositories from which a gateway registered a model; "" if it was registered otherwise."""
    origin = str((info.raw.get("options") or {}).get("origin", ""))
    return origin.removeprefix(REPOSITORY_ORIGIN) if origin.startswith(REPOSITORY_ORIGIN) else ""
