"""Delay of a request beyond its inference: a null model against a bare relay.

    python -m bench.roundtrip [--quick] [--json] [--publish]

Blocks of calls alternate between Client.infer and a relay of three processes that carries the same
header and tensor, in one run, so that noise meets both.
"""

from __future__ import annotations

import numpy as np

from bench import published, report
from bench.cluster import Cluster
from bench.relay import Relay
from clockwork.client import Client, calls
from clockwork.models import zoo
from clockwork.system.clock import now_ns

SEED = 1
BLOCK = 200
WARM_UP = 300


def payload() -> np.ndarray:
    """The input of the null model."""
    return np.arange(4, dtype=np.float32).reshape(1, 4)


def measure(client: Client, relay: Relay, blocks: int) -> tuple[list[int], list[int]]:
    """Nanoseconds of each call (through Clockwork, through the relay). Raises where an answer is wrong."""
    x = payload()
    header, frames = calls.INFER_ARRAY.encode(1, "null", x, None, 0)
    message = [header, *(bytes(frame) for frame in frames)]
    ours: list[int] = []
    bare: list[int] = []
    for block in range(-2, blocks):
        for _ in range(WARM_UP if block < 0 else BLOCK):
            begin_ns = now_ns()
            y = client.infer("null", x)
            ours.append(now_ns() - begin_ns)
        if not isinstance(y, np.ndarray) or not np.array_equal(y, x):
            raise AssertionError(f"the null model answered {y}")
        for _ in range(WARM_UP if block < 0 else BLOCK):
            begin_ns = now_ns()
            back = relay.call(message)
            bare.append(now_ns() - begin_ns)
        if back != message:
            raise AssertionError("the relay changed a message")
        if block < 0:
            ours.clear()
            bare.clear()
    return ours, bare


def compare(ours: list[int], bare: list[int]) -> dict[str, float]:
    """Ratios of the percentiles: of all calls, and the median over blocks, which resists bursts of noise."""
    of_blocks = np.array(
        [
            [np.percentile(values[at : at + BLOCK], (50, 99)) for values in (ours, bare)]
            for at in range(0, len(ours), BLOCK)
        ]
    )
    ratios = np.median(of_blocks[:, 0] / of_blocks[:, 1], axis=0)
    p50, p99 = np.percentile(ours, (50, 99)) / np.percentile(bare, (50, 99))
    return {
        "p50 ratio": float(p50),
        "p99 ratio": float(p99),
        "p50 ratio, median of blocks": float(ratios[0]),
        "p99 ratio, median of blocks": float(ratios[1]),
    }


def main() -> None:
    parser = report.command_line(__doc__)
    report.publishing(parser)
    arguments = parser.parse_args()
    with Cluster() as cluster, cluster.client() as client, Relay() as relay:
        client.register("null", zoo.build("null", seed=SEED))
        ours, bare = measure(client, relay, 4 if arguments.quick else 40)
    marks = (50, 90, 99, 99.9)
    rows = [
        {"path": "clockwork", "calls": len(ours), **report.percentiles(ours, marks)},
        {"path": "bare relay", "calls": len(bare), **report.percentiles(bare, marks)},
    ]
    ratios = compare(ours, bare)
    if arguments.publish:
        published.save("roundtrip", {"rows": rows, **ratios}, SEED)
    report.show("round trip of a null model", SEED, rows, ratios, arguments.json)


if __name__ == "__main__":
    main()
