"""Answers to clients' queries: descriptions of models, routes and workers, and counts."""

from __future__ import annotations

import bisect
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clockwork.config import LISTED_MODELS_PAGE, QUEUED_REQUESTS_MAX, VERSION
from clockwork.config.controller import CORE_LOADS_MAX, STATUS_ROWS_MAX
from clockwork.controller.catalog.records import ModelRecord
from clockwork.controller.context import Context
from clockwork.controller.models.lifecycle import ModelState
from clockwork.controller.models.version import ModelVersion
from clockwork.controller.peers.seats import SeatCounts
from clockwork.controller.registration.preparation_book import PreparationBook
from clockwork.controller.registration.table import ModelTable
from clockwork.controller.registration.versions import Versions
from clockwork.controller.standing import ControllerStanding
from clockwork.controller.storage.repairs import Repairs
from clockwork.errors import InvalidInput, ModelNotFound
from clockwork.formats.prepared import PreparedModel, TensorSpec
from clockwork.scheduler.types import Scheduler
from clockwork.system.clock import now_ns
from clockwork.system.records import fields_of
from clockwork.wire.messages import Query, Reason
from clockwork.wire.telling import tell
from clockwork.wire.tensors import dtype_name

OUTCOMES = ("answered", "refused", "missed", "cancelled", "failed", "invalid_input")
"""The outcomes of a request, in the order of the exchange's counts."""

SET_ASIDE = "set_aside"  # The state of a version that is unloaded because its executions did harm

UNSERVED = "unserved"
"""The state of a ready version that no worker serves: the workers that had it left, or leave."""


PAGE_MARK = "#"
"""Begins an argument that asks for a further page: "next" of the page before."""


