"""Who may come in: TLS, the bearer token, and what may listen beyond this machine without either."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path

from clockwork.errors import ConfigError
from clockwork.gateway.settings import TOKEN_BYTES_MAX, GatewaySettings


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def require_security_beyond_loopback(settings: GatewaySettings) -> None:
    """Raises ConfigError where something would be open to the network and nobody insisted."""
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


def read_token(path: Path | None) -> bytes | None:
    """The token in a file, without the white space around it. Raises ConfigError."""
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


def read_pair(settings: GatewaySettings) -> tuple[bytes, bytes] | None:
    """Certificate chain and key, PEM; none without TLS. Raises ConfigError."""
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
    """For HTTPS. Raises ConfigError."""
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
