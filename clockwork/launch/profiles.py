"""Registration of many profile-only models, for clusters of emulated devices."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clockwork.config.launch import COPIES_MAX
from clockwork.errors import ConfigError
from clockwork.formats.profiles import ModelProfile, load_profiles, paper_varieties
from clockwork.formats.profiles import copies as copies_of
from clockwork.launch.many import register_each

if TYPE_CHECKING:
    from clockwork.client.blocking import Client

PAPER = "paper"  # A source of profiles in place of a file: the 61 varieties of the paper's table


def read_profiles(source: str, copies: int = 1) -> list[ModelProfile]:
    """Return the profiles of a file or of the paper, each ``copies`` times. Raises ConfigError.

    Several copies of a model are named NAME-00, NAME-01 ...; they share its program, as fine-tunes do, and
    have weights of their own.
    """
    if not 1 <= copies <= COPIES_MAX:
        raise ConfigError(f"copies of a model are 1 to {COPIES_MAX}, not {copies}")
    found = paper_varieties() if source == PAPER else load_profiles(Path(source))
    return list(found) if copies == 1 else copies_of(found, copies)


def register_profiles(
    client: Client,
    profiles: Sequence[ModelProfile],
    slo: float | None = None,
    timeout: float | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Register profiles, and return once all models are ready. Raises the first failure's error.

    Models of the same program and times share a package, which is registered under each model's name. slo:
    seconds, for profiles without an SLO.
    """
    tell = progress or (lambda stage, done, total: None)

    def register(profile: ModelProfile) -> None:
        default = profile.slo_ns / 1e9 if profile.slo_ns else slo
        content = dataclasses.replace(profile, name=profile.program or profile.name)
        client.register(profile.name, content, slo=default, force=True, timeout=timeout)

    failed = register_each({profile.name: functools.partial(register, profile) for profile in profiles}, tell)
    if failed:
        raise next(iter(failed.values()))
