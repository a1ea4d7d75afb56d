"""`clockwork infer`, `load` and `status`: commands that call a running cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from clockwork import config
from clockwork.cli.common import (
    CV,
    DURATION,
    PATH,
    Connect,
    as_usage,
    client_options,
    parent_option,
    print_json,
    print_line,
    print_paragraph,
    print_table,
    trace_option,
    write_file,
)
from clockwork.errors import ClockworkError, Unavailable
from clockwork.system.words import say_count, say_figure
from clockwork.wire.description import describe_standing

INTERRUPTED_STATUS = 130  # The exit status after Ctrl-C, as in shells


@click.command()
@click.argument("model")
@click.argument("inputs", nargs=-1)
@click.option("--example", metavar="0..9", help="Instead of INPUTS: a picture for the demo model `digits`.")
@click.option("--output", "-o", type=PATH, help="Write the outputs: .npy, .npz or .json.")
@click.option("--json", "as_json", is_flag=True, help="Print the outputs as JSON.")
@click.option("--slo", type=DURATION, help="Deadline of the answer: 100ms, or a number of seconds.")
@click.option("--priority", type=click.IntRange(0, config.PRIORITY_MAX), default=0, help="1 is the highest.")
@client_options
def infer(
    model: str, inputs: tuple[str, ...], example: str | None, output: Path | None, as_json: bool, slo: float | None, priority: int,
    connect: Connect,
) -> None:  # fmt: skip
    """Send MODEL a request and print its answer.

    INPUTS are files: .npy, .npz (by input name), .json (nested lists, or an object by input name), or an
    image, which is converted for the model by its metadata; without metadata the layout is guessed, and
    printed. A model with string inputs is sent images or .txt files unchanged. If a model has several inputs,
    name each: ids=ids.npy mask=mask.npy.

    \b
    Examples:
      clockwork infer digits --example 7
      clockwork infer digits examples/digits/7.png
      clockwork infer bert ids=ids.npy mask=mask.npy --slo 0.1 --output answer.npz
    """
    from clockwork.cli import files

    if (example is None) == (not inputs):
        raise click.UsageError("infer takes INPUTS or --example: give one of them")
    if example is not None:
        with as_usage():
            inputs = (str(files.example(example)),)
    if output is not None:
        with as_usage():
            files.check_output_name(output)
    with connect() as client:
        info = client.model(model)
        if not info.inputs and not info.outputs:  # the model is not prepared, or unloaded
            raise Unavailable(f"model {model!r} is {info.state}: {info.text}".rstrip(": "))
        with as_usage():
            values = files.read_inputs(inputs, info, lambda line: print_line(line, err=True))
        outputs = client.infer(model, values, slo=slo, priority=priority)
    assert isinstance(outputs, dict)
    if output is not None:
        write_file(output, files.pack_outputs(output, outputs))
        print_line(f"wrote {output}")
    elif as_json:
        print_json(outputs)
    else:
        for line in files.describe_outputs(outputs, info):
            print_line(line)


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--rate", type=float, help="Open loop: requests per second of all models together.")
@click.option("--concurrency", type=click.IntRange(1), help="Closed loop: number of pending requests.")
@click.option(
    "--duration", type=DURATION, default="10s", show_default=True, help="Time for which requests are sent."
)
@click.option(
    "--slo",
    type=DURATION,
    help="SLO of every request: 100ms, or a number of seconds.  [default: each model's own]",
)
@click.option(
    "--arrivals", type=click.Choice(["poisson", "constant", "gamma"]), default="poisson", show_default=True
)
@click.option(
    "--cv", type=CV, default=4.0, show_default=True, help="Coefficient of variation of gamma arrivals."
)
@click.option(
    "--bursts",
    type=DURATION,
    nargs=2,
    metavar="ON OFF",
    help="Mean lengths of each model's bursts and pauses, as 2s 10s.",
)
@click.option(
    "--ramp",
    type=(float, DURATION),
    metavar="FACTOR DURATION",
    help="Multiply the rate at each interval, as 1.5 10s.",
)
@trace_option("Replay an Azure Functions trace, or `synthetic`.")
@click.option(
    "--mapping",
    type=click.Choice(["original", "shuffled"]),
    default="original",
    show_default=True,
    help="Map hot functions to the first models, or randomly.",
)
@click.option("--priority", type=click.IntRange(0, config.PRIORITY_MAX), default=0, help="1 is the highest.")
@click.option("--rows", type=click.IntRange(1), default=1, show_default=True, help="Rows of each request.")
@click.option(
    "--zipf", type=click.FloatRange(0, 10), default=0.0, help="Skew of popularity, first model first."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@parent_option
@client_options
def load(
    models: tuple[str, ...], rate: float | None, concurrency: int | None, duration: float, slo: float | None, arrivals: Any,
    cv: float, bursts: tuple[float, float] | None, ramp: tuple[float, float] | None, trace: str, mapping: Any,
    priority: int, rows: int, zipf: float, seed: int, as_json: bool, connect: Connect,
) -> None:  # fmt: skip
    """Generate load on MODELS and report the outcomes.

    Open loop (--rate): requests are sent when they are due, however the cluster responds, and latency counts
    from then. Closed loop (--concurrency, 1 if neither is given): each answer triggers the next request.
    Ctrl-C ends the load, and the report covers the requests sent until then. The exit status is 1 if a
    request failed (a refusal or a missed deadline is no failure), 130 after Ctrl-C.

    \b
    Examples:
      clockwork load digits
      clockwork load resnet50 --rate 200 --slo 0.1 --duration 30
      clockwork load a b c --concurrency 16 --json
      clockwork load a b c --rate 100 --arrivals gamma --cv 4 --zipf 0.9
      clockwork load a b c --rate 50 --duration 600 --trace invocations_per_function_md.anon.d01.csv
    """
    from clockwork.cli.load_report import describe, watching
    from clockwork.workloads import load_generator

    if rate == 0:
        raise click.UsageError("rate 0 asks nothing: leave --rate out for closed loop")
    settings = load_generator.LoadSettings(
        models=models,
        rate=rate or 0.0,
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
        timeout_s=30.0 if connect.timeout is None else connect.timeout,
    )
    with as_usage():
        settings.check()
    with connect() as client, watching() as watch:
        report = load_generator.run(client, settings, watch)
    if as_json:
        print_json(report.to_json())
    else:
        print_paragraph(describe(report))
    failed = report.timeouts + sum(report.errors.values())
    if failed:
        kinds = [*report.errors, *(["RequestTimeout"] if report.timeouts else [])]
        share = 100 * failed / report.offered
        raise ClockworkError(
            f"{failed} of {report.offered} requests ({share:.2g} %) failed: {', '.join(kinds)}"
        )
    if report.interrupted:
        raise click.exceptions.Exit(INTERRUPTED_STATUS)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@client_options
def status(as_json: bool, connect: Connect) -> None:
    """Show the cluster: its workers, their devices and the outcomes of requests.

    \b
    Example:
      clockwork status --json
    """
    with connect() as client:
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
    print_line(f"controller {body.get('version')}, policy {body.get('policy')}, "
               f"up {body.get('uptime_ns', 0) / 1e9:.0f} s, {say_count(body.get('clients', 0), 'client')}"
               + (f" of at most {seats['clients']}" if (seats := body.get("seats")) else ""))  # fmt: skip
    if standing := describe_standing(body.get("standing")):
        print_line(f"controllers {standing}")
    print_line(f"models     {by_state or 'none'}, {say_count(body.get('programs', 0), 'program')}")
    if body.get("why_not_ready"):
        print_line(f"not ready  {body['why_not_ready']}")
    counts = body.get("counts") or {}
    plain = ", ".join(f"{count} {kind}" for kind, count in counts.items() if not isinstance(count, dict))
    reasons = ", ".join(f"{count} {why}" for why, count in (counts.get("refusals") or {}).items())
    print_line(f"requests   {plain}" + (f" ({reasons})" if reasons else ""))
    there = sum(len(worker.get("devices") or ()) for worker in body.get("workers") or ())
    left_out = sum(worker.get("left_out") or 0 for worker in body.get("workers") or ())
    print_line(
        f"devices    {there}{f' and {left_out} more' if left_out else ''}; the load needs {say_figure(body.get('devices_wanted', 0))}"
    )
    for label, threads in body.get("threads_awaited") or ():
        print_line(f"waits      {label} for a worker whose executions have {say_count(threads, 'thread')}")
    if learnt := body.get("learnt"):
        hold = f", holds as for {learnt['hold']:.3f}" if "hold" in learnt else ""
        share = f", a model may have {say_figure(learnt['share'])} devices" if learnt["share"] else ""
        print_line(f"learnt     pace {learnt['pace']:.3f}, need {learnt['need']:.3f}{hold}{share}")
    rows = []
    for worker in body.get("workers") or ():
        stats = worker.get("stats") or {}
        for index, device in enumerate(worker.get("devices") or ()):
            plan = device.get("plan") or {}
            memory = (stats.get("devices") or [{}] * (index + 1))[index]
            pages, free = device.get("page_count", 0), plan.get("pages_free")
            owner = device.get("arena", -1)  # the number of the device whose arena it is; -1: its own
            rows.append([
                str(worker.get("name")) + (" (leaving)" if worker.get("state") == "draining" else ""),
                f"{device.get('kind')}: {device.get('name')}" + _of_threads(device.get("threads", 1)),
                f"of device {owner}" if owner >= 0 else f"{pages * device.get('page_bytes', 0) / 2**20:.0f} MiB",
                "-" if free is None or owner >= 0 else f"{free * device.get('page_bytes', 0) / 2**20:.0f} MiB",
                "-" if owner >= 0 else str(plan.get("resident", "-")),
                _share(plan, "recent_executing_ns"),
                _share(plan, "recent_idle_with_work_ns"),
                "offline" if device.get("offline") else str(memory.get("actions_queued", "-")),
                f"{worker.get('rtt_ns', 0) / 1e6:.2f} ms",
                f"{worker.get('jitter_ns', 0) / 1e6:.2f} ms",
                f"{plan['inputs_mb_ns'] / 1e6:.2f} ms/MB" if plan.get("inputs_mb_ns") else "-",
                f"{stats.get('rss_bytes', 0) / 2**20:.0f} MiB",
            ])  # fmt: skip
    print_table(
        ["worker", "device", "arena", "free", "loaded", "executing", "idle with work",
         "queued", "round trip", "jitter", "inputs", "memory"], rows,
        {
            **(
                {"arena": "of device 0: it executes from the arena of that device of its worker, counted from 0"}
                if any(row[2].startswith("of device") for row in rows)
                else {}
            ),
            "free": "of the arena, in which models are loaded",
            "executing, idle with work": "of the last ten seconds or so; idle with work: a request waited that it could have served",
            "queued": "actions that the worker has and has not begun",
            "round trip": "of a message to the worker and back",
            "jitter": "how late the machine wakes the worker, 99th percentile",
            "inputs": "how long a megabyte of them takes to the worker",
            "memory": "of the worker's process",
        },
    )  # fmt: skip
    _print_learnt(body)
    rows = []
    for worker in body.get("workers") or ():
        device = (worker.get("devices") or [{}])[0]
        plan = device.get("plan") or {}
        if device.get("host_bytes") and plan.get("host_bytes"):
            rows.append([
                str(worker.get("name")),
                f"{plan['host_bytes'] / 2**20:.0f} MiB",
                f"{(plan['host_bytes'] - plan['host_used']) / 2**20:.0f} MiB",
                str(plan["hosted"]),
                str(plan["fetching"]),
            ])  # fmt: skip
    if rows:
        print_table(["worker", "host store", "free", "models", "fetching"], rows)
    _print_stores(body)
    _print_preparations(body)
    gpus, offline = _describe_gpus(body)
    if gpus:
        print_table(["GPU", "clock", "of memory", "temperature", "power", ""], gpus)
    for line in offline:
        print_line(line)
    _print_troubles(body.get("troubles") or {})
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
        print_table(["predicted", "by", "actions", "p50", "p90", "p99", "p99.9", "p99.99", "most"], rows)


def _print_stores(body: dict[str, Any]) -> None:
    """Print what lies in the stores of workers that have a bound (--store-bytes)."""
    from clockwork.wire.description import STORE_STATES

    rows = []
    for worker in body.get("workers") or ():
        bound = (worker.get("devices") or [{}])[0].get("store_bytes", 0)
        if not bound:
            continue
        stats = worker.get("stats") or {}
        used = stats.get("store_bytes_used", 0)
        counts = [str(stats.get(name, 0)) for name in ("store_models", "store_fetching")]
        rows.append([
            str(worker.get("name")), f"{bound / 2**20:.0f} MiB", f"{(bound - used) / 2**20:.1f} MiB", *counts,
        ])  # fmt: skip
    if (stores := body.get("stores")) and stores["bytes"]:
        short = ", ".join(f"{stores[state]} {state}" for state in STORE_STATES if stores[state])
        print_line(
            f"stores     {stores['used'] / 2**20:.0f} of {stores['bytes'] / 2**20:.0f} MiB planned; models: "
            f"{short or 'all have their copies'}"
        )
    if rows:
        print_table(
            ["worker", "store", "left", "models", "fetching"],
            rows,
            {
                "store": "bound of the prepared models on its disk (--store-bytes)",
                "fetching": "models that it takes from other workers",
            },
        )


def _print_learnt(body: dict[str, Any]) -> None:
    """Print the scheduler's estimates for each device: the margin on executions, and, while the device is
    contested, the models that request it; likewise for the links that load models."""
    rows = []
    for worker in body.get("workers") or ():
        for device in worker.get("devices") or ():
            plan = device.get("plan") or {}
            if not plan.get("margin") and not plan.get("contested_ns"):
                continue
            rows.append([
                str(worker.get("name")),
                f"{device.get('kind')}: {device.get('name')}",
                f"{100 * plan['margin']:.1f} %" if plan["margin"] else "-",
                f"{plan['contested_ns'] / 1e9:.1f} s" if plan["contested_ns"] else "-",
                f"{100 * plan['level']:.0f} %" if plan["level"] else "-",
                str(plan["beyond"]) if plan["level"] else "-",
                _say_shares(plan["shares"]),
            ])  # fmt: skip
    links = body.get("links") or {}
    if links.get("level"):
        rows.append([
            "all", "links that load", "-", f"{links['contested_ns'] / 1e9:.1f} s", f"{100 * links['level']:.0f} %",
            str(links["beyond"]), _say_shares(links["shares"]),
        ])  # fmt: skip
    if rows:
        print_table(["worker", "device", "margin", "contested", "level", "beyond", "had of asked"], rows)


def _say_shares(shares: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{share['name']} {100 * share['had']:.0f} of {100 * share['asked']:.0f} % ({share['standing']})"
        for share in shares
    )


def _of_threads(count: int) -> str:
    """Return the threads of a device's executions, for its name; "" for one."""
    return f", {count} threads" if count > 1 else ""


