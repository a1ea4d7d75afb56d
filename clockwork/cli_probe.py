"""`clockwork probe`: whether a cluster is well, for probes and health checks."""

from __future__ import annotations

from pathlib import Path

import click

from clockwork.cli_common import client_options, new_client
from clockwork.errors import Unavailable


@click.command()
@click.option("--worker", metavar="NAME", help="Ask about that worker instead.")
@client_options
def probe(worker: str | None, endpoint: str | None, key: Path | None, timeout: float | None) -> None:
    """Say whether the controller answers, or a worker is ready: for probes and health checks.

    Exit status 0 if so, else 1. A worker is ready when the controller has it, it has prepared every model that it
    was told to, and it does not leave.

    \b
    Examples:
      clockwork probe --timeout 2
      clockwork probe --worker worker-0
    """
    with new_client(endpoint, key, timeout) as client:
        body = client.status()
    if worker is None:
        click.echo(f"controller {body['version']} answers; {len(body['workers'])} workers")
        return
    found = next((one for one in body["workers"] if one["name"] == worker), None)
    if found is None:
        raise Unavailable(f"no worker {worker!r} is connected")
    coming = found["stats"].get("models_coming", 0)
    if found["state"] == "draining":
        raise Unavailable(f"{worker} is leaving")
    if coming or "models" not in found["stats"]:
        raise Unavailable(f"{worker} prepares {coming} models")
    click.echo(f"{worker} is ready; it has prepared {found['stats']['models']} models")
