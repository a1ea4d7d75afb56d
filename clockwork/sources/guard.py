"""Which addresses a reader of web servers connects to.

Whoever runs a server that models are fetched from chooses where it redirects to: the loopback of the machine that asks, a
service of its private network, the metadata of its cloud. To check the URL of a redirect is not enough, because a name may
have another address by the time of the connection. So every connection of the process is checked when it is made, by the
address itself, whichever library makes it.

Public addresses are open. Others are those of the server that was named, of proxies, and of the networks that the
operator lists. An address counts with its port. Of a name that is not "localhost", loopback and link-local addresses do not
count: what serves a name may change its address.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import sys
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from clockwork.config.sources import source_networks

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_UNICAST = ipaddress.ip_network("2000::/3")
"""Every public address of IPv6. Of others, some are global to some of Python's releases: fec0::/10, 64:ff9b:1::/48."""


class Guard:
    """networks: of the operator's list."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._networks = tuple(networks)
        self._named: dict[
            tuple[str, int], frozenset[Address]
        ] = {}  # addresses of what was named, when it was first

    def allow(self, url: str) -> None:
        """Connect to the server of this URL, whatever addresses it has now."""
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)
        if not host or (host, port) in self._named:
            return
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:  # of which whoever connects will say more
            return
        addresses = frozenset(_address(str(row[4][0])) for row in found)
        if not _is_address(host) and host != "localhost":
            addresses = frozenset(one for one in addresses if not (one.is_loopback or one.is_link_local))
        self._named[host, port] = addresses

    def refusal(self, host: str, port: int) -> str:
        """Why there is no connection to an address; "" if there may be one."""
        address = _address(host)
        if _is_public(address):
            return ""
        if any(port == named and address in found for (_, named), found in self._named.items()):
            return ""
        if any(address in network for network in self._networks):
            return ""
        return (
            f"{address} port {port} is not public and not the server that was named: no connection is made "
            "(CLOCKWORK_SOURCE_NETWORKS lists networks that are allowed)"
        )

    def install(self) -> None:
        """Have every connection of this process checked, for good. Raises OSError in whoever makes a refused one."""

        def check(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "socket.connect" and isinstance(
                arguments[1], tuple
            ):  # else it is of this machine's files
                host, port = arguments[1][:2]
                if not isinstance(host, str) or not _is_address(
                    host
                ):  # the socket would look it up, past this check
                    raise PermissionError(
                        errno.EACCES, f"a connection is made to an address, not to {host!r:.80}"
                    )
                if why := self.refusal(host, port):
                    raise PermissionError(errno.EACCES, why)

        sys.addaudithook(check)


def guard_for(scheme: str) -> Guard | None:
    """What checks the connections of a reader of such URLs; None: object stores, whose servers are the environment's choice
    and whose credentials come from the machine's metadata."""
    if scheme not in ("http", "https", "hf"):
        return None
    guard = Guard(source_networks())
    for kind, proxy in getproxies().items():
        if kind != "no":  # a list of hosts
            guard.allow(proxy if "://" in proxy else f"http://{proxy}")
    if scheme == "hf":
        from huggingface_hub import constants

        guard.allow(constants.ENDPOINT)
    return guard


def _is_public(address: Address) -> bool:
    return address.is_global and not address.is_multicast and (address.version == 4 or address in _UNICAST)


def _is_address(host: str) -> bool:
    try:
        _address(host)
    except ValueError:
        return False
    return True


def _address(host: str) -> Address:
    """An address, or the IPv4 address that it stands for. Raises ValueError."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        within = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if within is None and address in _NAT64:
            within = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return within if within is not None else address
    return address
