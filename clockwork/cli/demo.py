"""`clockwork demo`: an emulated cluster, a varying load, and the dashboard."""

from __future__ import annotations

import importlib.util
import sys

import click

from clockwork import config
from clockwork.cli.common import log_format_option, print_said
from clockwork.config.dashboard import DASHBOARD_PORT
from clockwork.config.workloads import LIVE_RATE_MAX
from clockwork.errors import ConfigError


@click.command()
@log_format_option
@click.option(
    "--devices",
    type=click.IntRange(1, config.EMULATED_DEVICES_MAX),
    default=12,
    show_default=True,
    help="Number of emulated GPUs.",
)
@click.option(
    "--rate",
    type=click.FloatRange(0, LIVE_RATE_MAX, min_open=True),
    default=800.0,
    show_default=True,
    help="Requests per second, on average.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65533),
    default=0,
    show_default=True,
    help="Port for clients; the next two are for workers and events. 0: any free ports.",
)
@click.option(
    "--dashboard-port",
    type=click.IntRange(0, 65535),
    default=DASHBOARD_PORT,
    show_default=True,
    help="0: any free port.",
)
@click.option("--verbose", "-v", is_flag=True, help="Show the log of every process.")
def demo(devices: int, rate: float, port: int, dashboard_port: int, verbose: bool) -> None:  # fmt: skip
    """Show Clockwork at work: emulated V100s with the paper's models, a varying load, and the dashboard.

    Ctrl-C ends the demo, and removes its files.

    \b
    Examples:
      clockwork demo
      clockwork demo --devices 100 --rate 3000
    """
    if importlib.util.find_spec("bokeh") is None:
        raise ConfigError("the demo's dashboard needs bokeh: pip install 'clockwork-serving[dashboard]'")
    from clockwork.launch.demo import DemoSettings
    from clockwork.launch.demo import demo as run

    sys.exit(run(DemoSettings(devices, rate, port, dashboard_port, verbose), print_said))
