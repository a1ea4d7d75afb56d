"""Make the package of a model for its registration, and check the package before any part is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clockwork.errors import InvalidModel
from clockwork.formats.profiles import ModelProfile
from clockwork.wire.packages import (
    PROFILE_FILE,
    PROGRAM_JSON,
    PackageFiles,
    check_examples,
    name_examples,
    source_of,
)


def package_of(model: Any, examples: Any, optional: Sequence[str] | None = None) -> PackageFiles:
    """The files of Client.register()'s model, examples and optional inputs. Raises InvalidModel."""
    check_examples(examples)
    if isinstance(model, ModelProfile):
        _check_no_optional(optional)
        if examples is not None:
            raise InvalidModel("a profile has been measured already: it takes no examples")
        from clockwork.formats.profile_package import encode_profile

        return [(PROFILE_FILE, encode_profile(model))]
    path, data = source_of(model)
    if data is None and path.is_dir():
        _check_no_optional(optional)
        if examples is not None:
            raise InvalidModel("a compiled program brings its own checks: it takes no examples")
        from clockwork.formats import program

        _check_folder(path)
        return program.package_files(path)
    from clockwork.models import onnx_import  # a late import: onnx takes half a second to import

    if not (examples is None or isinstance(examples, Mapping)):
        proto, _ = onnx_import.import_model(path, data)
        examples = name_examples(examples, [value.name for value in onnx_import.real_inputs(proto)])
    return onnx_import.package_files(path, examples, data, optional)


def _check_no_optional(optional: Sequence[str] | None) -> None:
    if optional:
        raise InvalidModel("optional inputs are an ONNX model's: they are inputs of its file with a default")


def _check_folder(folder: Path) -> None:
    """Raise InvalidModel for a folder that holds no compiled program."""
    if (folder / PROGRAM_JSON).is_file():
        return
    text = f"{folder} is a folder without {PROGRAM_JSON}: a model is an ONNX file, or the folder of a compiled program"
    if found := sorted([*folder.glob("*.onnx"), *folder.glob("*/*.onnx")])[:1]:
        text += f"; this one holds {found[0].relative_to(folder)}, which can be given itself"
    raise InvalidModel(text)
