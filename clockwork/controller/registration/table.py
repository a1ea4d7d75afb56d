"""The registered versions of models, by name and by id, and the route of each name.

Pure bookkeeping: no sockets, no files. A name routes to its newest version that is ready everywhere, unless
an operator has split its traffic (controller.catalog.routes); ``name@version`` addresses any version that is
still registered.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import Any

from clockwork.config import MODEL_REFERENCE_MAX, SHARE_WHOLE
from clockwork.controller.catalog.records import ModelRecord
from clockwork.controller.catalog.routes import NameRoute, Shadow, TrafficSplit, serving, whole
from clockwork.controller.effects import Effect, Forward, Serve, Withdraw
from clockwork.controller.models.interfaces import as_counted, may_share_lengths
from clockwork.controller.models.lifecycle import ModelState
from clockwork.controller.models.version import ModelVersion
from clockwork.formats.interface import loosened
from clockwork.formats.package import PackageFile
from clockwork.formats.prepared import PreparedModel, TensorSpec
from clockwork.wire.telling import tell


def _measured(prepared: PreparedModel) -> tuple[Any, ...]:
    """The properties, besides times, in which workers that serve a model may differ."""
    return prepared.holding, prepared.batches, prepared.batch_max, prepared.runs


def _declared(model: ModelVersion, prepared: PreparedModel, outputs: list[TensorSpec]) -> PreparedModel:
    """A worker's measurements, with these outputs, and everything else as the package declares it."""
    shown = dataclasses.replace(prepared, outputs=outputs)
    declared = model.record.interface
    if declared is not None:
        shown.inputs, shown.metadata = declared.inputs, declared.metadata
    if shown.batches != model.batches:
        shown.profile = as_counted(shown.profile, model.batches)
        shown.batches, shown.batch_max = model.batches, 1
    if shown.lengths != model.lengths:
        shown.lengths = model.lengths
        shown.lengths_note = "one length in a batch: not every worker that has it can pad requests"
    return shown


def set_aside_text(record: ModelRecord) -> str:
    """The reason why requests for a version are refused, and the remedy."""
    return f"{record.label} is set aside: {record.aside}; have it serve again with `clockwork models load {record.label}`"


