"""How the traffic of a name changes when somebody splits it, promotes a version or goes back: decided, not yet done."""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

from clockwork.controller.lifecycle import ModelState
from clockwork.controller.models import ModelTable
from clockwork.controller.routes import NameRoute, Split, changed, check_inputs, percent, whole
from clockwork.errors import InvalidInput, ModelNotFound, Unavailable
from clockwork.wire.messages import Promote, Rollback, Route

Release: TypeAlias = Route | Promote | Rollback


def next_route(table: ModelTable, release: Release) -> NameRoute:
    """The route that a name is to have. Raises ModelNotFound, InvalidInput and Unavailable; changes nothing."""
    name = release.name
    now = _split_now(table, name)
    before = table.named.get(name) or NameRoute(name)
    if isinstance(release, Rollback):
        if not before.earlier:
            raise InvalidInput(f"there is no earlier route of {name} to go back to")
        _check_split(table, name, before.earlier[-1])
        return NameRoute(name, before.earlier[-1], before.earlier[:-1])
    if isinstance(release, Route):
        split: Split | None = changed(now, release.shares, release.shadow)
    else:  # version 0: as if nothing had been said
        split = whole(release.version) if release.version else None
    if split is not None:
        _check_split(table, name, split)
    route = dataclasses.replace(before)
    route.change(split, now)
    return route


def describe_split(split: Split | None) -> str:
    """A split as a sentence for the log."""
    if split is None:
        return "all to the newest version"
    text = ", ".join(f"{percent(parts)} to {version}" for version, parts in split.shares)
    shadow = split.shadow
    return text if shadow is None else f"{text}; {percent(shadow.parts)} copied to {shadow.version}"


def _split_now(table: ModelTable, name: str) -> Split:
    if not table.live(name):
        raise ModelNotFound(table.absence(name))
    now = table.split_now(name)
    if now is None:
        raise Unavailable(f"no version of {name} is ready")
    return now


def _check_split(table: ModelTable, name: str, split: Split) -> None:
    """Raises where a version that it names is not ready, or takes other inputs than the others."""
    inputs = {}
    live = table.live(name)
    for version in split.versions():
        model = live.get(version)
        if model is None:
            if table.find_unloaded(f"{name}@{version}"):
                raise Unavailable(f"{name}@{version} is unloaded")
            there = ", ".join(map(str, live))
            raise ModelNotFound(f"{name} has no version {version}; it has {there}")
        if model.state is not ModelState.READY or model.prepared is None:
            why = f": {model.text}" if model.text else ""
            raise Unavailable(f"{model.label} is not ready but {model.state.shown}{why}")
        inputs[version] = model.prepared.inputs
    check_inputs(inputs, name)
