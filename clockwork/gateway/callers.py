"""Finds the user id of a caller that runs on this machine.

Shared memory belongs to a user of this machine, so the gateway must know the user for whom it reads and
writes. A TCP connection carries no credentials. Where both of its ends are in this network namespace, the
kernel knows the user of the caller's socket and returns it for the connection's addresses (sock_diag(7)). The
answer holds while the connection is open, because no other socket can have these addresses.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from clockwork.errors import Forbidden

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_TCP_ESTABLISHED = 1
_ANY_COOKIE = (0xFFFFFFFF, 0xFFFFFFFF)
_HEADER = struct.Struct("=IHHII")  # the kernel's struct nlmsghdr
_REQUEST = struct.Struct("=BBBxI")  # the kernel's struct inet_diag_req_v2, up to its addresses
_PORTS = struct.Struct(">HH")
_FOUND = struct.Struct("=BBBB48x4xIIII")  # inet_diag_msg: family, state, ..., then two queues, user, inode
_ANSWER_BYTES = 4_096

_RELAYED = frozenset({"forwarded", "x-forwarded-for", "via", "origin"})
"""Headers of requests that the connected process sends for somebody else: three are set by proxies, and
browsers set Origin for a page."""


class Endpoint(NamedTuple):
    """One end of a TCP connection."""

    host: str
    port: int


class Caller(NamedTuple):
    """The connection and the headers (or gRPC metadata) of one request."""

    address: Endpoint
    served: Endpoint  # the gateway's end of the connection
    headers: Iterable[str]  # names of the headers

    def user(self) -> int:
        """Return the user id of the process that made the request.

        Raises Forbidden for requests of other machines and for relayed requests.
        """
        for name in self.headers:
            if name.lower() in _RELAYED:
                raise Forbidden(
                    "shared memory is for programs on the gateway's machine that connect to it directly; "
                    f"this request has the header {name}, so it was made by a proxy or a web page"
                )
        found = user_of(self.address, self.served)
        if found is None:
            raise Forbidden(
                f"shared memory is for programs on the gateway's machine; no connection from {self.address.host} "
                f"port {self.address.port} is known here"
            )
        return found


def user_of(address: Endpoint, served: Endpoint) -> int | None:
    """Return the user id that owns the socket at ``address`` whose other end is ``served``.

    None: this machine has no such connection, or this user namespace does not know the user.
    """
    local, remote = _packed(address.host), _packed(served.host)
    if local is None or remote is None or len(local) != len(remote):
        return None
    family = socket.AF_INET if len(local) == 4 else socket.AF_INET6
    body = b"".join((
        _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0xFFFFFFFF),
        _PORTS.pack(address.port, served.port), local.ljust(16, b"\0"), remote.ljust(16, b"\0"),
        struct.pack("=III", 0, *_ANY_COOKIE),
    ))  # fmt: skip
    header = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    try:
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
        ) as asking:
            asking.sendto(header + body, (0, 0))
            # the kernel answers before send() returns
            answer = asking.recv(_ANSWER_BYTES, socket.MSG_DONTWAIT)
    except OSError:  # a kernel or a sandbox without sock_diag: no user is known
        return None
    if len(answer) < _HEADER.size + _FOUND.size or _HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return None
    state, user = (_FOUND.unpack_from(answer, _HEADER.size)[index] for index in (1, 6))
    # The kernel reports user 0 for a connection that its caller has closed.
    if state != _TCP_ESTABLISHED or user == _OVERFLOW_USER:
        return None
    return int(user)


def _packed(host: str) -> bytes | None:
    try:
        found = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return found.packed


def _overflow_user() -> int:
    try:
        return int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return 65534


_OVERFLOW_USER = _overflow_user()
"""The id that the kernel gives for every user without an id in this user namespace."""
