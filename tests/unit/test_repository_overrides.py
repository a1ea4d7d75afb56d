"""Content of loads by the repository API: a configuration in JSON, and files."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip(
    "google.protobuf", reason="the gateway's packages are not installed (clockwork-serving[gateway])"
)

from clockwork.errors import ClockworkError, InvalidInput, InvalidModel
from clockwork.repository.folders import Folder, scan
from clockwork.repository.overrides import Override
from clockwork.repository.triton_config import read_config, text_of_json

WHOLE = {
    "name": "m", "platform": "onnxruntime_onnx", "backend": "onnxruntime", "versionPolicy": {"all": {}}, "max_batch_size": 0,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": ["-1", 4], "reshape": {"shape": [-1, 1, 4]}, "optional": False}],
    "sequence_batching": None, "ensemble_scheduling": {}, "optimization": {"priority": "PRIORITY_DEFAULT"},
    "dynamicBatching": {"priorityLevels": "2", "default_priority_level": 1}, "response_cache": {},
    "parameters": {"clockwork_slo_ms": {"string_value": "25"}},
}  # fmt: skip
"""Both ways to write a field's name, and numbers as texts, as protobuf's JSON has them."""


def test_a_configuration_in_json_says_the_same_as_a_text() -> None:
    config = read_config(text_of_json(json.dumps(WHOLE)), "m")
    assert (config.batch_max, config.newest, config.slo_s) == (0, 0, 0.025)
    assert [(one.name, one.dims, one.reshape) for one in config.inputs] == [("x", (-1, 4), (-1, 1, 4))]
    assert config.queueing.levels == 2
    assert config.notes == ("optimization is passed over: workers choose the fastest form on their devices",)
    assert read_config(text_of_json("{}"), "m").batch_max is None


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "is no JSON object"),
        ('{"dynamic_batchin": {}}', "no field dynamic_batchin; did you mean dynamic_batching"),
        ('{"input": [{"nam": "x"}]}', "nam"),
        ('{"max_batch_size": "many"}', "many"),
        ('{"sequence_batching": {"max_sequence_idle_microseconds": 1}}', "sequence_batching is not served"),
        ('{"x": "' + "y" * (1 << 20) + '"}', "at most 1048576"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_refused_in_words(config: str, said: str) -> None:
    with pytest.raises(InvalidModel) as caught:
        text_of_json(config)
    assert said in str(caught.value)


def test_files_of_a_load_are_a_folder_until_it_is_closed() -> None:
    encoded = base64.b64encode(bytes(range(256)) * 2_000).decode()  # base64 that arrives in several pieces
    override = Override(
        "m",
        {
            "config": '{"version_policy": {"all": {}}}',
            "file:1/model.onnx": b"onnx",
            "file:2/model.onnx": encoded,
        },
    )
    found = scan(override)
    assert list(found.versions) == [("m", 1), ("m", 2)]
    with found.versions["m", 2].copy() as path:
        assert path.read_bytes() == bytes(range(256)) * 2_000
    override.close()
    assert not path.exists()


def test_a_configuration_alone_stands_on_the_files_of_a_repository(tmp_path: Path) -> None:
    (tmp_path / "m/1").mkdir(parents=True)
    (tmp_path / "m/1/model.onnx").write_bytes(b"onnx")
    (tmp_path / "m/config.pbtxt").write_text("max_batch_size: 8")
    override = Override("m", {"config": '{"max_batch_size": 2}'})
    override.stand_on(Folder(tmp_path))
    (version,) = scan(override).versions.values()
    assert version.config.batch_max == 2
    assert version.fingerprint != scan(Folder(tmp_path)).versions["m", 1].fingerprint


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("../m", {"config": "{}"}, "letters"),
        ("m", {"config": {}}, "is a text, in JSON"),
        ("m", {"file:1/model.onnx": b""}, "no parameter config"),
        ("m", {"config": "{}", "other": 1}, "'other'"),
        ("m", {"config": "{}", "file:1/model.onnx": 7}, "in base64"),
        ("m", {"config": "{}", "file:1/model.onnx": "a?=="}, "not in base64"),
        ("m", {"config": "{}", "file:1/a": b"", "file:1/a/b": b""}, "cannot be written"),
        ("m", {"config": "{}", "file:1/" + "a" * 300: b""}, "cannot be written"),
        *(
            ("m", {"config": "{}", f"file:{path}": b""}, "is no path in the folder of a model")
            for path in ("", ".", "..", "/etc/passwd", "1/../../x", "1\\x", "1/\0", "1/\n", "a" * 501)
        ),
    ],
)
def test_what_a_load_may_not_bring_is_named(name: str, parameters: dict[str, Any], said: str) -> None:
    with pytest.raises((InvalidInput, InvalidModel)) as caught:
        Override(name, parameters)
    assert said in str(caught.value)


@given(st.text(max_size=40))
def test_no_path_leaves_the_folder_of_a_load(path: str) -> None:
    try:
        override = Override("m", {"config": "{}", f"file:{path}": b"x"})
    except ClockworkError:
        return
    root = Path(override._files.name)  # type: ignore[union-attr]
    (file,) = (one for one in root.rglob("*") if one.is_file())
    assert file.resolve().is_relative_to(root.resolve() / "m")
    override.close()
