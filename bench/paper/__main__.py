"""Repeats the experiments of the paper and draws its figures.

    python -m bench.paper [fig2|fig5|fig6|fig7|fig8|fig9|fig11|all ...] [--full]
        [--policies paper,fifo,adaptive] [--seed 0] [--out DIR] [--json] [--jobs N] [--trace FILE]
        [--no-live] [--no-plots] [--mapping original|shuffled] [--devices N]

Each experiment writes NAME.json and NAME.png. fig10 is drawn with fig9. See bench/paper/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from bench import published, report
from bench.paper import fig2, fig5, fig6, fig7, fig8, fig9, fig11
from bench.paper.common import Form, Result, Setting, named, plain, save
from bench.paper.tables import TABLES
from clockwork.errors import ConfigError

FIGURES: dict[str, ModuleType] = {
    "fig2": fig2,
    "fig5": fig5,
    "fig6": fig6,
    "fig7": fig7,
    "fig8": fig8,
    "fig9": fig9,
    "fig11": fig11,
}

ALSO = {"fig10": "fig9"}
"""Figures that are drawn together with another."""

DOTS = 90
"""Dots per inch of the published plots."""

OUT = Path("bench/results/paper")
CELL_MAX = 28


def experiment(
    name: str, setting: Setting, out: Path, plots: bool, progress: Progress, publish: bool = False
) -> Result:
    """Run an experiment, show its progress, and write its files. publish: also those in docs/results."""
    module = FIGURES[name]
    begun_s = time.monotonic()
    task = progress.add_task(name, total=1.0)
    result: Result = module.run(setting, lambda part: progress.update(task, completed=part))
    progress.update(task, completed=1.0)
    figure = module.draw(result) if plots or publish else None
    written = save(result, figure, out)
    if publish:
        written.append(
            published.save(
                name if setting.form != "full" else f"{name}-full",
                result.to_json(),
                setting.seed,
                lambda _, path: figure.savefig(path, dpi=DOTS),
                begun_s,
            )
        )
    progress.console.print(table(result.title, result.rows, module.SHOWN))
    if result.live:
        progress.console.print(table("live, on this machine", result.live))
    for title, value in result.facts.items():
        progress.console.print(f"  {title}: {value}", highlight=False, markup=False)
    for title, value in result.paper.items():
        progress.console.print(f"  paper, {title}: {value}", highlight=False, markup=False, style="dim")
    progress.console.print(f"  {', '.join(map(str, written))}\n", highlight=False, markup=False)
    return result


def table(title: str, rows: list[dict[str, Any]], columns: Sequence[str] = ()) -> Table:
    """A table of rows for people. columns: those to show; by default all."""
    shown = Table(title=title, title_justify="left", header_style="bold")
    names = [
        column
        for column in columns or dict.fromkeys(key for row in rows for key in row)
        if any(column in row for row in rows)
    ]
    for name in names:
        shown.add_column(name, justify="right", overflow="fold")
    for row in rows:
        shown.add_row(*(cell(row.get(name)) for name in names))
    return shown


def cell(value: object) -> str:
    text = "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= CELL_MAX else text[: CELL_MAX - 1] + "…"


def names_of(wanted: list[str]) -> list[str]:
    """The experiments of these names, each once. Raises ConfigError for an unknown name."""
    chosen: dict[str, None] = {}
    for name in wanted or ["all"]:
        if name == "all":
            chosen |= dict.fromkeys(FIGURES)
        elif ALSO.get(name, name) in FIGURES:
            chosen[ALSO.get(name, name)] = None
        else:
            raise ConfigError(f"no experiment {name!r} (there is {', '.join([*FIGURES, *ALSO])}, all)")
    return list(chosen)


def setting_of(arguments: argparse.Namespace) -> Setting:
    """The settings of a run. Raises ConfigError for an unknown policy, or for no device."""
    policies = tuple(policy for policy in arguments.policies.split(",") if policy)
    for policy in policies:
        named(policy)
    if arguments.devices is not None and arguments.devices < 1:
        raise ConfigError(f"{arguments.devices} devices: there must be at least 1")
    form: Form = "full" if arguments.full else arguments.form
    jobs = arguments.jobs or len(os.sched_getaffinity(0))
    return Setting(
        form, policies, arguments.seed, jobs, not arguments.no_live, arguments.trace,
        arguments.mapping, arguments.devices or 0,
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.paper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("figures", nargs="*", metavar="FIGURE")
    parser.add_argument("--full", action="store_true", help="the paper's sizes")
    parser.add_argument("--form", choices=get_args(Form), default="quick")
    parser.add_argument(
        "--policies", default="", help="separated by commas, each as name or name:option=number"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--jobs", type=int, default=0, help="number of processes (0: one for each core)")
    parser.add_argument("--trace", type=Path, help="a CSV file in the Azure Functions format")
    parser.add_argument(
        "--mapping", choices=["original", "shuffled"], default="", help="fig9: only this mapping"
    )
    parser.add_argument(
        "--devices",
        type=int,
        metavar="N",
        help=f"fig9: on so many, either mapping (default: {fig9.DEVICES} in original order; shuffled, the fewest, by"
        " a search)",
    )
    parser.add_argument("--no-live", action="store_true", help="leave out the parts that run on a CPU worker")
    parser.add_argument(
        "--no-plots", action="store_true", help="draw no plots, so that matplotlib is not needed"
    )
    parser.add_argument("--json", action="store_true", help="print the content of the JSON files")
    report.publishing(parser)
    arguments = parser.parse_args(argv)
    console = Console(stderr=arguments.json)
    try:
        setting, names = setting_of(arguments), names_of(arguments.figures)
        if arguments.publish and (others := [name for name in names if name not in published.COMMANDS]):
            raise ConfigError(f"no document shows {', '.join(others)}: --publish takes {', '.join(TABLES)}")
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        console.print(f"{report.machine()}, commit {report.commit()}", highlight=False)
        with Progress(*columns, console=console) as progress:
            results = [
                experiment(name, setting, arguments.out, not arguments.no_plots, progress, arguments.publish)
                for name in names
            ]
    except ConfigError as error:
        console.print(str(error), style="red", highlight=False, markup=False)
        return 2
    if arguments.json:
        json.dump([result.to_json() for result in results], sys.stdout, indent=1, default=plain)
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
