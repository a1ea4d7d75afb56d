"""More models than memory: correctness of every answer, and the costs.

    python -m bench.paging [--quick] [--json] [--models 40] [--thousands 3000]

First part: fine-tunes of one resnet50 (small images, all of its 100 MB of weights) on an arena with room for
a fifth of them, requested in random order; each answer is compared with plain ONNX Runtime's on that very
model. Second part: thousands of small models, fine-tunes of 20 architectures, on an arena that holds 5 % of
their bytes. Measured are the rate of registration, the controller's memory for each model, the time of a
restart, and the share of requests that are answered within 100 ms when popularity follows Zipf's law at 0.6
of capacity.
"""

from __future__ import annotations

import contextlib
import math
import random
import threading
from typing import Any

import numpy as np
import onnx

from bench import report
from bench.cluster import Cluster, offer_zipf, rss_bytes
from bench.reference import Plain, relative_error
from bench.registration import architectures, register_all
from clockwork.client.blocking import Client
from clockwork.models import zoo
from clockwork.system.clock import now_ns

SEED = 6
PAGE_BYTES = 1 << 20
TOLERANCE = 1e-4
SLO_S = 0.1
ZIPF = 0.9
LOAD = 0.6
ARCHITECTURES = 20
UPLOADS_AT_ONCE = 8
MADE_AHEAD = 128
"""Small models that the benchmark makes and holds in memory before the timed registration."""


# ----- models of 100 MB ----------------------------------------------------------------------


