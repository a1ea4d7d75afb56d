"""The command line. A file of commands is imported when one of its commands runs; commands import heavy
packages themselves."""

from __future__ import annotations

import importlib
import warnings
from typing import TextIO

import click

from clockwork.cli.common import CommandGroup, log_format_option, print_line
from clockwork.config import VERSION
from clockwork.errors import SloWarning
from clockwork.wire.logs import guard_stderr

COMMANDS = {
    "compile": "compile",
    "controller": "serve",
    "dashboard": "dashboard",
    "demo": "demo",
    "explain": "explain",
    "gateway": "gateway",
    "infer": "requests",
    "keys": "keys",
    "load": "requests",
    "metrics": "metrics",
    "models": "models",
    "plan": "plan",
    "probe": "probe",
    "recorder": "recorder",
    "replay": "recorder",
    "restore": "snapshots",
    "snapshot": "snapshots",
    "status": "requests",
    "telemetry": "telemetry",
    "top": "top",
    "trace": "trace",
    "up": "serve",
    "worker": "serve",
}
"""The file of each command, which has a click command of that name."""


class _Root(CommandGroup):
    """The group of all commands, each imported on demand."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        found: click.Command = getattr(importlib.import_module(f"clockwork.cli.{COMMANDS[name]}"), name)
        return found


def main() -> None:
    """Run the program `clockwork`."""
    show = warnings.showwarning

    def say(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, SloWarning):
            print_line(f"clockwork: {message}", err=True)
        else:
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = say
    guard_stderr()
    cli(prog_name="clockwork")


@click.group(cls=_Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(VERSION, prog_name="clockwork")
@log_format_option
def cli() -> None:
    """Serve deep-learning models, each request by its deadline.

    \b
    Start here:
      clockwork up                                      a cluster on this machine
      clockwork infer digits --example 7                send it a request
      clockwork models add resnet50 resnet50.onnx       serve a model of your own

    Exit status: 0; 1 if a command fails; 2 if the command line is wrong. A duration is a number of seconds,
    or has a unit: 100ms, 250us, 2s, 5min.
    """
