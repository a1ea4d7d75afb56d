"""CURVE keys in files: the controller's pair, a pair for each peer, and the list of keys that may connect.

``clockwork keys new DIR`` writes a peer's file for each role. A peer's file holds its own pair and the
controller's public key; the list (``allowed.keys``) holds public keys alone, each with its role, and is read
again while the controller runs. Files from before there were roles are still read: then the controller's file
itself lists the keys.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clockwork.config.wire import ALLOWED_BYTES_MAX
from clockwork.errors import ConfigError
from clockwork.system.files import fsync_directory
from clockwork.wire.roles import Role

CONTROLLER_KEY_FILE = "controller.key"
ALLOWED_FILE = "allowed.keys"
KEY_FILES = {role: f"{role}.key" for role in Role}
"""The file names that `clockwork keys new` gives to the key of each role."""

LEGACY_KEY_FILE = "peer.key"
"""The file name that `clockwork keys new` gave to its only peer key before there were roles."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PUBLIC = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")

_ALLOWED_HEAD = """\
# Who may connect to the controller, a key a line: role, public key, name. The controller reads this file again when it
# changes. `clockwork keys add` and `clockwork keys revoke` write it; a line that is removed is a key revoked.
"""

Pair = tuple[str, str]  # (public, secret), Z85 of 40 characters each


@dataclasses.dataclass(frozen=True, slots=True)
class ControllerKeys:
    public: str  # public key in Z85, 40 characters
    secret: str
    allowed: tuple[str, ...] = ()  # public keys from before there were roles; they have every right


@dataclasses.dataclass(frozen=True, slots=True)
class PeerKeys:
    public: str
    secret: str
    controller: str  # the controller's public key
    role: Role | None = None  # the role that it was made for; the controller decides by its own list


@dataclasses.dataclass(frozen=True, slots=True)
class AllowedKey:
    """A line of allowed.keys."""

    role: Role
    public: str
    name: str


def read_controller_keys(path: Path) -> ControllerKeys:
    """The controller's keys in a file. Raises ConfigError, naming the file and the defect."""
    body = _read(path, ("public", "secret"))
    allowed = body.get("allowed", [])
    if not isinstance(allowed, list) or not all(_is_public(key) for key in allowed):
        raise ConfigError(f"key file {path}: 'allowed' is a list of public keys of 40 characters")
    return ControllerKeys(body["public"], body["secret"], tuple(allowed))


def read_peer_keys(path: Path) -> PeerKeys:
    """A peer's keys in a file. Raises ConfigError, naming the file and the defect."""
    body = _read(path, ("public", "secret", "controller"))
    role = body.get("role")
    if role is not None and role not in list(Role):
        raise ConfigError(f"key file {path}: 'role' is {', '.join(Role)}, not {str(role)[:40]!r}")
    return PeerKeys(body["public"], body["secret"], body["controller"], None if role is None else Role(role))


def read_allowed_keys(path: Path) -> Mapping[str, AllowedKey]:
    """The keys that may connect, by public key. Raises ConfigError, naming file, line and defect."""
    try:
        with open(path, "rb") as file:
            data = file.read(ALLOWED_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"list of keys {path} cannot be read: {error.strerror}") from None
    if len(data) > ALLOWED_BYTES_MAX:
        raise ConfigError(f"list of keys {path} has more than {ALLOWED_BYTES_MAX} bytes")
    found: dict[str, AllowedKey] = {}
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        where = f"list of keys {path}, line {number}"
        if len(words) != 3:
            raise ConfigError(f"{where}: a role, a public key and a name, got {len(words)} words")
        role, public, name = words
        if role not in list(Role):
            raise ConfigError(f"{where}: a role is {', '.join(Role)}, got {role[:40]!r}")
        if not _is_public(public) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"{where}: a public key has 40 characters of Z85, a name 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-'"
            )
        if public in found:
            raise ConfigError(f"{where}: the key is in line before already, as {found[public].name}")
        found[public] = AllowedKey(Role(role), public, name)
    return found


def key_file_of(directory: Path, role: Role) -> Path:
    """The file of a role's key; the legacy key's file if that is the only one there."""
    found, legacy = directory / KEY_FILES[role], directory / LEGACY_KEY_FILE
    return legacy if legacy.is_file() and not found.is_file() else found


