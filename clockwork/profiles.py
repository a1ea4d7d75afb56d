"""Profiles of models, for simulate() and planning: the public names of clockwork.formats.profiles."""

from clockwork.formats.profiles import (
    ModelProfile,
    copies,
    dump_profiles,
    from_info,
    linear,
    load_profiles,
    paper_instances,
    paper_model,
    paper_models,
    paper_varieties,
    parse_profiles,
    save_profiles,
)

__all__ = [
    "ModelProfile",
    "copies",
    "dump_profiles",
    "from_info",
    "linear",
    "load_profiles",
    "paper_instances",
    "paper_model",
    "paper_models",
    "paper_varieties",
    "parse_profiles",
    "save_profiles",
]
