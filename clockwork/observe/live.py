"""What a history that begins in the middle has to be told of the cluster: names, devices, and what is resident.

Steps name workers and models by numbers. A controller's status and its list of models say what these are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clockwork.observe.history import History
from clockwork.scheduler.recording import Step
from clockwork.scheduler.types import Event, ModelReady, ModelSpec, WorkerJoined


def introduce(
    history: History, status: Mapping[str, Any], models: Sequence[Mapping[str, Any]], at_ns: int
) -> None:
    """Tell a history of workers and models that it does not know, as of a time at or before its next step.

    status: of Client.status(). models: ``raw`` of Client.models(). What they have not is left out, so that a newer
    controller's, or an older one's, do no harm.
    """
    events: list[Event] = []
    workers = {int(one["id"]): one for one in status.get("workers", ()) if "id" in one}
    for number, worker in workers.items():
        if number not in history.workers or not history.workers[number].joined_ns:
            devices = tuple(
                (
                    one.get("kind", ""),
                    one.get("page_bytes", 0),
                    one.get("page_count", 0),
                    one.get("run_ahead", 1),
                )
                for one in worker.get("devices", ())
            )
            events.append(WorkerJoined(at_ns, number, devices))
    for model in models:
        if "id" not in model or (model["id"] in history.models and history.models[model["id"]].name):
            continue
        spec = ModelSpec(
            model["id"], model.get("name", ""), model.get("version", 0), model.get("program", ""), model.get("batches", False),
            model.get("batch_max", 1), model.get("slo_ns", 0), tuple(model.get("runs", ())), model.get("load_ns", 0), [],
        )  # fmt: skip
        lacking = model.get("not_prepared", {})
        ready = [one for one, worker in workers.items() if worker.get("name") not in lacking]
        events += [ModelReady(at_ns, worker, spec) for worker in ready]
    if events:
        history.apply(Step(events, ()))
    numbers = {worker.get("name"): number for number, worker in workers.items()}
    for name, number in numbers.items():
        history.workers[number].name = name or ""
    for model in models:
        for place in model.get("devices", ()):
            if "id" in model and place.get("state") == "resident" and place.get("worker") in numbers:
                history.hold(numbers[place["worker"]], place["device"], model["id"])
