"""`clockwork probe`: checks a cluster, a worker or a model, for probes and health checks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clockwork import config
from clockwork.cli.common import PATH, Connect, client_options, print_line
from clockwork.errors import Unavailable
from clockwork.system.words import say_count

if TYPE_CHECKING:
    from clockwork.wire.description import ModelInfo


@click.command()
@click.option("--worker", metavar="NAME", help="Check this worker instead.")
@click.option("--model", metavar="NAME", help="Check this model instead: NAME, or NAME@VERSION.")
@click.option("--ready", is_flag=True, help="Check that the cluster is ready instead.")
@click.option("--data", type=PATH, metavar="DIR",
              help="The controllers' data directory on this machine: the role of that at --endpoint comes first.")  # fmt: skip
@client_options
def probe(worker: str | None, model: str | None, ready: bool, data: Path | None, connect: Connect) -> None:
    """Check that the controller answers, or that a worker, a model or the cluster is ready.

    Exit status 0 if so, else 1. A worker is ready if it is connected and not leaving, and every model that it
    was told to prepare is prepared or has failed for a reason, though not all have failed. A model is ready
    if a worker that is not leaving serves it. The cluster is ready, as in /v2/health/ready, if it has a
    worker, and every model at its start is served or has failed for a reason. A standby is never ready: with
    --data, the command says so, and which controller is active.

    \b
    Examples:
      clockwork probe --timeout 2
      clockwork probe --ready
      clockwork probe --worker worker-0
      clockwork probe --model resnet50
      clockwork probe --data /srv/clockwork --endpoint tcp://10.0.0.1:5565
    """
    if (worker is not None) + (model is not None) + ready > 1:
        raise click.UsageError("--worker, --model and --ready are three questions: ask one")
    if data is not None and (standby := _standby_in(data, connect.endpoint or config.client_endpoint())):
        if ready or worker is not None or model is not None:
            raise Unavailable(f"{standby}; a standby takes no requests")
        print_line(standby)
        return
    with connect() as client:
        if model is not None:
            _probe_model(client.model(model))
            return
        body: Mapping[str, Any] = client.status()
    if worker is not None:
        _probe_worker(body, worker)
        return
    why = body.get("why_not_ready", "")
    if ready and why:
        raise Unavailable(f"the cluster is not ready: {why}")
    state = f"not ready: {why}" if why else "ready"
    print_line(f"controller {body['version']} answers; {say_count(len(body['workers']), 'worker')}; {state}")


def _standby_in(data: Path, endpoint: str) -> str:
    """A sentence about the standby at an endpoint, by the notes in a data directory; "": none is there."""
    from clockwork.controller.peers.directory import fellows_in
    from clockwork.controller.standing import ControllerRole

    try:
        fellows = [fellow for fellow in fellows_in(data) if fellow.is_alive]
    except OSError as error:
        raise Unavailable(f"data directory {data} cannot be read: {error.strerror}") from None
    here = [
        fellow for fellow in fellows if fellow.role is ControllerRole.STANDBY and fellow.address == endpoint
    ]
    if not here:
        return ""
    if here[0].follows:
        return f"standby at {endpoint}; {here[0].follows} is active"
    active = [fellow for fellow in fellows if fellow.role is ControllerRole.ACTIVE]
    if not active:
        return f"standby at {endpoint}; no controller is active"
    since_s = max(0, time.time_ns() - active[0].since_ns) / 1e9
    return f"standby at {endpoint}; {active[0].address} is active, for {since_s:.0f} s"


def _probe_model(info: ModelInfo) -> None:
    if info.state != "ready":
        raise Unavailable(f"{info.reference} is {info.state}" + (f": {info.text}" if info.text else ""))
    served = sum(report.get("state") == "ready" for report in info.raw.get("preparations", ()))
    print_line(f"{info.reference} is ready; {say_count(served, 'worker')} serving it")


def _probe_worker(body: Mapping[str, Any], name: str) -> None:
    found = next((worker for worker in body["workers"] if worker["name"] == name), None)
    if found is None:
        raise Unavailable(f"no worker {name!r} is connected")
    if found["state"] == "draining":
        raise Unavailable(f"{name} is leaving")
    models = found["models"]
    if models["preparing"]:
        raise Unavailable(f"{name} prepares {say_count(models['preparing'], 'model')}")
    failed = "".join(f"\n{label} failed there: {why}" for label, why in models["failures"])
    if models["failed"] and not models["ready"]:
        raise Unavailable(f"{name} has prepared none of {say_count(models['failed'], 'model')}" + failed)
    text = f"{name} is ready; it has prepared {say_count(models['ready'], 'model')}"
    print_line(text + (f", and failed to prepare {models['failed']}" + failed if failed else ""))
