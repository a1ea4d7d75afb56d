"""Checks that a request was not made by a web page of another site.

A browser lets any page send requests to any server, this machine's included, and only withholds the answer
from the page. Two attacks go further. Both show in headers that a page cannot choose:

- *A foreign page sends the request.* Such requests have the header Origin with the page's own address, which
  differs from the request's Host. As a second defence, a request that changes something must also have a
  header that a page of another site can send only with the server's consent, which is never given: a
  Content-Type of JSON, Authorization, or the User-Agent of a program.
- *A foreign name points at this machine* (DNS rebinding). The browser then takes page and server for one
  site, and Host is the foreign name. So Host must be an address, which no name server can redirect, this
  machine's own name, or a name with which the server was started.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]/@\s]+))(?::([0-9]{1,5}))?")


class Asking(NamedTuple):
    """The headers of a request that are checked; "": absent."""

    host: str = ""
    origin: str = ""
    content_type: str = ""
    user_agent: str = ""
    authorization: str = ""


class Names:
    """The names by which a server may be addressed."""

    def __init__(self, names: Iterable[str]) -> None:
        """names: HOST or HOST:PORT, in addition to localhost and every address. HOST includes all of its
        ports."""
        self._allowed = {split(name) for name in names} | {("localhost", "")}

    def __contains__(self, host: str) -> bool:
        """Return whether a Host header, or an Origin without its scheme, is among the names."""
        name, port = split(host)
        # Browsers leave out the default port of a scheme.
        ports = ["", port] if port else ["", "80", "443"]
        return is_address(name) or any((name, allowed_port) in self._allowed for allowed_port in ports)

    def were_given(self, host: str) -> bool:
        """Return whether a host is among the names given at the start, rather than an address or
        localhost."""
        name, _ = split(host)
        return name != "localhost" and not is_address(name) and host in self


def refusal(asking: Asking, names: Names, check_host: bool, changes: bool) -> str:
    """Return why a request is refused, as a sentence; "": it passes.

    check_host: whether Host must be among the names. changes: whether the request changes something.
    """
    host, origin = asking.host, asking.origin
    if host and check_host and host not in names:
        return (
            f"Host {host[:80]!r} is no name of this server: ask it by an address or as localhost, "
            "or start it with --allowed-host"
        )
    if origin:
        scheme, mark, where = origin.partition("://")
        is_own = bool(mark) and (is_same(where, host, scheme) or names.were_given(where))
        if not is_own:
            return (
                f"Origin {origin[:80]!r} is another site than Host {host[:80]!r}: its pages may not ask this server, "
                "unless it is started with --allowed-host"
            )
    if changes and not bears_what_pages_cannot(asking):
        return (
            "a request that changes something must bear Content-Type: application/json, a bearer token, or the "
            "User-Agent of a program, which pages of other sites cannot send"
        )
    return ""


def bears_what_pages_cannot(asking: Asking) -> bool:
    """Return whether a request has a header that a page of another site cannot send.

    A User-Agent counts unless it begins with Mozilla, as that of every browser does.
    """
    # A browser adds Basic credentials to the requests of any page, so they prove nothing.
    has_token = asking.authorization.strip(" \t").lower().startswith("bearer ")
    is_json = asking.content_type.partition(";")[0].strip().lower() == "application/json"
    agent = asking.user_agent.strip()
    is_program = bool(agent) and not agent.lower().startswith("mozilla")
    return is_json or is_program or has_token


def is_same(origin: str, host: str, scheme: str) -> bool:
    """Return whether an Origin without its scheme equals a Host.

    Origin and Host leave out the scheme's default port. Behind a proxy that ends TLS, Origin has another
    scheme than the server.
    """
    name, port = split(origin)
    served, served_port = split(host)
    usual = {"http": "80", "https": "443"}.get(scheme, "")
    return bool(name) and name == served and (port or usual) == (served_port or usual)


def split(host: str) -> tuple[str, str]:
    """Split HOST[:PORT] into the name, in lower case without brackets, and the port ("": none). ("", ""):
    malformed."""
    found = _HOST.fullmatch(host)
    if found is None:
        return "", ""
    name = found[1] or found[2].removesuffix(".")
    return name.lower(), found[3] or ""


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
