"""Effect of batch clients on latency-sensitive clients: six GPUs, six models with an SLO, others that only
want throughput.

Latency-sensitive clients: six models at 200 requests/s in total (the paper's text says per model, its program
divides), with the SLO ladder of Fig. 7. Batch clients: none, 12 models with 16 closed-loop clients each, or
48 models with 4 clients each; their SLO is a day.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

from bench.paper import drawing, live
from bench.paper.bounds import most_served
from bench.paper.common import (
    ARTIFACT,
    MS,
    NO_SLO_NS,
    PAPER,
    SECOND,
    Result,
    Setting,
    Tick,
    Watch,
    class_rows,
    input_ns,
    ladder,
    named,
    progress,
    rate_limit,
    resnets,
    run_jobs,
    share,
    v100s,
)
from bench.paper.fig7 import DEVICES, FIRST_NS, LADDER, floors
from clockwork.sim import Closed, Open, simulate
from clockwork.workloads import poisson, slo_steps, window

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Fig. 8: latency-sensitive clients beside batch clients, six GPUs"
SHOWN = ("policy", "batch", "floor_ms", "floor_95%_ms", "late", "missed", "batch_bad", "device_busy_%")
"""Columns of the table; the JSON has more."""
SENSITIVE = 6
RATE = 200
BATCH_CLIENTS = ((0, 0), (12, 16), (48, 4))
"""(models, closed-loop clients of each model)."""

BATCH_CLASS = 128
"""First class of the batch clients, which have a class for each step; other clients' classes begin at 0."""

PAPER_REFUSED_BELOW_MS = 15.0

