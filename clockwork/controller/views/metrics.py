"""The query "metrics": every number that a controller has, for a process that makes metrics of them.

Counts only grow, from the start of the controller (those of a worker or a model: from its arrival). The
exchange and the scheduler count; this module gathers the counts, a page of models at a time, because the
controller serves no request meanwhile.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from clockwork.config import METRIC_BOUNDS_NS, METRICS_MODELS_PAGE
from clockwork.config.controller import PREDICTION_BOUNDS_NS
from clockwork.controller._exchange import TIMES
from clockwork.controller.context import Context
from clockwork.controller.models.version import ModelVersion
from clockwork.controller.peers.links import WorkerLink
from clockwork.controller.registration.table import ModelTable
from clockwork.controller.registration.versions import Versions
from clockwork.controller.standing import ControllerStanding
from clockwork.controller.views.queries import PAGE_MARK, page_of, state_of, traffic
from clockwork.errors import ClockworkError, ModelNotFound, Unavailable
from clockwork.scheduler.types import Scheduler
from clockwork.system.clock import now_ns

_LEARNT = ("margin", "contested_ns", "level", "beyond")
"""The scheduler's estimates about a device; csrc/scheduler/scheduler.h describes them in DeviceStatus."""

_NOTHING: dict[str, Any] = {"count": 0, "sum_ns": 0, "buckets": [0] * (len(METRIC_BOUNDS_NS) + 1)}

_UNASKED: dict[str, Any] = {
    "pending": 0,
    "outcomes": {
        "success": 0, "refused": {}, "deadline_missed": 0, "cancelled": 0, "failed": 0, "invalid_input": 0,
    },
    "inferences": 0,
    "executions": 0,
    "last_ns": 0,
    "times": dict.fromkeys(TIMES, _NOTHING),
    "batches": {},
}  # fmt: skip
"""The counts of a model without any request yet."""


