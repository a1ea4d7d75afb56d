"""`clockwork telemetry`: every request and every action, as Parquet files."""

from __future__ import annotations

from pathlib import Path

import click

from clockwork import config
from clockwork.cli.common import FILE, PATH, say_count
from clockwork.config.observe import TELEMETRY_BYTES


@click.command()
@click.argument("folder", type=PATH)
@click.option(
    "--recording",
    type=FILE,
    required=True,
    help="What is read: a recording, or a dump of the flight recorder.",
)
@click.option("--bytes", "size", default=f"{TELEMETRY_BYTES >> 30}GiB", show_default=True, metavar="SIZE",
              help="What the files of the folder may take together; the oldest go first.")  # fmt: skip
def telemetry(folder: Path, recording: Path, size: str) -> None:
    """Write every request and every action to Parquet files in FOLDER, which is made if it is not there.

    Needs the extra [telemetry]. The columns are described in docs/telemetry.md.

    \b
    Examples:
      clockwork telemetry monday/ --recording monday.rec
      python examples/read_telemetry.py monday/ monday.png
    """
    from clockwork.observe.telemetry import write_recording

    writer = write_recording(folder, recording, config.parse_bytes(size))
    click.echo(
        f"{say_count(writer.requests, 'request')} and {say_count(writer.actions, 'action')} in {folder}"
    )
