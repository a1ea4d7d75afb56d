"""`clockwork recorder`: what a scheduler was told and what it decided, kept by its controller."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clockwork.cli.common import (
    PATH,
    Commands,
    client_options,
    new_client,
    print_json,
    print_table,
    say_bytes,
)
from clockwork.errors import ConfigError

if TYPE_CHECKING:
    from clockwork.client.blocking import Client


@click.group(cls=Commands)
def recorder() -> None:
    """Look at the flight recorder, and save it.

    The controller keeps the last minute of what its scheduler was told and what it decided, and writes it to its data
    directory by itself when something goes wrong: docs/recorder.md.
    """


@recorder.command()
@client_options
@click.option("--json", "as_json", is_flag=True)
def status(endpoint: str | None, key: Path | None, timeout: float | None, as_json: bool) -> None:
    """Show how much the recorder holds, and the dumps that the controller has."""
    with new_client(endpoint, key, timeout) as client:
        state, dumps = client.recorder(), client.recorder("dumps")
    if as_json:
        print_json({**state, "dumps": dumps})
        return
    if not state["bytes_max"]:
        click.echo("The flight recorder is off (--recorder-bytes 0).")
    else:
        held, age_s = state["end"] - state["begin"], (state["now_ns"] - state["oldest_ns"]) / 1e9
        age = f"the last {age_s:.1f} s" if state["oldest_ns"] else "nothing yet"
        whole = ", all since the controller's start" if state["begin"] == 0 else ""
        click.echo(f"{age}{whole}: {say_bytes(held)} of {say_bytes(state['bytes_max'])}")
    if dumps:
        print_table(
            ["dump", "size", "written"],
            [
                [
                    one["name"],
                    say_bytes(one["bytes"]),
                    time.strftime("%F %T", time.localtime(one["written_s"])),
                ]
                for one in dumps
            ],
        )


@recorder.command()
@click.argument("file", type=PATH)
@click.option(
    "--name", default="", help="A dump that the controller has written already: see `recorder status`."
)
@client_options
def dump(file: Path, name: str, endpoint: str | None, key: Path | None, timeout: float | None) -> None:
    """Save what the recorder holds to FILE, for `clockwork replay`.

    \b
    Examples:
      clockwork recorder dump now.rec
      clockwork recorder dump alert.rec --name 20260801T120000Z-worker-lost.rec
    """
    with new_client(endpoint, key, timeout) as client:
        if not name:
            name = client.recorder("dump")["name"]
        try:
            with file.open("wb") as out:
                size = _fetch(client, name, out)
        except OSError as error:
            raise ConfigError(f"{file} cannot be written: {error.strerror}") from None
    click.echo(f"{file}: {say_bytes(size)} ({name})")


def _fetch(client: Client, name: str, out: Any) -> int:
    """Copy a dump of the controller's. Returns its size."""
    size = 0
    while piece := client.recorder(f"{name}#{size}"):
        out.write(piece)
        size += len(piece)
    return size