class ModelTable:
    """Every registered version by name, and by id those that workers know or will know.

    Changes that the exchange has to know are appended to ``effects``.
    """

    def __init__(self, effects: deque[Effect]) -> None:
        self._effects = effects
        self.by_id: dict[int, ModelVersion] = {}  # ascending: ids are given in order, and never again
        self.versions: dict[str, dict[int, ModelVersion]] = {}  # name: version: model, oldest first
        self.routes: dict[str, ModelVersion] = {}  # name: the version that has its traffic now, or most of it
        self.named: dict[str, NameRoute] = {}  # name: the split of its traffic that an operator has set
        # By name, for split names: the shares and the shadow by which the exchange counts turns.
        self._taken: dict[str, tuple[list[tuple[ModelVersion, int]], Shadow | None]] = {}
        # By name. A number is not given twice, so that a pinned client never gets other weights.
        self._last_version: dict[str, int] = {}
        self._of_digest: dict[str, list[ModelVersion]] = {}
        self._shared: dict[tuple[str, str], PreparedModel] = {}
        self._indexes: dict[tuple[str, tuple[str, ...]], dict[str, int]] = {}
        self._next_id = 1
        self.count = 0
        """The number of registered versions."""

    def add(self, record: ModelRecord) -> ModelVersion:
        """Register a version, which has no id yet."""
        model = ModelVersion(0, record)
        versions = self.versions.setdefault(record.name, {})
        versions[record.version] = model
        if record.version < self._last_version.get(record.name, 0):
            self.versions[record.name] = dict(sorted(versions.items()))
        self._of_digest.setdefault(record.digest, []).append(model)
        self._last_version[record.name] = max(self._last_version.get(record.name, 0), record.version)
        self.count += 1
        return model

    def enlist(self, model: ModelVersion) -> None:
        """Give a version an id, by which workers and scheduler know it."""
        model.begin(self._next_id)
        self._next_id += 1
        self.by_id[model.model_id] = model

    def delist(self, model: ModelVersion) -> None:
        """Take the id from a version that workers and scheduler forget: inverse of enlist()."""
        self.unroute(model)
        self._effects.append(Withdraw(model.model_id))
        del self.by_id[model.model_id]
        model.begin(0)

    def remove(self, model: ModelVersion) -> None:
        """Forget a version that has no id: inverse of add()."""
        assert not model.model_id, model.label
        twins = self._of_digest[model.record.digest]
        twins.remove(model)
        if not twins:
            del self._of_digest[model.record.digest]
        versions = self.versions[model.record.name]
        del versions[model.record.version]
        if not versions:
            del self.versions[model.record.name]
        self.count -= 1

    def live(self, name: str) -> dict[int, ModelVersion]:
        """A name's versions that are not unloaded, oldest first."""
        versions = self.versions.get(name, {})
        return {number: model for number, model in versions.items() if model.state.is_live}

    def find_unloaded(self, text: str) -> list[ModelVersion]:
        """The unloaded versions that ``name`` or ``name@version`` addresses, oldest first."""
        name, at, version = text[: MODEL_REFERENCE_MAX + 1].partition("@")
        return [
            model
            for number, model in self.versions.get(name, {}).items()
            if model.state is ModelState.UNLOADED and (not at or str(number) == version)
        ]

    def absence(self, text: str) -> str:
        """The reason why find() finds no model, as a sentence."""
        away = self.find_unloaded(text)
        if away and away[-1].record.aside:
            return set_aside_text(away[-1].record)
        if away:
            return f"model {tell(text, 200)} is unloaded"
        name, at, version = text[: MODEL_REFERENCE_MAX + 1].partition("@")
        if at and (there := self.live(name)):
            return f"{name} has no version {tell(version, 20)}; it has {', '.join(map(str, there))}"
        return f"no model {tell(text, 200)} is registered"

    def is_set_aside(self, text: str) -> bool:
        """Whether find() finds no model because it was set aside: then absence() says why."""
        away = self.find_unloaded(text)
        return bool(away) and bool(away[-1].record.aside)

    def uses(self, digest: str, apart_from: Sequence[ModelRecord] = ()) -> bool:
        """Whether any version that stays, unloaded versions included, is of that package."""
        return any(
            model.state is not ModelState.REMOVING and all(model.record is not other for other in apart_from)
            for model in self._of_digest.get(digest, ())
        )

    def split_of(self, name: str) -> TrafficSplit | None:
        """The split of a name's traffic that an operator has set; None: there is none."""
        route = self.named.get(name)
        return None if route is None else route.split

    def route(self, model: ModelVersion) -> None:
        """Route a version's name anew when the version has become ready, or is no longer."""
        name = model.record.name
        if self.split_of(name) is not None:
            self.apply(name)
            return
        current = self.routes.get(name)
        if model.state is ModelState.READY and (
            current is None or current.record.version < model.record.version
        ):
            self._take(name, [(model, SHARE_WHOLE)], None)

    def unroute(self, model: ModelVersion) -> None:
        """Take a version out of its name's traffic, which goes to the newest other version that is ready."""
        name = model.record.name
        if self.split_of(name) is not None:
            self.apply(name)
        elif self.routes.get(name) is model:
            self._take(name, [], None)
            self.apply(name)

    def apply(self, name: str) -> None:
        """Route a name's traffic by its split, among the ready versions of the split, or to the newest
        version.

        A version that is not ready anywhere gets no traffic. If no version of the split is ready, the name is
        unserved.
        """
        versions = self.versions.get(name, {})
        ready = {version: model for version, model in versions.items() if model.state is ModelState.READY}
        split = self.split_of(name)
        if split is None:
            self._taken.pop(name, None)
            current = self.routes.get(name)
            newest = next(reversed(ready.values()), current)
            self._take(name, [] if newest is None else [(newest, SHARE_WHOLE)], None)
            return
        shares = [(ready[version], parts) for version, parts in serving(split, ready)]
        shadow = split.shadow if split.shadow is not None and split.shadow.version in ready else None
        if self._taken.get(name) != (shares, shadow):  # if it is unchanged, the turns must not begin anew
            self._taken[name] = (shares, shadow)
            self._take(name, shares, None if shadow is None else (ready[shadow.version], shadow))

    def _take(
        self, name: str, shares: list[tuple[ModelVersion, int]], shadow: tuple[ModelVersion, Shadow] | None
    ) -> None:
        if shares:
            self.routes[name] = max(reversed(shares), key=lambda share: share[1])[0]
        else:
            self.routes.pop(name, None)
        by_id = [(model.model_id, parts) for model, parts in shares]
        self._effects.append(Forward(name, by_id, (shadow[0].model_id, shadow[1]) if shadow else None))

    def shares(self, name: str) -> list[tuple[ModelVersion, int]]:
        """The versions that serve a name at this moment, and their parts."""
        if name in self._taken:
            return self._taken[name][0]
        model = self.routes.get(name)
        return [] if model is None else [(model, SHARE_WHOLE)]

    def split_now(self, name: str) -> TrafficSplit | None:
        """The present split of a name's traffic, set or not; None: no version of the name is ready."""
        split = self.split_of(name)
        if split is None and name in self.routes:
            split = whole(self.routes[name].record.version)
        return split

    def serving(self, name: str) -> ModelVersion | None:
        """The version that has a name's traffic at this moment, or most of it; None: no version has."""
        return self.routes.get(name)

    def find(self, text: str) -> ModelVersion | None:
        """The model that ``name`` or ``name@version`` addresses, in any state except unloaded."""
        model = self.routes.get(text)
        if model is not None:
            return model
        if len(text) > MODEL_REFERENCE_MAX:
            return None
        name, at, version = text.partition("@")
        live = self.live(name)
        if at:
            return live.get(int(version)) if version.isascii() and version.isdigit() else None
        split = self.split_of(name)
        if split is not None:  # no version of the split is ready; other versions are not meant
            for chosen, _ in sorted(split.shares, key=lambda share: -share[1]):
                if chosen in live:
                    return live[chosen]
        return next(reversed(live.values()), None)

    def files_of(self, digest: str) -> list[PackageFile]:
        """The files of a package that some version uses; empty where no version does."""
        models = self._of_digest.get(digest)
        return models[0].record.files if models else []

    def models_of(self, digest: str) -> list[ModelVersion]:
        """The versions of a package that are loaded and stay."""
        models = self._of_digest.get(digest, ())
        return [model for model in models if model.state.is_live and not model.state.is_leaving]

    def digests(self) -> list[str]:
        """The digest of every package that some version uses, served versions first."""
        return sorted(
            self._of_digest,
            key=lambda digest: not any(model.state.is_live for model in self._of_digest[digest]),
        )

    def workers_with(self, digest: str) -> list[int]:
        """The workers that have prepared a model of this package."""
        ready = [
            worker
            for model in self._of_digest.get(digest, ())
            for worker, state in model.workers.items()
            if state == "ready"
        ]
        return list(dict.fromkeys(ready))

    def free_version(self, name: str, wanted: int) -> int:
        """The number of a version to come: the wanted number (0: none) unless it is taken, else the next."""
        taken = self.versions.get(name, {})
        return wanted if wanted and wanted not in taken else self._last_version.get(name, 0) + 1

    def reserve(self, name: str, version: int) -> None:
        """Keep a version's number from being given: its record is damaged, and may be repaired by hand."""
        self._last_version[name] = max(version, self._last_version.get(name, 0))

    def restore_route(self, route: NameRoute) -> None:
        """Restore a name's route from disk. The version numbers in it are not given to other versions."""
        self.named[route.name] = route
        splits = [*route.earlier, *([route.split] if route.split is not None else [])]
        seen = [version for split in splits for version in split.versions()]
        self._last_version[route.name] = max([*seen, self._last_version.get(route.name, 0)])

    def learn(self, model: ModelVersion, worker: int, prepared: PreparedModel) -> None:
        """Keep a worker's measurements, which do not contradict the package.

        Answers are checked against the properties on which the package and all workers since the start agree,
        so that no worker's statement makes another's answers look wrong.
        """
        self._share(prepared)
        declared, before = model.record.interface, model.prepared
        held = prepared.outputs if before is None else before.outputs
        if declared is not None:
            shared = {
                field: getattr(prepared, field)
                for field in ("inputs", "outputs", "metadata")
                if getattr(prepared, field) == getattr(declared, field)
            }
            model.record.interface = declared = dataclasses.replace(declared, **shared)
            held = declared.outputs if before is None else held
        outputs = loosened(held, prepared.outputs)
        is_new = outputs is not held or (model.verified and not prepared.outputs_verified)
        model.verified &= prepared.outputs_verified
        if model.prepared is None:
            model.batches = prepared.batches
        others = (state for other, state in model.workers.items() if other != worker)
        is_first = model.prepared is None or "ready" not in others
        if is_first:
            model.measured.clear()
            model.lengths = prepared.lengths
        elif not may_share_lengths(prepared, model.lengths):
            model.lengths = {}
            is_new = True
        if is_first or is_new:
            model.prepared = shown = _declared(
                model, prepared if model.prepared is None or is_first else model.prepared, outputs
            )
            key = (shown.program, tuple(spec.name for spec in shown.inputs))
            model.input_index = self._indexes.setdefault(
                key, {spec.name: index for index, spec in enumerate(shown.inputs)}
            )
            self._effects.append(Serve(model))
        assert model.prepared is not None
        if _measured(prepared) != _measured(model.prepared):
            model.measured[worker] = prepared

    def _share(self, prepared: PreparedModel) -> None:
        """Have models of one program share their common description.

        A thousand fine-tunes then cost one description; a model's own are its digest, its layout and its load
        time.
        """
        shared = self._shared.setdefault((prepared.program, prepared.fingerprint), prepared)
        for field in (
            "inputs",
            "outputs",
            "profile",
            "metadata",
            "example",
            "runs",
            "batching_note",
            "lengths",
            "lengths_note",
        ):
            if getattr(shared, field) == getattr(prepared, field):
                setattr(prepared, field, getattr(shared, field))
        prepared.program = shared.program
        prepared.fingerprint = shared.fingerprint

    def set_slo(self, model: ModelVersion, slo_ns: int) -> None:
        """Change the SLO of requests that bring none."""
        model.slo_ns = slo_ns
        if model.prepared is not None:
            self._effects.append(Serve(model))
