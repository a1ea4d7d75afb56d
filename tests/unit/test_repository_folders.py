"""Triton model repositories: the models that a scan finds in folders, and the resulting changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip(
    "google.protobuf", reason="the gateway's packages are not installed (clockwork-serving[gateway])"
)

from clockwork.config import VERSIONS_MAX
from clockwork.errors import ConfigError, InvalidModel
from clockwork.repository import folders as repository
from clockwork.repository.folders import Contents, Folder, RegistrationState, plan
from clockwork.repository.triton_config import FolderConfig, read_config, split_fields

CONFIG = """
name: "resnet"  # as the folder is called
platform: "onnxruntime_onnx"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 3, 224, 224 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ -1 ] } ]
version_policy: { latest { num_versions: 2 } }
dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100 }
instance_group [ { count: 2 kind: KIND_CPU } ]
model_warmup [ { name: "warm: { } up" batch_size: 1 } ]
parameters { key: "clockwork_slo_ms" value { string_value: "25" } }
"""


def scan(root: Path) -> Contents:
    return repository.scan(Folder(root))


def put(root: Path, name: str, *versions: int, config: str = "", content: bytes = b"onnx") -> Path:
    for version in versions:
        folder = root / name / str(version)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.onnx").write_bytes(content)
    if config:
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "config.pbtxt").write_text(config)
    return root / name


# ----- config.pbtxt --------------------------------------------------------------------------------


def test_a_configuration_of_triton_says_what_decides_something_here() -> None:
    config = read_config(CONFIG, "resnet")
    assert (config.batch_max, config.newest, config.versions, config.slo_s) == (8, 2, (), 0.025)
    assert [(one.name, one.dims) for one in config.inputs] == [("x", (3, 224, 224))]
    notes = dict(note.split(" is passed over", 1) for note in config.notes)
    assert set(notes) == {"instance_group", "model_warmup"}
    assert "every model is run at every batch size" in notes["model_warmup"]


def test_queue_policies_are_the_defaults_of_requests() -> None:
    text = """dynamic_batching {
        priority_levels: 3 default_priority_level: 2
        default_queue_policy { default_timeout_microseconds: 500 max_queue_size: 9 }
        priority_queue_policy [ { key: 1 value { default_timeout_microseconds: 20 } },
                                { key: 3 value { timeout_action: DELAY default_timeout_microseconds: 7 } } ]
    }"""
    config = read_config(text, "m")
    queueing = config.queueing
    assert [queueing.level(asked) for asked in (0, 1, 2, 3, 4, 255)] == [2, 1, 2, 3, 2, 2]
    assert [queueing.timeout_ns(level) for level in (1, 2, 3)] == [20_000, 500_000, 500_000]
    assert config.slo_s == 0.0005
    assert [note.split(" is passed over")[0] for note in config.notes] == [
        "max_queue_size of default_queue_policy",
        "the timeout of priority_queue_policy 3",
    ]
    own = read_config(text + 'parameters { key: "clockwork_slo_ms" value { string_value: "25" } }', "m")
    assert own.slo_s == 0.025
    assert [own.queueing.timeout_ns(level) for level in (1, 2, 3)] == [20_000, 0, 0]
    assert read_config("dynamic_batching { }", "m").queueing.level(7) == 7


def test_an_upper_bound_of_batches_beyond_the_largest_is_the_largest() -> None:
    assert read_config("max_batch_size: 65536", "m").batch_max == 4096


def test_fields_are_found_whatever_is_inside_them() -> None:
    assert [name for name, _ in split_fields(CONFIG)] == [
        "name", "platform", "max_batch_size", "input", "output", "version_policy", "dynamic_batching",
        "instance_group", "model_warmup", "parameters",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name: "vgg"', "name 'vgg' in the folder 'resnet'"),
        ('backend: "python"', "backend 'python' is not served here"),
        ('platform: "tensorrt_plan"', "platform 'tensorrt_plan' is not served here"),
        ("max_batch_size: -1", "max_batch_size -1 is below 0"),
        ("max_batch_size: many", "max_batch_size"),
        ("ensemble_scheduling { step [ ] }", "ensemble_scheduling is not served"),
        ("sequence_batching { }", "sequence_batching is not served"),
        ('default_model_filename: "../model.onnx"', "is no file's name"),
        ("version_policy { specific { } }", "names no version"),
        (
            'parameters { key: "clockwork_slo_ms" value { string_value: "soon" } }',
            "number of milliseconds, not 'soon'",
        ),
        ('name: "resnet', "line 1: '\"resnet' makes no sense"),
        ("input [ { name: 'x' }", "a bracket is not closed"),
        ("max_batch_size 4", "config.pbtxt: 1:16"),
        (
            "# batches\ndynamic_batchin { }",
            "there is no field dynamic_batchin; did you mean dynamic_batching?",
        ),
        ("model_warmup { }\ninput [ { nam: 'x' } ]", '2:11 :.*no field named "nam"'),
        ("dynamic_batching { prefered_batch_size: 4 }", 'no field named "prefered_batch_size"'),
        (
            "input { name: 'x' dims: [ 3, 4 ] reshape { shape: [ 2, 7 ] } }",
            "input 'x' has 12 elements by its dims [3, 4] and 14 by its reshape [2, 7]",
        ),
        ("output { name: 'y' dims: [ -1 ] reshape { shape: [ 0 ] } }", "sizes are above 0, or -1"),
        (
            "output { name: 'y' label_filename: '../labels.txt' }",
            "label_filename '../labels.txt' is no file's name",
        ),
        ("dynamic_batching { priority_levels: 256 default_priority_level: 1 }", "there are at most 255"),
        ("dynamic_batching { priority_levels: 2 }", "default_priority_level 0 is not from 1 to 2"),
        (
            "dynamic_batching { priority_queue_policy { key: 3 } }",
            "priority_queue_policy 3: priority_levels is 0",
        ),
    ],
)
def test_what_cannot_be_served_is_named(text: str, said: str) -> None:
    with pytest.raises(InvalidModel, match=said.translate({ord(one): "\\" + one for one in "([?"})):
        read_config(text, "resnet")


@pytest.mark.parametrize(
    ("config", "found", "chosen"),
    [
        (FolderConfig(), [1, 3, 2], [3]),
        (FolderConfig(newest=2), [1, 10, 9], [9, 10]),
        (FolderConfig(newest=0), [2, 1], [1, 2]),
        (FolderConfig(versions=(1, 4)), [1, 2, 3], [1]),
        (FolderConfig(versions=(7,)), [1], []),
    ],
)
def test_version_policies(config: FolderConfig, found: list[int], chosen: list[int]) -> None:
    assert config.chosen(found) == chosen


# ----- folders ---------------------------------------------------------------------------------------


def test_a_scan_finds_models_and_says_what_is_wrong_with_the_others(tmp_path: Path) -> None:
    put(tmp_path, "plain", 1, 3)
    put(tmp_path, "configured", 1, 2, 5, config="version_policy { all { } }\nmax_batch_size: 0")
    put(tmp_path, "renamed", 1, config='default_model_filename: "other.onnx"')
    put(tmp_path, "bad name", 1)
    put(tmp_path, "torn", 1, config='name: "to')
    (tmp_path / "empty").mkdir()
    (tmp_path / "zero" / "01").mkdir(parents=True)
    (tmp_path / ".git" / "1").mkdir(parents=True)
    (tmp_path / "README.md").write_text("not a model")
    found = scan(tmp_path)
    assert set(found.versions) == {("plain", 3), ("configured", 1), ("configured", 2), ("configured", 5)}
    assert found.versions["configured", 2].config.batch_max == 0
    with found.versions["plain", 3].copy() as path:
        assert path == tmp_path / "plain/3/model.onnx"
    assert found.broken["renamed"] == "version 1 has no file other.onnx"
    assert "is not 1 to 200 letters" in found.broken["bad name"]
    assert "config.pbtxt" in found.broken["torn"]
    assert "has no version" in found.broken["empty"]
    assert "folder 01 is passed over" in found.broken["zero"]
    assert len(found.broken) == 5


def test_folders_that_are_no_versions_take_nothing_with_them(tmp_path: Path) -> None:
    put(tmp_path, "dated", 20241129120000, (1 << 63) - 1, config="version_policy { all { } }")
    for other in ("01", str(1 << 63), "9" * 5_000, "1.5", "latest", "\N{SUPERSCRIPT TWO}"):
        if len(other) < 200:
            (tmp_path / "dated" / other).mkdir()
    found = scan(tmp_path)
    assert not found.broken
    assert sorted(number for _, number in found.versions) == [20241129120000, (1 << 63) - 1]
    said = found.versions["dated", 20241129120000].config.notes
    assert [note.split()[1] for note in said] == ["01", str(1 << 63)]


def test_an_onnx_file_may_have_a_folder_of_its_name_with_its_external_data(tmp_path: Path) -> None:
    folder = tmp_path / "large/1/model.onnx"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"onnx")
    (folder / "weights").write_bytes(b"data")
    with scan(tmp_path).versions["large", 1].copy() as path:
        assert path == folder / "model.onnx"


@pytest.mark.parametrize("inside", ["input { reshape { ", "dynamic_batching { "])
def test_a_configuration_nested_without_end_is_broken_and_ends_no_scan(tmp_path: Path, inside: str) -> None:
    put(tmp_path, "deep", 1, config=inside + "a { " * 5_000 + "} " * 5_000 + "} " * inside.count("{"))
    put(tmp_path, "good", 1)
    found = scan(tmp_path)
    assert "brackets" in found.broken["deep"]
    assert list(found.versions) == [("good", 1)]


def test_what_is_said_of_a_folder_can_be_sent_whatever_its_name_is(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    ((name, why),) = scan(tmp_path).broken.items()
    assert name == r"\xff"
    assert name.encode()
    assert why.encode()


def test_labels_are_files_beside_the_configuration(tmp_path: Path) -> None:
    config = 'output { name: "y" label_filename: "labels.txt" }'
    put(tmp_path, "m", 1, config=config)
    assert "label_filename 'labels.txt', which is not there" in scan(tmp_path).broken["m"]
    (tmp_path / "m/labels.txt").write_text("ant\n\nbee of two words \n")
    first = scan(tmp_path)
    assert first.versions["m", 1].labels == {"y": ("ant", "", "bee of two words")}
    (tmp_path / "m/labels.txt").write_text("ant\nwasp\n")
    second = scan(tmp_path)
    assert plan(done_of(first), second, second).register, "other labels are a change"
    (tmp_path / "m/labels.txt").write_text("x" * 1001)
    assert "label of more than 1000" in scan(tmp_path).broken["m"]


def test_of_more_versions_than_a_model_may_have_the_newest_are_served(tmp_path: Path) -> None:
    put(tmp_path, "many", *range(1, VERSIONS_MAX + 4), config="version_policy { all { } }")
    found = scan(tmp_path).versions
    assert sorted(version for _, version in found) == list(range(4, VERSIONS_MAX + 4))
    assert any("before 4" in note for note in found["many", 4].config.notes)


def test_a_compiled_program_is_a_version_like_any_other(tmp_path: Path) -> None:
    folder = tmp_path / "compiled" / "1"
    folder.mkdir(parents=True)
    (folder / "program.json").write_text("{}")
    with scan(tmp_path).versions["compiled", 1].copy() as path:
        assert path == folder


def test_a_repository_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model repository .*nowhere cannot be read: No such file"):
        scan(tmp_path / "nowhere")


def test_a_pipe_in_a_version_is_no_file_to_wait_for(tmp_path: Path) -> None:
    put(tmp_path, "odd", 1)
    os.mkfifo(tmp_path / "odd/1/pipe")
    assert "pipe is no file" in scan(tmp_path).broken["odd"]


# ----- what is to be done ------------------------------------------------------------------------------


def done_of(contents: Contents) -> dict[tuple[str, int], RegistrationState]:
    return {key: RegistrationState(one.fingerprint) for key, one in contents.versions.items()}


def test_at_start_everything_is_registered_lower_versions_first(tmp_path: Path) -> None:
    put(tmp_path, "b", 1, 2, config="version_policy { all { } }")
    put(tmp_path, "a", 7)
    wanted = plan({}, scan(tmp_path), None)
    assert [(one.name, one.version) for one in wanted.register] == [("a", 7), ("b", 1), ("b", 2)]
    assert not wanted.unregister
    assert not wanted.settling


def test_what_has_not_changed_is_left_alone(tmp_path: Path) -> None:
    put(tmp_path, "a", 1)
    first = scan(tmp_path)
    again = plan(done_of(first), scan(tmp_path), first)
    assert (again.register, again.unregister, again.settling) == ((), (), False)


def test_a_change_is_acted_upon_once_it_has_settled(tmp_path: Path) -> None:
    put(tmp_path, "a", 1)
    first = scan(tmp_path)
    done = done_of(first)
    put(tmp_path, "a", 1, content=b"half of a new ")
    put(tmp_path, "new", 1)
    half = scan(tmp_path)
    early = plan(done, half, first)
    assert (early.register, early.settling) == ((), True)
    put(tmp_path, "a", 1, content=b"half of a new one, and the rest")
    whole = scan(tmp_path)
    between = plan(done, whole, half)
    assert [one.name for one in between.register] == ["new"], "that one has not changed since"
    assert between.settling
    last = plan(
        done | {("new", 1): RegistrationState(whole.versions["new", 1].fingerprint)}, scan(tmp_path), whole
    )
    assert [one.name for one in last.register] == ["a"]
    assert not last.settling


def test_a_new_configuration_is_a_change_of_its_versions(tmp_path: Path) -> None:
    put(tmp_path, "a", 1, config="max_batch_size: 4")
    first = scan(tmp_path)
    put(tmp_path, "a", config="max_batch_size: 2")
    second = scan(tmp_path)
    assert [one.config.batch_max for one in plan(done_of(first), second, second).register] == [2]


def test_what_is_gone_is_unregistered_and_what_is_broken_keeps_what_it_has(tmp_path: Path) -> None:
    put(tmp_path, "gone", 1)
    put(tmp_path, "breaks", 1)
    put(tmp_path, "stays", 1)
    first = scan(tmp_path)
    (tmp_path / "gone/1/model.onnx").unlink()
    (tmp_path / "gone/1").rmdir()
    (tmp_path / "gone").rmdir()
    (tmp_path / "breaks/1/model.onnx").unlink()
    second = scan(tmp_path)
    assert not plan(done_of(first), second, first).unregister, "somebody may be about to put it back"
    wanted = plan(done_of(first), second, second)
    assert wanted.unregister == (("gone", 1),)
    assert not wanted.register
    assert not plan(done_of(first), second, second, is_complete=False).unregister, "it may be in another one"


def test_what_failed_is_not_tried_again_until_its_files_change(tmp_path: Path) -> None:
    put(tmp_path, "a", 1)
    first = scan(tmp_path)
    done = {("a", 1): RegistrationState(first.versions["a", 1].fingerprint, "not an ONNX model")}
    assert plan(done, scan(tmp_path), first).register == ()
    put(tmp_path, "a", 1, content=b"a better one")
    second = scan(tmp_path)
    assert len(plan(done, scan(tmp_path), second).register) == 1


def test_what_may_go_better_is_tried_again_and_unregistered_like_any_other_once_it_is_gone(
    tmp_path: Path,
) -> None:
    put(tmp_path, "a", 1)
    first = scan(tmp_path)
    done = {
        ("a", 1): RegistrationState(first.versions["a", 1].fingerprint, "no worker", again=True, served=1)
    }
    assert len(plan(done, first, first).register) == 1
    for path in ("a/1/model.onnx", "a/1", "a"):
        one = tmp_path / path
        one.unlink() if one.is_file() else one.rmdir()
    assert plan(done, scan(tmp_path), scan(tmp_path)).unregister == (("a", 1),)
