"""The split of a name's traffic between its versions, as an operator has set it, and changes of the split.

Pure, and in whole parts of SHARE_WHOLE. Without a route of its own a name's traffic goes to its newest
version that is ready (controller.registration.table). Rules:

- Shares add up to the whole. Versions without a named share divide the rest in their former proportions.
- A version with a share, or a copy, is ready and takes the same inputs as the others: it may get any request.
- A change keeps the split before it (the last ROUTES_KEPT of them), also where a new version takes all
  traffic; a rollback keeps none.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from clockwork.config import SHARE_WHOLE, VERSION_MAX, VERSIONS_MAX
from clockwork.config.controller import ROUTES_KEPT
from clockwork.errors import InvalidInput
from clockwork.formats.package import check_name
from clockwork.formats.prepared import UNKNOWN_RANK, TensorSpec
from clockwork.wire.telling import tell
from clockwork.wire.tensors import dtype_name


@dataclasses.dataclass(frozen=True, slots=True)
class Shadow:
    """A version that gets a copy of requests that go to others."""

    version: int
    parts: int
    tolerance: float  # largest relative difference of answers that counts as equal


@dataclasses.dataclass(frozen=True, slots=True)
class TrafficSplit:
    """The split of a name's traffic. ``shares``: (version, parts), by version; the sum is SHARE_WHOLE."""

    shares: tuple[tuple[int, int], ...]
    shadow: Shadow | None = None

    def versions(self) -> list[int]:
        """Every version that the split names."""
        return [version for version, _ in self.shares] + ([self.shadow.version] if self.shadow else [])

    def to_wire(self) -> dict[str, Any]:
        return {
            "shares": [[version, parts] for version, parts in self.shares],
            "shadow": None if self.shadow is None else dataclasses.asdict(self.shadow),
        }

    @staticmethod
    def from_wire(body: Any) -> TrafficSplit:
        """Inverse of to_wire(). Raises ValueError, KeyError or TypeError for any other body."""
        shares = tuple(
            (_natural(version, VERSION_MAX), _natural(parts, SHARE_WHOLE))
            for version, parts in body["shares"]
        )
        if not 1 <= len(shares) <= VERSIONS_MAX or len({version for version, _ in shares}) < len(shares):
            raise ValueError(f"{len(shares)} shares, or two of one version")
        if sum(parts for _, parts in shares) != SHARE_WHOLE:
            raise ValueError("shares that do not add up to the whole")
        shadow = body["shadow"]
        if shadow is None:
            return TrafficSplit(shares)
        tolerance = float(shadow["tolerance"])
        if not (math.isfinite(tolerance) and tolerance >= 0):
            raise ValueError(f"a tolerance of {tolerance}")
        version, parts = _natural(shadow["version"], VERSION_MAX), _natural(shadow["parts"], SHARE_WHOLE)
        return TrafficSplit(shares, Shadow(version, parts, tolerance))


def _natural(value: Any, most: int) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{tell(value)} is not from 1 to {most}")
    return value


def whole(version: int) -> TrafficSplit:
    """Return a split with all traffic to one version."""
    return TrafficSplit(((version, SHARE_WHOLE),))


@dataclasses.dataclass(slots=True)
class NameRoute:
    """An operator's route of a name. ``split`` None: the newest version that is ready has the traffic."""

    name: str
    split: TrafficSplit | None = None
    earlier: list[TrafficSplit] = dataclasses.field(default_factory=list)  # former splits, the latest last

    def change(self, split: TrafficSplit | None, now: TrafficSplit) -> None:
        """Set a new split. ``now``: the split at this moment, which a rollback restores."""
        if split != now:
            self.keep(now)
        self.split = split

    def keep(self, now: TrafficSplit) -> None:
        """Have a rollback restore the split of this moment."""
        if self.earlier[-1:] != [now]:
            self.earlier = [*self.earlier, now][-ROUTES_KEPT:]

    def forget(self, version: int) -> bool:
        """Drop the earlier splits that name a removed version. Whether there were such."""
        kept = [split for split in self.earlier if version not in split.versions()]
        changed = len(kept) < len(self.earlier)
        self.earlier = kept
        return changed

    def names(self, version: int) -> bool:
        return self.split is not None and version in self.split.versions()

    def to_row(self, by: str, now_ns: int) -> tuple[Any, ...]:
        """The route as a row of the catalogue; see database.ROUTES. by: who has changed it, and when."""
        split = None if self.split is None else self.split.to_wire()
        earlier = [split.to_wire() for split in self.earlier]
        return self.name, json.dumps(split), json.dumps(earlier), by, now_ns

    @staticmethod
    def from_row(row: Sequence[Any]) -> NameRoute:
        """Inverse of to_row(). Raises as from_body() does."""
        name, split, earlier, *_ = row
        return NameRoute.from_body({"name": name, "split": json.loads(split), "earlier": json.loads(earlier)})

    @staticmethod
    def from_body(body: dict[str, Any]) -> NameRoute:
        """Read a route. Raises ValueError, KeyError, TypeError or InvalidModel for any other body."""
        check_name(body["name"])
        split, earlier = body["split"], body["earlier"]
        if type(earlier) is not list or len(earlier) > ROUTES_KEPT:
            raise ValueError(f"more than {ROUTES_KEPT} earlier routes")
        return NameRoute(
            body["name"],
            None if split is None else TrafficSplit.from_wire(split),
            [TrafficSplit.from_wire(split) for split in earlier],
        )


