"""`clockwork explain`: why a request was refused, waited or missed its deadline."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clockwork.cli.common import FILE, PATH, Connect, client_options, describe_cluster, print_json, write_file
from clockwork.config.observe import EXPLAIN_SPANS_NS, TRACE_REQUESTS_MAX
from clockwork.errors import InvalidInput
from clockwork.wire.telling import visible

if TYPE_CHECKING:
    from clockwork.client.blocking import Client
    from clockwork.observe.explain import Explanation
    from clockwork.observe.history import History


@click.command()
@click.argument("request", type=click.IntRange(0), required=False)
@click.option(
    "--recording",
    type=FILE,
    help="A file of `clockwork controller --record`, or a dump.  [default: the running cluster]",
)
@click.option(
    "--last-refused", "wanted", flag_value="refused", help="Instead of REQUEST: the newest refused request."
)
@click.option(
    "--last-missed", "wanted", flag_value="missed", help="The newest request that missed its deadline."
)
@click.option("--slowest", "wanted", flag_value="slowest", help="The answered request of highest latency.")
@click.option(
    "--model",
    default="",
    metavar="NAME",
    help="With these: only requests for this model, NAME or NAME@VERSION.",
)
@click.option("--svg", type=PATH, metavar="FILE", help="Write the picture to a file, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@client_options
def explain(
    request: int | None, recording: Path | None, wanted: str | None, model: str, svg: Path | None, as_json: bool,
    connect: Connect,
) -> None:  # fmt: skip
    """Explain why a request was refused, waited or missed its deadline, in sentences and a picture.

    The explanation tells what each device that could have served the request was doing at the time, what the
    request waited for, which batch it could have joined, and what SLO would have been feasible. REQUEST is
    the number in an error, or in the gateway's header X-Clockwork-Request.

    \b
    Examples:
      clockwork explain 4711
      clockwork explain --last-refused --model resnet50 --recording monday.rec --svg refused.svg
    """
    from clockwork.observe.recorded import read_history
    from clockwork.observe.timeline import draw_svg, draw_text

    if (request is None) == (wanted is None):
        raise click.UsageError("name a REQUEST, or one of --last-refused, --last-missed and --slowest")
    if model and request is not None:
        raise click.UsageError(
            "--model goes with --last-refused, --last-missed or --slowest, not with a REQUEST"
        )
    if recording is not None:
        found = _explain(read_history(recording)[1], request, wanted or "", model)
    else:
        with connect() as client:
            found = _explain_live(client, request, wanted or "", model)
    if svg is not None:
        write_file(svg, draw_svg(found.timeline).encode())
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    from clockwork.cli.terminal import Terminal

    console = Terminal(width=None if sys.stdout.isatty() else 120)
    for sentence in found.sentences:
        console.print(visible(sentence))
    for sentence in found.devices:
        console.print(f"  {visible(sentence)}")
    console.print()
    for line in draw_text(found.timeline, console.width):
        console.print(line, soft_wrap=True)
    if svg is not None:
        console.print(f"wrote {svg}")


def _explain(history: History, request: int | None, wanted: str, model: str) -> Explanation:
    from clockwork.observe.explain import explain, find_request, find_slowest

    if request is None:
        request = (
            find_slowest(history, model) if wanted == "slowest" else find_request(history, wanted, model)
        )
    return explain(history, request)


def _explain_live(client: Client, request: int | None, wanted: str, model: str) -> Explanation:
    """Explain from the controller's flight recorder: from its last seconds, or else from all that it
    keeps."""
    from clockwork.observe.history import History
    from clockwork.observe.live import look_back

    cluster = describe_cluster(client)
    spans_ns = EXPLAIN_SPANS_NS[-1:] if wanted == "slowest" else EXPLAIN_SPANS_NS
    for span_ns in spans_ns:
        history = History(span_ns, TRACE_REQUESTS_MAX, TRACE_REQUESTS_MAX)
        look_back(client.recorder, history, cluster, span_ns)
        try:
            return _explain(history, request, wanted, model)
        except InvalidInput:
            if span_ns == spans_ns[-1]:
                raise
    raise AssertionError("the last span raised nothing and found nothing")
