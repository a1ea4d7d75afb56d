"""`clockwork trace`: a file that Perfetto and Chrome open."""

from __future__ import annotations

from pathlib import Path

import click

from clockwork.cli.common import FILE, PATH, say_count
from clockwork.errors import InvalidInput
from clockwork.system.clock import SECOND
from clockwork.wire.messages import NEVER_NS


@click.command()
@click.argument("recording", type=FILE)
@click.option("--output", "-o", type=PATH, required=True, help="The file to write, such as run.json.")
@click.option(
    "--from",
    "from_s",
    type=click.FloatRange(0),
    default=0.0,
    help="Begin so many seconds after RECORDING does.",
)
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="How much to trace.  [default: all]")
def trace(recording: Path, output: Path, from_s: float, seconds: float | None) -> None:
    """Write what a cluster did as a trace, which https://ui.perfetto.dev and chrome://tracing open.

    It shows what each device executed and loaded, when it was idle with work waiting, every request with an arrow to its
    batch, and waiting requests, goodput and refusals over time. RECORDING is of `clockwork controller --record`.

    \b
    Example:
      clockwork trace monday.rec --from 60 --seconds 5 -o run.json
    """
    from clockwork.observe.perfetto import write_trace
    from clockwork.observe.recorded import read_history

    from_ns = round(from_s * SECOND)
    header, history = read_history(
        recording, from_ns, NEVER_NS if seconds is None else round(seconds * SECOND)
    )
    about = {"recording": recording.name, "policy": header.policy, "version": header.version}
    try:
        with output.open("w", encoding="utf-8") as file:
            drawn = write_trace(file, history, about, history.begun_ns + from_ns)
    except OSError as error:
        raise InvalidInput(f"{output} cannot be written: {error.strerror}") from None
    click.echo(
        f"wrote {output}: {drawn.span_ns / SECOND:.3g} s with {say_count(drawn.requests, 'request')}, "
        f"{say_count(drawn.executions, 'execution')} and {say_count(drawn.loads, 'load')}"
    )
    if history.forgotten:
        click.echo(
            f"{say_count(history.forgotten, 'request')} before these are left out: --from and --seconds choose others"
        )
    if drawn.left_out:
        click.echo(f"{say_count(drawn.left_out, 'request')} are not drawn: too many were there at once")
    click.echo("open it at https://ui.perfetto.dev or chrome://tracing")
