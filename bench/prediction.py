"""Errors of the predicted duration and end of every action, live on a CPU worker, and simulated.

    python -m bench.prediction [--quick] [--json] [--seconds 60] [--load 0.8] [--policy NAME]
        [--plot prediction.png]

Live: digits, a residual network and an MLP on one worker whose memory holds two and a half of them, so that
models are loaded all the time. The figures are those of `clockwork status`, which the scheduler keeps since
its start, and so include the first executions of every model. Simulated: the paper's V100 models on two
devices that are also short of memory, with the noise that the paper measured. Over: the prediction was
longer, or later, than the action; under: the opposite, which makes an answer late.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import report
from bench.cluster import Cluster as Processes
from clockwork.config import POLICY
from clockwork.formats import profiles
from clockwork.models import zoo
from clockwork.sim import Cluster, Open, simulate
from clockwork.system.clock import MS, SECOND
from clockwork.workloads import load_generator, poisson, zipf

SEED = 11
MIB = 1 << 20
SLO_NS = 200 * MS
KINDS = ("infer_duration", "infer_completion", "load_duration", "load_completion")
MARKS = ("50", "90", "99", "99.9", "99.99")

EXEC_NOISE, LOAD_NOISE = 0.0003, 0.01
PAPER_SLO_NS = 100 * MS
PAPER_PART = 0.5
"""Load as a part of the rate that the devices could execute without batches."""

Found = Mapping[str, Any]
"""Prediction errors by kind, then "over" and "under": total, max_ns and percentiles_ns."""


def live(part: float, seconds: float, policy: str, quick: bool) -> Found:
    """The prediction errors of the controller's status after a run."""
    width, image = (256, 32) if quick else (1024, 64)
    models = {
        "residual": zoo.build("residual_cnn", image=image),
        "mlp-a": zoo.build("mlp", width=width, depth=4),
        "mlp-b": zoo.build("mlp", width=width, depth=4, seed=1),
        "digits": zoo.digits(),
    }
    arena = sum(-(-zoo.weights_bytes(model) // MIB) + 2 for model in models.values()) * 5 // 8
    with (
        Processes(
            worker_arguments=("--arena", f"{max(arena, 17)}M"), controller_arguments=("--policy", policy)
        ) as cluster,
        cluster.client() as client,
    ):
        for name, model in models.items():
            client.register(name, model, slo=SLO_NS / SECOND)
        known = [profiles.from_info(client.model(name)) for name in models]
        mean_ns = sum(profile.execution_ns(1) + profile.load_ns / 2 for profile in known) / len(known)
        rates = [part * SECOND / mean_ns / len(known)] * len(known)
        workload = poisson(rates, round(seconds * SECOND), seed=SEED, slo_ns=SLO_NS)
        load_generator.run_live(client, workload, list(models), seed=SEED)
        status: dict[str, Any] = dict(client.status())
        found: Found = status["predictions"]
    return found


def simulated(seconds: float, policy: str) -> Found:
    """The paper's models, four of each, on two devices that hold two thirds of them."""
    models = profiles.copies(profiles.paper_varieties(), 4)
    pages = sum(model.pages(profiles.PAPER_PAGE_BYTES) for model in models)
    cluster = Cluster(
        devices=2,
        page_count=pages // 3,
        exec_noise=EXEC_NOISE,
        load_noise=LOAD_NOISE,
        link_jitter_ns=10_000,
        clock_offset_ns=MS,
        clock_drift_ppm=20.0,
    )
    mean_ns = sum(model.execution_ns(1) for model in models) / len(models)
    rate = PAPER_PART * cluster.devices * SECOND / mean_ns
    workload = poisson(
        [rate * share for share in zipf(len(models), 0.9)],
        round(seconds * SECOND),
        seed=SEED,
        slo_ns=PAPER_SLO_NS,
    )
    result = simulate(models, cluster, [Open(workload)], policy, seed=SEED, warmup_ns=SECOND, resident=True)
    return {name: error.to_json() for name, error in result.errors.items()}


def table(found: Mapping[str, Found]) -> list[dict[str, Any]]:
    """A line for each place, kind and direction."""
    return [
        {
            "where": where,
            "predicted": kind.replace("_", " "),
            "by": way,
            "actions": errors["total"],
            **{f"p{mark}_ms": round(errors["percentiles_ns"].get(mark, 0) / 1e6, 4) for mark in MARKS},
            "most_ms": round(errors["max_ns"] / 1e6, 3),
        }
        for where, kinds in found.items()
        for kind in KINDS
        for way, errors in kinds[kind].items()
    ]


def draw(found: Mapping[str, Found], path: Path) -> None:
    """Percentiles of the errors, under to the left of the axis and over to the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 3.5 * len(found)), layout="constrained")
    FigureCanvasAgg(figure)
    places = range(len(MARKS))
    for row, (where, kinds) in zip(figure.subplots(len(found), len(KINDS), squeeze=False), found.items()):
        for axes, kind in zip(row, KINDS):
            for way, colour in (("over", "tab:blue"), ("under", "tab:red")):
                errors = kinds[kind][way]
                if errors["total"]:
                    values = [max(errors["percentiles_ns"][mark], 100) / 1e6 for mark in MARKS]
                    axes.semilogy(places, values, "o-", color=colour, label=f"{way}, {errors['total']}")
            axes.set_xticks(list(places), [f"p{mark}" for mark in MARKS])
            axes.set_title(f"{where}: {kind.replace('_', ' ')}")
            axes.set_ylabel("error (ms)")
            axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = report.command_line(__doc__)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--load", type=float, default=0.8)
    parser.add_argument("--policy", default=POLICY)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    seconds = given.seconds or (2.0 if given.quick else 60.0)
    found = {
        "live": live(given.load, seconds, given.policy, given.quick),
        "simulated": simulated(seconds, given.policy),
    }
    if given.plot is not None:
        draw(found, given.plot)
    if given.json:
        print(json.dumps(report.conditions(SEED) | found, indent=2))
    else:
        report.show("Errors of predictions", SEED, table(found), {"policy": given.policy}, False)


if __name__ == "__main__":
    main()