STEP_NS = {"tiny": SECOND // 4, "quick": 3 * SECOND, "full": 30 * SECOND}


@dataclasses.dataclass(frozen=True)
class Job:
    policy: str  # name of the policy; "": the upper bound
    batch_models: int
    concurrency: int
    step_ns: int
    seed: int


def work(job: Job, tick: Tick) -> dict[str, Any]:
    """A ladder of SLOs for a policy, or for the bound."""
    slos_ns = ladder(FIRST_NS, LADDER[0], round(FIRST_NS * LADDER[1]))
    total_ns = job.step_ns * len(slos_ns)
    sensitive = poisson([RATE / SENSITIVE] * SENSITIVE, total_ns, seed=job.seed)
    models = resnets(SENSITIVE + job.batch_models)
    slos_ms = [slo_ns / MS for slo_ns in slos_ns]
    row: dict[str, Any] = {
        "policy": job.policy or "bound",
        "batch": f"{job.batch_models}x{job.concurrency}",
        "slo_ms": slos_ms,
    }
    if not job.policy:
        satisfied: list[float | None] = []
        for index, slo_ns in enumerate(slos_ns):
            part = window(sensitive, index * job.step_ns, (index + 1) * job.step_ns).collect()
            served = most_served(part, SENSITIVE, models[0], DEVICES, slo_ns)
            satisfied.append(served / len(part) if len(part) else None)
            tick((index + 1) / len(slos_ns))
        # A batch holds at most one request of each client of its model, because a client waits for its
        # answer.
        alone_ns = models[0].execution_ns(1) + input_ns(models[0])
        # The last requests of a step are answered after its end, and count for the step as well.
        clients = job.batch_models * job.concurrency
        throughput = clients * SECOND / job.step_ns + min(
            DEVICES * rate_limit(models[0], NO_SLO_NS, job.concurrency),
            clients * SECOND / alone_ns,
        )
        return (
            row
            | {"satisfied": satisfied, "batch/s": [throughput] * len(slos_ns)}
            | floors(slos_ms, satisfied)
        )
    steps = [(index * job.step_ns, slo_ns) for index, slo_ns in enumerate(slos_ns)]
    batch = [
        Closed(
            SENSITIVE + model,
            job.concurrency,
            slo_ns=NO_SLO_NS,
            cls=BATCH_CLASS + index,
            round_trip_ns=input_ns(models[0]),
            start_ns=begin_ns,
            until_ns=begin_ns + job.step_ns,
        )
        for index, (begin_ns, _) in enumerate(steps)
        for model in range(job.batch_models)
    ]
    found = simulate(
        models,
        v100s(DEVICES),
        [Open(slo_steps(sensitive, steps)), *batch],
        **named(job.policy),
        seed=job.seed,
        until_ns=total_ns,
        resident=True,
        on_progress=progress(tick, total_ns),
    )
    tally = class_rows(found.classes, BATCH_CLASS + len(slos_ns))
    satisfied = share(tally["good"][: len(slos_ns)], tally["offered"][: len(slos_ns)])
    return (
        row
        | {
            "satisfied": satisfied,
            "batch/s": [good * SECOND / job.step_ns for good in tally["good"][BATCH_CLASS:]],
        }
        | floors(slos_ms, satisfied)
        | {
            "late": int(found.models.late[:SENSITIVE].sum()),
            "missed": int(found.models.missed[:SENSITIVE].sum()),
            "batch_bad": int(found.models.bad[SENSITIVE:].sum()),
            "device_busy_%": round(100 * float(found.device_busy.mean()), 2),
            "digest": found.digest,
            "cpu_s": round(found.cpu_s, 3),
        }
    )


def run(setting: Setting, watch: Watch | None = None) -> Result:
    policies = setting.chosen()
    jobs = [
        Job(policy, models, concurrency, STEP_NS[setting.form], setting.seed)
        for (models, concurrency), policy in itertools.product(BATCH_CLIENTS, (*policies, ""))
    ]
    rows = run_jobs(setting, work, jobs, watch)
    facts: dict[str, Any] = {}
    for policy in policies:
        own = [row for row in rows if row["policy"] == policy]
        alone = next(row for row in own if row["batch"] == "0x0")
        facts[f"floor in ms, {policy}"] = {row["batch"]: row["floor_ms"] for row in own}
        facts[f"most of the sensitive requests lost to batch clients, {policy}, points"] = {
            row["batch"]: round(
                max(
                    (
                        100 * (before - with_batch)
                        for before, with_batch in zip(alone["satisfied"], row["satisfied"])
                        if before is not None and with_batch is not None
                    ),
                    default=0.0,
                ),
                3,
            )
            for row in own
            if row is not alone
        }
    return Result(
        "fig8", TITLE, setting,
        {
            "sensitive clients": "not affected by batch clients, which use what is left",
            "mostly refused below ms": PAPER_REFUSED_BELOW_MS,
            "source": f"{PAPER}, section 6.4 (as reading notes give it); rates and clients: {ARTIFACT}",
        },
        rows, facts, live.isolation(setting) if setting.live else [],
    )  # fmt: skip


def draw(result: Result) -> Figure:
    kinds = list(dict.fromkeys(row["batch"] for row in result.rows))
    lines = 2 + bool(result.live)
    figure, axes = drawing.sheet(result, lines, len(kinds), (4.2 * len(kinds), 3.2 * lines))
    for kind, above, below in zip(kinds, axes, axes[len(kinds) :]):
        for row in result.rows:
            if row["batch"] != kind:
                continue
            style: dict[str, Any] = (
                drawing.BOUND
                if row["policy"] == "bound"
                else {"color": drawing.colour(row["policy"]), "marker": "o", "markersize": 3}
            )
            points = [(x, y) for x, y in zip(row["slo_ms"], row["satisfied"]) if y is not None]
            above.plot(*zip(*points), **style, label=row["policy"])
            below.plot(row["slo_ms"], row["batch/s"], **style, label=row["policy"])
        above.axvline(
            PAPER_REFUSED_BELOW_MS,
            **drawing.PAPER,
            label=f"paper: refused below {PAPER_REFUSED_BELOW_MS:g} ms",
        )
        above.set_ylim(0, 1.05)
        for axis in (above, below):
            axis.set_xscale("log")
        drawing.label(above, "SLO (ms)", "sensitive satisfied", f"batch clients {kind}")
        drawing.label(below, "SLO of the sensitive (ms)", "batch answers/s")
        drawing.legend(above)
        drawing.legend(below)
    if result.live:
        draw_live(result, axes[2 * len(kinds) :])
    return figure


def draw_live(result: Result, axes: list[Axes]) -> None:
    """Draw the ladders without batch clients, with them, and the goodput of the batch clients."""
    for policy in dict.fromkeys(row["policy"] for row in result.live):
        own = [row for row in result.live if row["policy"] == policy]
        alone, together = (
            [row for row in own if bool(row["batch_clients"]) is there] for there in (False, True)
        )
        for place, rows, what in (
            (0, alone, "satisfied"),
            (1, together, "satisfied"),
            (2, together, "batch/s"),
        ):
            axes[place].plot(
                [row["slo_ms"] for row in rows], [row[what] for row in rows],
                color=drawing.colour(policy), marker="o", markersize=3, label=policy,
            )  # fmt: skip
    titles = ("live, CPU worker: no batch clients", "live: with batch clients", "live")
    for axis, title, y in zip(
        axes, titles, ("sensitive satisfied", "sensitive satisfied", "batch answers/s")
    ):
        axis.set_xscale("log")
        axis.set_ylim(bottom=0)
        drawing.label(axis, "SLO (ms)", y, title)
        drawing.legend(axis)
