"""`clockwork plan`: finds the number of devices, the rate or the SLO of a load, by simulation."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from clockwork import config
from clockwork.cli.common import (
    CV,
    DURATION,
    FILE,
    PATH,
    CommandGroup,
    Duration,
    as_usage,
    client_options,
    policy_numbers,
    print_json,
    print_line,
    print_paragraph,
    trace_option,
)
from clockwork.config.workloads import NOISE_EXECUTIONS_MIN
from clockwork.errors import ConfigError
from clockwork.system.clock import SECOND, now_ns, to_ns
from clockwork.system.words import say_count, say_figure

if TYPE_CHECKING:
    from clockwork.formats.profiles import ModelProfile
    from clockwork.sim import Cluster, planning
    from clockwork.workloads import Workload

F = TypeVar("F", bound=Callable[..., Any])
TRACE_DURATION_S = 600.0  # Seconds of a trace that are counted by default
TOLD_EVERY_NS = 5 * SECOND  # Interval of progress messages without a terminal
NOISE = 0.0003  # Relative sigma of execution times, if it was not measured

NOT_FOUND = {
    "devices": "no number of devices holds this load",
    "rate": "no rate holds",
    "slo": "no SLO holds at this rate",
}
NOT_TRIED = {
    "devices": "a model takes longer than its SLO",
    "rate": "a model takes longer than its SLO",
    "slo": "the devices cannot execute as much as is asked for",
}
"""Reasons for which no simulation was needed to find that nothing holds."""


@click.group(cls=CommandGroup)
def plan() -> None:
    """Find by simulation how many devices a load needs, or which load devices hold.

    The models are those of a profile file, of the paper's table, or of a live cluster.

    A load holds if at most --bad percent of its requests fail, are refused or late, and at most --bad-group
    percent in each tenth of the models by popularity (of up to ten models: in each), and of each SLO, if
    models have several.

    \b
    Examples:
      clockwork plan devices --profiles paper --slo 0.1 --rate 5000
      clockwork plan rate --profiles resnet50.json --devices 4 --slo 0.05
      clockwork plan slo --endpoint tcp://10.0.0.1:5555 --rate 200
    """


def _options(command: F) -> F:
    """Add the options that all three commands have."""
    # fmt: off
    for option in reversed([
        click.option("--profiles", metavar="FILE", help="Models: a profile file, or `paper`.  "
                     "[default: the models of the cluster at --endpoint]"),
        click.option("--copies", type=click.IntRange(1), default=1, show_default=True, help="Copies of each model."),
        click.option("--model", "names", multiple=True, metavar="NAME", help="Only this model. Repeatable."),
        click.option("--arrivals", type=click.Choice(["poisson", "constant", "gamma"]), default="poisson",
                     show_default=True),
        click.option("--cv", type=CV, default=4.0, show_default=True, help="Coefficient of variation of gamma arrivals."),
        click.option("--zipf", type=click.FloatRange(0, 10), default=0.0,
                     help="Skew of popularity, first model first."),
        trace_option("Arrivals of an Azure Functions trace, or `synthetic`."),
        click.option("--mapping", type=click.Choice(["original", "shuffled"]), default="original",
                     show_default=True, help="Map hot functions to the first models, or randomly."),
        click.option("--busiest", is_flag=True,
                     help="Count the busiest part of a trace, of length --duration; rates are still those of the whole trace."),
        click.option("--bad", type=float, default=1.0, show_default=True,
                     help="Percent of the requests that may fail, be refused or late."),
        click.option("--bad-group", type=click.FloatRange(0, 100, min_open=True), metavar="FLOAT",
                     help="Percent of each group's requests: a tenth of the models by popularity (each model, if"
                     " they are ten or fewer), or those of an SLO.  [default: twice --bad; 100: no limit]"),
        click.option("--policy", default=config.POLICY, show_default=True,
                     help="Scheduling policy; MODULE:CLASS is a class in Python, which is slower"
                     " (docs/policies/python.md)."),
        click.option("--option", "options", metavar="NAME=NUMBER", multiple=True, help="A constant of the policy."),
        click.option("--page-size", default="16MiB", show_default=True, help="Size of a device's pages."),
        click.option("--arena", default="21.5GiB", show_default=True, help="Memory for weights of each arena."),
        click.option("--executors", type=click.IntRange(1, config.EXECUTORS_MAX),
                     help="Devices that share an arena, as the executors of a CPU do.  [default: as at --endpoint; of"
                     " profiles 1]"),
        click.option("--devices-per-worker", type=click.IntRange(1), default=1, show_default=True,
                     help="The devices of a worker load in turn, over one link; at least as many as --executors."),
        click.option("--load-bandwidth", default="", metavar="SIZE",
                     help="Bytes a second from host to device, for weights.  [default: as profiled]"),
        click.option("--input-bandwidth", default="", metavar="SIZE",
                     help="Bytes a second of a worker's network.  [default: no limit]"),
        click.option("--network-ms", type=Duration(0, 1, unit="ms"), default="0.05", show_default=True,
                     help="Delay between controller and worker, in each direction."),
        click.option("--noise", type=click.FloatRange(0, 1),
                     help="Relative sigma of execution times.  [default: measured at --endpoint, with outliers;"
                     f" of profiles {NOISE}, as of a GPU; a CPU has 0.01 and more]"),
        click.option("--seeds", type=click.IntRange(1, 100), default=3, show_default=True,
                     help="Simulations of each setting."),
        click.option("--requests", type=click.IntRange(0), default=0,
                     help="Counted requests of each setting.  [default: 20,000 or more, by --bad]"),
        click.option("--duration", type=Duration(0), default="0",
                     help=f"Counted time.  [default: by --requests; of a trace: {TRACE_DURATION_S:g}s]"),
        click.option("--plot", type=PATH, metavar="FILE", help="Draw the simulations (PNG)."),
        click.option("--json", "as_json", is_flag=True, help="Print everything as JSON."),
    ]):
        command = option(command)
    # fmt: on
    return client_options(command)


_rate = click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    required=True,
    help="Requests per second, of all models together.",
)
_slo = click.option(
    "--slo",
    type=DURATION,
    help="SLO of every request: 100ms, or a number of seconds.  [default: each model's own]",
)
_devices = click.option("--devices", type=click.IntRange(1), default=1, show_default=True)


@plan.command("devices")
@_rate
@_slo
@_options
def plan_devices(rate: float, slo: float | None, **given: Any) -> None:
    """Find how many devices hold a load, and their bottleneck.

    \b
    Examples:
      clockwork plan devices --profiles paper --slo 0.1 --rate 5000
      clockwork plan devices --profiles paper --copies 66 --slo 0.1 --rate 9638 \\
          --trace synthetic --busiest --bad 0.01
    """
    _answer("devices", given, rate, slo, 1)


@plan.command("rate")
@_devices
@_slo
@_options
def plan_rate(devices: int, slo: float | None, **given: Any) -> None:
    """Find the highest rate that devices hold.

    \b
    Examples:
      clockwork plan rate --profiles paper --devices 12 --slo 0.1 --zipf 0.9
      clockwork plan rate --endpoint tcp://10.0.0.1:5555 --slo 0.05
    """
    _answer("rate", given, 1.0, slo, devices)


@plan.command("slo")
@_rate
@_devices
@_options
def plan_slo(rate: float, devices: int, **given: Any) -> None:
    """Find the tightest SLO, the same for all models, that the devices can meet at a request rate.

    \b
    Example:
      clockwork plan slo --profiles paper --model resnet50_v2 --devices 2 --rate 1000
    """
    _answer("slo", given, rate, 1.0, devices)


def _measured(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> dict[int, str]:
    """Return profile files by the number of threads with which they were measured, in rising order."""
    found: dict[int, str] = {}
    for text in value:
        threads, equals, file = text.partition("=")
        if not (equals and file and re.fullmatch("[0-9]{1,4}", threads) and int(threads)):
            raise click.BadParameter(f"{text!r} is not THREADS=FILE")
        if int(threads) in found:
            raise click.BadParameter(f"there are two files of {int(threads)} threads")
        found[int(threads)] = file
    return dict(sorted(found.items()))


@plan.command("threads")
@click.option("--cores", type=click.IntRange(1, config.EXECUTORS_MAX), required=True,
              help="Cores that execute.")  # fmt: skip
@click.option("--measured", callback=_measured, multiple=True, metavar="THREADS=FILE",
              help="Profiles of the models by a worker with so many --threads. Repeatable.")  # fmt: skip
@click.option("--onnx", type=FILE, multiple=True,
              help="A model to measure on this machine instead, which should do nothing else: with 1, 2, 4 ... "
                   "threads, as far as it has cores. Repeatable.")  # fmt: skip
@click.option("--rate", type=click.FloatRange(0, min_open=True),
              help="Divide the cores for so many requests per second, of all models together, into executors of one "
                   "core and executors of several.")  # fmt: skip
@_slo
@_options
def plan_threads(
    cores: int, measured: dict[int, str], onnx: tuple[Path, ...], rate: float | None, slo: float | None, **given: Any
) -> None:  # fmt: skip
    """Find how many threads executions should have on a machine.

    Without --rate all executions have as many: the number with the highest rate that holds is found. With one
    thread the cores are executors of one arena; with more they are devices of so many cores each, and the
    memory, --arena, is divided between them. Less than 2 % more requests are not worth more threads.

    With --rate the cores are divided into executors of one core, which share an arena, and executors of
    several, with an arena each, so that most requests are answered in time. `clockwork up` does so by itself.

    \b
    Examples:
      clockwork plan threads --cores 16 --measured 1=one.json --measured 4=four.json --slo 50ms --rate 300
      clockwork plan threads --cores 4 --onnx resnet50.onnx --slo 50ms
      clockwork worker --threads 4                 # of a cluster; or, for each number of threads:
      clockwork models show resnet50 --profile four.json
      clockwork plan threads --cores 16 --measured 1=one.json --measured 4=four.json --slo 50ms
    """
    for name in ("profiles", "executors", "plot"):
        if given[name] is not None:
            raise click.UsageError(f"--{name} is not for plan threads: --measured and --cores say it")
    if bool(measured) == bool(onnx):
        raise click.UsageError("plan threads takes either --measured or --onnx")
    if onnx and slo is None:
        raise click.UsageError("--onnx needs --slo: a file has none")
    with contextlib.ExitStack() as stack:
        if onnx:
            measured = _measure(stack, onnx, cores)
        if widest := next((threads for threads in measured if threads > cores), 0):
            raise click.UsageError(
                f"--measured {widest}={measured[widest]}: an execution has at most {cores} cores"
            )
        if rate is not None:
            _divide(cores, measured, rate, slo, given)
        else:
            _compare_threads(cores, measured, slo, given)


def _measure(stack: contextlib.ExitStack, files: Sequence[Path], cores: int) -> dict[int, str]:
    """Measure ONNX files here; return profile files by the number of threads, in a folder that the stack
    removes."""
    from clockwork.formats.profiles import save_profiles
    from clockwork.models import by_threads, threads

    names = [file.stem for file in files]
    if len(set(names)) < len(names):
        raise click.UsageError("--onnx names two files alike, and models are named as their files")
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="clockwork-plan-")))
    counts = threads.thread_counts(cores)
    found = by_threads.measure_by_threads(files, counts, cores, lambda line: print_line(line, err=True))
    for count, profiles in found.items():
        save_profiles(folder / f"{count}.json", profiles)
    return {count: str(folder / f"{count}.json") for count in counts}


def _compare_threads(cores: int, measured: dict[int, str], slo: float | None, given: dict[str, Any]) -> None:
    """Plan with each number of threads, and print the rates and the choice."""
    from clockwork.sim import planning

    scenarios = {}
    for threads, file in measured.items():
        devices = cores // threads
        arenas = devices if threads > 1 else 1
        own = {
            "profiles": file, "executors": devices // arenas, "devices_per_worker": devices,
            "arena": str(_bytes(given["arena"]) // arenas),
        }  # fmt: skip
        scenarios[threads] = _scenario("rate", given | own, 1.0, slo, devices)
    names = [sorted(model.name for model in scenario.models) for scenario in scenarios.values()]
    if any(found != names[0] for found in names):
        raise click.UsageError(
            f"the files of --measured are of different models: {', '.join(measured.values())}"
        )
    plans: dict[int, planning.CapacityPlan] = {}
    with _telling("rate") as (tell, watch):
        for threads, scenario in scenarios.items():
            tell(f"{say_count(threads, 'thread')}:")
            with as_usage():
                planner = planning.Planner(scenario, tell, limits=False, watch=watch)
            plans[threads] = planner.rate()
    best = fewest_threads({threads: found.answer or 0.0 for threads, found in plans.items()})
    if given["as_json"]:
        print_json(
            {"threads": best, "plans": {str(threads): found.to_json() for threads, found in plans.items()}}
        )
        return
    lines = [
        f"  {say_count(threads, 'thread'):<14}{say_count(cores // threads, 'device'):<14}{written('rate', found.answer)}"
        for threads, found in plans.items()
    ]
    if best == 0:
        lines.append(f"  {NOT_FOUND['rate']}: {NOT_TRIED['rate']}")
    elif best == 1:
        lines.append(f"  take          --executors {cores}")
    else:
        lines.append(f"  take          --threads {best} --devices {cores // best}")
    print_paragraph("\n".join(lines))


def _divide(
    cores: int, measured: dict[int, str], rate: float, slo: float | None, given: dict[str, Any]
) -> None:
    """Divide the cores for a rate, and print the division."""
    from clockwork.sim import division

    if 1 not in measured:
        raise click.UsageError("--rate needs the profiles of one thread: --measured 1=FILE")
    scenarios = {
        threads: _scenario("devices", given | {"profiles": file}, rate, slo, cores)
        for threads, file in measured.items()
    }
    narrow = scenarios[1]
    models = {
        threads: {model.name: model for model in scenario.models} for threads, scenario in scenarios.items()
    }
    if any(found.keys() != models[1].keys() for found in models.values()):
        raise click.UsageError(
            f"the files of --measured are of different models: {', '.join(measured.values())}"
        )
    question = division.CoreQuestion(
        profiles={threads: [found[name] for name in models[1]] for threads, found in models.items()},
        cores=cores,
        cluster=narrow.cluster,
        workload=narrow.workload,
        slo_ns=narrow.slo_ns,
        warmup_ns=narrow.warm_ns(),
        policy=narrow.policy,
        options=narrow.options,
    )
    with _telling("division") as (tell, _), as_usage():
        narrow.check()
        found = division.planned(question, narrow.seeds, tell)
    served = {
        model.name: [
            threads
            for threads, count in ((1, found.division.narrow), (found.division.threads, found.division.wide))
            if count and question.serves(threads, model.name)
        ]
        for model in narrow.models
    }
    if given["as_json"]:
        rows = [
            dataclasses.asdict(other) | {"goodput": goodput, "expected": found.expected[other]}
            for other, goodput in found.simulated.items()
        ]
        print_json(
            {
                "division": dataclasses.asdict(found.division), "goodput": found.goodput, "narrow_only": found.narrow_only,
                "served": served, "simulated": rows,
            }
        )  # fmt: skip
        return
    lines = [
        f"  executors     {found.division}",
        f"  goodput       {found.goodput:.5g} of {rate:.5g} requests/s",
    ]
    if found.narrow_only is not None and found.division.wide:
        lines.append(f"  {'':<14}{found.narrow_only:.5g} with {cores} of one core")
    lines += [f"  {name:<14}{_by(kinds)}" for name, kinds in served.items()]
    print_paragraph("\n".join(lines))


def _by(kinds: Sequence[int]) -> str:
    """Return the executors that serve a model, by their cores, for people."""
    return (
        "by executors of " + " and ".join(say_count(kind, "core") for kind in kinds)
        if kinds
        else "not served"
    )


def fewest_threads(rates: Mapping[int, float]) -> int:
    """Return the fewest threads whose rate is the highest, as nearly as rates are found; 0: no rate holds."""
    from clockwork.sim.planning import RATE_TOLERANCE

    highest = max(rates.values())
    return (
        min(threads for threads, rate in rates.items() if rate * RATE_TOLERANCE >= highest) if highest else 0
    )


def _answer(sought: str, given: dict[str, Any], rate: float, slo: float | None, devices: int) -> None:
    from clockwork.sim import planning

    if given["plot"] is not None:
        _need_matplotlib()
    scenario = _scenario(sought, given, rate, slo, devices)
    with _telling(sought) as (tell, watch):
        with as_usage():
            planner = planning.Planner(scenario, tell, watch=watch)
        found = {"devices": planner.devices, "rate": planner.rate, "slo": planner.slo}[sought]()
    if given["as_json"]:
        print_json(found.to_json())
    else:
        print_paragraph(describe(found, scenario))
    if given["plot"] is not None:
        draw(found, scenario.bad_max, given["plot"])


def _scenario(
    sought: str, given: dict[str, Any], rate: float, slo: float | None, devices: int
) -> planning.Scenario:
    from clockwork.sim import planning
    from clockwork.workloads import load_generator

    models, cluster = _models_and_cluster(given, devices)
    if bandwidth := _bytes(given["load_bandwidth"]):
        models = [
            dataclasses.replace(model, load_ns=round(model.weights_bytes / bandwidth * SECOND))
            for model in models
        ]
    duration_s = given["duration"] or (TRACE_DURATION_S if given["trace"] else 0.0)
    if given["busiest"] and not given["trace"]:
        raise click.UsageError("--busiest is of a trace: give --trace")
    settings = load_generator.LoadSettings(
        models=tuple(model.name for model in models),
        rate=rate,
        arrivals=given["arrivals"],
        cv=given["cv"],
        trace=given["trace"],
        mapping=given["mapping"],
        zipf=given["zipf"],
        busiest_s=duration_s if given["busiest"] else 0.0,
    )
    with as_usage():
        settings.check()
        numbers = policy_numbers(given["options"])

    def make_workload(rate: float, duration_ns: int, seed: int) -> Workload:
        return load_generator.workload_of(
            dataclasses.replace(settings, rate=rate, duration_s=duration_ns / SECOND, seed=seed)
        )

    if sought == "rate":
        rate = _first_guess(models, devices)
    seeds = range(1, given["seeds"] + 1)
    counted = dataclasses.replace(settings, duration_s=duration_s)
    # each seed makes another synthetic trace
    traces = seeds if settings.trace == load_generator.SYNTHETIC else seeds[:1]
    crowding = [load_generator.crowding_of(dataclasses.replace(counted, seed=seed)) for seed in traces]
    return planning.Scenario(
        models=models,
        make_workload=make_workload,
        cluster=cluster,
        rate=rate,
        crowding=sum(crowding) / len(crowding),
        slo_ns=to_ns(slo) if slo is not None else 0,
        bad_max=given["bad"] / 100,
        group_bad_max=(given["bad_group"] or 0.0) / 100,
        policy=given["policy"],
        options=numbers,
        seeds=seeds,
        requests=given["requests"],
        duration_ns=to_ns(duration_s),
        rehearsed=given["busiest"],
    )


def _first_guess(models: list[ModelProfile], devices: int) -> float:
    """Return a rate of the right magnitude, from which the models' popularity is computed."""
    return devices * SECOND * len(models) / sum(model.execution_ns(1) for model in models)


