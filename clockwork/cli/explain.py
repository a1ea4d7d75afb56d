"""`clockwork explain`: why a request was refused, waited or missed its deadline."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from clockwork.cli.common import FILE, PATH, print_json, write_file


@click.command()
@click.argument("request", type=click.IntRange(0), required=False)
@click.option("--recording", type=FILE, required=True, help="Of `clockwork controller --record`.")
@click.option(
    "--last-refused", "wanted", flag_value="refused", help="Instead of REQUEST: the newest that was refused."
)
@click.option("--last-missed", "wanted", flag_value="missed", help="The newest that missed its deadline.")
@click.option("--slowest", "wanted", flag_value="slowest", help="The one that took longest to be answered.")
@click.option(
    "--model", default="", metavar="NAME", help="With these: only of this model, NAME or NAME@VERSION."
)
@click.option("--svg", type=PATH, metavar="FILE", help="Write the picture to a file, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(
    request: int | None, recording: Path, wanted: str | None, model: str, svg: Path | None, as_json: bool
) -> None:
    """Say why a request was refused, waited or missed its deadline: in sentences, and as a picture.

    It says what each device that could have served the request was doing at the time, what the request waited for, which
    batch it could have joined, and what SLO it would have needed. REQUEST is the number that an error, or the header
    X-Clockwork-Request of the gateway, tells.

    \b
    Examples:
      clockwork explain 4711 --recording monday.rec
      clockwork explain --last-refused --model resnet50 --recording monday.rec --svg refused.svg
    """
    from clockwork.observe.explain import explain as explain_request
    from clockwork.observe.explain import find_request, find_slowest
    from clockwork.observe.recorded import read_history
    from clockwork.observe.timeline import draw_svg, draw_text

    if (request is None) == (wanted is None):
        raise click.UsageError("name a REQUEST, or one of --last-refused, --last-missed and --slowest")
    if model and request is not None:
        raise click.UsageError(
            "--model goes with --last-refused, --last-missed or --slowest, not with a REQUEST"
        )
    _, history = read_history(recording)
    if request is None:
        request = (
            find_slowest(history, model)
            if wanted == "slowest"
            else find_request(history, wanted or "", model)
        )
    found = explain_request(history, request)
    if svg is not None:
        write_file(svg, draw_svg(found.timeline).encode())
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    for sentence in found.sentences:
        console.print(sentence, markup=False)
    for sentence in found.devices:
        console.print(f"  {sentence}", markup=False)
    console.print()
    for line in draw_text(found.timeline, console.width):
        console.print(line, soft_wrap=True)
    if svg is not None:
        console.print(f"wrote {svg}", markup=False)
