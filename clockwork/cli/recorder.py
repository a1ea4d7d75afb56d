"""`clockwork recorder` and `clockwork replay`: a scheduler's recorded events and decisions, and simulations
of other settings."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clockwork.cli.common import (
    DURATION,
    FILE,
    PATH,
    CommandGroup,
    Connect,
    as_usage,
    client_options,
    print_json,
    print_line,
    print_table,
    say_bytes,
)
from clockwork.errors import ConfigError
from clockwork.system.words import say_count

if TYPE_CHECKING:
    from clockwork.client.blocking import Client
    from clockwork.sim.recorded import RecordedRun


@click.group(cls=CommandGroup)
def recorder() -> None:
    """Show the flight recorder, and save it.

    The controller keeps the last minute of its scheduler's events and decisions. It writes them to its data
    directory by itself when something goes wrong: docs/recorder.md.

    \b
    Examples:
      clockwork recorder status
      clockwork recorder dump now.rec
    """


@recorder.command()
@client_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(connect: Connect, as_json: bool) -> None:
    """Show how much the recorder holds, and the dumps that the controller has.

    \b
    Example:
      clockwork recorder status
    """
    with connect() as client:
        state, dumps = client.recorder(), client.recorder("dumps")
    if as_json:
        print_json({**state, "dumps": dumps})
        return
    if not state["bytes_max"]:
        print_line("The flight recorder is off (--recorder-bytes 0).")
    else:
        held, age_s = state["end"] - state["begin"], (state["now_ns"] - state["oldest_ns"]) / 1e9
        age = f"the last {age_s:.1f} s" if state["oldest_ns"] else "nothing yet"
        whole = ", all since the controller's start" if state["begin"] == 0 else ""
        print_line(f"{age}{whole}: {say_bytes(held)} of {say_bytes(state['bytes_max'])}")
        if state["exact_ns"]:
            exact_s = (state["now_ns"] - state["exact_ns"]) / 1e9
            print_line(f"A dump made now can be replayed exactly from {exact_s:.1f} s ago on.")
        elif state["oldest_ns"]:
            why = state["inexact"] or "no state of the scheduler has been kept yet"
            print_line(f"A dump made now can only be simulated: {why}.")
    if dumps:
        print_table(
            ["dump", "size", "written"],
            [
                [
                    entry["name"],
                    say_bytes(entry["bytes"]),
                    time.strftime("%F %T", time.localtime(entry["written_s"])),
                ]
                for entry in dumps
            ],
        )


@recorder.command()
@click.argument("file", type=PATH)
@click.option("--name", default="", help="A dump that the controller has written: see `recorder status`.")
@client_options
def dump(file: Path, name: str, connect: Connect) -> None:
    """Save the recorder's content to FILE, for `clockwork replay`.

    \b
    Examples:
      clockwork recorder dump now.rec
      clockwork recorder dump alert.rec --name 20260801T120000.000000Z-worker-lost.rec
    """
    with connect() as client:
        if not name:
            name = client.recorder("dump")["name"]
        elif name not in (known := [entry["name"] for entry in client.recorder("dumps")]):
            there = f"; there are {', '.join(known)}" if known else ""
            raise ConfigError(f"the controller has no dump {name!r}{there}")
        first = client.recorder(f"{name}#0")  # before the file is overwritten
        try:
            with file.open("wb") as out:
                size = _fetch(client, name, first, out)
        except OSError as error:
            raise ConfigError(f"{file} cannot be written: {error.strerror}") from None
    print_line(f"{file}: {say_bytes(size)} ({name})")


def _fetch(client: Client, name: str, piece: bytes, out: Any) -> int:
    """Copy a dump from the controller, beginning with its first piece. Returns its size."""
    size = 0
    while piece:
        out.write(piece)
        size += len(piece)
        piece = client.recorder(f"{name}#{size}")
    return size


@click.command()
@click.argument("recording", type=FILE)
@click.option("--policy", default="", help="Simulate another policy.")
@click.option(
    "--devices", type=click.IntRange(1), help="Simulate another number of devices of the recorded kind."
)
@click.option("--slo", type=DURATION, help="Simulate this SLO for every request.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the simulation's noise.")
@click.option("--save", type=PATH, metavar="FILE",
              help="Save the last simulated run for `clockwork trace` and `clockwork explain`.")  # fmt: skip
@click.option("--trust", is_flag=True,
              help="Run RECORDING's policy even if it is a class in Python, MODULE:CLASS.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def replay(
    recording: Path,
    policy: str,
    devices: int | None,
    slo: float | None,
    seed: int,
    save: Path | None,
    trust: bool,
    as_json: bool,
) -> None:
    """Repeat a controller's decisions, and simulate other settings.

    RECORDING is a dump of the flight recorder, or a file of `clockwork controller --record`. Every decision
    is repeated and compared; the exit status is 1 if any differs. That needs a recording that begins with its
    controller, or with the scheduler's state, as dumps do; others are simulated instead. --policy, --devices
    and --slo are simulated, too: with the recorded arrivals, on a simulated cluster with the measured times.
    The column `simulated` has the recorded settings, which shows the simulator's own error.

    \b
    Examples:
      clockwork recorder dump now.rec && clockwork replay now.rec
      clockwork replay now.rec --policy edf
      clockwork replay now.rec --devices 8 --slo 100ms
      clockwork replay now.rec --policy edf --save edf.rec && clockwork trace --compare now.rec edf.rec
    """
    from clockwork.sim.recorded import check_policy, read_recorded
    from clockwork.sim.replay import header_of, names_code
    from clockwork.sim.replay import replay as repeat

    if policy:
        with as_usage():
            check_policy(policy)
    header = header_of(recording)
    if names_code(header) and not trust:
        raise ConfigError(
            f"{recording} is of the policy {header.policy!r}, whose Python code would be run: give --trust if you trust it"
        )
    body: dict[str, Any] = {
        "policy": header.policy,
        "version": header.version,
        "from_start": header.start == 0,
        "from_state": bool(header.state),
    }
    parted = None
    is_exact = header.start == 0 or bool(header.state)
    if is_exact:
        found = repeat(recording)
        parted = None if found.identical else found
        body |= {
            "steps": found.steps, "events": found.events, "orders": found.orders, "identical": found.identical,
        }  # fmt: skip
        if not as_json:
            print_line(
                f"{found.steps} steps, {found.events} events, {found.orders} orders of policy {header.policy}, "
                f"recorded by version {header.version}"
            )
            if header.start:
                print_line("It begins after its controller did, with the state that the scheduler was in.")
            if found.identical:
                print_line("The decisions are identical.")
    elif not as_json:
        print_line(
            f"A dump of policy {header.policy}, by version {header.version}. It begins after its controller did, without the "
            f"scheduler's state{f' ({header.inexact})' if header.inexact else ''}. So its decisions are not repeated one by one, but "
            "simulated from the models that were resident then."
        )
    if not is_exact or policy or devices or slo or save:
        with _named(recording):
            recorded = read_recorded(recording)
            body |= _compare(recorded, policy, devices or 0, round((slo or 0) * 1e9), seed, save)
        if not as_json:
            _print_comparison(body)
    if as_json:
        print_json(body)
    elif parted is not None:
        print_line(f"They part at step {parted.parted_at}. It was told:")
        for event in parted.parted_events:
            print_line(f"  {event}")
        print_line("and now orders:")
        for order in parted.parted_orders:
            print_line(f"  {order}")
    if parted is not None:
        sys.exit(1)


def _compare(
    recorded: RecordedRun, policy: str, devices: int, slo_ns: int, seed: int, save: Path | None
) -> dict[str, Any]:
    """Return the columns of the comparison, by title."""
    counted = recorded.counted()
    span_ns = recorded.span_ns - recorded.warm_up_ns
    truth = recorded.outcomes.at(counted)
    columns: dict[str, Any] = {"recorded": truth.summary(span_ns)}
    settings = {"policy": policy, "devices": devices, "slo_ns": slo_ns}
    changes = [
        text
        for text in (
            policy,
            say_count(devices, "device") if devices else "",
            f"SLO {slo_ns / 1e6:g} ms" if slo_ns else "",
        )
        if text
    ]
    runs = {"simulated": {}, **({", ".join(changes): settings} if changes else {})}
    for title, changed in runs.items():
        saved = save if changed or not changes else None
        found = recorded.simulate(**changed, seed=seed, recording=saved).at(counted)  # type: ignore[arg-type]
        columns[title] = found.summary(span_ns) | found.likeness(truth)
    return {
        "span_s": span_ns / 1e9,
        "left_out": int((~counted).sum()),
        "devices": recorded.cluster.devices,
        "models": len(recorded.models),
        "columns": columns,
    }


def _print_comparison(body: dict[str, Any]) -> None:
    columns: dict[str, dict[str, Any]] = body["columns"]
    reasons = sorted({reason for column in columns.values() for reason in column["refusals"]})

    def row(title: str, value: Callable[[dict[str, Any]], str]) -> list[str]:
        return [title, *(value(column) for column in columns.values())]

    def ms(name: str) -> Callable[[dict[str, Any]], str]:
        return lambda column: f"{column[name] / 1e6:.2f} ms"

    def percent(name: str) -> Callable[[dict[str, Any]], str]:
        return lambda column: f"{100 * column[name]:.2f} %" if name in column else ""

    def refused(column: dict[str, Any], reason: str) -> str:
        return f"{column['refusals'].get(reason, 0):,}"

    rows = [
        row("goodput", lambda column: f"{column['goodput_rate']:,.1f}/s"),
        row("requests", lambda column: f"{column['requests']:,}"),
        row("answered in time", lambda column: f"{column['good']:,}"),
        row("refused", lambda column: f"{column['refused']:,}"),
        *(
            row(f"  {reason}", lambda column, reason=reason: refused(column, reason))  # type: ignore[misc]
            for reason in reasons
        ),
        row("missed", lambda column: f"{column['missed']:,}"),
        row("failed", lambda column: f"{column['failed']:,}"),
        row("p50", ms("p50_ns")),
        row("p99", ms("p99_ns")),
        row("p99.9", ms("p99.9_ns")),
        row("same answer as recorded", percent("same_answer")),
        row("same device, if answered", percent("same_device")),
    ]
    print_line(
        f"{body['span_s']:.1f} s of {say_count(body['models'], 'model')} on {say_count(body['devices'], 'device')}; "
        f"left out: {say_count(body['left_out'], 'request')} (warm-up, cancelled, or not answered by the end)"
    )
    print_table(["", *columns], rows)


@contextlib.contextmanager
def _named(recording: Path) -> Iterator[None]:
    """Add the file's name to errors."""
    try:
        yield
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if str(recording) in text else f"{recording}: {text}") from None