class Queries:
    """Answers from the parts of one controller."""

    def __init__(
        self,
        context: Context,
        scheduler: Scheduler,
        table: ModelTable,
        versions: Versions,
        repairs: Repairs,
        policy: str,
        started_ns: int,
        seats: SeatCounts,
        standing: Callable[[], ControllerStanding],
    ) -> None:
        self._context = context
        self._exchange = context.exchange
        self._links = context.links
        self._scheduler = scheduler
        self._table = table
        self._versions = versions
        self._preparations = versions.preparations
        self._repairs = repairs
        self._policy = policy
        self._started_ns = started_ns
        self._seats = seats
        self._standing = standing

    def answer(self, query: Query) -> Any:
        """The reply's body for the query status, models or model. Raises ModelNotFound and InvalidInput."""
        match query.what:
            case "status":
                return self.status()
            case "readiness":
                return {"why_not_ready": self._versions.readiness()}
            case "cores":
                return self.cores()
            case "models":
                return self.list_models(query.argument)
            case "model":
                return self.find_model(query.argument)
        raise InvalidInput(
            f"a query is for readiness, status, models, model, cores, metrics or recorder, not {tell(query.what)}"
        )

    def list_models(self, argument: str = "") -> dict[str, Any]:
        """A page of ``clockwork models list``: short descriptions of versions, unloaded versions last.

        argument: "" for the first page, then "next" of the page before; the last page has "" there. Raises
        InvalidInput.
        """
        if argument and not argument.startswith(PAGE_MARK):
            raise InvalidInput(
                f"{tell(argument)} is no page: a page is named by the field `next` of the page before"
            )
        rows: list[dict[str, Any]] = []
        name, at, version = argument[len(PAGE_MARK) :].partition("@")
        if not at:
            ids = [number for number, model in self._table.by_id.items() if model.state.is_live]
            page, following = page_of(ids, argument, LISTED_MODELS_PAGE)
            names = self._worker_names()
            rows += [self._describe_briefly(self._table.by_id[number], names) for number in page]
            if following:
                return {"models": rows, "next": following}
        shown = (name, int(version) if version.isascii() and version.isdigit() else 0) if at else ("", 0)
        away = sorted(
            (model.record.name, model.record.version, model.record)
            for versions in self._table.versions.values()
            for model in versions.values()
            if not model.state.is_live
        )
        away = [version for version in away if version[:2] > shown]
        page_away = away[: LISTED_MODELS_PAGE - len(rows)]
        rows += [describe_unloaded(record) for _, _, record in page_away]
        if len(page_away) == len(away):
            return {"models": rows, "next": ""}
        last = page_away[-1] if page_away else ("", 0)
        return {"models": rows, "next": f"{PAGE_MARK}{last[0]}@{last[1]}"}

    def find_model(self, text: str) -> dict[str, Any]:
        """The description of the model that ``name`` or ``name@version`` addresses. Raises ModelNotFound."""
        found = self._table.find(text)
        if found is not None:
            return self.describe(found)
        away = self._table.find_unloaded(text)
        if not away:
            raise ModelNotFound(self._table.absence(text))
        return describe_unloaded(away[-1].record)

    def describe(self, model: ModelVersion) -> dict[str, Any]:
        """The description of a version that ``clockwork models show`` shows."""
        names = self._worker_names()
        versions = self._table.live(model.record.name)
        prepared = model.prepared
        expected = self._scheduler.expected_ns(model.model_id, prepared.profile if prepared else ())
        return {
            **_describe(model, names),
            "devices": self._whereabouts(model, names),
            "counts": dict(zip(OUTCOMES, self._exchange.outcomes(model.model_id), strict=True)),
            **({"expected_ns": expected} if expected else {}),
            **self._state(model),
            **traffic(self._table, model),
            "versions": [number for number, version in versions.items() if version.state is ModelState.READY],
            "route": self.describe_route(model.record.name),
            "hosted": self._hosts(model, names),
        }

    def describe_route(self, name: str) -> dict[str, Any]:
        """A name's split, the traffic at this moment, and the results of a shadow's copies."""
        route = self._table.named.get(name)
        split = self._table.split_now(name)
        body: dict[str, Any] = {
            "name": name,
            "automatic": route is None or route.split is None,
            **(split.to_wire() if split is not None else {"shares": [], "shadow": None}),
            "serving": [[model.record.version, parts] for model, parts in self._table.shares(name)],
            "earlier": [split.to_wire() for split in route.earlier] if route is not None else [],
        }
        if body["shadow"] is not None:
            body["shadow"] |= self._exchange.shadow_results(name) or {}
        return body

    def status(self) -> dict[str, Any]:
        """The state of the cluster that ``clockwork status`` shows."""
        states: dict[str, int] = {}
        programs = set()
        for model in self._table.by_id.values():
            state, _ = state_of(model, self._preparations)
            states[state] = states.get(state, 0) + 1
            if model.prepared is not None:
                programs.add(model.prepared.program)
        why = self._versions.readiness()
        return {
            "version": VERSION,
            "epoch": self._context.epoch,
            "policy": self._policy,
            "uptime_ns": now_ns() - self._started_ns,
            "clients": len(self._links.clients),
            "seats": {
                "clients": self._seats.clients,
                "workers": self._seats.workers,
                "subscribers": self._seats.subscribers,
            },
            "standing": self._standing().describe(time.time_ns()),
            "ready": not why,
            "why_not_ready": why,
            "models": states,
            "packages_unchecked": self._repairs.left_count,
            "programs": len(programs),
            "requests_held": self._exchange.held_count,
            "requests_held_max": QUEUED_REQUESTS_MAX,
            "counts": self.count_all(),
            "predictions": self._scheduler.predictions(),
            "noise": self._scheduler.noise(),
            "devices_wanted": self._scheduler.devices_wanted(self._exchange.now_ns),
            "threads_wanted": self._versions.cores.threads_wanted(self._table.by_id.values()),
            "threads_awaited": [
                [model.label, model.awaits_threads] for model in self._versions.cores.waiting[:CORE_LOADS_MAX]
            ],
            "learnt": self._scheduler.policy_status(self._exchange.now_ns),
            "links": self._name_shares(self._scheduler.link_status(self._exchange.now_ns)),
            "stores": self._scheduler.store_status(),
            "workers": self._describe_workers(),
            "troubles": self._context.troubles.describe(self._exchange.now_ns),
            "complaints": self._context.complaints.counts(),
        }

    def cores(self) -> dict[str, Any]:
        """The figures by which a launcher divides the cores of a machine: models' loads, and the models that
        wait for executions of more threads."""
        waits = self._versions.cores
        return {
            "now_ns": now_ns(),
            "loads": waits.loads(
                self._table.by_id.values(), lambda model_id: sum(self._exchange.outcomes(model_id))
            ),
            "waiting": [[model.label, model.awaits_threads] for model in waits.waiting[:CORE_LOADS_MAX]],
            "workers": [
                {
                    "name": worker.name,
                    "preparing": self._preparations.count(worker.worker_id)["preparing"],
                    "draining": worker.is_draining,
                }
                for worker in self._links.workers.values()
            ],
        }

    def count_all(self) -> dict[str, Any]:
        """Counts of requests by outcome, and of refusals by reason."""
        refusals = {str(reason): self._exchange.refusals(number) for number, reason in enumerate(Reason, 1)}
        return {
            **dict(zip(OUTCOMES, self._exchange.outcomes(), strict=True)),
            "refusals": {reason: count for reason, count in refusals.items() if count},
        }

    def _name_shares(self, status: dict[str, Any]) -> dict[str, Any]:
        """Add the models' names to their shares."""
        return status | {
            "shares": [share | {"name": self._label(share["model"])} for share in status["shares"]]
        }

    def _describe_workers(self) -> list[dict[str, Any]]:
        plans = {
            (plan["worker"], plan["device"]): self._name_shares(plan) for plan in self._scheduler.devices()
        }
        described = self._workers_described()
        return [
            {
                "id": worker.worker_id,
                "name": worker.name,
                "state": "draining" if worker.is_draining else "serving",
                "rtt_ns": worker.clock.there_ns() + worker.clock.back_ns(),
                "clock_uncertainty_ns": worker.clock.uncertainty_ns(self._exchange.now_ns)
                if worker.clock.known
                else 0,
                "jitter_ns": worker.jitter_ns,
                "actions": self._exchange.action_count(worker.slot),
                "sent": self._exchange.actions_sent(worker.slot),
                "results": self._exchange.action_results(worker.slot),
                "devices": [
                    dataclasses.asdict(info)
                    | {
                        "plan": plans.get((worker.worker_id, index), {}),
                        "offline": worker.offline.get(index, ""),
                    }
                    for index, info in enumerate(worker.devices)
                ]
                if worker.worker_id in described
                else [],
                "models": self._preparations.describe(worker.worker_id)
                if worker.worker_id in described
                else self._preparations.count(worker.worker_id) | {"failures": []},
                "stats": worker.stats if worker.worker_id in described else {},
                "left_out": 0 if worker.worker_id in described else len(worker.devices),
            }
            for worker in self._links.workers.values()
        ]

    def _workers_described(self) -> set[int]:
        """The workers whose devices are described, as far as there is room: the fewest rows first."""
        rows = sorted(
            (len(worker.devices) + self._preparations.failure_count(worker.worker_id), worker.worker_id)
            for worker in self._links.workers.values()
        )
        total, found = 0, set()
        for count, worker_id in rows:
            total += count
            if total > STATUS_ROWS_MAX:
                break
            found.add(worker_id)
        return found

    def _describe_briefly(self, model: ModelVersion, names: Mapping[int, str]) -> dict[str, Any]:
        prepared = model.prepared
        quickest = (
            min(prepared.profile, key=lambda point: point.exec_ns) if prepared and prepared.profile else None
        )
        live = self._scheduler.expected_ns(model.model_id, [quickest]) if quickest is not None else []
        return {
            "id": model.model_id,
            "name": model.record.name,
            "version": model.record.version,
            **self._state(model),
            "not_prepared": {
                names.get(worker, str(worker)): model.workers[worker]
                for worker in self._preparations.failed_on(model)
            },
            **traffic(self._table, model),
            "devices": self._whereabouts(model, names),
            "hosted": self._hosts(model, names),
            "slo_ns": model.slo_ns,
            "origin": model.record.options.get("origin", ""),
            "inputs": _describe_inputs(prepared) if prepared else [],
            "outputs": [_describe_tensor(spec) for spec in prepared.outputs] if prepared else [],
            "holding": prepared.holding if prepared else "",
            "batches": prepared.batches if prepared else False,
            "batch_max": prepared.batch_max if prepared else 0,
            "weights_bytes": prepared.weights_bytes if prepared else 0,
            "resident_bytes": prepared.resident_bytes if prepared else 0,
            "runs": list(prepared.runs) if prepared else [],
            "program": prepared.program if prepared else "",
            "exec_ns": quickest.exec_ns if quickest is not None else 0,
            **({"live_exec_ns": live[0]} if live else {}),
            "load_ns": prepared.load_ns if prepared else 0,
        }

    def _state(self, model: ModelVersion) -> dict[str, str]:
        state, text = state_of(model, self._preparations)
        return {"state": state, "text": text}

    def _worker_names(self) -> dict[int, str]:
        return {worker.worker_id: worker.name for worker in self._links.workers.values()}

    def _whereabouts(self, model: ModelVersion, names: Mapping[int, str]) -> list[dict[str, Any]]:
        """The devices that have a model, or load it."""
        return [
            {"worker": names.get(worker, str(worker)), "device": device, "state": state}
            for worker, device, state in self._scheduler.whereabouts(model.model_id)
        ]

    def _hosts(self, model: ModelVersion, names: Mapping[int, str]) -> list[str]:
        """The workers whose host stores have a model."""
        return [names.get(worker, str(worker)) for worker in self._scheduler.hosts(model.model_id)]

    def _label(self, model_id: int) -> str:
        """name@version, or the id of a model that was removed while a device still held it."""
        model = self._table.by_id.get(model_id)
        return model.label if model else str(model_id)


