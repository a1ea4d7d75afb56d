"""python -m bench.grid: the policy benchmark (README.md beside this file)."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from bench import published, report
from bench.grid import cells, extras, markdown, policies, run, tables, whole
from clockwork.errors import ConfigError
from clockwork.scheduler import known_options

RESULTS = Path(__file__).resolve().parents[1] / "results"


def chosen_cells(names: tuple[str, ...], without: tuple[str, ...] = ()) -> list[cells.Cell]:
    try:
        found = [cells.parse(name) for name in names] or list(cells.CELLS.values())
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--cell") from None
    return [cell for cell in found if cell.name not in without]


def policy_names(_: click.Context, option: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    """Check that policies exist. Raises click's error, naming those that do."""
    for name in names:
        try:
            known_options(name)
        except ConfigError as error:
            raise click.BadParameter(str(error), param=option) from None
    return names


def common(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of every command that runs simulations."""
    for option in (
        click.option(
            "--cell", "names", multiple=True, help="A cell's name or key=value,...; by default all cells."
        ),
        click.option(
            "--policy",
            "chosen",
            multiple=True,
            callback=policy_names,
            help="A native policy, or MODULE:CLASS, a class in Python, which is slower (docs/policies/python.md).",
        ),
        click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="The first seed."),
        click.option("--quick", is_flag=True, help="Few requests and seeds, to try the benchmark."),
        click.option(
            "--requests", type=click.IntRange(100), help="Least number of requests of a measured point."
        ),
    ):
        command = option(command)
    return command


def planned(quick: bool, seed: int, seeds: int | None, requests: int | None) -> run.Plan:
    plan = dataclasses.replace(run.QUICK if quick else run.Plan(), first_seed=seed)
    if seeds is not None:
        plan = dataclasses.replace(plan, seeds=seeds)
    if requests is not None:
        plan = dataclasses.replace(
            plan, requests=requests, screen_requests=min(requests, plan.screen_requests)
        )
    return plan


@click.group()
def main() -> None:
    """Goodput of every policy in many cells, against upper bounds."""


@main.command("run")
@common
@click.option("--without", multiple=True, type=click.Choice(list(cells.CELLS)), help="Leave out this cell.")
@click.option("--drawn", type=click.IntRange(1), help="So many cells at random, instead of the grid's.")
@click.option("--draw", type=click.IntRange(0), default=1, show_default=True, help="Seed of these cells.")
@click.option("--seeds", type=click.IntRange(1), help="Number of seeds that are reported.")
@click.option("--processes", type=click.IntRange(1), default=os.cpu_count(), show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The book to begin or continue.")
@click.option("--any-commit", is_flag=True, help="Continue a book that another commit began.")
@click.option("--forget", multiple=True, callback=policy_names, help="Measure this policy anew.")
@click.option("--no-bounds", is_flag=True, help="Leave out the upper bounds.")
@click.option(
    "--bounds-only", is_flag=True, help="Compute the upper bounds alone, for the published goodputs."
)
@click.option(
    "--moments-only",
    is_flag=True,
    help="Compute the bound of moments alone, to sharpen the published bounds of the cells.",
)
@click.option("--publish", is_flag=True, help="Write docs/results/ and the tables of the documents.")
def run_command(
    names: tuple[str, ...],
    chosen: tuple[str, ...],
    seed: int,
    quick: bool,
    requests: int | None,
    without: tuple[str, ...],
    drawn: int | None,
    draw: int,
    seeds: int | None,
    processes: int,
    out: Path | None,
    any_commit: bool,
    forget: tuple[str, ...],
    no_bounds: bool,
    bounds_only: bool,
    moments_only: bool,
    publish: bool,
) -> None:
    """Measure, save after each result, print the table; continue an interrupted run."""
    bounds_only |= moments_only
    if no_bounds and bounds_only:
        raise click.UsageError("--no-bounds with --bounds-only or --moments-only leaves nothing to compute")
    if drawn is not None and (names or without or bounds_only):
        raise click.UsageError(
            "--drawn goes with none of --cell, --without, --bounds-only and --moments-only"
        )
    kind = "moments" if moments_only else "bounds" if bounds_only else "quick" if quick else "full"
    if drawn is not None:
        kind = f"{kind}-drawn{draw}"
    path = out or RESULTS / f"grid-{kind}-{seed}.json"
    plan = planned(quick, seed, seeds, requests)
    try:
        book = run.run(
            plan,
            chosen_cells(names, without) if drawn is None else cells.drawn(draw, drawn),
            chosen or policies.POLICIES,
            path,
            processes=processes,
            with_bounds=not no_bounds,
            with_goodputs=not bounds_only,
            moments_only=moments_only,
            any_commit=any_commit,
            forgotten=forget,
            console=Console(stderr=True),
        )
        kept = published.load("grid") if bounds_only else markdown.kept(book)
        if bounds_only:
            kept = markdown.with_bounds(kept, book, published.command(), sharpen=moments_only)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    console = Console(width=None if os.isatty(1) else 220)
    if bounds_only:
        found = tables.published(kept["rows"])
        tables.show_bounds(found, console)
        tables.show_gaps(found, console)
    else:
        tables.show(book, console)
    click.echo(f"saved as {path}")
    if publish:
        published.save(
            "grid" if drawn is None else "grid-drawn",
            kept,
            plan.first_seed,
            lambda body, place: tables.plot(tables.published(body["rows"]), markdown.title(body), place),
            begun_s=time.monotonic() - book["took_s"],  # the time of an interrupted run counts as well
        )


@main.command("table")
@click.argument("book", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def table_command(book: Path) -> None:
    """Print the table of a book."""
    tables.show(json.loads(book.read_text(encoding="utf-8")), Console(width=None if os.isatty(1) else 220))


@main.command("plot")
@click.argument("book", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("png", type=click.Path(dir_okay=False, path_type=Path))
def plot_command(book: Path, png: Path) -> None:
    """Draw a book as a PNG."""
    try:
        kept = markdown.kept(json.loads(book.read_text(encoding="utf-8")))
        tables.plot(tables.published(kept["rows"]), markdown.title(kept), png)
    except ValueError as error:
        raise click.ClickException(str(error)) from None


@main.command("cells")
def cells_command() -> None:
    """List the cells, as --cell takes them."""
    for cell in cells.CELLS.values():
        click.echo(f"{cell.name:28} {cell.spec}")


@main.command("bounds")
@common
def bounds_command(
    names: tuple[str, ...], chosen: tuple[str, ...], seed: int, quick: bool, requests: int | None
) -> None:
    """The upper bounds of cells, in requests a second."""
    count = planned(quick, seed, None, requests).requests
    rows = []
    for cell in chosen_cells(names):
        found = whole.every_bound(cell, seed, count, 0.0 if cell.cold else extras.LIGHT_WARMUP_S)
        rows.append({"cell": cell.name} | found)
    report.show("upper bounds, requests a second", seed, rows, {}, False)


@main.command("gap")
def gap_command() -> None:
    """The published bound of each cell, and the part of the gap to it that our policy closes."""
    found = tables.published(published.load("grid")["rows"])
    console = Console(width=None if os.isatty(1) else 220)
    tables.show_bounds(found, console)
    tables.show_gaps(found, console)


def _extra(title: str, measure: Callable[..., list[dict[str, Any]]]) -> Callable[..., None]:
    def command(
        names: tuple[str, ...], chosen: tuple[str, ...], seed: int, quick: bool, requests: int | None
    ) -> None:
        count = planned(quick, seed, None, requests).requests
        rows = []
        for cell in chosen_cells(names or DEFAULT_EXTRAS):
            rows += measure(cell, chosen or policies.POLICIES, count, seed)
        show_rows(title, rows, seed)

    command.__doc__ = measure.__doc__
    return command


DEFAULT_EXTRAS = ("d8-m20-tight-high", "d8-m20-tight-low", "d24-m6-medium-high")


def show_rows(title: str, rows: list[dict[str, Any]], seed: int) -> None:
    """Print rows of one kind as a table."""
    under = report.conditions(seed)
    table = Table(title=f"{title} (commit {under['commit']}, seed {seed})", title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=None if os.isatty(1) else 160).print(table)


main.command("idle")(common(_extra("an idle cluster", extras.idle)))
main.command("saving")(common(_extra("devices busy at low load", extras.saving)))
main.command("isolation")(common(_extra("a model misbehaves", extras.isolation)))


@main.command("ablation")
@common
@click.option("--seeds", type=click.IntRange(1), default=2, show_default=True)
def ablation_command(
    names: tuple[str, ...],
    chosen: tuple[str, ...],
    seed: int,
    quick: bool,
    requests: int | None,
    seeds: int,
) -> None:
    """Goodput with each rule of our policy switched off."""
    plan = planned(quick, seed, seeds, requests)
    rows = []
    for cell in chosen_cells(names or DEFAULT_EXTRAS):
        rows += extras.ablation(cell, plan)
    show_rows("rules switched off", rows, seed)


if __name__ == "__main__":
    main()
