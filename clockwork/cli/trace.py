"""`clockwork trace`: writes a file for Perfetto and Chrome, or compares two runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clockwork.cli.common import (
    DURATION,
    FILE,
    PATH,
    Connect,
    Duration,
    client_options,
    describe_cluster,
    print_json,
    print_line,
    print_table,
    say_bytes,
)
from clockwork.config.observe import COMPARED_ROWS_MAX, TRACE_REQUESTS_MAX
from clockwork.errors import InvalidInput, Unavailable
from clockwork.system.clock import SECOND, duration
from clockwork.system.words import say_count
from clockwork.wire.messages import NEVER_NS

if TYPE_CHECKING:
    from clockwork.client.blocking import Client
    from clockwork.observe.compare import Comparison, ResultSummary
    from clockwork.observe.history import History

LIVE_NS = 5 * SECOND  # Time for which a running cluster is traced by default


@click.command()
@click.argument("recording", type=FILE, required=False)
@click.option("--output", "-o", type=PATH, help="The file to write, such as run.json.")
@click.option(
    "--from", "from_s", type=Duration(0), default=0.0, help="Begin this long after RECORDING's beginning."
)
@click.option("--seconds", type=DURATION, help="Length of the trace.  [default: all of RECORDING; live: 5s]")
@click.option("--compare", type=FILE, nargs=2, metavar="A B", help="Instead: compare two recordings.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
@client_options
def trace(
    recording: Path | None, output: Path | None, from_s: float, seconds: float | None,
    compare: tuple[Path, Path] | None, as_json: bool,
    connect: Connect,
) -> None:  # fmt: skip
    """Write what a cluster did as a trace, which https://ui.perfetto.dev opens.

    The trace shows what each device executed and loaded, when it was idle with work, every request with an
    arrow to its batch, and waiting requests, goodput and refusals over time. Without a RECORDING it follows a
    running cluster from now on. A RECORDING is a file of `clockwork controller --record` or `clockwork
    recorder dump`.

    --compare finds the first decision that differs between two recordings of the same workload, and compares
    models and devices: answers, refusals, loads, batches and latency. Requests are matched by the order of
    their arrival.

    \b
    Examples:
      clockwork trace --seconds 5 -o run.json
      clockwork trace monday.rec --from 60 --seconds 5 -o run.json
      clockwork trace --compare adaptive.rec edf.rec
    """
    span_ns = NEVER_NS if seconds is None else round(seconds * SECOND)
    if compare:
        if recording is not None or output is not None:
            raise click.UsageError("--compare takes two recordings, and neither a third nor --output")
        _compare(compare, span_ns, as_json)
        return
    if output is None:
        raise click.UsageError("name the file to write, with --output")
    from clockwork.observe.perfetto import write_trace
    from clockwork.observe.recorded import read_history

    from_ns = round(from_s * SECOND)
    if recording is not None:
        header, history = read_history(recording, from_ns, span_ns)
        about = {"recording": recording.name, "policy": header.policy, "version": header.version}
    elif from_s:
        raise click.UsageError("--from is of a RECORDING: a running cluster is traced from now on")
    else:
        with connect() as client:
            history, about = _follow(client, LIVE_NS if seconds is None else span_ns)
    try:
        with output.open("w", encoding="utf-8") as file:
            drawn = write_trace(file, history, about, history.begun_ns + from_ns)
    except OSError as error:
        raise InvalidInput(f"{output} cannot be written: {error.strerror}") from None
    print_line(
        f"wrote {output}: {drawn.span_ns / SECOND:.3g} s with {say_count(drawn.requests, 'request')}, "
        f"{say_count(drawn.executions, 'execution')} and {say_count(drawn.loads, 'load')}"
    )
    if len(history.requests) >= history.requests_max:
        print_line(
            f"requests before the newest {history.requests_max} are left out: --from and --seconds choose others"
        )
    if drawn.left_out:
        print_line(f"{say_count(drawn.left_out, 'request')} are not drawn: too many were there at once")
    print_line("open it at https://ui.perfetto.dev")


def _follow(client: Client, span_ns: int) -> tuple[History, dict[str, str]]:
    """Return the history of a running cluster from now on, and metadata for the trace."""
    from clockwork.observe.history import History
    from clockwork.observe.live import follow

    cluster = describe_cluster(client)
    history = History(span_ns, TRACE_REQUESTS_MAX, TRACE_REQUESTS_MAX)
    found = follow(client.recorder, history, cluster, span_ns)
    print_line(
        f"saw {say_count(history.steps, 'step')} in {say_bytes(found.bytes)}, lost {say_bytes(found.lost)}"
    )
    if not history.begun_ns:
        raise Unavailable(f"nothing happened within {duration(span_ns)}: there is nothing to trace")
    return history, {"policy": cluster.status.get("policy", ""), "version": cluster.status.get("version", "")}


def _compare(paths: tuple[Path, Path], span_ns: int, as_json: bool) -> None:
    from clockwork.observe.compare import compare
    from clockwork.observe.recorded import read_history

    (_, first), (_, second) = (read_history(path, 0, span_ns) for path in paths)
    for path, history in zip(paths, (first, second), strict=True):
        if history.forgotten:
            raise InvalidInput(
                f"{path} has more requests than can be compared, by {history.forgotten}: take less of it by --seconds"
            )
    found = compare(first, second)
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    a, b = (path.name for path in paths)
    print_line(f"A: {a}, {duration(found.span_ns[0])}")
    print_line(f"B: {b}, {duration(found.span_ns[1])}")
    print_line("")
    for line in _say_part(found):
        print_line(line)
    both = found.total[0].answered - found.only_first
    print_line(
        f"Both answered {say_count(both, 'request')}, only A {found.only_first}, only B {found.only_second}."
    )
    print_line("")
    print_table(["", "A", "B"], _total_rows(found))
    print_line("Of each pair, A is first.")
    differing = sorted(found.models, key=lambda name: -_difference(found.models[name]))
    rows = [_pair_row(name, found.models[name], OF_MODELS) for name in differing[:COMPARED_ROWS_MAX]]
    print_table(["model", *OF_MODELS], rows)
    if len(differing) > COMPARED_ROWS_MAX:
        print_line(
            f"not shown: {say_count(len(differing) - COMPARED_ROWS_MAX, 'model')} of smaller difference; --json has all"
        )
        print_line("")
    rows = [
        _pair_row(name, pair, OF_DEVICES) for name, pair in list(found.devices.items())[:COMPARED_ROWS_MAX]
    ]
    print_table(["device", *OF_DEVICES], rows)
    if len(found.devices) > COMPARED_ROWS_MAX:
        print_line(
            f"not shown: {say_count(len(found.devices) - COMPARED_ROWS_MAX, 'device')}; --json has all"
        )


def _say_part(found: Comparison) -> list[str]:
    lines = []
    if found.workload_parts_at:
        lines.append(
            f"They were not asked the same: request {found.workload_parts_at} is the first that differs."
        )
    part = found.part
    if part is None:
        lines.append("All decisions are the same.")
    else:
        late = f", at most {duration(part.late_ns)} apart" if part.late_ns else ""
        lines.append(f"They part after {say_count(part.number, 'decision')} that are the same{late}.")
        lines += [
            f"  {run} {decision or 'ends'}" for run, decision in (("A", part.first), ("B", part.second))
        ]
    return lines


def _difference(pair: tuple[ResultSummary, ResultSummary]) -> int:
    """Return how much two runs differ in a model, in requests."""
    first, second = pair
    return abs(first.answered - second.answered) + abs(first.refused - second.refused)


def _counted(name: str) -> Callable[[ResultSummary], str]:
    return lambda summary: str(getattr(summary, name))


_COLUMNS: dict[str, Callable[[ResultSummary], str]] = {
    **{name: _counted(name) for name in ("answered", "refused", "missed", "executions")},
    "batch": lambda summary: f"{summary.batch:.1f}",
    "loads": _counted("loads"),
    "p50": lambda summary: duration(summary.p50_ns),
    "p99": lambda summary: duration(summary.p99_ns),
    "executing": lambda summary: f"{summary.executing:.1%}",
    "idle with work": lambda summary: f"{summary.idle_with_work:.1%}",
}
OF_MODELS = ("answered", "refused", "missed", "executions", "batch", "loads", "p50", "p99")
OF_DEVICES = ("executions", "batch", "loads", "executing", "idle with work")  # Columns of the tables


def _pair_row(name: str, pair: tuple[ResultSummary, ResultSummary], columns: Sequence[str]) -> list[str]:
    return [name, *(" | ".join(map(_COLUMNS[column], pair)) for column in columns)]


def _total_rows(found: Comparison) -> list[list[str]]:
    reasons = sorted({reason for summary in found.total for reason in summary.refusals})

    def row(title: str, said: Callable[[ResultSummary], str]) -> list[str]:
        return [title, *map(said, found.total)]

    goodput = (f"{summary.answered * SECOND / max(ns, 1):.1f}"
               for summary, ns in zip(found.total, found.span_ns, strict=True))  # fmt: skip
    return [
        row("requests", _counted("arrived")),
        ["goodput/s", *goodput],
        *(row(name, _COLUMNS[name]) for name in ("answered", "refused")),
        *(row(f"  for {reason}", lambda summary, reason=reason: str(summary.refusals.get(reason, 0)))  # type: ignore[misc]
          for reason in reasons),
        *(row(name, _counted(name)) for name in ("missed", "failed", "executions")),
        row("requests an execution", lambda summary: f"{summary.batch:.2f}"),
        row("loads", _COLUMNS["loads"]),
        *(row(f"latency {name}", _COLUMNS[name]) for name in ("p50", "p99")),
        *(row(f"devices {name}", _COLUMNS[name]) for name in ("executing", "idle with work")),
    ]  # fmt: skip
