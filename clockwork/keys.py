"""CURVE keys in files: one for the controller, one for everybody who dials in.

A controller's file holds its own pair and the public keys that it lets in; a peer's file holds its
own pair and the controller's public key. ``clockwork keys new DIR`` writes both.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from clockwork.errors import ConfigError

CONTROLLER_KEY_FILE = "controller.key"
PEER_KEY_FILE = "peer.key"


@dataclasses.dataclass(frozen=True, slots=True)
class ControllerKeys:
    public: str  # Z85, 40 characters
    secret: str
    allowed: tuple[str, ...]  # public keys of the peers that may connect


@dataclasses.dataclass(frozen=True, slots=True)
class PeerKeys:
    public: str
    secret: str
    controller: str  # the controller's public key


def read_controller_keys(path: Path) -> ControllerKeys:
    """Raises ConfigError, naming the file and what is wrong with it."""
    body = _read(path, ("public", "secret", "allowed"))
    allowed = body["allowed"]
    if not isinstance(allowed, list) or not all(isinstance(key, str) and len(key) == 40 for key in allowed):
        raise ConfigError(f"key file {path}: 'allowed' is a list of public keys of 40 characters")
    return ControllerKeys(body["public"], body["secret"], tuple(allowed))


def read_peer_keys(path: Path) -> PeerKeys:
    """Raises ConfigError, naming the file and what is wrong with it."""
    body = _read(path, ("public", "secret", "controller"))
    return PeerKeys(body["public"], body["secret"], body["controller"])


def write_keys(directory: Path, controller: tuple[str, str], peer: tuple[str, str]) -> tuple[Path, Path]:
    """Write the two files, readable by their owner alone. Each pair is (public, secret).

    Raises ConfigError rather than overwrite a key that somebody may be using.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ours, theirs = directory / CONTROLLER_KEY_FILE, directory / PEER_KEY_FILE
    _write(ours, {"public": controller[0], "secret": controller[1], "allowed": [peer[0]]})
    _write(theirs, {"public": peer[0], "secret": peer[1], "controller": controller[0]})
    return ours, theirs


def _write(path: Path, body: dict[str, object]) -> None:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ConfigError(f"key file {path} exists already; move it away first") from None
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(body, file, indent=2)
        file.write("\n")


def _read(path: Path, fields: tuple[str, ...]) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"key file {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"key file {path} is not JSON: {error}") from None
    if not isinstance(body, dict) or any(field not in body for field in fields):
        raise ConfigError(f"key file {path} must hold {', '.join(fields)}")
    for field in fields:
        if field != "allowed" and not (isinstance(body[field], str) and len(body[field]) == 40):
            raise ConfigError(f"key file {path}: {field!r} is a key of 40 characters")
    return body
