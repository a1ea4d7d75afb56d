"""Profiles: files that are read back as written, errors in them, and the paper's table."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from clockwork.errors import ConfigError
from clockwork.formats.profiles import (
    PAPER_PAGE_BYTES,
    ModelProfile,
    copies,
    from_info,
    linear,
    load_profiles,
    paper_instances,
    paper_model,
    paper_models,
    paper_varieties,
    save_profiles,
)
from clockwork.wire.description import ModelInfo

GOOD: dict[str, Any] = {"name": "m", "exec_ns": {"1": 10, "4": 25}, "weights_bytes": 100, "load_ns": 5}


def write(path: Path, *bodies: Any) -> Path:
    path.write_text(json.dumps({"profiles": list(bodies)}))
    return path


def test_a_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    models = [
        *paper_models(),
        linear("l", 1_000, 500, 12, slo_ns=7, weights_bytes=9, load_ns=3, input_bytes=1, output_bytes=2),
        ModelProfile(
            "m", {1: 10}, 100, 5, program="p", batch_max=4, page_bytes=16, page_count=9, runs=(4, 5)
        ),
    ]
    save_profiles(tmp_path / "models.json", models)
    assert load_profiles(tmp_path / "models.json") == models


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"exec_ns": {"2": 10}}, "no time for batch 1"),
        ({"exec_ns": {"1": 0}}, "time of batch 1 0 is not an integer from 1 to"),
        ({"exec_ns": {"1": 10, "-2": 10}}, "batch '-2'"),
        ({"exec_ns": {"1": 10, "99999999": 10}}, "batch 99999999 is not an integer from 1 to 65536"),
        ({"exec_ns": [10]}, "exec_ns"),
        ({"weights_bytes": -1}, "weights_bytes -1"),
        ({"load_ns": 0.5}, "load_ns 0.5"),
        ({"slo_ns": True}, "slo_ns True"),
        ({"batch_max": 1 << 40}, "batch_max 1099511627776"),
        ({"name": ""}, "name ''"),
        ({"name": 3}, "name 3"),
        ({"program": 3}, "program 3"),
        ({"runs": 3}, "runs is not a list"),
        ({"runs": [0], "page_count": 0}, "a run's pages 0"),
        ({"runs": [1, 2], "page_count": 4}, "its runs have 3 pages, page_count is 4"),
        ({"weight": 3}, "'weight' is not a field"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_value(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = write(tmp_path / "models.json", {**GOOD, **change})
    with pytest.raises(ConfigError) as raised:
        load_profiles(path)
    assert said in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_file_that_is_no_profile_file(tmp_path: Path) -> None:
    assert load_profiles(write(tmp_path / "good.json", GOOD)) == [ModelProfile("m", {1: 10, 4: 25}, 100, 5)]
    with pytest.raises(ConfigError, match="there twice"):
        load_profiles(write(tmp_path / "twice.json", GOOD, GOOD))
    with pytest.raises(ConfigError, match="0 profiles"):
        load_profiles(write(tmp_path / "none.json"))
    with pytest.raises(ConfigError, match="not an object"):
        load_profiles(write(tmp_path / "list.json", [1]))
    with pytest.raises(ConfigError, match="'load_ns' is missing"):
        load_profiles(write(tmp_path / "part.json", {key: GOOD[key] for key in GOOD if key != "load_ns"}))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_profiles(tmp_path / "absent.json")
    for name, text in (("text.json", "hello"), ("binary.json", "\x00"), ("deep.json", "[" * 100_000)):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match="not JSON"):
            load_profiles(tmp_path / name)
    (tmp_path / "other.json").write_text("[1, 2]")
    with pytest.raises(ConfigError, match="profiles"):
        load_profiles(tmp_path / "other.json")


def test_the_papers_table_is_complete_but_for_one_misprint() -> None:
    models = {one.name: one for one in paper_models()}
    assert len(models) == 64
    assert list(models) == sorted(models)
    for one in models.values():
        one.check()
        batches = [1, 2, 4, 8] if one.name == "winograd_resnet152_v2" else [1, 2, 4, 8, 16]
        assert list(one.exec_ns) == batches
        times = list(one.exec_ns.values())
        assert times == sorted(times)
        assert 12.1e6 < one.weights_bytes / (one.load_ns / 1e6) < 12.7e6  # the link: 12.2-12.6 MB/ms
    resnet = models["resnet50_v2"]
    assert resnet.exec_ns == {1: 2_730_000, 2: 4_050_000, 4: 5_870_000, 8: 9_930_000, 16: 17_300_000}
    assert (resnet.weights_bytes, resnet.load_ns) == (102_200_000, 8_320_000)
    assert (resnet.input_bytes, resnet.output_bytes) == (602_000, 4_000)
    mean_pages = sum(one.weights_bytes for one in models.values()) / 64 / PAPER_PAGE_BYTES
    assert mean_pages == pytest.approx(130 / 16.8, rel=0.05)


def test_the_trace_experiment_has_4026_models_of_61_programs_in_alphabetical_order() -> None:
    models = paper_instances()
    assert len(models) == 4026
    assert len({one.name for one in models}) == 4026
    assert [one.name for one in models] == sorted(one.name for one in models)
    assert len({one.program for one in models}) == 61
    assert models[0].program == models[65].program == "cifar_wideresnet16_10"
    assert models[66].program == "cifar_wideresnet28_10"
    assert len(paper_varieties(64)) == 64
    assert len({one.name for one in paper_varieties(20)}) == 20
    for wrong in (0, 65):
        with pytest.raises(ConfigError, match=str(wrong)):
            paper_varieties(wrong)
    with pytest.raises(ConfigError, match="vgg19"):
        paper_model("vgg19")
    with pytest.raises(ConfigError, match="0 copies"):
        copies(models, 0)


def test_times_between_points_lie_on_the_line_between_them() -> None:
    model = ModelProfile("m", {1: 10, 4: 40, 8: 60}, 0, 0, batch_max=12)
    assert [model.execution_ns(batch) for batch in (1, 2, 4, 6, 8, 12)] == [10, 20, 40, 50, 60, 80]
    assert ModelProfile("m", {1: 10}, 0, 0, batch_max=4).execution_ns(3) == 30
    for wrong in (0, 13):
        with pytest.raises(ConfigError, match=str(wrong)):
            model.execution_ns(wrong)
    made = linear("l", 1_000, 500, 12)
    assert [made.execution_ns(batch) for batch in range(1, 13)] == [
        1_000 * batch + 500 for batch in range(1, 13)
    ]


def test_pages_are_those_measured_or_as_many_as_the_weights_fill() -> None:
    assert paper_model("resnet50_v2").pages(PAPER_PAGE_BYTES) == 7
    assert linear("l", 1, 1, 1).pages(16) == 1
    model = ModelProfile("m", {1: 1}, 100, 1, page_bytes=16, page_count=9)
    assert (model.pages(16), model.pages(32)) == (9, 4)
    assert dataclasses.replace(model, runs=(4, 5)).layout(16) == [4, 5]
    assert dataclasses.replace(model, runs=(4, 5)).layout(32) == [1] * 4, "measured with other pages"
    with pytest.raises(ConfigError, match="page_bytes 0"):
        model.pages(0)


def test_a_registered_model_becomes_a_profile_of_its_examples_shape() -> None:
    body: dict[str, Any] = {
        "name": "bert", "state": "ready", "batches": True, "batch_max": 4, "weights_bytes": 300, "load_ns": 50,
        "program": "abc", "slo_ns": 9, "page_bytes": 128, "pages": 4, "runs": [3, 1],
        "inputs": [{"name": "ids", "dtype": "int64", "shape": ["n", "length"]},
                   {"name": "flag", "dtype": "bool", "shape": ["n"]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": ["n", "length", 10]},
                    {"name": "z", "dtype": "float32", "shape": ["n", "other"]}],
        "profile": [{"shape": [[7], []], "batch": 1, "exec_ns": 100}, {"shape": [[7], []], "batch": 4, "exec_ns": 200},
                    {"shape": [[9], []], "batch": 1, "exec_ns": 150}],
    }  # fmt: skip
    profile = from_info(ModelInfo.from_wire(body))
    assert profile == ModelProfile(
        "bert", {1: 100, 4: 200}, 300, 50, input_bytes=7 * 8 + 1, output_bytes=7 * 10 * 4 + 4, program="abc",
        batch_max=4, slo_ns=9, page_bytes=128, page_count=4, runs=(3, 1),
    )  # fmt: skip
    assert profile.pages(128) == 4
    alone = ModelInfo.from_wire({
        **body, "batches": False, "profile": [{"shape": [[2, 7], [2]], "batch": 1, "exec_ns": 100}],
    })  # fmt: skip
    assert dataclasses.replace(from_info(alone), name="x") == ModelProfile(
        "x", {1: 100}, 300, 50, input_bytes=2 * 7 * 8 + 2, output_bytes=2 * 7 * 10 * 4 + 2 * 4, program="abc",
        batch_max=1, slo_ns=9, page_bytes=128, page_count=4, runs=(3, 1),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"'bert' is preparing .*no profile"):
        from_info(ModelInfo.from_wire({**body, "state": "preparing", "profile": []}))
