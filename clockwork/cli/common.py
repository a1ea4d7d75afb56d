"""Errors, options and output that the commands share."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from clockwork import config
from clockwork.config import cli as bounds
from clockwork.errors import ClockworkError, ConfigError, InvalidInput, Refused
from clockwork.launch.lines import said
from clockwork.wire.logs import json_line
from clockwork.wire.telling import visible

if TYPE_CHECKING:
    from rich.text import Text

    from clockwork.client.blocking import Client
    from clockwork.observe.live import ClusterDescription

F = TypeVar("F", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


_DURATION = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?) *([a-zµ]*)")

_UNITS = {"ns": "1e-9", "us": "1e-6", "µs": "1e-6", "ms": "1e-3", "s": "1", "min": "60", "h": "3600"}
"""Units of durations: seconds of each unit, as a decimal fraction."""


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click alone
    """Seconds, as a float, given as a number with a unit: 100ms, 250us, 2s, 5min. A number without a unit is
    in ``unit``."""

    name = "duration"

    def __init__(
        self, least_s: float, most_s: float = config.SECONDS_MAX, unit: str = "s", *, is_open: bool = False
    ) -> None:
        """is_open: the value must be above least_s."""
        self._least_s, self._most_s, self._unit, self._is_open = least_s, most_s, unit, is_open

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        match = _DURATION.fullmatch(str(value))
        if match is None or (match[2] and match[2] not in _UNITS):
            self.fail(
                f"{str(value)[:80]!r} is no duration: a number and a unit, as 100ms, 250us, 2s or 5min (a number "
                f"alone is in {self._unit})", parameter, context,
            )  # fmt: skip
        seconds = float(Decimal(match[1]) * Decimal(_UNITS[match[2] or self._unit]))
        least_s, most_s = self._least_s, self._most_s
        if not least_s <= seconds <= most_s or (self._is_open and seconds == least_s):
            least = f"{'above' if self._is_open else 'at least'} {least_s:g} s"
            self.fail(f"{value} is not {least} and at most {most_s:.15g} s", parameter, context)
        return seconds


DURATION = Duration(0, is_open=True)  # A duration above 0 s


def _existing_trace(context: click.Context, parameter: click.Parameter, value: str) -> str:
    from clockwork.workloads.load_generator import SYNTHETIC

    if value and value != SYNTHETIC and not Path(value).is_file():
        raise click.BadParameter(f"{value!r} is no file, and not `{SYNTHETIC}`")
    return value


def trace_option(text: str) -> Callable[[F], F]:
    """Return the option --trace. text: its help."""
    return click.option("--trace", default="", metavar="FILE", callback=_existing_trace, help=text)


CV = click.FloatRange(0.01, 100)  # The coefficient of variation of gamma arrivals


@contextmanager
def as_usage() -> Iterator[None]:
    """Turn an error of a wrong value into click.UsageError: exit status 2, with the command's usage."""
    try:
        yield
    except (ConfigError, InvalidInput) as error:
        raise click.UsageError(str(error)) from None


class _Failure(click.ClickException):
    """An error, printed in one line."""

    def show(self, file: Any = None) -> None:
        try:
            as_json = config.logs_json()
        except ConfigError:  # perhaps the error that the caller is already reporting
            as_json = False
        if as_json:
            click.echo(json_line("clockwork", self.message, "error"), err=True)
        else:
            print_line(f"clockwork: {self.message}", err=True)


class CommandGroup(click.Group):
    """A group of commands whose errors are one line on stderr, never a traceback.

    The exit status is 2 if the command line is wrong (a missing argument, an invalid value, an unreadable
    file), and 1 if the command fails.
    """

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except click.ClickException as error:
            # The attribute is Final in newer versions of click.
            error.message = visible(error.message, "\n")  # type: ignore[misc]
            raise
        except Refused as error:
            more = [f"reason: {error.reason}"] if error.reason else []
            if error.feasible_slo is not None:
                more.append(f"an SLO of {say_enough(error.feasible_slo)} would have been enough")
            if error.retry_after is not None:
                more.append(f"retry after {say_enough(error.retry_after)}")
            if error.request is not None:
                more.append(f"`clockwork explain {error.request}` says more")
            raise _Failure(f"refused: {error}" + (f" ({'; '.join(more)})" if more else "")) from None
        except ClockworkError as error:
            hints = [*getattr(error, "__notes__", ())]
            if error.request is not None:
                hints.append(f"`clockwork explain {error.request}` says more")
            raise _Failure("; ".join([str(error) or type(error).__name__, *hints])) from None


def say_enough(seconds: float) -> str:
    """Return a sufficient time in three digits, rounded up so that the printed figure suffices, too."""
    exact = Decimal(repr(seconds))
    step = Decimal(1).scaleb(exact.adjusted() - 2)
    enough = exact.quantize(step, ROUND_CEILING) if exact else exact
    unit = "s" if enough >= 1 or not enough else "ms" if enough >= Decimal("0.001") else "us"
    return f"{float(enough / Decimal(_UNITS[unit])):g} {unit}"