def _models_and_cluster(given: dict[str, Any], devices: int) -> tuple[list[ModelProfile], Cluster]:
    from clockwork.formats import profiles
    from clockwork.launch.profiles import read_profiles
    from clockwork.sim import Cluster

    noise, outlier, outlier_factor = NOISE if given["noise"] is None else given["noise"], 0.0, 1.0
    page_bytes, arena = _bytes(given["page_size"]), _bytes(given["arena"])
    executors = given["executors"] or 1
    delay_ns = jitter_ns = to_ns(given["network_ms"])
    if given["profiles"] is not None:
        with as_usage():
            models = read_profiles(given["profiles"], given["copies"])
        jitter_ns //= 5
        pages = arena // page_bytes
    else:
        with given["connect"]() as client:
            status = client.status()
            ready = [
                info for info in client.models() if info.state == "ready" and info.raw.get("current", True)
            ]
            # client.models() has no profiles.
            models = [profiles.from_info(client.model(info.name), serving=True) for info in ready]
        if not models:
            raise ConfigError("the cluster has no model that is ready: add some, or give --profiles")
        workers = status["workers"]
        found = [device for worker in workers for device in worker["devices"]]
        if not found:
            raise ConfigError("the cluster has no device: start a worker, or give --profiles")
        page_bytes, pages = int(found[0]["page_bytes"]), int(found[0]["page_count"])
        executors = given["executors"] or max(arena_widths(workers))
        delay_ns = int(workers[0]["rtt_ns"]) // 2
        jitter_ns = int(workers[0]["jitter_ns"])
        measured = status.get("noise") or {}
        if given["noise"] is None and measured.get("executions", 0) >= NOISE_EXECUTIONS_MIN:
            noise, outlier = measured["sigma"], measured["outliers"]
            outlier_factor = max(measured["outlier_factor"], 1.0)
            pace = measured["pace"]  # expected times are a little above the median
            models = [
                dataclasses.replace(
                    model, exec_ns={batch: round(ns * pace) for batch, ns in model.exec_ns.items()}
                )
                for model in models
            ]
    if given["names"]:
        known = {model.name: model for model in models}
        if missing := [name for name in given["names"] if name not in known]:
            raise click.UsageError(f"no model {missing[0]!r} (there is {', '.join(list(known)[:20])})")
        models = [known[name] for name in given["names"]]
    cluster = Cluster(
        devices=devices,
        devices_per_worker=max(given["devices_per_worker"], executors),
        executors=executors,
        page_bytes=page_bytes,
        page_count=pages,
        exec_noise=noise,
        outlier=outlier,
        outlier_factor=outlier_factor,
        load_noise=0.01,
        link_there_ns=delay_ns,
        link_back_ns=delay_ns,
        link_jitter_ns=jitter_ns,
        input_bandwidth=_bytes(given["input_bandwidth"]),
    )
    return models, cluster


