"""`clockwork dashboard`: a live view of a cluster in a browser."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clockwork import config
from clockwork.cli.common import FILE, PATH, Connect, Duration, describe_cluster, parent_option, print_line
from clockwork.config.dashboard import DASHBOARD_ANSWER_S, DASHBOARD_PAGES_MAX, DASHBOARD_PORT
from clockwork.errors import ConfigError
from clockwork.system.clock import SECOND

if TYPE_CHECKING:
    from clockwork.observe.dashboard.follower import StepSource


@click.command()
@click.option(
    "--endpoint",
    help=f"The controller; several with commas (or CLOCKWORK_ENDPOINT).  [default: {config.CLIENT_ENDPOINT}]",
)
@click.option("--key", type=PATH, help="An operator's key file, if the cluster has keys (or CLOCKWORK_KEY).")
@click.option(
    "--recording",
    type=FILE,
    help="Instead of a cluster, show a recording or a dump of its flight recorder, at its own pace.",
)
@click.option(
    "--from",
    "from_s",
    type=Duration(0),
    default=0.0,
    help="With --recording: begin this long after its beginning.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=DASHBOARD_PORT,
    show_default=True,
    help="0: any free port.",
)
@click.option("--token-file", type=FILE, help="A file with the token that browsers must send.")
@click.option("--tls-cert", type=FILE, help="The certificate chain, PEM.")
@click.option("--tls-key", type=FILE, help="Its key, PEM.")
@click.option(
    "--origin",
    "origins",
    multiple=True,
    metavar="HOST[:PORT]",
    help="Another name of the dashboard in browsers, such as a proxy's. Repeatable. All but its own "
    "names and addresses are refused.",
)
@click.option("--insecure", is_flag=True, help="Listen beyond this machine without TLS and token.")
@click.option(
    "--pages",
    type=click.IntRange(1, 1000),
    default=DASHBOARD_PAGES_MAX,
    show_default=True,
    help="Bound of open pages.",
)
@parent_option
def dashboard(
    endpoint: str | None, key: Path | None, recording: Path | None, from_s: float, host: str, port: int, token_file: Path | None, tls_cert: Path | None,
    tls_key: Path | None, origins: tuple[str, ...], insecure: bool, pages: int,
) -> None:  # fmt: skip
    """Show a cluster in a browser: devices, answers, memory, predictions, and each request.

    The dashboard listens only on this machine by default. Beyond it, TLS and a token are required. Ctrl-C
    ends it.

    \b
    Examples:
      clockwork dashboard
      clockwork dashboard --endpoint tcp://10.0.0.1:5555 --key keys/operator.key
      clockwork dashboard --recording monday.rec --from 60
      clockwork dashboard --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem --token-file token
    """
    if importlib.util.find_spec("bokeh") is None:
        raise ConfigError("the dashboard needs bokeh: pip install 'clockwork-serving[dashboard]'")
    from clockwork.gateway.process import listen
    from clockwork.gateway.security import read_token, require_security_beyond_loopback, tls_context
    from clockwork.gateway.settings import GatewaySettings
    from clockwork.observe.dashboard.server import Dashboard, DashboardSettings

    security = GatewaySettings(
        host=host, tls_cert=tls_cert, tls_key=tls_key, token_file=token_file, insecure=insecure
    )
    require_security_beyond_loopback(security)
    token, tls = read_token(token_file), tls_context(security)
    with contextlib.ExitStack() as stack:
        bound = stack.enter_context(listen(host, port, "--port"))
        port = int(bound.getsockname()[1])
        if recording is None:
            source, name = _live(endpoint, key), endpoint or config.client_endpoint()
        else:
            source, name = _recorded(stack, recording, from_s), recording.name
        settings = DashboardSettings(bound, tuple(_origins(host, port, origins)), name, token, tls, pages)
        where = host if host not in ("0.0.0.0", "::") else socket.gethostname()
        url = f"{'https' if tls else 'http'}://{f'[{where}]' if ':' in where else where}:{port}/"

        def started() -> None:
            print_line(f"The dashboard is at {url} (Ctrl-C ends it)")
            sys.stdout.flush()

        Dashboard(settings, source).run(started)


def _live(endpoint: str | None, key: Path | None) -> StepSource:
    from clockwork.observe.dashboard.sources import Live

    # The client is not closed: the reading thread may wait for an answer, and ends with the process.
    client = Connect(endpoint, key)(DASHBOARD_ANSWER_S)
    return Live(client.recorder, functools.partial(describe_cluster, client), time.monotonic_ns)


def _recorded(stack: contextlib.ExitStack, path: Path, from_s: float) -> StepSource:
    from clockwork.observe.dashboard.sources import RecordingSource

    file = stack.enter_context(path.open("rb"))
    return RecordingSource(file, time.monotonic_ns, round(from_s * SECOND))


def _origins(host: str, port: int, more: tuple[str, ...]) -> Iterator[str]:
    """Yield HOST:PORT of the pages that may open a websocket."""
    names = [host, socket.gethostname()]
    if host in ("127.0.0.1", "::1", "localhost"):
        names = ["127.0.0.1", "localhost", "::1"]
    for name in names:
        yield f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
    for name in more:
        yield name if ":" in name else f"{name}:{port}"