def say_bytes(count: int) -> str:
    """Return a size for people: 512 B, 41 KiB, 0.2 MiB or 32.0 MiB."""
    if count < 2**10:
        return f"{count} B"
    return f"{count / 2**20:.1f} MiB" if count >= 100 * 2**10 else f"{count / 2**10:.0f} KiB"


def grouped(name: str, kind: type, *options: Callable[[F], F]) -> Callable[[F], F]:
    """Return a decorator that adds options, in this order. The command gets their values as a single argument
    ``name``: a ``kind``, a dataclass whose fields are named as the options' parameters."""
    fields = [field.name for field in dataclasses.fields(kind)]

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def run(**given: Any) -> Any:
            value = kind(**{field: given.pop(field) for field in fields})
            return command(**given, **{name: value})

        return functools.reduce(lambda inner, option: option(inner), reversed(options), cast(F, run))

    return decorate


@dataclasses.dataclass(frozen=True, slots=True)
class Connect:
    """The options of a client of a cluster. A call makes the client."""

    endpoint: str | None
    key: Path | None
    timeout: float | None = None  # timeout in seconds

    def __call__(self, timeout_s: float = 30.0) -> Client:
        """timeout_s: the timeout of answers, unless an option gives another. Raises UsageError."""
        from clockwork.client.blocking import Client

        with as_usage():
            timeout = timeout_s if self.timeout is None else self.timeout
            return Client(self.endpoint, keys=self.key, timeout=timeout, name="cli")


client_options = grouped(
    "connect",
    Connect,
    click.option(
        "--endpoint", help=f"The controller; several with commas (or CLOCKWORK_ENDPOINT).  [default: {config.CLIENT_ENDPOINT}]"
    ),
    click.option(
        "--key", type=PATH,
        help="The key file (or CLOCKWORK_KEY): client.key for requests, operator.key to change the models.",
    ),
    click.option("--timeout", type=DURATION, help="Timeout of an answer.  [default: 30s]"),
)  # fmt: skip
"""Adds the options of a client; the command gets ``connect``, a Connect."""


def _end_with(context: click.Context, parameter: click.Parameter, parent: int | None) -> None:
    if parent is not None:
        from clockwork.launch.local import die_with

        die_with(parent)


parent_option = click.option("--parent", type=int, hidden=True, callback=_end_with, expose_value=False)
"""Adds a flag with the number of the process with which the command ends."""


def describe_cluster(client: Client) -> ClusterDescription:
    """Return the description of a cluster, which the history of the cluster needs."""
    from clockwork.observe.live import ClusterDescription

    return ClusterDescription(client.status(), [model.raw for model in client.models()])


def policy_numbers(settings: Sequence[str]) -> dict[str, float]:
    """Parse a policy's options, NAME=NUMBER. Raises ConfigError."""
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


def print_line(line: str, *, err: bool = False) -> None:
    """Print a line. Foreign texts in it can neither begin another line nor control the terminal."""
    click.echo(visible(line), err=err)


def print_text(text: str) -> None:
    """Print a text of lines that each end with a newline. Characters that would control the terminal are
    made visible."""
    click.echo(visible(text, "\n\t"), nl=False)


def print_paragraph(text: str) -> None:
    """Print lines of this program, in which foreign texts have one line each."""
    print_text(f"{text}\n")


def print_said(text: str) -> None:
    """Print a message of a cluster in the foreground, as print_paragraph() does or as JSON log lines."""
    print_paragraph(said(text))


def log_format_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add the flag for the format of log lines."""

    def take(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
        if value is not None:
            bounds.set_log_format(value)  # child processes inherit it

    return click.option(
        "--log-format", type=click.Choice(config.LOG_FORMATS), callback=take, expose_value=False, is_eager=True,
        help="Format of log lines: text, or a JSON object a line, with time, level, process and message (or "
             "CLOCKWORK_LOG_FORMAT).  [default: text]",
    )(command)  # fmt: skip


def print_json(body: Any) -> None:
    click.echo(json.dumps(body, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    """Convert values of numpy for JSON; other values, such as paths, become text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def print_table(
    titles: list[str], rows: Sequence[Sequence[str | Text]], legend: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Print a table, as wide as the terminal, or 200 columns elsewhere. legend: the meaning of columns,
    printed below."""
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    from clockwork.cli.terminal import Terminal

    table = Table(*titles, box=SIMPLE, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(visible(cell), no_wrap=True) if isinstance(cell, str) else cell for cell in row))
    console = Terminal(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    for column, meaning in legend.items():
        console.print(Text(f"{column}: {meaning}", "dim"))


def write_file(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}") from None