def large(
    models: int, room: int, requests: int, image: int, architecture: str = "resnet50", seed: int = SEED
) -> dict[str, Any]:
    """Facts about ``models`` fine-tunes of a network, requested randomly. Raises on a wrong answer."""
    base = zoo.build(architecture, seed=seed, image=image)
    rng = random.Random(seed)
    x = np.random.default_rng(seed).standard_normal((1, 3, image, image)).astype(np.float32)
    expected: dict[str, Any] = {}
    pages = math.ceil(zoo.weights_bytes(base) / PAGE_BYTES)
    # The margin is for the ends of pages that stay unused because no tensor straddles two pages; all margins
    # together are less than a model.
    arena_bytes = room * (pages + pages // 16 + 3) * PAGE_BYTES
    peak_pages = 0
    with Cluster(worker_arguments=("--arena", str(arena_bytes))) as cluster, cluster.client() as client:
        begin_ns = now_ns()
        for index in range(models):
            tuned = zoo.fine_tune(base, seed=seed + index)
            name = f"{architecture}-{index}"
            expected[name] = Plain(tuned).run({"image": x})[0]
            client.register(name, tuned.SerializeToString())
        registered_s = (now_ns() - begin_ns) / 1e9
        programs = status_of(client)["programs"]
        errors = []
        times = []
        order = [rng.choice(list(expected)) for _ in range(requests)]
        for name in order:
            begin_ns = now_ns()
            answer = client.infer(name, x)
            times.append(now_ns() - begin_ns)
            errors.append(relative_error(answer, expected[name]))
            if errors[-1] > TOLERANCE:
                raise AssertionError(f"{name} is off by {errors[-1]:.2e}: {whose(answer, expected)}")
            peak_pages = max(peak_pages, resident_pages(client))
        sent, results, held = settled(client)
        return {
            "models": models,
            "arena, MiB": arena_bytes >> 20,
            "weights of one, MiB": round(zoo.weights_bytes(base) / 2**20, 1),
            "programs": programs,
            "registered and checked, s": round(registered_s, 1),
            "requests": requests,
            "largest relative error": max(errors),
            "closest two models differ by": closest(expected),
            "LOAD ordered": sent.get("load", 0),
            "UNLOAD ordered": sent.get("unload", 0),
            "results": results,
            "resident at the end": held,
            "largest share of the arena in use": round(peak_pages * PAGE_BYTES / arena_bytes, 3),
            "latency p50, ms": float(np.percentile(times, 50)) / 1e6,
            "latency p99, ms": float(np.percentile(times, 99)) / 1e6,
        }


def status_of(client: Client) -> dict[str, Any]:
    """The controller's status, with all that it holds."""
    return dict(client.status())


def whose(answer: Any, expected: dict[str, Any]) -> str:
    """The model that a wrong answer belongs to, if any, as text."""
    name, error = min(
        ((name, relative_error(answer, right)) for name, right in expected.items()), key=lambda pair: pair[1]
    )
    return f"it is that of {name}" if error < TOLERANCE else "it is nobody's"


def closest(expected: dict[str, Any]) -> float:
    """The least difference between two models' answers, by which a mistaken answer would differ."""
    answers = list(expected.values())
    return min(
        (relative_error(answer, other) for index, answer in enumerate(answers) for other in answers[:index]),
        default=0.0,
    )


def resident_pages(client: Client) -> int:
    """Pages in use, by the controller's plan."""
    plan = client.status()["workers"][0]["devices"][0]["plan"]
    return int(plan["pages"]) - int(plan["pages_free"])


def settled(client: Client) -> tuple[dict[str, int], dict[str, int], int]:
    """Actions sent by kind, results by kind, and models resident, once nothing is under way."""
    pause = threading.Event()
    while (worker := client.status()["workers"][0])["actions"]:
        pause.wait(0.01)
    return worker["sent"], worker["results"], int(worker["devices"][0]["plan"]["resident"])


# ----- thousands of small ones ---------------------------------------------------------------


def input_of(model: onnx.ModelProto, rng: np.random.Generator) -> dict[str, Any]:
    """A random input of a single row."""
    spec = model.graph.input[0]
    shape = [1, *(dim.dim_value for dim in spec.type.tensor_type.shape.dim[1:])]
    return {spec.name: rng.standard_normal(shape).astype(np.float32)}


def thousands(
    models: int, families: int, seconds: float, share: float = 0.05, seed: int = SEED
) -> dict[str, Any]:
    """Facts about ``models`` fine-tunes of ``families`` architectures. Raises where an answer is wrong."""
    bases = architectures(families)
    rng = np.random.default_rng(seed)
    feeds = [input_of(base, rng) for base in bases]
    total = sum(zoo.weights_bytes(bases[index % families]) for index in range(models))
    largest = max(zoo.weights_bytes(base) for base in bases)
    arena_bytes = max(int(share * total), 2 * largest)
    arena_bytes = -(-arena_bytes // SMALL_PAGE_BYTES) * SMALL_PAGE_BYTES
    names = [f"small-{index}" for index in range(models)]
    cluster = Cluster(worker_arguments=("--arena", str(arena_bytes), "--page-size", str(SMALL_PAGE_BYTES)))
    with contextlib.closing(cluster):
        cluster.start()
        with cluster.client() as client:
            begin_ns = now_ns()
            for index in range(families):
                client.register(names[index], bases[index])
            first_s = (now_ns() - begin_ns) / 1e9
            rss = rss_bytes(cluster.controller.pid)
            rate, making_s = _register(client, bases, names, families, seed)
            each = (rss_bytes(cluster.controller.pid) - rss) / max(1, models - families)
            programs = status_of(client)["programs"]
        cluster.stop()
        restart_s = cluster.start() / 1e9
        with cluster.client() as client:
            checked, worst = _check(client, bases, names, feeds, families, seed)
            capacity = _capacity(bases, feeds)
            before = settled(client)[0].get("load", 0)
            found = offer_zipf(cluster, names, LOAD * capacity, seconds, seed, SLO_S, ZIPF, patience_s=300.0)
            loads = settled(client)[0].get("load", 0) - before
        return {
            "models": models,
            "architectures": families,
            "programs": programs,
            "weights of all, MiB": round(total / 2**20, 1),
            "arena, MiB": round(arena_bytes / 2**20, 1),
            "first of each architecture registered, s": round(first_s, 2),
            "registration of the others, models/s": round(rate, 1),
            "the benchmark made them, s": round(making_s, 2),
            "controller memory of one model, KB": round(each / 1e3, 1),
            "restart until all are ready, s": round(restart_s, 2),
            "answers checked": checked,
            "largest relative error": worst,
            "capacity, plain ONNX Runtime, requests/s": round(capacity, 1),
            "offered, requests/s": round(found["offered_rate"], 1),
            "within 100 ms, %": round(100 * found["within_slo"] / max(1, found["offered"]), 2),
            "refused, %": round(100 * found["refused"] / max(1, found["offered"]), 2),
            "missed, %": round(100 * found["missed"] / max(1, found["offered"]), 2),
            "latency, ms": {name: round(value, 2) for name, value in found["latency_ms"].items()},
            "generator's lag p99, ms": round(found["lag_ms"].get("p99", 0.0), 2),
            "loads per request": round(loads / max(1, found["offered"]), 3),
        }


SMALL_PAGE_BYTES = 64 << 10
"""Page size of the second part: a page of 1 MiB would waste half of a small model's memory."""


def _register(
    client: Client, bases: list[onnx.ModelProto], names: list[str], families: int, seed: int
) -> tuple[float, float]:
    """(models per second, seconds for making them here, not counted). Several are registered at once."""
    making_ns = taken_ns = 0
    for first in range(families, len(names), MADE_AHEAD):
        begin_ns = now_ns()
        bodies = {
            names[index]: zoo.fine_tune(bases[index % families], seed=seed + index).SerializeToString()
            for index in range(first, min(first + MADE_AHEAD, len(names)))
        }
        made_ns = now_ns()
        register_all(client, bodies, UPLOADS_AT_ONCE)
        making_ns += made_ns - begin_ns
        taken_ns += now_ns() - made_ns
    return max(1, len(names) - families) / (taken_ns / 1e9), making_ns / 1e9


def _check(
    client: Client,
    bases: list[onnx.ModelProto],
    names: list[str],
    feeds: list[dict[str, Any]],
    families: int,
    seed: int,
) -> tuple[int, float]:
    """Request every model once, in random order; returns (count, largest relative error)."""
    order = list(range(len(names)))
    random.Random(seed).shuffle(order)
    worst = 0.0
    for index in order:
        family = index % families
        model = bases[family] if index < families else zoo.fine_tune(bases[family], seed=seed + index)
        expected = Plain(model).run(feeds[family])[0]
        answer = next(iter(client.infer(names[index], feeds[family]).values()))  # type: ignore[union-attr]
        error = relative_error(answer, expected)
        if error > TOLERANCE:
            raise AssertionError(f"{names[index]} is off by {error:.2e}")
        worst = max(worst, error)
    return len(order), worst


def _capacity(bases: list[onnx.ModelProto], feeds: list[dict[str, Any]]) -> float:
    """Requests per second of plain ONNX Runtime with every model in memory, over all architectures evenly."""
    means = [Plain(base).block(feed, 50) for base, feed in zip(bases, feeds)]
    return 1 / float(np.mean(means))


def main() -> None:
    parser = report.command_line(__doc__)
    parser.add_argument("--models", type=int, default=40, help="large models; 0: leave that part out")
    parser.add_argument("--thousands", type=int, default=3000, help="small models; 0: leave that part out")
    parser.add_argument("--requests", type=int, default=200, help="requests to the large models")
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    if arguments.models:
        facts = (
            large(4, 2, 12, 64, "residual_cnn")
            if arguments.quick
            else large(arguments.models, 8, arguments.requests, 64)
        )
        report.show("models of 100 MB on an arena for a fifth of them", SEED, [], facts, arguments.json)
    if arguments.thousands:
        facts = (
            thousands(24, 4, 2.0, share=0.25)
            if arguments.quick
            else thousands(arguments.thousands, ARCHITECTURES, arguments.seconds)
        )
        report.show("thousands of small models on an arena for 5 % of them", SEED, [], facts, arguments.json)


if __name__ == "__main__":
    main()