def arena_widths(workers: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the number of devices of each arena of a cluster. workers: of its status."""
    owners = collections.Counter(
        (place, index if device["arena"] < 0 else device["arena"])
        for place, worker in enumerate(workers)
        for index, device in enumerate(worker["devices"])
    )
    return list(owners.values())


def _bytes(text: str) -> int:
    with as_usage():
        return config.parse_bytes(text) if text else 0


@contextlib.contextmanager
def _telling(sought: str) -> Iterator[tuple[Callable[[str], None], Callable[[str, float], None]]]:
    """Callbacks that report a finished trial, and the progress of the current trial, on stderr.

    On a terminal, progress is a line beside a spinner; elsewhere, a line every TOLD_EVERY_NS.
    """
    from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn

    from clockwork.cli.terminal import Terminal, description

    console = Terminal(stderr=True)
    if not console.is_terminal:
        next_ns = now_ns() + TOLD_EVERY_NS

        def say(what: str, part: float) -> None:
            nonlocal next_ns
            if now_ns() >= next_ns:
                next_ns = now_ns() + TOLD_EVERY_NS
                print_line(f"simulating {what}: {part:.0%}", err=True)

        yield lambda line: print_line(line, err=True), say
        return
    columns = (SpinnerColumn(), description(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"looking for the {sought} ...", total=None)

        def tell(line: str) -> None:
            progress.console.print(line)
            progress.update(task, description="next ...")

        yield tell, lambda what, part: progress.update(task, description=f"simulating {what}: {part:.0%}")


def written(sought: str, value: float | None) -> str:
    """Return an answer with its unit, for people."""
    if value is None or math.isinf(value):
        return "-"
    if sought == "devices":
        return say_count(round(value), "device")
    return f"{value:.5g} requests/s" if sought == "rate" else f"{value / 1e6:.4g} ms"


def worst(trial: planning.ScenarioResult) -> str:
    """Return a clause on the group with the largest part of bad requests, if there is any."""
    bad = trial.groups_bad.get(trial.worst_group, 0.0)
    return f", {100 * bad:.4g} % of {trial.worst_group}" if bad else ""


def describe(found: planning.CapacityPlan, scenario: planning.Scenario) -> str:
    """Return the plan as text for people."""
    sought, at = found.sought, found.at
    if found.answer is None:
        lines = [f"  {NOT_FOUND[sought]} with {100 * scenario.bad_max:g} % bad"]
    else:
        lines = [f"  {sought:<14}{written(sought, found.answer)}"]
    lines.append(f"  {'fluid bound':<14}{written(sought, found.fluid)}")
    cluster = scenario.cluster
    outliers = ""
    if cluster.outlier > 0:
        outliers = f", {100 * cluster.outlier:.3g} % of them {cluster.outlier_factor:.3g} times as long"
    lines += [
        f"  {'executions':<14}sigma {100 * cluster.exec_noise:.3g} %{outliers}",
        f"  {'left out':<14}clients' and gateways' own time, other work on the machines",
    ]
    if scenario.rehearsed:
        lines.append(
            f"  {'counted':<14}the busiest part, at {scenario.crowding:.4g} times the whole trace's rate"
        )
    if at is not None:
        p50, p99, p999 = (at.latency_ns[name] / 1e6 for name in ("50", "99", "99.9"))
        lines += [
            f"  {'bad':<14}{100 * at.bad_fraction:.4g} % of {at.offered} requests{worst(at)}",
            f"  {'goodput':<14}{at.goodput:.5g}/s",
            f"  {'latency':<14}p50 {p50:.2f}  p99 {p99:.2f}  p99.9 {p999:.2f} ms",
            (
                f"  {'busy':<14}execution {100 * at.execution:.0f} %, loading {100 * at.loading:.0f} %,"
                f" network {100 * at.link:.0f} %"
            ),
            (
                f"  {'memory':<14}{100 * at.memory:.0f} % full; {say_figure(at.loads_rate, 3)} loads/s,"
                f" {100 * at.cold:.3g} % of the answers waited for one"
            ),
        ]
    if found.relief:
        doubled = ", ".join(
            f"{name} {100 * value:.3g} %" for name, value in found.relief.items() if name != "none"
        )
        assert found.beyond is not None
        weighed = ""
        if found.beyond.badness > found.beyond.bad_fraction:
            weighed = f" (by its limit as much as {100 * found.beyond.badness:.3g} % of all)"
        lines += [
            f"  {'limited by':<14}{found.limited_by or 'none of the resources that can be doubled'}",
            (
                f"  {'':<14}just beyond ({say_count(found.beyond.devices, 'device')}, {found.beyond.rate:.5g}/s),"
                f" {100 * found.beyond.bad_fraction:.3g} % are bad{worst(found.beyond)}{weighed};"
                f" with twice as much {doubled}"
            ),
        ]
    elif found.answer is None:
        lines.append(f"  {'limited by':<14}{found.limited_by}: {NOT_TRIED[sought]}")
    return "\n".join(lines)


def _need_matplotlib() -> None:
    """Raise ConfigError if matplotlib is missing, before simulations of minutes rather than after."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ConfigError("--plot needs matplotlib: pip install 'clockwork-serving[plots]'") from None


def draw(found: planning.CapacityPlan, bad_max: float, path: Path) -> None:
    """Draw the trials as a PNG: bad fraction and goodput above, utilisations below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sought = found.sought
    trials = list(found.trials)
    if sought != "rate" and trials:  # leave out the overloaded trials beside an answer that cannot be smaller
        usual = trials[0].rate if found.at is None else found.at.rate
        trials = [trial for trial in trials if trial.rate == usual]
    place: Callable[[planning.ScenarioResult], float] = {
        "devices": lambda trial: float(trial.devices),
        "rate": lambda trial: trial.rate,
        "slo": lambda trial: trial.slo_ns / 1e6,
    }[sought]
    at = [place(trial) for trial in trials]
    figure = Figure(figsize=(7, 7), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True)
    floor = bad_max / 100
    top.semilogy(at, [max(trial.bad_fraction, floor) for trial in trials], "o-", color="tab:red")
    if any(trial.groups_bad for trial in trials):
        groups = [trial.groups_bad.get(trial.worst_group, 0.0) for trial in trials]
        top.semilogy(
            at, [max(bad, floor) for bad in groups], "x--", color="tab:red", label="of the worst group"
        )
        top.legend(loc="upper left")
    top.axhline(bad_max, color="tab:red", linestyle=":")
    top.set_ylabel("bad fraction", color="tab:red")
    goodput = top.twinx()
    goodput.plot(at, [trial.goodput for trial in trials], "s-", color="tab:blue")
    goodput.set_ylabel("goodput (requests/s)", color="tab:blue")
    goodput.set_ylim(bottom=0)
    for name in ("execution", "loading", "link", "memory"):
        bottom.plot(at, [100 * getattr(trial, name) for trial in trials], "o-", label=name)
    bottom.set_ylim(0, 105)
    bottom.set_ylabel("busy or full (%)")
    bottom.set_xlabel({"devices": "devices", "rate": "requests/s", "slo": "SLO (ms)"}[sought])
    bottom.legend()
    if found.answer is not None:
        answer = found.answer / 1e6 if sought == "slo" else found.answer
        for axes in (top, bottom):
            axes.axvline(answer, color="grey", linestyle="--")
    top.set_title(f"{written(sought, found.answer)}, limited by {found.limited_by or 'nothing'}")
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
