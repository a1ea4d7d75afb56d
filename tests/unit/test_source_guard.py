"""The addresses to which a reader of web servers connects, whatever names they have had."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import pytest

from clockwork.config.sources import source_networks
from clockwork.errors import ConfigError
from clockwork.sources.guard import Guard

PUBLIC = ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34", "64:ff9b::93.184.216.34"]
OTHERS = [
    "127.0.0.1", "127.8.8.8", "::1", "0.0.0.0", "::", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254",
    "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "224.0.0.1", "255.255.255.255", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "2002:7f00:1::", "64:ff9b::169.254.169.254", "2001:0:5ef5:79fd:0:5ba:f5ff:fffe", "fec0::1", "64:ff9b:1::7f00:1", "::7f00:1", "240.0.0.1",
]  # fmt: skip


def resolving(monkeypatch: pytest.MonkeyPatch, names: dict[str, str]) -> None:
    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        if host not in names and not host[0].isdigit():
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (names.get(host, host), port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize("host", PUBLIC)
def test_public_addresses_are_open(host: str) -> None:
    assert Guard([]).refusal(host, 443) == ""


@pytest.mark.parametrize("host", OTHERS)
def test_no_other_address_is(host: str) -> None:
    assert "is not public" in Guard([]).refusal(host, 443)


def test_the_server_that_was_named_is_open_at_its_port_alone() -> None:
    guard = Guard([])
    guard.allow("http://127.0.0.1:8000/models")
    guard.allow("http://10.0.0.7/models")
    assert guard.refusal("127.0.0.1", 8000) == guard.refusal("10.0.0.7", 80) == ""
    for host, port in (("127.0.0.1", 6379), ("127.0.0.2", 8000), ("10.0.0.7", 443), ("10.0.0.8", 80)):
        assert guard.refusal(host, port)


def test_a_name_is_open_at_the_addresses_that_it_had_first(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"models.example": "10.0.0.7", "localhost": "127.0.0.1"}
    resolving(monkeypatch, names)
    guard = Guard([])
    guard.allow("http://models.example/a")
    names["models.example"] = "10.0.0.8"
    guard.allow("http://models.example/b")
    guard.allow("http://localhost:8000/")
    guard.allow("http://nowhere.example/")
    assert guard.refusal("10.0.0.7", 80) == guard.refusal("127.0.0.1", 8000) == ""
    assert guard.refusal("10.0.0.8", 80)


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254"])
def test_no_name_stands_for_this_machine_or_for_metadata(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, {"models.example": address})
    guard = Guard([])
    guard.allow("http://models.example/")
    assert guard.refusal(address, 80)


def test_the_operator_lists_what_else_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    assert source_networks() == []
    monkeypatch.setenv("CLOCKWORK_SOURCE_NETWORKS", "10.0.0.0/8, fd00::/8,192.168.1.5")
    guard = Guard(source_networks())
    assert (
        guard.refusal("10.9.9.9", 1) == guard.refusal("fd00::5", 1) == guard.refusal("192.168.1.5", 1) == ""
    )
    assert guard.refusal("192.168.1.6", 1)
    assert source_networks()[2] == ipaddress.ip_network("192.168.1.5/32")
    monkeypatch.setenv("CLOCKWORK_SOURCE_NETWORKS", "10.0.0.0/99")
    with pytest.raises(ConfigError, match="CLOCKWORK_SOURCE_NETWORKS"):
        source_networks()
