"""Errors of predicted execution times, on an arena with one executor and with several that slow each other.

    python -m bench.neighbours [--quick] [--json] [--where simulated,emulated,cpu] [--executors 2]
        [--slowdown 1.4] [--noise 0.02] [--load 1.5] [--seconds 20] [--policy NAME]

A load is relative to what the executors execute without batches if they do not slow each other: at 1.5 all
of them are busy. One executor is offered --slowdown times as much, so that its batches are as large: errors
grow with batches. Simulated and emulated executors slow each other as --slowdown says, which the controller
is told, and executions have log-normal noise. On a CPU other processes add theirs, the load generator and the
controller among them. Errors are of the controller's status, from its start on, in either direction; goal:
the longer 99th percentile of both directions with busy neighbours at most twice that without.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bench import report
from bench.cluster import Cluster as Processes
from clockwork.client.blocking import Client
from clockwork.config import POLICY
from clockwork.formats import profiles
from clockwork.formats.profiles import ModelProfile, linear
from clockwork.launch.profiles import register_profiles
from clockwork.models import zoo
from clockwork.sim import Cluster, Open, simulate
from clockwork.system.clock import MS, SECOND
from clockwork.workloads import Workload, load_generator, poisson

SEED = 23
SLO_NS = 200 * MS
MARKS = ("50", "99")
WHERE = ("simulated", "emulated", "cpu")

Found = Mapping[str, Any]
"""Errors of predicted durations, "over" and "under": total, max_ns and percentiles_ns."""


def known() -> list[ModelProfile]:
    """Models of 6, 9 and 12 ms a request, 2 to 4 ms more for each other of its batch."""
    return [
        linear(f"m{place}", (2 + place) * MS, 4 * MS, 8, weights_bytes=16 << 20, load_ns=5 * MS, input_bytes=1000,
               output_bytes=4)
        for place in (0, 1, 2)
    ]  # fmt: skip


def offered(models: list[ModelProfile], executors: int, given: Any) -> Workload:
    load = given.load * (given.slowdown if executors == 1 else 1)
    rates = [load * executors * SECOND / model.execution_ns(1) / len(models) for model in models]
    return poisson(rates, round(given.seconds * SECOND), seed=SEED, slo_ns=SLO_NS)


def simulated(executors: int, given: Any) -> Found:
    models = known()
    cluster = Cluster(
        devices=executors, devices_per_worker=executors, executors=executors, slowdown=given.slowdown,
        exec_noise=given.noise,
    )  # fmt: skip
    work = Open(offered(models, executors, given))
    found: Found = (
        simulate(models, cluster, [work], given.policy, seed=SEED, resident=True)
        .errors["infer_duration"]
        .to_json()
    )
    return found


def live(
    executors: int, given: Any, arguments: tuple[str, ...], models: Mapping[str, Any] | list[ModelProfile]
) -> Found:
    with (
        Processes(worker_arguments=arguments, controller_arguments=("--policy", given.policy)) as cluster,
        cluster.client() as client,
    ):
        registered = _register(client, models)
        work = offered(registered, executors, given)
        load_generator.run_live(client, work, [model.name for model in registered], seed=SEED)
        status: dict[str, Any] = dict(client.status())
        found: Found = status["predictions"]["infer_duration"]
    return found


def _register(client: Client, models: Mapping[str, Any] | list[ModelProfile]) -> list[ModelProfile]:
    if isinstance(models, list):
        register_profiles(client, models)
        return models
    for name, model in models.items():
        client.register(name, model, slo=SLO_NS / SECOND)
    return [profiles.from_info(client.model(name)) for name in models]


def emulated(executors: int, given: Any) -> Found:
    settings = {"executors": executors, "slowdown": given.slowdown, "exec_noise": given.noise, "seed": SEED}
    emulate = [word for name, value in settings.items() for word in ("--emulate", f"{name}={value}")]
    return live(executors, given, ("--device", "emulated", "--page-size", "16MiB", *emulate), known())


def cpu(executors: int, given: Any) -> Found:
    image = 64 if given.quick else 128
    models = {
        "resnet18": zoo.build("resnet18", image=image),
        "residual": zoo.build("residual_cnn", image=image),
        "mlp": zoo.build("mlp", width=512 if given.quick else 2048),
    }
    return live(executors, given, ("--arena", "512M", "--executors", str(executors)), models)


def percentiles(found: Found) -> dict[str, float]:
    """Percentiles of an error in ms, by direction."""
    return {
        f"{way} p{mark}_ms": errors["percentiles_ns"].get(mark, 0) / MS
        for way, errors in found.items()
        for mark in MARKS
    }


def worst_ms(found: Found) -> float:
    """The longer of the 99th percentiles of both directions."""
    marks = percentiles(found)
    return max(marks[f"{way} p99_ms"] for way in found)


def table(found: Mapping[str, Mapping[int, Found]]) -> list[dict[str, Any]]:
    """A line for each place and number of executors."""
    lines = []
    for where, by_executors in found.items():
        one_ms = worst_ms(next(iter(by_executors.values())))
        for executors, errors in by_executors.items():
            lines.append(
                {
                    "where": where,
                    "executors": executors,
                    "executions": errors["over"]["total"] + errors["under"]["total"],
                    **{name: round(value, 3) for name, value in percentiles(errors).items()},
                    "p99 over one's": round(worst_ms(errors) / max(one_ms, 1e-6), 2),
                }
            )
    return lines


def main() -> None:
    parser = report.command_line(__doc__)
    parser.add_argument("--where", default=",".join(WHERE))
    parser.add_argument("--executors", type=int, default=2)
    parser.add_argument("--slowdown", type=float, default=1.4)
    parser.add_argument("--noise", type=float, default=0.02)
    parser.add_argument("--load", type=float, default=1.5)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--policy", default=POLICY)
    given = parser.parse_args()
    given.seconds = given.seconds or (2.0 if given.quick else 20.0)
    places = {"simulated": simulated, "emulated": emulated, "cpu": cpu}
    found = {
        where: {executors: places[where](executors, given) for executors in (1, given.executors)}
        for where in given.where.split(",")
    }
    if given.json:
        print(json.dumps(report.conditions(SEED) | {"found": found}, indent=2))
        return
    facts = {
        "slowdown and noise, simulated and emulated": [given.slowdown, given.noise],
        "policy": given.policy,
    }
    report.show("Errors of predicted execution times", SEED, table(found), facts, False)


if __name__ == "__main__":
    main()
