"""Which requests a server takes for those of a foreign web page."""

from __future__ import annotations

import pytest

from clockwork.web.pages import Asking, Names, refusal

NAMES = Names(["models.example.com", "Proxy.example.com:8443", "secure.example.com:443"])


@pytest.mark.parametrize(
    ("host", "passes"),
    [
        ("localhost", True), ("localhost:8000", True), ("LOCALHOST.:8000", True), ("127.0.0.1:8000", True),
        ("[::1]:8000", True), ("::1", False), ("10.1.2.3", True), ("models.example.com", True),
        ("models.example.com:81", True), ("proxy.example.com:8443", True), ("proxy.example.com:8000", False),
        ("proxy.example.com", False), ("secure.example.com", True), ("evil.example", False), ("evil.example:8000", False),
        ("localhost.evil.example", False), ("127.0.0.1.evil.example", False), ("[::1].evil.example", False),
        ("127.0.0.1@evil.example", False), ("[::.]", False), ("[::1.]", False), ("[::1]", True), ("0x7f.1", False), ("localhost evil", False), ("localhost:x", False), ("", True),
    ],
)  # fmt: skip
def test_a_host_is_an_address_or_a_name_of_this_server(host: str, passes: bool) -> None:
    asking = Asking(host=host)
    assert (refusal(asking, NAMES, check_host=True, changes=False) == "") == passes
    assert refusal(asking, NAMES, check_host=False, changes=False) == ""


@pytest.mark.parametrize(
    ("origin", "host", "passes"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000", True),
        ("http://LocalHost", "localhost:80", True),
        ("https://models.internal", "models.internal:443", True),
        ("https://models.internal", "models.internal", True),  # a server behind a proxy that ends TLS
        ("http://[::1]:8000", "[::1]:8000", True),
        # a server behind a proxy that names its upstream in Host
        ("https://models.example.com", "10.0.0.7:8000", True),
        ("https://proxy.example.com:8443", "10.0.0.7:8000", True),
        ("https://proxy.example.com", "10.0.0.7:8000", False),
        ("http://127.0.0.1:3000", "127.0.0.1:8000", False),  # a page of another program of this machine
        ("http://localhost:3000", "localhost:8000", False),
        ("http://localhost:8000", "127.0.0.1:8000", False),
        ("https://evil.example", "127.0.0.1:8000", False),
        ("http://10.0.0.9", "127.0.0.1:8000", False),
        ("null", "127.0.0.1:8000", False),
        ("file://", "127.0.0.1:8000", False),
        ("127.0.0.1:8000", "127.0.0.1:8000", False),
        ("http://127.0.0.1:8000", "", False),
    ],
)
def test_an_origin_is_the_host_or_a_name_that_was_given(origin: str, host: str, passes: bool) -> None:
    found = refusal(Asking(host=host, origin=origin), NAMES, check_host=False, changes=False)
    assert (found == "") == passes
    assert passes or origin in found


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({"content_type": "application/json"}, True),
        ({"content_type": "Application/JSON; charset=utf-8"}, True),
        ({"user_agent": "curl/8.5.0"}, True),
        ({"user_agent": "python/gevent-http-client-2.6.1"}, True),
        ({"authorization": "Bearer x"}, True),
        ({"authorization": "Basic eDp5", "user_agent": "Mozilla/5.0"}, False),
        ({"content_type": "text/plain", "user_agent": "Mozilla/5.0 (X11; Linux x86_64)"}, False),
        ({"content_type": "application/x-www-form-urlencoded"}, False),
        ({"content_type": "text/plain;application/json"}, False),
        ({"user_agent": " Mozilla/5.0"}, False),
        ({}, False),
    ],
)
def test_a_change_bears_what_pages_cannot_send(headers: dict[str, str], passes: bool) -> None:
    asking = Asking(host="127.0.0.1:8000", **headers)
    assert (refusal(asking, NAMES, check_host=True, changes=True) == "") == passes
    assert refusal(asking, NAMES, check_host=True, changes=False) == ""
