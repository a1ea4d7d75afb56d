"""Options of a registration, besides the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clockwork.config import VERSION_MAX
from clockwork.config.formats import ORIGIN_MAX
from clockwork.errors import InvalidInput
from clockwork.wire.messages import BATCHING, PRODUCT_DTYPES, TRAFFIC
from clockwork.wire.telling import tell

_OPTIONS = {"slo_ns": 0, "batching": "auto", "batch_max": 0, "version": 0, "origin": "", "dtype": "fp32"}


_PREPARED_BY = ("batching", "batch_max", "dtype")

_KEPT = ("slo_ns", *_PREPARED_BY)
"""Options that a new version has from the one that serves, unless its registration has them."""

ORDERS = ("traffic", "forced")
"""Options that are about the registration itself, and not about its version: no record keeps them."""


def preparation_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options that decide how workers prepare the model. A record of an earlier release may lack some."""
    return {key: options.get(key, _OPTIONS[key]) for key in _PREPARED_BY}


def kept_options(said: Mapping[str, Any], serving: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a registration, completed by those of the version that serves. said: those that came."""
    kept = {key: serving[key] for key in _KEPT if key in serving}
    return _OPTIONS | kept | {key: value for key, value in said.items() if key in _OPTIONS}


def orders_of(said: Mapping[str, Any]) -> tuple[str, bool]:
    """The traffic that a new version is to take, and whether that is forced. Raises InvalidInput."""
    traffic = said.get("traffic", TRAFFIC[0])
    if traffic not in TRAFFIC:
        raise InvalidInput(f"traffic is {', '.join(TRAFFIC)}; not {tell(traffic)}")
    return traffic, said.get("forced") is True


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """Registration options with their defaults. Raises InvalidInput, naming option and bound."""
    if not isinstance(options, dict):
        raise InvalidInput(f"registration options are a mapping, not {tell(options)}")
    options = {key: value for key, value in options.items() if key not in ORDERS}
    unknown = [key for key in options if key not in _OPTIONS]
    if unknown:
        raise InvalidInput(f"unknown registration option {tell(unknown[0])}; there are {', '.join(_OPTIONS)}")
    merged = _OPTIONS | options
    if type(merged["slo_ns"]) is not int or not 0 <= merged["slo_ns"] < 1 << 60:
        raise InvalidInput(f"slo_ns must be a positive count of nanoseconds, got {tell(merged['slo_ns'])}")
    if merged["batching"] not in BATCHING:
        raise InvalidInput(f"batching is {', '.join(BATCHING)}; not {tell(merged['batching'])}")
    if merged["dtype"] not in PRODUCT_DTYPES:
        raise InvalidInput(f"dtype is {', '.join(PRODUCT_DTYPES)}; not {tell(merged['dtype'])}")
    if type(merged["batch_max"]) is not int or not 0 <= merged["batch_max"] <= 4096:
        raise InvalidInput(
            f"batch_max is between 1 and 4096 (0: as measured), got {tell(merged['batch_max'])}"
        )
    if type(merged["version"]) is not int or not 0 <= merged["version"] <= VERSION_MAX:
        raise InvalidInput(
            f"version is between 1 and {VERSION_MAX} (0: the next), got {tell(merged['version'])}"
        )
    if type(merged["origin"]) is not str or len(merged["origin"]) > ORIGIN_MAX:
        raise InvalidInput(f"origin is a text of at most {ORIGIN_MAX} characters")
    return merged
