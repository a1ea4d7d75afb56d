"""TLS and bearer tokens, and the check that a gateway has both where other machines can reach it."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import socket
import ssl
from pathlib import Path

from clockwork.config.gateway import TOKEN_BYTES_MAX
from clockwork.errors import ConfigError, Forbidden
from clockwork.gateway.errors import Unauthorized
from clockwork.gateway.settings import GatewaySettings
from clockwork.web.seats import Standing
from clockwork.wire.keys import read_peer_keys
from clockwork.wire.roles import Right, Role

log = logging.getLogger("clockwork.gateway")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def require_security_beyond_loopback(settings: GatewaySettings) -> None:
    """Raise ConfigError where other machines can reach the gateway without TLS or token, unless ``insecure``
    is set."""
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ConfigError("--tls-cert and --tls-key go together")
    if is_loopback(settings.host) or settings.insecure:
        return
    missing = [
        flag
        for flag, given in (
            ("--tls-cert and --tls-key", settings.tls_cert),
            ("--token-file", settings.token_file),
        )
        if given is None
    ]
    if missing:
        raise ConfigError(
            f"{settings.host} is reachable from other machines: give {' and '.join(missing)}, or say --insecure"
        )


def shares_memory(settings: GatewaySettings) -> bool:
    """Whether callers on this machine may use shared memory.

    A gateway that other machines can reach may be behind a proxy, which makes all callers look local. There
    shared memory is off by default.
    """
    return is_loopback(settings.host) if settings.shared_memory is None else settings.shared_memory


def read_token(path: Path | None) -> bytes | None:
    """Return the token in a file, without surrounding white space. Raises ConfigError."""
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            token = file.read(TOKEN_BYTES_MAX + 1).strip()
    except OSError as error:
        raise ConfigError(f"token file {path} cannot be read: {error.strerror}") from None
    if not 0 < len(token) <= TOKEN_BYTES_MAX or not all(0x21 <= byte <= 0x7E for byte in token):
        raise ConfigError(f"token file {path} must hold 1 to {TOKEN_BYTES_MAX} visible ASCII characters")
    return token


class Tokens:
    """The bearer tokens that requests need.

    client: for inference and queries; None: no token is needed. operator: for changes of the served models;
    None: the client's token is enough.
    """

    def __init__(self, client: bytes | None = None, operator: bytes | None = None) -> None:
        self._client = client
        self._operator = operator

    def __bool__(self) -> bool:
        """Whether any request needs a token."""
        return self._client is not None or self._operator is not None

    def _wanted(self, right: Right) -> bytes | None:
        return self._client if right is Right.INFER or self._operator is None else self._operator

    def guard(self, right: Right) -> bool:
        """Whether a call that needs this right needs a token."""
        return right is not Right.OPEN and self._wanted(right) is not None

    def check(self, right: Right, given: bytes | None) -> Standing:
        """Return the standing that a request's token ``given`` has.

        Raises Unauthorized where the right needs a token and ``given`` is unknown, and Forbidden where the
        right needs the operator's token and ``given`` is the client's.
        """
        wanted = self._wanted(right)
        if right is Right.OPEN:
            return Standing.STRANGER
        if wanted is None and given is None:
            return Standing.CLIENT
        # Both tokens are compared in every case, so that the duration reveals neither of them.
        is_operator = _is_same(given, self._operator)
        is_client = _is_same(given, self._client)
        if is_operator:
            return Standing.OPERATOR
        if wanted is None or (is_client and wanted is self._client):
            return Standing.CLIENT
        if is_client:
            raise Forbidden("this call changes the served models, which needs the operator's token")
        raise Unauthorized("this server wants Authorization: Bearer and its token")


def names_of(settings: GatewaySettings) -> list[str]:
    """Return the host names, beside localhost, that the check of the Host header accepts."""
    own = [] if is_loopback(settings.host) else [settings.host, socket.gethostname()]
    return [*own, *settings.allowed_hosts]


_SPACE = b" \t"


def _is_same(given: bytes | None, token: bytes | None) -> bool:
    return given is not None and token is not None and hmac.compare_digest(given, token)


def bearer(value: bytes) -> bytes | None:
    """Return the token in the value of an Authorization header, with any spaces around its parts; None: no
    token."""
    scheme, _, rest = value.strip(_SPACE).partition(b" ")
    return rest.strip(_SPACE) if scheme.lower() == b"bearer" else None


def read_tokens(settings: GatewaySettings) -> Tokens:
    """Return the tokens in the files that the settings name. Raises ConfigError."""
    tokens = read_token(settings.token_file), read_token(settings.operator_token_file)
    if tokens[0] is not None and tokens[0] == tokens[1]:
        raise ConfigError("--operator-token-file and --token-file have the same token; make another one")
    if tokens[0] is not None and tokens[1] is None and _may_operate(settings):
        log.warning(
            "every caller with the token may also load and unload models: give --operator-token-file to separate operators from other callers"
        )
    return Tokens(*tokens)


def _may_operate(settings: GatewaySettings) -> bool:
    """Whether the gateway's keys permit changes of the served models."""
    role = read_peer_keys(settings.key).role if settings.key is not None else None
    return settings.operator_key is not None or role in (None, Role.OPERATOR)


def read_pair(settings: GatewaySettings) -> tuple[bytes, bytes] | None:
    """Return certificate chain and key in PEM; None without TLS. Raises ConfigError."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    found = []
    for path in (settings.tls_cert, settings.tls_key):
        try:
            found.append(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    return found[0], found[1]


def tls_context(settings: GatewaySettings) -> ssl.SSLContext | None:
    """Return the TLS context for HTTPS; None without TLS. Raises ConfigError."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{settings.tls_cert} and {settings.tls_key} are no certificate and its key: {error}"
        ) from None
    return context
