"""The short road through the controller and the long one give the same answers, byte for byte.

Most requests are checked, admitted and answered without Python. A controller can be told to have Python look at every
message of a client; whatever is sent to both must come back the same.
"""

from __future__ import annotations

import random
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from peers import PATIENCE_NS, FakeWorker, RawClient, running_controller

from clockwork.formats.prepared import TensorSpec
from clockwork.system.clock import SECOND, now_ns
from clockwork.wire import codec, messages

ROW = struct.pack("<2f", 1.5, -2.5)
WORD = (2).to_bytes(4, "little") + b"ab"
SEED = 31
MUTATIONS = 300

PLAIN = ["x", 1, [1, 2], 0]
TABLE: list[tuple[str, Any, list[bytes]]] = [
    ("a good one", [11, "m", 0, 0, [PLAIN]], [ROW]),
    ("of two rows", [12, "m", 0, 1, [["x", 1, [2, 2], 0]]], [ROW + ROW]),
    ("of another size", [12, "m", 0, 1, [["x", 1, [1, 3], 0]]], [bytes(12)]),
    ("by version", [13, "m@1", 0, 0, [PLAIN]], [ROW]),
    ("without the input's name", [14, "m", 0, 0, [["", 1, [1, 2], 0]]], [ROW]),
    ("the longest SLO", [15, "m", messages.NEVER_NS - 1, 255, [PLAIN]], [ROW]),
    ("an SLO that cannot be", [16, "m", 1000, 0, [PLAIN]], [ROW]),
    ("an SLO out of range", [17, "m", messages.NEVER_NS, 0, [PLAIN]], [ROW]),
    ("a negative SLO", [18, "m", -1, 0, [PLAIN]], [ROW]),
    ("a priority out of range", [19, "m", 0, 256, [PLAIN]], [ROW]),
    ("a number above all", [1 << 63, "m", 0, 0, [PLAIN]], [ROW]),
    ("the highest number", [(1 << 63) - 1, "m", 0, 0, [PLAIN]], [ROW]),
    ("a negative number", [-1, "m", 0, 0, [PLAIN]], [ROW]),
    ("no such model", [20, "n", 0, 0, [PLAIN]], [ROW]),
    ("no such version", [21, "m@2", 0, 0, [PLAIN]], [ROW]),
    ("no model at all", [22, "", 0, 0, [PLAIN]], [ROW]),
    ("no input", [23, "m", 0, 0, []], []),
    ("an input twice", [24, "m", 0, 0, [PLAIN, ["x", 1, [1, 2], 1]]], [ROW, ROW]),
    ("a frame too many", [25, "m", 0, 0, [PLAIN]], [ROW, ROW]),
    ("no frame", [26, "m", 0, 0, [PLAIN]], []),
    ("a frame too short", [27, "m", 0, 0, [PLAIN]], [ROW[:7]]),
    ("a wrong dtype", [28, "m", 0, 0, [["x", 11, [1, 2], 0]]], [ROW + ROW]),
    ("a dtype that is none", [29, "m", 0, 0, [["x", 99, [1, 2], 0]]], [ROW]),
    ("a wrong rank", [30, "m", 0, 0, [["x", 1, [2], 0]]], [ROW]),
    ("no rows", [31, "m", 0, 0, [["x", 1, [0, 2], 0]]], [b""]),
    ("a negative dimension", [32, "m", 0, 0, [["x", 1, [1, -2], 0]]], [ROW]),
    ("too many dimensions", [33, "m", 0, 0, [["x", 1, [1] * 40, 0]]], [ROW]),
    ("a dimension that is true", [34, "m", 0, 0, [["x", 1, [True, 2], 0]]], [ROW]),
    ("a field too many", [35, "m", 0, 0, [PLAIN], 0], [ROW]),
    ("a field too few", [36, "m", 0, 0], [ROW]),
    ("a model that is bytes", [37, b"m", 0, 0, [PLAIN]], [ROW]),
    ("a tensor that is a map", [38, "m", 0, 0, [{"name": "x"}]], [ROW]),
    ("a number that is none", [3.5, "m", 0, 0, [PLAIN]], [ROW]),
    ("strings", [39, "words", 0, 0, [["w", 8, [1], 0]]], [WORD]),
    ("strings out of their frame", [40, "words", 0, 0, [["w", 8, [2], 0]]], [WORD + WORD[:5]]),
]


