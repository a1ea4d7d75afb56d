"""Decisions about a name's traffic when an operator splits it, promotes a version or rolls back."""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

from clockwork.controller.catalog.routes import NameRoute, TrafficSplit, changed, check_inputs, percent, whole
from clockwork.controller.models.lifecycle import ModelState
from clockwork.controller.registration.table import ModelTable
from clockwork.controller.registration.uploads import Registration
from clockwork.errors import InvalidInput, ModelNotFound, Unavailable
from clockwork.formats.interface import Interface, misfit
from clockwork.wire.messages import Promote, Rollback, Route

Release: TypeAlias = Route | Promote | Rollback


def next_route(table: ModelTable, release: Release) -> NameRoute:
    """The route that a name is to have. Raises ModelNotFound, InvalidInput and Unavailable."""
    name = release.name
    now = _split_now(table, name)
    before = table.named.get(name) or NameRoute(name)
    if isinstance(release, Rollback):
        earlier = list(before.earlier)
        while (
            earlier and earlier[-1] == now
        ):  # a version that was to take the traffic never did, or left again
            earlier.pop()
        if not earlier:
            raise InvalidInput(f"there is no earlier route of {name} to go back to")
        _check_split(table, name, earlier[-1])
        return NameRoute(name, earlier[-1], earlier[:-1])
    if isinstance(release, Route):
        split: TrafficSplit | None = changed(now, release.shares, release.shadow)
    else:  # version 0: as without a route
        split = whole(release.version) if release.version else None
    if split is not None:
        _check_split(table, name, split)
    route = dataclasses.replace(before)
    route.change(split, now)
    return route


def check_traffic(table: ModelTable, registration: Registration) -> None:
    """Raises InvalidInput where a version is to get no traffic, and no other version could have it."""
    name = registration.name
    if registration.traffic != "all" and table.split_now(name) is None:
        raise InvalidInput(
            f"no version of {name} serves that its traffic could stay with: register it without --no-route or --canary"
        )


def upgrade(table: ModelTable, registration: Registration, declared: Interface | None) -> NameRoute | None:
    """The route that a name is to have when a registration becomes its version; None: the route stays.

    declared: by its package; None: it cannot be read, and the version never is ready. Without a split, the
    new version takes the traffic when it is ready. The present version's hold of the traffic is kept at once,
    in the same change as the new version's record, so that a rollback finds it whenever the controller ends.
    Raises InvalidInput where the new version would get requests that fit the version that serves, and do not
    fit the new one.
    """
    check_traffic(table, registration)
    name, traffic = registration.name, registration.traffic
    now, serving = table.split_now(name), table.serving(name)
    if now is None or serving is None:
        return None
    is_split = table.split_of(name) is not None
    takes = traffic == "part" or (traffic == "all" and not is_split and not registration.forced)
    ours = serving.record.interface
    why = misfit(ours, declared) if takes and ours is not None and declared is not None else ""
    if why:
        force = ", or with --force" if traffic == "all" else ""
        raise InvalidInput(
            f"the requests that {serving.label} serves would not fit this model: {why}; register it with --no-route, so that it gets no "
            f"requests for {name} before you say so{force}"
        )
    if is_split:
        return None
    route = dataclasses.replace(table.named.get(name) or NameRoute(name))
    if traffic == "all":
        route.keep(now)
    else:
        route.split = now
    return route


def describe_split(split: TrafficSplit | None) -> str:
    """A split as a sentence for the log."""
    if split is None:
        return "all to the newest version"
    text = ", ".join(f"{percent(parts)} to {version}" for version, parts in split.shares)
    shadow = split.shadow
    return text if shadow is None else f"{text}; {percent(shadow.parts)} copied to {shadow.version}"


def _split_now(table: ModelTable, name: str) -> TrafficSplit:
    if not table.live(name):
        raise ModelNotFound(table.absence(name))
    now = table.split_now(name)
    if now is None:
        raise Unavailable(f"no version of {name} is ready")
    return now


def _check_split(table: ModelTable, name: str, split: TrafficSplit) -> None:
    """Raises where a version of the split is not ready, or takes other inputs than the others."""
    inputs, optional = {}, {}
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
        optional[version] = model.prepared.defaults().keys()
    check_inputs(inputs, name, optional)
