"""`clockwork top`: a live view of a cluster in a terminal."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import click

from clockwork import config
from clockwork.cli.common import Connect, client_options, print_line, print_table
from clockwork.config.observe import TOP_INTERVAL_MAX_S, TOP_INTERVAL_MIN_S
from clockwork.errors import Unavailable

if TYPE_CHECKING:
    from clockwork.observe.overview import Overview


@click.command()
@click.option(
    "--interval",
    type=click.FloatRange(TOP_INTERVAL_MIN_S, TOP_INTERVAL_MAX_S),
    default=2.0,
    show_default=True,
    help="Seconds between readings. With many models it is longer, so that the controller spends at most 1 % on it.",
)
@click.option("--once", is_flag=True, help="Print the changes of one interval, and end.")
@click.option("--models", "models", type=click.IntRange(0), default=20, show_default=True,
              help="Number of models that --once prints, those with the most requests first.")  # fmt: skip
@click.option(
    "--json", "as_json", is_flag=True, help="Print a line of JSON for each interval; with --once, one."
)
@client_options
def top(
    interval: float, once: bool, models: int, as_json: bool, connect: Connect,
) -> None:  # fmt: skip
    """Show devices, models, rates and refusals as they change.

    Keys: Tab goes to the other table, s sorts by the next column and r the other way round, Enter looks into
    a row, / filters by a part of a name, space pauses, q ends. The mouse works, too.

    \b
    Examples:
      clockwork top
      clockwork top --once
      clockwork top --once --json | jq .rates.answered
      clockwork top --json --interval 10 >> cluster.jsonl
    """
    from clockwork.observe.reading import PeriodicReader

    with connect(10.0) as client:
        reader = PeriodicReader(client.metrics, interval)
        if not once and not as_json:
            from clockwork.observe.top import Top

            Top(reader, connect.endpoint or config.CLIENT_ENDPOINT).run()
            return
        reader.next()
        pause = threading.Event()  # never set: Ctrl-C ends the wait
        while True:
            pause.wait(reader.interval_s)
            overview, note = reader.next()
            if overview is None:
                if once:
                    raise Unavailable(note)
                print_line(note, err=True)
            elif as_json:
                print_line(json.dumps(_plain(overview)))
            else:
                _print(overview, models)
            if once:
                return


def _print(overview: Overview, models: int) -> None:
    from clockwork.cli.terminal import Terminal
    from clockwork.observe.rows import DEVICES, FIRST_SORT, MODELS, legend, sorted_rows, summary

    console = Terminal()
    console.print(summary(overview), soft_wrap=True)
    print_table([column.title for column in DEVICES],
                [[column.cell(row) for column in DEVICES] for row in overview.devices])  # fmt: skip
    console.print(legend())
    rows = sorted_rows(overview.models, MODELS[FIRST_SORT["models"]], is_reversed=False)
    print_table(
        [column.title for column in MODELS],
        [[column.cell(row) for column in MODELS] for row in rows[:models]],
    )
    if len(rows) > models:
        print_line(f"... and {len(rows) - models} more models: --models {len(rows)}")


def _plain(overview: Overview) -> dict[str, Any]:
    """Return plain data for JSON: records by the names of their fields."""
    body = overview._asdict()
    body["rates"] = overview.rates._asdict()
    body["devices"] = [row._asdict() for row in overview.devices]
    body["models"] = [row._asdict() | {"rates": row.rates._asdict()} for row in overview.models]
    return body