def _share(plan: dict[str, Any], key: str) -> str:
    """Return how busy a device was, over about ten seconds."""
    return f"{100 * plan[key] / plan['recent_ns']:.1f} %" if plan.get("recent_ns") else "-"


def _print_preparations(body: dict[str, Any]) -> None:
    """Print the workers that have not prepared every model, with reasons."""
    for worker in body.get("workers") or ():
        models = worker.get("models") or {}
        if models.get("preparing"):
            print_line(f"{worker.get('name')} prepares {say_count(models['preparing'], 'model')}")
        failures = models.get("failures") or ()
        for label, why in failures:
            print_line(f"{worker.get('name')} does not serve {label}: {why}")
        if models.get("failed", 0) > len(failures):
            print_line(f"{worker.get('name')} does not serve {models['failed'] - len(failures)} more")


def _print_troubles(body: dict[str, Any]) -> None:
    """Print troubles with their time and count, and the number of those that the controller does not keep."""
    rows = [
        [
            str(trouble.get("kind")).replace("_", " "),
            str(trouble.get("subject")),
            f"{trouble.get('since_ns', 0) / 1e9:.0f} s",
            f"{trouble.get('last_ns', 0) / 1e9:.0f} s",
            str(trouble.get("count")),
            str(trouble.get("text")),
        ]
        for trouble in body.get("open") or ()
    ]
    if rows:
        print_table(["wrong", "what", "since", "last", "times", ""], rows)
    for kind, count in (body.get("left_out") or {}).items():
        print_line(
            f"and {count} more notes of the kind {kind.replace('_', ' ')}, of things that are not listed"
        )


def _describe_gpus(body: dict[str, Any]) -> tuple[list[list[str]], list[str]]:
    """Return a row for each GPU whose clocks are observed, and a sentence for each lost device."""
    rows, offline = [], []
    for worker in body.get("workers") or ():
        stats, name = worker.get("stats") or {}, worker.get("name")
        offline += [f"offline    {name}, {text}" for text in stats.get("devices_lost") or ()]
        for device, here in zip(worker.get("devices") or (), stats.get("devices") or ()):
            gpu = here.get("gpu")
            if not gpu or device.get("offline"):
                continue
            throttled = ", ".join(gpu.get("throttled") or ())
            rows.append([
                f"{name}, {device.get('name')}",
                *(f"{gpu[key]} {unit}" if gpu.get(key) else "-" for key, unit in (
                    ("sm_mhz", "MHz"), ("memory_mhz", "MHz"), ("temperature_c", "C"), ("power_w", "W"))),
                f"throttled: {throttled}" if throttled else "idle" if gpu.get("idle") else "",
            ])  # fmt: skip
    return rows, offline
