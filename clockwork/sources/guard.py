"""The addresses to which a reader of web servers may connect.

A server from which models are fetched chooses the targets of its redirects: the loopback of the machine that
fetches, a service of its private network, the metadata of its cloud. A check of the redirect's URL is not
enough, because a name may have another address by the time of the connection. So every connection of the
process is checked when it is made, by the address itself, whichever library makes it.

Public addresses are allowed. Other addresses are allowed if they belong to the server that was named, to
proxies, or to networks that the operator lists. An address counts with its port. Loopback and link-local
addresses of a name other than "localhost" do not count, as the owner of a name may change its address.
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
"""Every public address of IPv6. Some releases of Python count further ranges as global: fec0::/10,
64:ff9b:1::/48."""


class Guard:
    """The addresses to which a reader may connect: public ones, those of named servers, and the operator's.

    networks: the operator's list of networks that are allowed although they are not public.
    """

    def __init__(self, networks: Iterable[Network]) -> None:
        self._networks = tuple(networks)
        # addresses of each named server, as first resolved
        self._named: dict[tuple[str, int], frozenset[Address]] = {}

    def allow(self, url: str) -> None:
        """Allow connections to the server of this URL, at all its current addresses."""
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)
        if not host or (host, port) in self._named:
            return
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:  # the connection will report the error in more detail
            return
        addresses = frozenset(_address(str(row[4][0])) for row in found)
        if not _is_address(host) and host != "localhost":
            addresses = frozenset(
                address for address in addresses if not (address.is_loopback or address.is_link_local)
            )
        self._named[host, port] = addresses

    def refusal(self, host: str, port: int) -> str:
        """Return why a connection to an address is refused; "" if it is allowed."""
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
        """Check all connections of this process from now on. A refused connection raises PermissionError at
        its caller."""

        def check(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "socket.connect" and isinstance(
                arguments[1], tuple
            ):  # otherwise the socket is in this machine's file system
                host, port = arguments[1][:2]
                if not isinstance(host, str) or not _is_address(
                    host
                ):  # the socket would resolve the name itself, past this check
                    raise PermissionError(
                        errno.EACCES, f"a connection is made to an address, not to {host!r:.80}"
                    )
                if why := self.refusal(host, port):
                    raise PermissionError(errno.EACCES, why)

        sys.addaudithook(check)


def guard_for(scheme: str) -> Guard | None:
    """Return the guard for a reader of URLs with a scheme. None: URLs of object stores need no guard.

    The environment chooses the servers of object stores, and their credentials come from the machine's
    metadata.
    """
    if scheme not in ("http", "https", "hf"):
        return None
    guard = Guard(source_networks())
    for kind, proxy in getproxies().items():
        if kind != "no":  # getproxies()["no"] lists the hosts without a proxy
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
    """Return an address, or the IPv4 address that it embeds. Raises ValueError."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        within = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if within is None and address in _NAT64:
            within = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return within if within is not None else address
    return address