def state_of(model: ModelVersion, preparations: PreparationBook) -> tuple[str, str]:
    """A version's state as shown to people, and its reason."""
    if model.state is ModelState.READY and not preparations.is_served(model):
        failed = (model.workers[worker] for worker in preparations.failed_on(model))
        return UNSERVED, next(failed, "no worker that is connected serves it")
    return model.state.shown, model.text


def traffic(table: ModelTable, model: ModelVersion) -> dict[str, Any]:
    """A version's parts of its name's requests: those that it serves and those of which it gets a copy;
    ``current``: whether the name alone means this version."""
    name = model.record.name
    split = table.split_of(name)
    shadow = split.shadow if split is not None else None
    return {
        "current": table.routes.get(name) is model,
        "share": next((parts for other, parts in table.shares(name) if other is model), 0),
        "shadow": shadow.parts if shadow is not None and shadow.version == model.record.version else 0,
    }


def describe_unloaded(record: ModelRecord) -> dict[str, Any]:
    """The description of an unloaded version, from its registration."""
    return {
        "name": record.name,
        "version": record.version,
        "state": SET_ASIDE if record.aside else ModelState.UNLOADED.shown,
        "text": record.aside,
        "current": False,
        "digest": record.digest,
        "slo_ns": int(record.options.get("slo_ns", 0)),
        "origin": record.options.get("origin", ""),
        "options": record.options,
    }


