"""Encoding and decoding of the messages of a request."""

from __future__ import annotations

from typing import Any

import pytest

from clockwork.wire import codec
from clockwork.wire.messages import (
    FROM_CLIENT,
    FROM_WORKER,
    TO_CLIENT,
    TO_WORKER,
    Answer,
    Infer,
    InferRequest,
    Result,
    Status,
)

TENSOR = [1, [1, 3, 224, 224], 0]
PHASE = [1_000_000_000_000, 1_000_000_100_000, 100_000]
BATCH = 8

MESSAGES = {
    "request": (InferRequest(7, "resnet50", 100_000_000, 0, [["image", *TENSOR]]), FROM_CLIENT),
    "infer": (Infer(9, 0, 3, 2, PHASE[0], PHASE[1], 5_000_000, [[TENSOR]]), TO_WORKER),
    f"infer of {BATCH}": (
        Infer(9, 0, 3, 2, PHASE[0], PHASE[1], 5_000_000, [[[1, [1, 3, 224, 224], k]] for k in range(BATCH)]),
        TO_WORKER,
    ),
    "result": (Result(9, Status.OK, "", PHASE[0], PHASE, PHASE, PHASE, [[[1, [1, 1000], 0]]]), FROM_WORKER),
    "answer": (Answer(7, 1, [["scores", 1, [1, 1000], 0]], [100_000, 0, 5_000_000, 0]), TO_CLIENT),
}


@pytest.mark.benchmark(group="wire: encode", warmup=True)
@pytest.mark.parametrize("name", MESSAGES)
def test_encode(benchmark: Any, name: str) -> None:
    message, table = MESSAGES[name]
    header = benchmark(codec.encode, message)
    benchmark.extra_info["bytes"] = len(header)
    assert codec.encode(codec.decode(header, table)) == header


@pytest.mark.benchmark(group="wire: decode", warmup=True)
@pytest.mark.parametrize("name", MESSAGES)
def test_decode(benchmark: Any, name: str) -> None:
    message, table = MESSAGES[name]
    header = codec.encode(message)
    assert type(benchmark(codec.decode, header, table)) is type(message)
