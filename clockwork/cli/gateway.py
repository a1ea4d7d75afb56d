"""The command `gateway`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import click

from clockwork import config
from clockwork.cli.common import FILE, FOLDER, PATH, Duration, grouped, log_format_option, parent_option
from clockwork.config import cli as settings
from clockwork.config.gateway import NOTICE_S_MAX, POLL_S, REQUESTS_BYTES_MAX
from clockwork.errors import ConfigError
from clockwork.gateway import settings as bounds
from clockwork.sources.location import Location, location_of, require_library
from clockwork.web.pages import split


def _port(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """Return the number of a port; 0 means any free port, and "off" returns OFF."""
    if value == "off":
        return bounds.OFF
    if not (value.isascii() and value.isdigit() and int(value) <= 65535):
        raise click.BadParameter(f"{value!r} is no port: 0 (any that is free) to 65535, or off")
    return int(value)


def _size(context: click.Context, parameter: click.Parameter, value: str) -> int:
    try:
        return config.parse_bytes(value)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None


def _request_size(context: click.Context, parameter: click.Parameter, value: str) -> int:
    found = _size(context, parameter, value)
    if found >= REQUESTS_BYTES_MAX:
        raise click.BadParameter(f"{value} is not below {REQUESTS_BYTES_MAX} bytes, which all requests share")
    return found


def _hosts(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    found = values or settings.allowed_hosts()
    for value in found:
        if not split(value)[0]:
            raise click.BadParameter(f"{value!r} is no HOST or HOST:PORT (or CLOCKWORK_ALLOWED_HOST has it)")
    return found


def allowed_host_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add the flag for further names of a gateway."""
    return click.option(
        "--allowed-host", callback=_hosts, multiple=True, metavar="HOST[:PORT]",
        help="A further name of the gateway for clients or web pages, such as a proxy's, beside localhost and every "
             "address (or CLOCKWORK_ALLOWED_HOST, with commas). Repeatable.",
    )(command)  # fmt: skip