class Side:
    """A controller, its worker and its client."""

    def __init__(self, stack: ExitStack, data: Path, is_short: bool) -> None:
        controller = stack.enter_context(running_controller(data))
        controller._exchange.is_short = is_short
        self.worker = stack.enter_context(FakeWorker(controller))
        self.client = stack.enter_context(RawClient(controller))
        self.prepare("m", b"one")
        words = [TensorSpec("w", 8, ("N",))]
        self.prepare("words", b"two", inputs=words, outputs=words, program="words", profile=[], batches=False)

    def prepare(self, name: str, content: bytes, **changes: Any) -> None:
        preparing = threading.Thread(target=self.worker.prepare, kwargs=changes)
        preparing.start()
        assert type(self.client.register(name, content)) is messages.Reply
        preparing.join()

    def ask(self, header: bytes, frames: list[bytes]) -> tuple[bytes, list[bytes]]:
        """Send one message; the answer, with times that differ from run to run taken out, but not decoded."""
        assert self.client.dealer.send(header, frames)
        return self.answer()

    def serve(self) -> None:
        """Do what the controller has ordered so far."""
        while (frames := self.worker.dealer.receive()) is not None:
            message = codec.decode(frames[0], messages.TO_WORKER)
            if type(message) is messages.Ping:
                self.worker.pong(message)
            elif isinstance(message, messages.Load | messages.Unload | messages.Infer | messages.Profile):
                self.worker.answer(message, [bytes(frame) for frame in frames[1:]])

    def answer(self, *, serves: bool = True) -> tuple[bytes, list[bytes]]:
        """The next answer. serves: what the controller orders until then is done."""
        deadline = now_ns() + PATIENCE_NS
        while (frames := self.client.dealer.receive()) is None:
            assert now_ns() < deadline, "no answer came"
            if serves:
                self.serve()
            self.client.wait(SECOND // 1000)
        message = codec.decode(frames[0], messages.TO_CLIENT)
        assert frames[0] == codec.encode(message), "a header in its one canonical form"
        if type(message) is messages.Answer:
            assert all(time >= 0 for time in message.times)
            message = message._replace(times=[])
        elif type(message) is messages.Failure and message.status == messages.Status.REFUSED:
            # What is predicted was measured, and differs between two workers.
            message = message._replace(text=re.sub(r"[0-9.]+ ms", "t ms", message.text))
            message.details.update(feasible_slo_ns=0, retry_after_ns=0)
        return codec.encode(message), [bytes(frame) for frame in frames[1:]]


@pytest.fixture(scope="module")
def roads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Side, Side]]:
    with ExitStack() as stack:
        yield (
            Side(stack, tmp_path_factory.mktemp("short"), True),
            Side(stack, tmp_path_factory.mktemp("long"), False),
        )


@pytest.mark.parametrize(("fields", "frames"), [case[1:] for case in TABLE], ids=[case[0] for case in TABLE])
def test_both_roads_answer_alike(roads: tuple[Side, Side], fields: Any, frames: list[bytes]) -> None:
    short, long = roads
    header = codec._pack([2, *fields])
    assert short.ask(header, frames) == long.ask(header, frames)


def test_a_request_in_use_is_named_and_its_twin_is_served(roads: tuple[Side, Side]) -> None:
    header = codec._pack([2, 50, "m", 0, 0, [PLAIN]])
    found = []
    for side in roads:
        for _ in range(2):
            side.client.dealer.send(header, [ROW])
        found.append((side.answer(serves=False), side.answer()))
    assert found[0] == found[1]
    assert b"is in use" in found[0][0][0]


def test_a_cancelled_request_is_answered_once(roads: tuple[Side, Side]) -> None:
    found = []
    for side in roads:
        side.client.dealer.send(codec._pack([2, 60, "m", 0, 0, [PLAIN]]), [ROW])
        side.client.dealer.send(codec._pack([3, 60]))
        found.append(side.answer(serves=False))
    assert found[0] == found[1]
    assert b"cancelled" in found[0][0]


def test_mutated_requests_are_answered_alike(roads: tuple[Side, Side]) -> None:
    """One byte of the header after another is another one; what is asked for may still be right."""
    rng = random.Random(SEED)
    for _ in range(MUTATIONS):
        fields = rng.choice(TABLE)[1]
        header = bytearray(codec._pack([2, 70, *fields[1:]]))
        header[rng.randrange(3, len(header))] = rng.randrange(256)
        answers = [side.ask(bytes(header), [ROW]) for side in roads]
        assert answers[0] == answers[1], (SEED, bytes(header))