def _describe(model: ModelVersion, names: Mapping[int, str]) -> dict[str, Any]:
    """The description of a version by itself. names: of workers, by id."""
    body: dict[str, Any] = {
        "name": model.record.name,
        "version": model.record.version,
        "digest": model.record.digest,
        "slo_ns": model.slo_ns,
        "options": model.record.options,
        "faults": model.faults,
        "workers": {names.get(worker, str(worker)): state for worker, state in model.workers.items()},
        "preparations": _describe_preparations(model, names),
    }
    prepared = model.prepared
    if prepared is not None:
        body |= {
            "inputs": _describe_inputs(prepared),
            "outputs": [_describe_tensor(spec) for spec in prepared.outputs],
            "batches": prepared.batches,
            "batching_note": prepared.batching_note,
            "lengths": prepared.lengths,
            "lengths_note": prepared.lengths_note,
            "batch_max": prepared.batch_max,
            "holding": prepared.holding,
            "program": prepared.program,
            "weights_bytes": prepared.weights_bytes,
            "resident_bytes": prepared.resident_bytes,
            "page_bytes": prepared.page_bytes,
            "pages": sum(prepared.runs),
            "runs": list(prepared.runs),
            "load_ns": prepared.load_ns,
            "profile": list(map(fields_of, prepared.profile)),
            "by_threads": prepared.by_threads,
            "constants_note": prepared.constants_note,
            "metadata": prepared.metadata,
            "example": prepared.example,
        }
    return body


def _describe_preparations(model: ModelVersion, names: Mapping[int, str]) -> list[dict[str, Any]]:
    """By worker: preparing, ready or the reason of a failure, and the measurements there."""
    rows = []
    for worker, state in model.workers.items():
        row: dict[str, Any] = {"worker": names.get(worker, str(worker)), "state": state}
        prepared = model.measured.get(worker, model.prepared) if state == "ready" else None
        if prepared is not None:
            spec = model.spec(prepared)
            row |= {
                "holding": prepared.holding,
                "batch_max": spec.batch_max,
                "pages": sum(spec.runs),
                "load_ns": spec.load_ns,
                "exec_ns": min((point.exec_ns for point in spec.profile), default=0),
            }
        rows.append(row)
    return rows


def _describe_inputs(prepared: PreparedModel) -> list[dict[str, Any]]:
    defaults = prepared.defaults()
    return [
        _describe_tensor(spec) | ({"optional": True} if spec.name in defaults else {})
        for spec in prepared.inputs
    ]


def _describe_tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": dtype_name(spec.dtype), "shape": list(spec.shape)}


def page_of(ids: Sequence[int], argument: str, most: int) -> tuple[Sequence[int], str]:
    """A page of at most so many ascending ids, and the argument that asks for the page behind it, "" after
    the last.

    argument: "" for the first page. Raises InvalidInput.
    """
    first = 0
    if argument:
        digits = argument[len(PAGE_MARK) :]
        if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
            raise InvalidInput(
                f"{tell(argument)} is no page: a page is named by the field `next` of the page before"
            )
        first = bisect.bisect_right(ids, int(digits))
    page = ids[first : first + most]
    return page, f"{PAGE_MARK}{page[-1]}" if first + len(page) < len(ids) else ""
