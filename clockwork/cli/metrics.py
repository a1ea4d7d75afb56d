"""`clockwork metrics`: a cluster's metrics without a gateway."""

from __future__ import annotations

import click

from clockwork.cli.common import Connect, client_options, print_json, print_text


@click.command()
@click.argument("model", default="")
@click.option("--json", "as_json", is_flag=True, help="Print the controller's numbers as JSON.")
@client_options
def metrics(model: str, as_json: bool, connect: Connect) -> None:
    """Print every number that the controller has, as Prometheus text; of MODEL alone with --json.

    The text of a gateway's /metrics, without the gateway's own metrics. docs/metrics.md explains them.

    \b
    Examples:
      clockwork metrics | grep devices_wanted
      clockwork metrics resnet50 --json
    """
    from clockwork.gateway.metrics import render

    if model and not as_json:
        raise click.UsageError("the numbers of one model are printed with --json")
    with connect() as client:
        body = client.metrics(model)
    if as_json:
        print_json(body)
    else:
        print_text(render(body).decode())