def divide(whole_parts: int, weights: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Divide ``whole_parts`` by (version, weight), in whole parts: the largest remainders are rounded up."""
    total = sum(weight for _, weight in weights)
    parts = {version: whole_parts * weight // total for version, weight in weights}
    left = whole_parts - sum(parts.values())
    by_remainder = sorted(weights, key=lambda weight: (-(whole_parts * weight[1] % total), weight[0]))
    for version, _ in by_remainder[:left]:
        parts[version] += 1
    return parts


def share_out(now: Sequence[tuple[int, int]], asked: Sequence[Sequence[Any]]) -> tuple[tuple[int, int], ...]:
    """New shares from the present shares and the named [version, parts]. Raises InvalidInput."""
    named: dict[int, int] = {}
    for pair in asked:
        match pair:
            case [int(version), int(parts)] if type(version) is int and type(parts) is int:
                pass
            case _:
                raise InvalidInput("a share is [version, parts]", expected="two integers", got=tell(pair))
        if version in named:
            raise InvalidInput(f"version {version} is named twice")
        if not 0 <= parts <= SHARE_WHOLE:
            raise InvalidInput(
                f"the share of version {version} is {percent(parts)}",
                expected="0 % to 100 %",
                got=percent(parts),
            )
        named[version] = parts
    if len(named) > VERSIONS_MAX:
        raise InvalidInput(f"{len(named)} versions are named; a name has at most {VERSIONS_MAX}")
    given = sum(named.values())
    if given > SHARE_WHOLE:
        raise InvalidInput(
            f"the shares add up to {percent(given)}", expected="at most 100 %", got=percent(given)
        )
    shares = dict(named)
    if given < SHARE_WHOLE:
        others = [(version, parts) for version, parts in now if version not in named]
        if not others:
            raise InvalidInput(
                f"the shares add up to {percent(given)}, and no other version has traffic that could keep the rest",
                expected="100 %",
                got=percent(given),
            )
        shares |= divide(SHARE_WHOLE - given, others)
    return tuple(sorted((version, parts) for version, parts in shares.items() if parts > 0))


def read_shadow(asked: Sequence[Any], now: Shadow | None) -> Shadow | None:
    """The shadow that a Route asks for. Raises InvalidInput."""
    if not asked:
        return now
    match asked:
        case [int(version), int(parts), int() | float() as tolerance] if (
            type(version) is int and type(parts) is int and 0 <= parts <= SHARE_WHOLE
        ):
            if not (math.isfinite(tolerance) and tolerance >= 0):
                raise InvalidInput(f"a tolerance is a number of at least 0, not {tolerance}")
            return Shadow(version, parts, float(tolerance)) if parts else None
    raise InvalidInput(
        "a shadow is [version, parts, tolerance]",
        expected=f"an integer, one from 0 to {SHARE_WHOLE}, a number",
        got=tell(asked),
    )


def changed(now: TrafficSplit, shares: Sequence[Sequence[Any]], shadow: Sequence[Any]) -> TrafficSplit:
    """The split that a Route asks for. Raises InvalidInput."""
    split = TrafficSplit(
        share_out(now.shares, shares) if shares else now.shares, read_shadow(shadow, now.shadow)
    )
    copied = split.shadow
    if copied is None or any(version != copied.version for version, _ in split.shares):
        return split
    if shadow:
        raise InvalidInput(
            f"version {copied.version} has all the traffic: no other version serves that it could be the shadow of"
        )
    return TrafficSplit(split.shares)  # the shadow has become the version that serves


def serving(split: TrafficSplit, ready: Iterable[int]) -> list[tuple[int, int]]:
    """The shares while only ``ready`` versions can serve: the others' are divided in proportion."""
    able = set(ready)
    there = [(version, parts) for version, parts in split.shares if version in able]
    return sorted(divide(SHARE_WHOLE, there).items()) if there else []


def check_inputs(
    inputs: Mapping[int, Sequence[TensorSpec]], name: str, optional: Mapping[int, Collection[str]] = {}
) -> None:
    """Raises InvalidInput where requests for one of these versions would not fit another.

    inputs, optional: by version. Dimensions without a fixed size agree, whatever their names are. Only
    optional inputs that all versions have must agree: a request need not give any.
    """
    shared = set.intersection(*(set(optional.get(version, ())) for version in inputs)) if inputs else set()
    forms = {
        version: _form(
            [spec for spec in specs if spec.name in shared or spec.name not in optional.get(version, ())]
        )
        for version, specs in inputs.items()
    }
    first = min(forms, default=0)
    for version, form in sorted(forms.items()):
        if form != forms[first]:
            ours, theirs = _say(form), _say(forms[first])
            raise InvalidInput(
                f"{name}@{version} takes {ours}, {name}@{first} takes {theirs}: a request to the name cannot fit "
                f"both; promote gives all traffic to one",
                expected=theirs,
                got=ours,
            )


def percent(parts: int) -> str:
    return f"{parts * 100 / SHARE_WHOLE:g} %"


def _form(specs: Sequence[TensorSpec]) -> tuple[Any, ...]:
    def sizes(shape: Sequence[int | str]) -> str | list[int]:
        return "any" if shape == UNKNOWN_RANK else [size if type(size) is int else -1 for size in shape]

    return tuple(sorted((spec.name, spec.dtype, sizes(spec.shape)) for spec in specs))


def _say(form: tuple[Any, ...]) -> str:
    return ", ".join(f"{name} {dtype_name(dtype)} {shape}".replace("-1", "?") for name, dtype, shape in form)