def _status_codes(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> bounds.StatusCodes:
    given = value or settings.status_codes() or bounds.StatusCodes.MESH
    try:
        return bounds.StatusCodes(given)
    except ValueError:
        raise click.BadParameter(
            f"{given[:40]!r} is none of {', '.join(bounds.StatusCodes)} (or CLOCKWORK_STATUS_CODES has it)"
        ) from None


def status_codes_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add the flag for the statuses of refusals."""
    return click.option(
        "--status-codes", callback=_status_codes, metavar="mesh|triton",
        help="The status of a shed request: 429 and RESOURCE_EXHAUSTED, by which meshes and proxies recognize "
             "overload; or 503 and UNAVAILABLE, as Triton (or CLOCKWORK_STATUS_CODES).  [default: mesh]",
    )(command)  # fmt: skip


def _repositories(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[Path | Location, ...]:
    found: list[Path | Location] = []
    for value in values:
        try:
            location = location_of(value)
            if location is not None:
                require_library(location)
        except ConfigError as error:
            raise click.BadParameter(str(error)) from None
        found.append(location or FOLDER.convert(value, parameter, context))
    return tuple(found)


@dataclasses.dataclass(frozen=True, slots=True)
class RepositoryFlags:
    """The model repositories of a gateway; repository_options has the meaning of each field."""

    model_repository: tuple[Path | Location, ...]
    model_control_mode: str
    repository_poll_secs: float
    repository_cache: Path | None
    repository_cache_size: int  # bound in bytes
    load_model: tuple[str, ...]

    def arguments(self, data: Path) -> tuple[str, ...]:
        """Return the same flags for a gateway's command line. data: the folder of the default cache."""
        if not self.model_repository:
            if self.load_model:
                raise click.UsageError("--load-model needs a --model-repository")
            return ()
        cache = self.repository_cache or data / "repositories"
        roots = [
            root.url if isinstance(root, Location) else str(root.absolute()) for root in self.model_repository
        ]
        return (
            "--model-control-mode", self.model_control_mode, "--repository-poll-secs", f"{self.repository_poll_secs:g}",
            "--repository-cache", str(cache.absolute()), "--repository-cache-size", str(self.repository_cache_size),
            *(word for root in roots for word in ("--model-repository", root)),
            *(word for name in self.load_model for word in ("--load-model", name)),
        )  # fmt: skip


repository_options = grouped(
    "repositories",
    RepositoryFlags,
    click.option("--model-repository", callback=_repositories, multiple=True, metavar="DIRECTORY|URL",
                 help="A Triton model repository, whose models are registered (NAME/VERSION/model.onnx, "
                      "NAME/config.pbtxt): a directory, or a URL of s3://, gs://, az://, hf://, https:// or "
                      "http://; repeatable."),
    click.option("--model-control-mode", type=click.Choice(bounds.CONTROL_MODES), show_default=True,
                 default=bounds.CONTROL_MODES[0],
                 help="poll: follow its changes; explicit: load the models that the repository API or --load-model "
                      "names; none: register its models at start."),
    click.option("--repository-poll-secs", type=Duration(0.1, 86_400), show_default=True,
                 default=f"{POLL_S:g}", help="Interval of polls."),
    click.option("--repository-cache", type=PATH, metavar="DIRECTORY",
                 help="Directory for files of repositories with URLs.  [default: repositories/ in "
                      "CLOCKWORK_DATA]"),
    click.option("--repository-cache-size", callback=_size, metavar="SIZE", default="64GiB",
                 show_default=True, help="Bound of its size; the least recently used versions are removed first."),
    click.option("--load-model", multiple=True, metavar="NAME",
                 help="In explicit mode, a model to load at start (*: all); repeatable."),
)  # fmt: skip
"""Adds the flags of model repositories; the command gets ``repositories``, RepositoryFlags."""


@click.command()
@log_format_option
@click.option(
    "--connect",
    help=f"The controller; several with commas (or CLOCKWORK_ENDPOINT).  [default: {config.CLIENT_ENDPOINT}]",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--http-port",
    callback=_port,
    default=str(bounds.HTTP_PORT),
    show_default=True,
    help="0: any free port; off: none.",
)
@click.option("--grpc-port", callback=_port, default=str(bounds.GRPC_PORT), show_default=True)
@click.option("--metrics-port", callback=_port, default=str(bounds.METRICS_PORT), show_default=True)
@click.option("--tls-cert", type=FILE, help="The certificate chain, PEM.")
@click.option("--tls-key", type=FILE, help="Its key, PEM.")
@click.option("--token-file", type=FILE, help="A file with the bearer token that clients must send.")
@click.option(
    "--operator-token-file",
    type=FILE,
    help="A file with the token that also allows loading and unloading models.  [default: that of --token-file]",
)
@click.option("--insecure", is_flag=True, help="Listen beyond this machine without TLS and token.")
@allowed_host_option
@click.option(
    "--shared-memory/--no-shared-memory",
    default=None,
    help="Whether programs on this machine may pass tensors in shared memory.  [default: where --host is loopback]",
)
@click.option(
    "--max-request-bytes",
    callback=_request_size,
    metavar="SIZE",
    default="64MiB",
    show_default=True,
    help="Size of the largest accepted request.",
)
@status_codes_option
@click.option(
    "--otlp-endpoint",
    default="",
    metavar="URL",
    help="Receiver of OpenTelemetry spans, over HTTP (or OTEL_EXPORTER_OTLP_ENDPOINT).  [default: nowhere]",
)
@click.option(
    "--behind-proxy",
    is_flag=True,
    help="Only proxies connect to it: take gRPC from those that keep no table of headers, as nginx and HAProxy.",
)
@click.option(
    "--notice",
    type=Duration(0, NOTICE_S_MAX),
    default="0s",
    show_default=True,
    help="Time from a signal to stop for which it goes on serving and says that it is not ready, so that a load balancer sends no more. A second signal ends it.",
)
@repository_options
@click.option("--key", type=PATH, help="Its key file, gateway.key (or CLOCKWORK_KEY).")
@click.option(
    "--operator-key",
    type=PATH,
    help="An operator's key file, with which the gateway can load, unload and register models (or CLOCKWORK_OPERATOR_KEY).",
)
@parent_option
def gateway(
    connect: str | None, host: str, http_port: int, grpc_port: int, metrics_port: int, tls_cert: Path | None,
    tls_key: Path | None, token_file: Path | None, insecure: bool, allowed_host: tuple[str, ...], shared_memory: bool | None, max_request_bytes: int,
    status_codes: bounds.StatusCodes, otlp_endpoint: str, behind_proxy: bool, notice: float,
    repositories: RepositoryFlags,
    operator_token_file: Path | None, key: Path | None, operator_key: Path | None,
) -> None:  # fmt: skip
    """Serve a cluster over HTTP and gRPC by the Open Inference Protocol (KServe, Triton).

    A cluster can have any number of gateways. Their only state is the names of shared memory that programs on
    their machine have registered.

    \b
    Examples:
      clockwork gateway
      clockwork gateway --connect tcp://10.0.0.1:5555 --key gateway.key --host 0.0.0.0 \\
          --tls-cert cert.pem --tls-key key.pem --token-file token
      clockwork gateway --model-repository /srv/models
      clockwork gateway --model-repository s3://bucket/models --repository-poll-secs 30
      curl http://127.0.0.1:8000/v2/models/digits
    """
    from clockwork.gateway import process

    sys.exit(process.main(bounds.GatewaySettings(
        endpoint=connect or config.client_endpoint(), key=key or config.key_file(), host=host, http_port=http_port,
        grpc_port=grpc_port, metrics_port=metrics_port, tls_cert=tls_cert, tls_key=tls_key, token_file=token_file,
        operator_token_file=operator_token_file, operator_key=operator_key or settings.operator_key_file(),
        insecure=insecure, allowed_hosts=allowed_host, shared_memory=shared_memory, request_bytes_max=max_request_bytes,
        status_codes=status_codes, otlp_endpoint=otlp_endpoint, behind_proxy=behind_proxy, notice_s=notice,
        repositories=repositories.model_repository, control_mode=repositories.model_control_mode,
        poll_s=repositories.repository_poll_secs, load_models=repositories.load_model,
        cache=repositories.repository_cache, cache_bytes=repositories.repository_cache_size,
    )))  # fmt: skip
