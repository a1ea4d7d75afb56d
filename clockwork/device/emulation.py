"""Settings of emulated devices; see device.emulated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from clockwork.config import EMULATED_DEVICES_MAX, SLOWDOWN_THOUSANDTHS_MAX
from clockwork.config.device import NOISE_SIGMA_MAX
from clockwork.errors import ConfigError


@dataclasses.dataclass(frozen=True, slots=True)
class EmulatedSettings:
    """The properties of an emulated device beside its arena."""

    seed: int = 0
    executors: int = 1  # devices that share an arena: each of the worker's devices is so many
    # time of an execution beside executions on all other executors, as a multiple of its time by itself
    slowdown: float = 1.0
    exec_noise: float = 0.0  # log-normal noise of execution times: relative sigma
    load_noise: float = 0.0  # log-normal noise of load times: relative sigma
    outlier: float = 0.0  # probability that an execution takes outlier_factor times as long
    outlier_factor: float = 2.0
    slow_factor: float = 1.0  # factor of executions that begin in a slow spell
    slow_ns: int = 0  # a spell's length; spells begin at multiples of slow_every_ns of the clock
    slow_every_ns: int = 0
    failures: float = 0.0  # probability that an execution or a load takes its time and fails
    # Bytes a second at which inputs reach a device, batch after batch, beside executions. 0: at once.
    copy_bandwidth: int = 0
    disk_bandwidth: int = 0  # bytes a second of fetches into the host store; 0: at once
    unending: bool = False  # an execution that takes too long cannot be ended early
    # Loads of all devices share a link, as on one machine. False: each device has a link of its own.
    shared_link: bool = False
    spin: bool = False  # wake early and spin until the exact moment, at the cost of a core

    def check(self) -> None:
        """Check all values. Raises ConfigError, naming the value and its bound."""
        if not 1 <= self.executors <= EMULATED_DEVICES_MAX:
            raise ConfigError(f"executors is between 1 and {EMULATED_DEVICES_MAX}, not {self.executors}")
        if not 1 <= self.slowdown <= SLOWDOWN_THOUSANDTHS_MAX / 1000:
            raise ConfigError(
                f"slowdown is between 1 and {SLOWDOWN_THOUSANDTHS_MAX // 1000}, not {self.slowdown}"
            )
        for name in ("outlier", "failures"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a probability, between 0 and 1, not {getattr(self, name)}")
        for name in ("exec_noise", "load_noise"):
            if not 0 <= getattr(self, name) <= NOISE_SIGMA_MAX:
                raise ConfigError(f"{name} is between 0 and {NOISE_SIGMA_MAX}, not {getattr(self, name)}")
        if not 0 < self.slow_factor < math.inf or not 0 <= self.slow_ns <= self.slow_every_ns:
            raise ConfigError("slow_factor is positive; slow_ns is between 0 and slow_every_ns")
        if not 0 < self.outlier_factor < math.inf or min(self.copy_bandwidth, self.disk_bandwidth) < 0:
            raise ConfigError(
                "outlier_factor is positive; copy_bandwidth and disk_bandwidth are not negative"
            )


def parse_settings(pairs: Sequence[str]) -> EmulatedSettings:
    """Parse ``name=value`` pairs; a name alone means ``name=true``. Raises ConfigError."""
    types = {field.name: field.type for field in dataclasses.fields(EmulatedSettings)}
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        kind = types.get(name)
        if kind is None:
            raise ConfigError(f"an emulated device has no setting {name!r}; it has {', '.join(types)}")
        try:
            if kind == "bool":
                values[name] = {"true": True, "false": False}[text.lower() if equals else "true"]
            else:
                values[name] = float(text) if kind == "float" else int(float(text))
        except (KeyError, ValueError, OverflowError):
            raise ConfigError(f"{name}={text!r} is not a {kind}") from None
    settings = EmulatedSettings(**values)
    settings.check()
    return settings