class MetricsQuery:
    """Answers the query "metrics"."""

    def __init__(
        self,
        context: Context,
        scheduler: Scheduler,
        table: ModelTable,
        versions: Versions,
        policy: str,
        started_ns: int,
        standing: Callable[[], ControllerStanding],
    ) -> None:
        self._context = context
        self._exchange = context.exchange
        self._scheduler = scheduler
        self._table = table
        self._versions = versions
        self._policy = policy
        self._started_ns = started_ns
        self._standing = standing
        self.unserved = {"model_not_found": 0, "unavailable": 0}
        """Requests for a missing or an unserved model, which are in no model's outcomes."""

    def count_unserved(self, error: ClockworkError) -> None:
        """Count a request that got this error before it reached a model's queue."""
        if isinstance(error, ModelNotFound):
            self.unserved["model_not_found"] += 1
        elif isinstance(error, Unavailable):
            self.unserved["unavailable"] += 1

    def body(self, argument: str) -> dict[str, Any]:
        """The body of the reply.

        argument: "" for everything, with the first page of models; "next" of a page for the page behind it;
        the name of a model for its versions alone, or name@version for that version alone. Raises
        InvalidInput and ModelNotFound.
        """
        workers = list(self._context.links.workers.values())
        names = unique_names({worker.worker_id: worker.name for worker in workers})
        body: dict[str, Any] = {"now_ns": now_ns(), "started_ns": self._started_ns, "policy": self._policy}
        if argument and not argument.startswith(PAGE_MARK):
            versions = list(self._table.live(argument).values())
            found = self._table.find(argument)
            if found is None:
                raise ModelNotFound(self._table.absence(argument))
            return body | {"models": self._models(versions or [found], names), "next": ""}
        ids = list(self._table.by_id)  # ascending: ids are given in order, and never again
        page, following = page_of(ids, argument, METRICS_MODELS_PAGE)
        body |= {
            "models": self._models([self._table.by_id[number] for number in page], names),
            "next": following,
        }
        if argument:
            return body
        devices = self._scheduler.devices()
        links = self._scheduler.link_status(self._exchange.now_ns)
        return body | {
            "workers": self._workers(workers, names, devices),
            "prediction": self._scheduler.predictions(),
            "prediction_errors": {
                "bounds_ns": PREDICTION_BOUNDS_NS,
                **self._scheduler.prediction_errors(PREDICTION_BOUNDS_NS),
            },
            "lag": self._exchange.lag(),
            "devices_wanted": self._scheduler.devices_wanted(self._exchange.now_ns),
            "threads_wanted": self._versions.cores.threads_wanted(self._table.by_id.values()),
            "devices": sum(not device["draining"] for device in devices),
            "stores": self._scheduler.store_status(),
            "learnt": self._scheduler.policy_status(self._exchange.now_ns),
            "links": {name: links[name] for name in ("contested_ns", "level", "beyond")},
            "requests_open": self._exchange.held_count - self._exchange.copy_count,
            "clients": len(self._context.links.clients),
            "unserved": dict(self.unserved),
            "ready": not self._versions.readiness(),
            "standing": self._standing().describe(time.time_ns()),
            "model_count": len(ids),
            "unloaded": self._table.count - len(ids),
            "troubles": self._context.troubles.summary(self._exchange.now_ns),
            "complaints": self._context.complaints.counts(),
        }

    def _models(self, models: Iterable[ModelVersion], names: Mapping[int, str]) -> list[dict[str, Any]]:
        rows = []
        for model in models:
            prepared = model.prepared
            counts = self._exchange.model_counts(model.model_id)
            has = traffic(self._table, model)
            rows.append(
                {
                    "name": model.record.name,
                    "version": model.record.version,
                    "state": state_of(model, self._versions.preparations)[0],
                    **(counts or _UNASKED),
                    "resident": [
                        [names.get(worker, str(worker)), device]
                        for worker, device, state in self._scheduler.whereabouts(model.model_id)
                        if state == "resident"
                    ],
                    "hosted": [
                        names.get(worker, str(worker)) for worker in self._scheduler.hosts(model.model_id)
                    ],
                    "pages": sum(prepared.runs) if prepared else 0,
                    "weights_bytes": prepared.weights_bytes if prepared else 0,
                    "share": has["share"],
                    "shadow": self._exchange.shadow_results(model.record.name) if has["shadow"] else None,
                }
            )
        return rows

    def _workers(
        self, workers: Iterable[WorkerLink], names: Mapping[int, str], devices: Iterable[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        plans: dict[int, dict[int, dict[str, Any]]] = {}
        for plan in devices:
            plans.setdefault(plan["worker"], {})[plan["device"]] = plan
        rows = []
        for worker in workers:
            of_worker = plans.get(worker.worker_id, {})  # plans without lost devices
            fetches, drops = self._exchange.host_counts(worker.slot)
            first = next(iter(of_worker.values()), {})
            lost = ("pages", "pages_free", "resident", "evicted_early", "clock_mhz", "idle_with_work_ns")
            nothing = dict.fromkeys((*lost, *_LEARNT), 0)
            rows.append(
                {
                    "name": names[worker.worker_id],
                    "state": "draining" if first.get("draining") else "serving",
                    "devices": [
                        {
                            "index": index,
                            "kind": info.kind,
                            "name": info.name,
                            "lost": worker.offline.get(index, ""),
                            "pages": plan["pages"],
                            "page_bytes": info.page_bytes,
                            "free_pages": plan["pages_free"],
                            "resident": plan["resident"],
                            "evicted_early": plan["evicted_early"],
                            "idle_with_work_ns": plan["idle_with_work_ns"],
                            "clock_mhz": plan["clock_mhz"],
                            **{name: plan[name] for name in _LEARNT},
                            **counts,
                        }
                        for index, (info, counts) in enumerate(
                            zip(worker.devices, self._exchange.device_counts(worker.slot))
                        )
                        for plan in (of_worker.get(index, nothing),)
                    ],
                    "models": self._versions.preparations.count(worker.worker_id),
                    "host_bytes": first.get("host_bytes", 0) if worker.devices[0].host_bytes else 0,
                    "host_used": first.get("host_used", 0) if worker.devices[0].host_bytes else 0,
                    "store_bytes": worker.devices[0].store_bytes,
                    "store_used": worker.stats.get("store_bytes_used", 0),
                    "fetches": fetches,
                    "drops": drops,
                    "jitter_ns": worker.jitter_ns,
                    "rtt_ns": worker.clock.there_ns() + worker.clock.back_ns(),
                }
            )
        return rows


def unique_names(names: Mapping[int, str]) -> dict[int, str]:
    """Workers' names by id; a name that several have gets their ids, so that each can be told apart."""
    counts = collections.Counter(names.values())
    return {
        worker_id: name if counts[name] == 1 else f"{name}#{worker_id}" for worker_id, name in names.items()
    }