def write_keys(directory: Path, controller: Pair, peers: Mapping[Role, Pair]) -> list[Path]:
    """Write a controller's key, a key for each role and allowed.keys; only their owner can read secrets.

    Raises ConfigError rather than overwrite a key that may be in use.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ours, listed = directory / CONTROLLER_KEY_FILE, directory / ALLOWED_FILE
    files = {role: directory / KEY_FILES[role] for role in peers}
    for path in (ours, *files.values(), listed):
        if path.exists():
            raise ConfigError(f"key file {path} exists already; move it away first")
    _write(ours, {"public": controller[0], "secret": controller[1]})
    for role, (public, secret) in peers.items():
        _write(
            files[role], {"public": public, "secret": secret, "controller": controller[0], "role": role.value}
        )
    _write_allowed(listed, [AllowedKey(role, peers[role][0], role.value) for role in peers])
    return [ours, *files.values(), listed]


def add_key(directory: Path, role: Role, name: str, pair: Pair) -> list[Path]:
    """Write another peer's key beside a controller's and enter it in allowed.keys. Returns the files written.

    Raises ConfigError.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"a key's name has 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-', got {name[:80]!r}")
    controller = read_controller_keys(directory / CONTROLLER_KEY_FILE)
    path, listed = directory / f"{name}.key", directory / ALLOWED_FILE
    with _locked(directory):
        rows = read_allowed_keys(listed) if listed.exists() else {}
        if any(row.name == name for row in rows.values()):
            raise ConfigError(f"{listed} has a key of the name {name} already")
        _write(
            path, {"public": pair[0], "secret": pair[1], "controller": controller.public, "role": role.value}
        )
        _write_allowed(listed, [*rows.values(), AllowedKey(role, pair[0], name)])
    return [path, listed]


def revoke_key(directory: Path, which: str) -> list[str]:
    """Take a key off allowed.keys. Returns the names of the keys removed.

    which: the key's name, its public key or its file. A key from before there were roles is taken out of the
    controller's own file. Raises ConfigError for a key that is in neither.
    """
    public = which
    if not _is_public(which) and (Path(which).is_file() or (directory / which).is_file()):
        public = _read(Path(which) if Path(which).is_file() else directory / which, ("public",))["public"]
    listed, ours = directory / ALLOWED_FILE, directory / CONTROLLER_KEY_FILE
    gone: list[str] = []
    with _locked(directory):
        rows = read_allowed_keys(listed) if listed.exists() else {}
        kept = [row for row in rows.values() if which != row.name and public != row.public]
        if len(kept) < len(rows):
            gone += [f"{row.name} ({row.role})" for row in rows.values() if row not in kept]
            _write_allowed(listed, kept)
        legacy = read_controller_keys(ours).allowed if ours.is_file() else ()
        if public in legacy:
            body = _read(ours, ("public", "secret"))
            body["allowed"] = [key for key in legacy if key != public]
            _replace(ours, json.dumps(body, indent=2) + "\n", 0o600)
            gone.append(f"{public} (any role)")
    if not gone:
        raise ConfigError(
            f"{directory} lets in no key called {which[:80]!r}; see: clockwork keys list {directory}"
        )
    return gone


def _is_public(key: object) -> bool:
    return isinstance(key, str) and _PUBLIC.fullmatch(key) is not None


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock, so that two commands at once do not lose each other's change."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"directory of keys {directory} cannot be opened: {error.strerror}") from None
    try:
        import fcntl  # imported here, because a client on Windows imports this module

        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write_allowed(path: Path, rows: Iterable[AllowedKey]) -> None:
    body = "".join(f"{row.role:<8} {row.public} {row.name}\n" for row in rows)
    _replace(path, _ALLOWED_HEAD + body, 0o644)  # readable by all, as the controller may run as another user


def _replace(path: Path, text: str, mode: int) -> None:
    """Replace a file durably and atomically: readers see the old or the new text, also after a power loss."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                os.fchmod(file.fileno(), mode)
                with contextlib.suppress(OSError):  # keeps it readable for a controller of another user
                    owner = os.stat(path)
                    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)
            fsync_directory(path.parent)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


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
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"key file {path} is not JSON: {error}") from None
    if not isinstance(body, dict) or any(field not in body for field in fields):
        raise ConfigError(f"key file {path} must hold {', '.join(fields)}")
    for field in fields:
        if not _is_public(body[field]):
            raise ConfigError(f"key file {path}: {field!r} is a key of 40 characters")
    return body
