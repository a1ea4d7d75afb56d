"""References to models: ``name``, for the version that the name's route chooses, or ``name@version``."""

from __future__ import annotations


def model_reference(name: str, version: int | str) -> str:
    return f"{name}@{version}"


def name_of(reference: str) -> str:
    return reference.partition("@")[0]
