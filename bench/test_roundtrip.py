"""The round trip of a request whose inference costs nothing, and the system's overhead over an inference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bench import report, roundtrip
from bench.cluster import Cluster
from bench.reference import Plain, relative_error
from bench.relay import Relay
from clockwork.client import Client, calls
from clockwork.models import zoo
from clockwork.system.clock import now_ns

SEED = roundtrip.SEED
BLOCKS = 20
OVERHEAD_CALLS = 300


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Cluster() as cluster, cluster.client() as client:
        yield client


@pytest.mark.benchmark(group="round trip of a null model", warmup=True, warmup_iterations=300)
def test_round_trip(benchmark: Any, client: Client) -> None:
    """Round trips through the system; extra_info has percentiles of blocks interleaved with a bare relay."""
    client.register("null", zoo.build("null", seed=SEED))
    x = roundtrip.payload()
    with Relay() as relay:
        ours, bare = roundtrip.measure(client, relay, BLOCKS)
    ratios = roundtrip.compare(ours, bare)
    benchmark.extra_info.update(
        report.conditions(SEED)
        | {"clockwork": report.percentiles(ours), "relay": report.percentiles(bare)}
        | ratios
    )
    print(f"\nclockwork {report.percentiles(ours)}, bare relay {report.percentiles(bare)}")
    print("  ".join(f"{name} {value:.2f}" for name, value in ratios.items()))
    assert np.array_equal(benchmark(client.infer, "null", x), x)


@pytest.mark.benchmark(group="round trip of a null model", warmup=True, warmup_iterations=300)
def test_bare_relay(benchmark: Any) -> None:
    """Three processes that pass the same frames: DEALER-ROUTER, ROUTER-DEALER."""
    header, frames = calls.INFER_ARRAY.encode(1, "null", roundtrip.payload(), None, 0)
    message = [header, *(bytes(frame) for frame in frames)]
    with Relay() as relay:
        assert benchmark(relay.call, message) == message


@pytest.mark.benchmark(group="batch 1, whole system", max_time=3.0)
@pytest.mark.parametrize("name", ["digits", "residual_cnn"])
def test_overhead(benchmark: Any, client: Client, name: str) -> None:
    """The whole system against plain ONNX Runtime in this process, call by call."""
    model = zoo.build(name, seed=SEED)
    spec = model.graph.input[0]
    shape = [1, *(dim.dim_value for dim in spec.type.tensor_type.shape.dim[1:])]
    x = np.random.default_rng(SEED).random(shape, dtype=np.float32)
    plain = Plain(model)
    client.register(name, model)
    times = []
    for _ in range(OVERHEAD_CALLS):
        plain.block({spec.name: x}, 1)
        begin_ns = now_ns()
        client.infer(name, x)
        times.append(now_ns() - begin_ns)
    added = float(np.median(times) - np.median(plain.times_ns)) / 1e3
    benchmark.extra_info["plain"] = report.percentiles(plain.times_ns)
    benchmark.extra_info["clockwork"] = report.percentiles(times)
    benchmark.extra_info["added_p50_us"] = round(added, 1)
    print(f"\n{name}: plain {report.percentiles(plain.times_ns)}, clockwork {report.percentiles(times)}")
    assert relative_error(benchmark(client.infer, name, x), plain.run({spec.name: x})[0]) < 1e-4
