"""`clockwork telemetry`: writes every request and every action to Parquet files."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgpack

from clockwork import config
from clockwork.cli.common import FILE, PATH, Connect, client_options, describe_cluster, print_line, say_bytes
from clockwork.config import observe as bounds
from clockwork.system.words import say_count

if TYPE_CHECKING:
    from clockwork.client.blocking import Client
    from clockwork.observe.telemetry import Telemetry


@click.command()
@click.argument("folder", type=PATH)
@click.option(
    "--recording",
    type=FILE,
    help="Read a recording, or a dump of the flight recorder, in place of a controller.",
)
@click.option("--bytes", "size", default=f"{bounds.TELEMETRY_BYTES >> 30}GiB", show_default=True, metavar="SIZE",
              help="Bound of the folder's files together; the oldest are removed first.")  # fmt: skip
@click.option(
    "--piped", hidden=True, help="Metadata from a controller, which writes pieces to standard input."
)
@client_options
def telemetry(
    folder: Path, recording: Path | None, size: str, piped: str | None, connect: Connect,
) -> None:  # fmt: skip
    """Write every request and every action to Parquet files in FOLDER, which is created if needed.

    Without --recording it follows a running controller, from the oldest step of its flight recorder, until
    Ctrl-C or the controller's end; with keys that needs operator.key. `clockwork controller --telemetry
    FOLDER` runs it beside the controller. Needs the extra [telemetry]. docs/telemetry.md describes the
    columns.

    \b
    Examples:
      clockwork telemetry now/
      clockwork telemetry monday/ --recording monday.rec
      python examples/read_telemetry.py monday/ monday.png
    """
    from clockwork.observe.telemetry import Telemetry, write_recording

    bytes_max = config.parse_bytes(size)
    if piped is not None:
        _write_piped(folder, bytes_max, json.loads(piped))
        return
    if recording is not None:
        writer = write_recording(folder, recording, bytes_max)
    else:
        with connect() as client:
            state = client.recorder()
            wall_ns = time.time_ns() - state["now_ns"]
            writer = Telemetry(
                folder, bytes_max, wall_ns, {name: state[name] for name in ("policy", "version")}
            )
            print_line(f"writing to {folder}; Ctrl-C ends it", err=True)
            _follow(writer, client)
    lost = f"; {say_bytes(writer.lost_bytes)} of steps were lost" if writer.lost_bytes else ""
    print_line(
        f"{say_count(writer.requests, 'request')} and {say_count(writer.actions, 'action')} in {folder}{lost}"
    )


def _write_piped(folder: Path, bytes_max: int, note: dict[str, Any]) -> None:
    """Write the pieces of a controller until its pipe ends."""
    from clockwork.observe.telemetry import Telemetry, follow

    # SIGINT is ignored, because the controller ends first and closes the pipe
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(bounds.TELEMETRY_NICE)
    writer = Telemetry(folder, bytes_max, note.pop("wall_ns"), note)
    print_line("ready")
    pieces = msgpack.Unpacker(sys.stdin.buffer, max_buffer_size=bounds.TELEMETRY_PIECE_BYTES_MAX)
    with writer:
        follow(writer, lambda argument: next(pieces, None))


def _follow(writer: Telemetry, client: Client) -> None:
    """Write a controller's steps until SIGINT, SIGTERM, or the controller's end."""
    from clockwork.observe.telemetry import follow

    # the steps read so far are written, as after Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    pause = threading.Event()  # never set: a signal ends the wait
    is_up_to_date = False

    def at_end() -> None:
        nonlocal is_up_to_date
        if not is_up_to_date:
            is_up_to_date = True
            print_line("up to date", err=True)
        pause.wait(bounds.TELEMETRY_FOLLOW_S)

    with writer, contextlib.suppress(KeyboardInterrupt):
        follow(writer, client.recorder, at_end, describe_cluster(client))
        print_line("the controller was started anew: this ends", err=True)
