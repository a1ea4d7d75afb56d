"""Errors, options and output that the commands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from clockwork import config
from clockwork.errors import ClockworkError, ConfigError, InvalidInput, Refused

if TYPE_CHECKING:
    from rich.text import Text

    from clockwork.client.blocking import Client

F = TypeVar("F", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


class _Failure(click.ClickException):
    """An error, printed in one line."""

    def show(self, file: Any = None) -> None:
        click.echo(f"clockwork: {self.message}", err=True)


class Commands(click.Group):
    """A group of commands whose errors are one line on stderr and exit status 1, never a traceback."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except Refused as error:
            more = [f"reason: {error.reason}"] if error.reason else []
            if error.feasible_slo is not None:
                more.append(f"an SLO of {say_enough(error.feasible_slo)} would have been enough")
            if error.retry_after is not None:
                more.append(f"retry after {say_enough(error.retry_after)}")
            raise _Failure(f"refused: {error}" + (f" ({'; '.join(more)})" if more else "")) from None
        except ClockworkError as error:
            raise _Failure(str(error) or type(error).__name__) from None


def say_enough(seconds: float) -> str:
    """A sufficient time, in three digits, rounded up: the printed figure suffices, too."""
    exact = Decimal(repr(seconds))
    step = Decimal(1).scaleb(exact.adjusted() - 2)
    return f"{float(exact.quantize(step, ROUND_CEILING) if exact else exact):g} s"


def say_bytes(count: int) -> str:
    """A size for people: 512 B, 41 KiB, 0.2 MiB or 32.0 MiB."""
    if count < 2**10:
        return f"{count} B"
    return f"{count / 2**20:.1f} MiB" if count >= 100 * 2**10 else f"{count / 2**10:.0f} KiB"


def say_count(count: int, noun: str) -> str:
    """1 page, 2 pages."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def client_options(command: F) -> F:
    command = click.option("--timeout", type=float, help="Seconds to wait for an answer.  [default: 30]")(
        command
    )
    command = click.option(
        "--key",
        type=PATH,
        help="This peer's key file (or CLOCKWORK_KEY): client.key to ask, operator.key to change what is served.",
    )(command)
    return click.option(
        "--endpoint", help=f"The controller (or CLOCKWORK_ENDPOINT).  [default: {config.CLIENT_ENDPOINT}]"
    )(command)


def new_client(endpoint: str | None, key: Path | None, timeout: float | None) -> Client:
    from clockwork.client.blocking import Client

    return Client(endpoint, keys=key, timeout=30.0 if timeout is None else timeout, name="cli")


def policy_numbers(settings: Sequence[str]) -> dict[str, float]:
    """A policy's options, NAME=NUMBER, parsed. Raises ConfigError."""
    numbers = {}
    for setting in settings:
        name, _, number = setting.partition("=")
        try:
            numbers[name] = float(number)  # "" after a missing "=" is no number
        except ValueError:
            name = ""
        if not name:
            raise ConfigError(f"a policy's option is NAME=NUMBER, not {setting!r}")
    return numbers


def print_json(body: Any) -> None:
    click.echo(json.dumps(body, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    """Values of numpy as JSON has them; everything else, such as a path, as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def print_table(
    titles: list[str], rows: Sequence[Sequence[str | Text]], legend: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Print a table, as wide as the terminal; elsewhere 200 columns. legend: what columns mean, printed below them."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*titles, box=SIMPLE, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell, no_wrap=True) if isinstance(cell, str) else cell for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    for column, meaning in legend.items():
        console.print(Text(f"{column}: {meaning}", "dim"))


def write_file(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}") from None
