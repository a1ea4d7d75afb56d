"""A worker that serves many models through the memory of a few on a GPU: goodput, cold starts, and the errors
of their predictions.

    python -m bench.gpu_serving [--quick] [--json] [--models 1000] [--room 20] [--pages 7] [--rate 200]
        [--seconds 60]

The models are written by hand, of a resnet50's class: as many launches of one small kernel, and as many pages
of weights. They share their program, and each has weights of its own, from which its answers are known and
checked. --room: the number of models that the GPU has memory for. Requests come open loop; the popularity of
models is Zipf's. Host memory holds all weights, and the disk, below the temporary folder, holds them twice:
--models times --pages times 16 MiB, 117 GB by default. --host-bytes: a smaller budget of host memory; other
weights are fetched from disk.

The benchmark runs on the driver that CLOCKWORK_CUDA_DRIVER names: on the fake one its times are this
machine's, and mean nothing for a GPU.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench import report
from bench.cluster import Cluster
from bench.gpu import FLOAT, MODULE, WIDTH, compile_kernel
from clockwork import Client
from clockwork.cli.load_report import watching
from clockwork.config import CUDA_PAGE_BYTES
from clockwork.device.cuda_memory import cards, open_driver, target_of
from clockwork.formats.package import hash_file
from clockwork.formats.prepared import WEIGHTS_FILE, TensorSpec
from clockwork.formats.program import (
    Argument,
    Launch,
    Program,
    ProgramWeight,
    TargetModules,
    Variant,
    write_program,
)
from clockwork.system.clock import SECOND
from clockwork.workloads import load_generator

SEED = 5
LAUNCHES = 54
"""Launches of a fused resnet50."""

BATCHES = (1, 2, 4, 8)
SLO_S = 0.1
ANSWERS_CHECKED = 20


def write_package(
    place: Path,
    module: bytes,
    target: str,
    pages: int,
    page_bytes: int,
    value: float,
    launch_count: int = LAUNCHES,
) -> None:
    """Write a package by hand: y = x + launch_count * value, because every weight is ``value``."""
    (place / MODULE).parent.mkdir(parents=True)
    (place / MODULE).write_bytes(module)
    spec = TensorSpec("x", FLOAT, ("n", WIDTH)), TensorSpec("y", FLOAT, ("n", WIDTH))

    def variant(batch: int) -> Variant:
        count = batch * WIDTH
        launches = tuple(
            Launch(
                0,
                "accumulate",
                (count // 256, 1, 1),
                (256, 1, 1),
                0,
                (
                    Argument("output" if number else "input", 0, 0),
                    Argument("table", 0, number % pages),
                    Argument("output", 0, 0),
                    Argument("i32", 0, count),
                ),
            )
            for number in range(launch_count)
        )
        table = tuple(Argument("weight", index, 0) for index in range(pages))
        return Variant(target, batch, ((batch, WIDTH),), ((batch, WIDTH),), 0, launches, table)

    program = Program(
        name="of a resnet50's class",
        inputs=spec[:1],
        outputs=spec[1:],
        batches=True,
        weights=tuple(
            ProgramWeight(FLOAT, (page_bytes // 4,), index * page_bytes, page_bytes) for index in range(pages)
        ),
        targets={target: TargetModules(0, (MODULE,))},
        variants=tuple(variant(batch) for batch in BATCHES),
        files={MODULE: hash_file(place / MODULE)[1]},
    )
    with open(place / WEIGHTS_FILE, "wb") as file:
        page = np.full(page_bytes // 4, value, np.float32).tobytes()
        for _ in range(pages):
            file.write(page)
    write_program(place, program)


def check(client: Client, index: int) -> None:
    x = np.arange(WIDTH, dtype=np.float32)[None]
    answer = np.asarray(client.infer(f"model-{index}", x))
    np.testing.assert_allclose(answer, x + LAUNCHES * value_of(index), rtol=1e-4)


def value_of(index: int) -> float:
    return 1 + index / 1024


def measure(
    models: int, room: int, pages: int, rate: float, seconds: float, page_bytes: int, host_bytes: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows: the prediction errors of each kind of action. Facts: the outcomes of the requests."""
    table = open_driver()
    card = cards(table)[0]
    target = target_of(card)
    module = compile_kernel(target)
    worker = [
        "--device", "cuda", "--arena", str(room * pages * page_bytes), "--page-size", str(page_bytes),
        *(
            ("--host-bytes", host_bytes)
            if host_bytes
            else ("--pinned-bytes", str(models * pages * page_bytes))
        ),
    ]  # fmt: skip
    with (
        Cluster(worker_arguments=worker) as cluster,
        cluster.client(timeout=600) as client,
    ):
        with tempfile.TemporaryDirectory() as scratch:
            for index in range(models):
                place = Path(scratch) / str(index)
                write_package(place, module, target, pages, page_bytes, value_of(index))
                client.register(f"model-{index}", place, slo=SLO_S)
                for path in (place / WEIGHTS_FILE, place / MODULE):
                    path.unlink()
        for index in range(0, models, max(models // ANSWERS_CHECKED, 1)):
            check(client, index)
        before = client.status()["counts"]
        settings = load_generator.LoadSettings(
            models=tuple(f"model-{index}" for index in range(models)),
            rate=rate,
            concurrency=0,
            duration_s=seconds,
            zipf=0.9,
            slo_s=SLO_S,
            seed=SEED,
        )
        settings.check()
        with watching() as watch:
            found = load_generator.run(client, settings, watch).to_json()
        status = client.status()
        for index in range(0, models, max(models // ANSWERS_CHECKED, 1)):
            check(client, index)
        (entry,) = status["workers"]
        predictions = status["predictions"]
    rows = [
        {
            "predicted": kind.replace("_", " "),
            "by": way,
            "actions": errors["total"],
            **{
                f"p{mark}_us": round(errors["percentiles_ns"][mark] / 1e3, 1)
                for mark in ("50", "99", "99.99")
            },
        }
        for kind, both in predictions.items()
        for way, errors in both.items()
        if errors["total"]
    ]
    counts = {name: status["counts"][name] - before[name] for name in ("answered", "refused", "missed")}
    device = entry["devices"][0]
    return rows, {
        "card": f"{card.name}, driver {table.version}",
        "models": models,
        "models that the GPU has room for": room,
        "weights of all, GB": models * pages * page_bytes / 1e9,
        "requests": sum(counts.values()),
        **counts,
        "latency": found.get("latency_ms") or found.get("latency"),
        "LOADs": entry["sent"].get("load", 0),
        "results": entry["results"],
        "pages in use at the end": device["page_count"] - device["plan"]["pages_free"],
        "clocks, if they are observed": (entry["stats"]["devices"][0]).get("gpu"),
        "SLO, ms": SLO_S * SECOND / 1e6,
    }


@report.in_a_sentence()
def main() -> None:
    parser = report.command_line(__doc__)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--room", type=int, default=20, help="models that the GPU has memory for")
    parser.add_argument("--pages", type=int, default=7, help="pages of weights of each model, of 16 MiB")
    parser.add_argument(
        "--rate", type=float, default=200.0, help="requests per second for all models together"
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument(
        "--host-bytes", default="", help="pinned memory; by default as much as all models need"
    )
    asked = parser.parse_args()
    if asked.quick:
        rows, facts = measure(12, 3, 2, 50.0, 2.0, 1 << 18, asked.host_bytes)
    else:
        rows, facts = measure(
            asked.models,
            asked.room,
            asked.pages,
            asked.rate,
            asked.seconds,
            CUDA_PAGE_BYTES,
            asked.host_bytes,
        )
    report.show("many models through the memory of a few", SEED, rows, facts, asked.json)


if __name__ == "__main__":
    main()
