"""Access to the controller: the table of clockwork.wire.roles, applied to keys.

The list of keys is read again while the controller runs. The controller's thread calls everything here except
admit(), which the authenticating thread calls.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clockwork.errors import ConfigError, Forbidden
from clockwork.wire.keys import (
    ALLOWED_FILE,
    AllowedKey,
    ControllerKeys,
    read_allowed_keys,
    read_controller_keys,
)
from clockwork.wire.messages import Query
from clockwork.wire.roles import ANY_ROLE, DEEDS, MESSAGES, PORTS, QUERIES, ControllerSocket, Role

log = logging.getLogger("clockwork.controller")

REFUSALS_KEPT = 64
"""Bound of the refused connections that wait to be logged; beyond it the oldest are forgotten."""

_Stamp = tuple[int, int, int] | None
"""The identity of a file's content: a different stamp means that the file was replaced or written to."""


class Access:
    """The keys that may connect, and their rights.

    key: the controller's key file; None: everything is allowed. allowed: the list of keys; None: the list
    beside the key file. Raises ConfigError for a file that is missing or broken.
    """

    def __init__(self, key: Path | None, allowed: Path | None = None) -> None:
        self.keys: ControllerKeys | None = None
        self._key = key
        self._allowed = allowed
        self._rows: Mapping[str, AllowedKey] = {}
        self._roles: Mapping[
            str, frozenset[Role]
        ] = {}  # every key that is let in; replaced as a whole, never changed
        self._stamps: tuple[_Stamp, ...] = ()  # stamps of the files that were read
        self._seen: tuple[_Stamp, ...] = ()  # stamps of the files at the last look
        self._may_lack_list = allowed is None
        self._refusals: deque[str] = deque(maxlen=REFUSALS_KEPT)
        if key is None:
            if allowed is not None:
                raise ConfigError("a list of keys (--allowed) needs the controller's own key (--key)")
            return
        if allowed is None:
            self._allowed = key.with_name(ALLOWED_FILE)
        self._stamps = self._look()
        self.keys = self._read()
        if not self._roles:
            log.warning("no key is let in: %s lists none (clockwork keys add)", self._allowed)

    @property
    def is_open(self) -> bool:
        """Whether there are no keys, and everything is allowed."""
        return self.keys is None

    # ----- asked -------------------------------------------------------------------------------

    def admit(self, port: ControllerSocket, public: str) -> bool:
        """Decide whether a connection with this key is let in. refusals() returns refusals. Any thread."""
        roles = self._roles.get(public, frozenset())
        if not PORTS[port].isdisjoint(roles):
            return True
        row = self._rows.get(public)
        whose = (
            f"the key {row.name} is of the role {row.role}" if row is not None else "its key is on no list"
        )
        self._refusals.append(f"a connection to {port} was refused: {whose}")
        return False

    def refusals(self) -> list[str]:
        """The connections that admit() refused since the last call, a sentence for each."""
        found = []
        while self._refusals:
            found.append(self._refusals.popleft())
        return found

    def check(self, public: str, message: Any) -> None:
        """Raises Forbidden where a connection's key may not send this message. public: "" without a key."""
        if self.keys is None:
            return
        may = MESSAGES[type(message)]
        if type(message) is Query:
            may = QUERIES.get(message.what, may)
        has = self._roles.get(public)
        if has is None:
            raise Forbidden("the key of this connection has been revoked")
        if may.isdisjoint(has):
            kind = message.what if type(message) is Query else type(message)
            what = DEEDS.get(kind, type(message).__name__)
            raise Forbidden(
                f"{what} is for {', '.join(f'{role}s' for role in sorted(may))}; "
                f"the key of this connection ({self._rows[public].name}) is of the role {self._rows[public].role}"
            )

    def name_of(self, public: str) -> str:
        """The name of a key for people, with a comma behind it; "": no key, or one without a name."""
        row = self._rows.get(public)
        return f"key {row.name}, " if row is not None else ""

    # ----- read again --------------------------------------------------------------------------

    def has_changed(self) -> bool:
        """Whether a file was changed since it was last read, and not since the last call.

        A file that is being written is not read: a key that is not in it yet would be revoked.
        """
        if self.keys is None:
            return False
        before, self._seen = self._seen, self._look()
        return self._seen != self._stamps and self._seen == before

    def read_again(self) -> frozenset[str]:
        """Read the files again, and return the keys whose rights have changed.

        Raises ConfigError for a file that is missing or broken: the rights that were read before then stay.
        """
        if self.keys is None:
            return frozenset()
        before = self._roles
        self._stamps = self._look()
        self._read()
        return frozenset(public for public, roles in before.items() if self._roles.get(public) != roles)

    def _look(self) -> tuple[_Stamp, ...]:
        found: list[_Stamp] = []
        for path in (self._key, self._allowed):
            assert path is not None
            try:
                stat = path.stat()
            except OSError:
                found.append(None)
            else:
                found.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
        return tuple(found)

    def _read(self) -> ControllerKeys:
        assert self._key is not None
        assert self._allowed is not None
        keys = read_controller_keys(self._key)
        rows: Mapping[str, AllowedKey] = {}
        if not (keys.allowed and self._may_lack_list) or self._allowed.exists():
            rows = read_allowed_keys(self._allowed)
            self._may_lack_list = False  # from here on, a missing list is an error
        roles = {public: frozenset({row.role}) for public, row in rows.items()}
        legacy = [public for public in keys.allowed if public not in roles]
        if legacy:
            log.warning(
                "%d keys of %s were made before keys had roles, and may do everything: make others (clockwork keys "
                "add), and revoke these (clockwork keys revoke)", len(legacy), self._key,
            )  # fmt: skip
        self._rows = rows
        self._roles = {**roles, **dict.fromkeys(legacy, ANY_ROLE)}
        return keys
