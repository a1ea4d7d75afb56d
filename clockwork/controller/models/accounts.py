"""Sentences about a model whose executions end workers or do not end."""

from __future__ import annotations

from typing import NamedTuple

from clockwork.config.controller import EVIDENCE_MAX, FAULT_WINDOW_NS, OVERRUNS_MAX
from clockwork.controller.troubles import TroubleKind
from clockwork.scheduler.types import Fault


class FaultAccount(NamedTuple):
    """The description of a fault.

    name: the label by which it is counted. kind: of the trouble, where the fault is a trouble by itself.
    text: the sentence about this fault. reason: the sentence of a model that is set aside for it; "" where
    none is. is_workers: whether the trouble is the worker's rather than the model's.
    """

    name: str
    kind: TroubleKind | None
    text: str
    reason: str
    is_workers: bool = False


def account(fault: Fault, worker: str, is_of_model: bool = True) -> FaultAccount:
    """Describe a fault. worker: its name; "" if it is gone. is_of_model: the fault concerns a model."""
    where = f"worker {worker}" if worker else "a worker"
    if fault is Fault.OVERRUN:
        minutes = FAULT_WINDOW_NS // 60_000_000_000
        return FaultAccount(
            "overrun",
            TroubleKind.MODEL_OVERRUN,
            f"an execution on {where} took longer than it may and was ended",
            f"{OVERRUNS_MAX} of its executions took longer than they may within {minutes} minutes",
        )
    if fault is Fault.CRASHED:
        return FaultAccount(
            "crashed",
            TroubleKind.WORKER_KILLED,
            f"{where} crashed while it executed or loaded the model",
            "workers crashed again while they executed or loaded it",
        )
    if fault is Fault.STUCK:
        return FaultAccount(
            "stuck",
            TroubleKind.WORKER_STUCK,
            f"a load on {where} took longer than it may and did not end, so the worker began anew",
            f"{EVIDENCE_MAX} successive loads of the model did not end, and their workers began anew",
            is_workers=True,
        )
    if fault is Fault.TRIAL_STUCK:
        return FaultAccount(
            "trial_stuck",
            TroubleKind.WORKER_STUCK,
            f"{'making it ready' if is_of_model else 'releasing the memory of models'} on {where} took longer than it may "
            "and did not end, so the worker began anew",
            "",
            is_workers=True,
        )
    return FaultAccount(
        "worker_lost",
        None,
        f"{where} was lost while it executed or loaded the model",
        f"{EVIDENCE_MAX} workers were lost while they executed the same request, or loaded it",
    )
