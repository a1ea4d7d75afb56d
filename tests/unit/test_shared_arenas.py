"""Devices that share an arena, in a worker's hello: some of them are malformed, and some make no sense."""

from __future__ import annotations

from typing import Any

import pytest

from clockwork.controller.peers.links import parse_devices, why_not_shared
from clockwork.wire import codec, messages

OWN: dict[str, Any] = {
    "kind": "cpu", "name": "x", "fingerprint": "f", "page_bytes": 4096, "page_count": 8, "run_ahead": 2,
}  # fmt: skip


def shared(**changes: Any) -> dict[str, Any]:
    return OWN | {"arena": 0} | changes


@pytest.mark.parametrize(
    ("devices", "why"),
    [
        ([OWN, shared(), shared()], ""),
        ([OWN, shared(), OWN, shared(arena=2)], ""),
        ([OWN | {"arena": -1}, shared(name="y", fingerprint="g")], ""),
        ([shared()], "device 0 executes from the arena of device 0, which does not come before it"),
        ([OWN, shared(arena=1)], "device 1 executes from the arena of device 1, which does not come before"),
        ([OWN, shared(arena=7)], "device 1 executes from the arena of device 7, which does not come before"),
        (
            [OWN, shared(), shared(arena=1)],
            "which has none of its own: it executes from the arena of device 0",
        ),
        ([OWN, shared(kind="cuda")], "its kind is 'cuda', not 'cpu'"),
        ([OWN, shared(page_bytes=8192)], "its page_bytes is 8192, not 4096"),
        ([OWN, shared(page_count=9)], "its page_count is 9, not 8"),
        ([OWN, shared(run_ahead=1)], "its run_ahead is 1, not 2"),
        ([OWN | {"slowdown_thousandths": 1500}, shared(), OWN], ""),
        ([OWN, shared(slowdown_thousandths=1500)], "device 1 tells the slowdown of the arena of device 0"),
    ],
)
def test_a_device_may_execute_from_an_arena_like_its_own(devices: list[dict[str, Any]], why: str) -> None:
    found = why_not_shared(parse_devices(devices))
    assert why in found
    assert bool(why) == bool(found)


@pytest.mark.parametrize("arena", [-2, 1024, "0", 0.0, None, [0]])
def test_a_hello_with_a_malformed_arena_is_malformed(arena: Any) -> None:
    hello = messages.WorkerHello(messages.PROTOCOL_VERSION, "test", "w", 1, [OWN, OWN | {"arena": arena}])
    with pytest.raises(codec.WireError):
        codec.decode(codec.encode(hello), messages.FROM_WORKER)


@pytest.mark.parametrize("slowdown", [-1, 0, 999, 64_001, 2**63, "1000", 1.5, None, [1000]])
def test_a_hello_with_a_malformed_slowdown_is_malformed(slowdown: Any) -> None:
    hello = messages.WorkerHello(
        messages.PROTOCOL_VERSION, "test", "w", 1, [OWN | {"slowdown_thousandths": slowdown}]
    )
    with pytest.raises(codec.WireError):
        codec.decode(codec.encode(hello), messages.FROM_WORKER)


def test_a_hello_without_arenas_is_as_before() -> None:
    hello = messages.WorkerHello(messages.PROTOCOL_VERSION, "test", "w", 1, [OWN, OWN])
    found = codec.decode(codec.encode(hello), messages.FROM_WORKER)
    devices = parse_devices(found.devices)
    assert [(device.arena, device.slowdown_thousandths) for device in devices] == [(-1, 1000), (-1, 1000)]
