"""Whether a request may be what it says: not made by a web page of another site.

A browser lets any page send requests to any server, this machine's included, and only keeps the answer from it. Two ways
lead further, and both can be told from headers that a page cannot choose:

- *A foreign page asks.* Its requests bear Origin, the page's own address, which is then not the request's Host. So that
  nothing hangs on Origin alone, a request that changes something must also bear a header that a page of another site may
  not send unless the server says so, which this one never does: a Content-Type of JSON, Authorization, or the User-Agent
  of a program.
- *A foreign name is pointed at this machine* (DNS rebinding): to the browser, the page and the server are then one site,
  and Host is the foreign name. So Host must be an address, which no name server can point elsewhere, this machine's own
  name, or a name that the server was started with.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]/@\s]+))(?::([0-9]{1,5}))?")


class Asking(NamedTuple):
    """The headers of a request that are looked at; "": absent."""

    host: str = ""
    origin: str = ""
    content_type: str = ""
    user_agent: str = ""
    authorization: str = ""


class Names:
    """The names under which a server may be asked."""

    def __init__(self, names: Iterable[str]) -> None:
        """names: HOST or HOST:PORT, beyond localhost and every address; HOST stands for all of its ports."""
        self._allowed = {split(name) for name in names} | {("localhost", "")}

    def __contains__(self, host: str) -> bool:
        """Whether a Host header, or an Origin without its scheme, is among them."""
        name, port = split(host)
        # The port of a scheme is left out.
        ports = ["", port] if port else ["", "80", "443"]
        return is_address(name) or any((name, one) in self._allowed for one in ports)

    def were_given(self, host: str) -> bool:
        """Whether it is a name, and not an address, that is among them."""
        name, _ = split(host)
        return name != "localhost" and not is_address(name) and host in self


def refusal(asking: Asking, names: Names, check_host: bool, changes: bool) -> str:
    """Why a request is refused, as a sentence; "": it passes.

    check_host: whether Host must be among the names; changes: whether the request changes something.
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
    """Whether a request has a header that a page of another site could not send. All browsers are Mozilla."""
    # Basic credentials are the browser's, which adds them to what any page asks.
    has_token = asking.authorization.strip(" \t").lower().startswith("bearer ")
    is_json = asking.content_type.partition(";")[0].strip().lower() == "application/json"
    agent = asking.user_agent.strip()
    is_program = bool(agent) and not agent.lower().startswith("mozilla")
    return is_json or is_program or has_token


def is_same(origin: str, host: str, scheme: str) -> bool:
    """Whether an Origin without its scheme is a Host. Both leave out the scheme's own port, and a proxy that ends TLS has
    another scheme than its server."""
    name, port = split(origin)
    served, served_port = split(host)
    usual = {"http": "80", "https": "443"}.get(scheme, "")
    return bool(name) and name == served and (port or usual) == (served_port or usual)


def split(host: str) -> tuple[str, str]:
    """Name, in lower case and without brackets, and port ("" for none) of HOST[:PORT]; ("", "") if it is none."""
    found = _HOST.fullmatch(host)
    if found is None:
        return "", ""
    return (found[1] or found[2]).lower().removesuffix("."), found[3] or ""


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
