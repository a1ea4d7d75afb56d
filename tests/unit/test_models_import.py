"""The errors for ONNX files that cannot be served, and the package that a client uploads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from clockwork.config.models import OPTIONAL_INPUTS_MAX
from clockwork.errors import InvalidModel
from clockwork.formats.interface import defaults_of, read_onnx
from clockwork.models.onnx_import import check_model, optional_inputs, package_files, read_examples
from clockwork.wire.optional import OPTIONAL_KEY
from clockwork.wire.packages import PackageFiles
from tests.unit.models_onnx import (
    INT64,
    classifier,
    initializer,
    model_of,
    negated_if_told,
    normal,
    small_net,
    unpack,
    value,
)


def save(model: onnx.ModelProto, path: Path, **options: Any) -> Path:
    onnx.save(model, path, **options)
    return path


def check_refused(path: Path, *words: str) -> None:
    with pytest.raises(InvalidModel) as caught:
        check_model(path)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_a_good_model_passes(tmp_path: Path) -> None:
    assert check_model(save(small_net(1), tmp_path / "net.onnx")).graph.node


def test_what_is_no_onnx_file(tmp_path: Path) -> None:
    check_refused(tmp_path / "none.onnx", "does not exist")
    for content in (b"", b"\x89PNG\r\n\x1a\n and so on", b"hello world, this is text", b"\x00" * 100):
        (tmp_path / "bad.onnx").write_bytes(content)
        check_refused(tmp_path / "bad.onnx", "is not an ONNX model")
    check_refused(tmp_path, "cannot be read")


def test_what_git_lfs_left_in_place_of_a_model_says_how_to_get_it(tmp_path: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 102400000\n"
    (tmp_path / "m.onnx").write_text(pointer)
    check_refused(tmp_path / "m.onnx", "Git LFS", "git lfs pull")


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    data = small_net(1).SerializeToString()
    for size in range(2, len(data), 7):
        (tmp_path / "cut.onnx").write_bytes(data[:size])
        # Some cuts fall on the end of a field: then something is missing, and is named.
        check_refused(tmp_path / "cut.onnx", "cut.onnx")


def test_opset_of_the_future(tmp_path: Path) -> None:
    model = small_net(1)
    model.opset_import[0].version = 999
    check_refused(save(model, tmp_path / "new.onnx"), "opset 999", "are supported")


def test_a_value_that_nothing_defines(tmp_path: Path) -> None:
    node = helper.make_node("Add", ["x", "ghost"], ["y"], name="adder")
    check_refused(
        save(model_of([node], [value("x", [1])], [value("y", [1])]), tmp_path / "m.onnx"),
        "Add (adder)",
        "ghost",
    )


def test_sequences_and_optionals_are_named(tmp_path: Path) -> None:
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    node = helper.make_node("SequenceAt", ["s", "i"], ["y"])
    model = model_of([node], [sequence, value("i", [], INT64)], [value("y", None)])
    check_refused(save(model, tmp_path / "m.onnx"), "input 's' is a sequence", "only tensors")


def test_a_constant_of_the_wrong_size(tmp_path: Path) -> None:
    model = small_net(1)
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    check_refused(save(model, tmp_path / "m.onnx"), "'w1'", "its shape says")
    model = small_net(1)
    model.graph.initializer[0].dims[0] = -8
    check_refused(save(model, tmp_path / "m.onnx"), "'w1'", "negative")
    model.graph.initializer[0].dims[0] = 2**40
    check_refused(save(model, tmp_path / "m.onnx"), "'w1'", "its shape says")


def external(tmp_path: Path, location: str = "net.data") -> Path:
    return save(
        small_net(1), tmp_path / "net.onnx", save_as_external_data=True, location=location, size_threshold=0
    )


def test_external_data_travel_with_the_model(tmp_path: Path) -> None:
    path = external(tmp_path)
    assert [name for name, _ in package_files(path)] == ["model.onnx", "net.data"]


def test_a_model_in_memory_has_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = external(tmp_path).read_bytes()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidModel, match=r"'net\.data', which is not beside it"):
        package_files(Path("model.onnx"), None, data)


def test_external_data_that_are_missing_or_short(tmp_path: Path) -> None:
    path = external(tmp_path)
    data = (tmp_path / "net.data").read_bytes()
    (tmp_path / "net.data").write_bytes(data[:-8])
    check_refused(path, "net.data", "which has")
    (tmp_path / "net.data").unlink()
    check_refused(path, "'net.data', which is not beside it")


@pytest.mark.parametrize("location", ["/etc/passwd", "../net.data", "a/../../net.data", "", "..\\net.data"])
def test_external_data_stay_in_the_folder(tmp_path: Path, location: str) -> None:
    path = external(tmp_path)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    check_refused(save(model, path), "outside the model's folder")


def test_external_data_behind_a_link_that_leaves(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    path = external(tmp_path / "inside")
    (tmp_path / "inside" / "net.data").rename(tmp_path / "net.data")
    (tmp_path / "inside" / "net.data").symlink_to(tmp_path / "net.data")
    check_refused(path, "link that leaves")


def test_examples_come_back_as_they_were(tmp_path: Path) -> None:
    kinds = [TensorProto.FLOAT, TensorProto.BFLOAT16, TensorProto.STRING, INT64]
    inputs = [value(name, ["N", 2], kind) for name, kind in zip(("file", "b", "s", "i"), kinds)]
    nodes = [helper.make_node("Identity", [one.name], [f"{one.name}_out"]) for one in inputs]
    outputs = [value(f"{one.name}_out", ["N", 2], kind) for one, kind in zip(inputs, kinds)]
    path = save(model_of(nodes, inputs, outputs), tmp_path / "m.onnx")
    example = {
        "file": normal(1, 2),
        "b": normal(1, 2).astype(ml_dtypes.bfloat16),
        "s": np.array([["ab", "ü"]], object),
        "i": np.array([[1, 2]]),
    }
    files = package_files(path, [example, example])
    assert [name for name, _ in files] == ["model.onnx", "examples.npz"]
    assert files == package_files(path, [example, example]), "equal examples are equal bytes"
    folder = unpack(files, tmp_path / "package")
    found = read_examples(folder, check_model(path))
    assert len(found) == 2
    for array, name in zip(found[0], ("file", "b", "s", "i")):
        assert array.dtype == example[name].dtype
        assert array.tolist() == example[name].tolist()


def test_examples_may_be_images(tmp_path: Path) -> None:
    values = [value(name, ["N"], TensorProto.STRING) for name in ("s", "t")]
    model = model_of([helper.make_node("Identity", ["s"], ["t"])], values[:1], values[1:])
    path = save(model, tmp_path / "m.onnx")
    image, short = b"\xff\xd8\xff\0\xd9", b"\xff\xd9"
    for given in (np.array([image, short], object), np.array([image, short])):
        folder = unpack(package_files(path, {"s": given}), tmp_path / f"package-{given.dtype.kind}")
        ((found,),) = read_examples(folder, check_model(path))
        # of one length: bytes behind an image are not read
        assert found.tolist() == [image, short + bytes(3)]


def test_examples_that_do_not_fit(tmp_path: Path) -> None:
    path = save(small_net(1), tmp_path / "m.onnx")
    for example, words in (
        ({"z": normal(1, 8)}, "keys ['x'], not ['z']"),
        ({"x": normal(1, 8).astype(np.float64)}, "is float64; the model takes float32"),
        ({"x": normal(8)}, "has rank 1; the model takes rank 2"),
    ):
        with pytest.raises(InvalidModel) as caught:
            package_files(path, example)
        assert words in str(caught.value)


def test_damaged_examples(tmp_path: Path) -> None:
    path = save(small_net(1), tmp_path / "m.onnx")
    (tmp_path / "examples.npz").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(InvalidModel, match=r"examples.npz cannot be read"):
        read_examples(tmp_path, check_model(path))


def test_initializers_that_are_inputs_too_need_no_example(tmp_path: Path) -> None:
    model = small_net(1)
    model.ir_version = 3
    model.graph.input.extend(value(t.name, t.dims, t.data_type) for t in model.graph.initializer)
    path = save(model, tmp_path / "old.onnx")
    assert [name for name, _ in package_files(path, {"x": normal(1, 8)})] == ["model.onnx", "examples.npz"]


# ----- lists of maps -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "classes", [{"classlabels_int64s": [7, 8, 9]}, {"classlabels_strings": ["cat", "dog", "eel"]}]
)
def test_a_list_of_maps_becomes_a_tensor_of_scores(tmp_path: Path, classes: dict[str, Any]) -> None:
    path = save(classifier(**classes), tmp_path / "m.onnx")
    folder = unpack(package_files(path), tmp_path / "package")
    x = normal(5, 4)
    labels, maps = onnxruntime.InferenceSession(path).run(None, {"x": x})
    got_labels, scores = onnxruntime.InferenceSession(folder / "model.onnx").run(None, {"x": x})
    assert (got_labels == labels).all()
    (names,) = classes.values()
    assert scores.tolist() == [[row[name] for name in names] for row in maps]
    with open(folder / "model.onnx", "rb") as file:
        declared = read_onnx(file)
    assert [(spec.name, spec.shape) for spec in declared.outputs] == [
        ("label", ("N",)),
        ("probabilities", ("", 3)),
    ]
    assert json.loads(declared.metadata["clockwork.labels"]) == [str(name) for name in names]
    again = package_files(path)
    assert again == package_files(Path("model.onnx"), None, path.read_bytes()), (
        "equal files are equal packages"
    )


def test_labels_that_a_file_names_are_kept(tmp_path: Path) -> None:
    model = classifier(classlabels_int64s=[0, 1])
    helper.set_model_props(model, {"clockwork.labels": '["no", "yes"]'})
    folder = unpack(package_files(save(model, tmp_path / "m.onnx")), tmp_path / "package")
    with open(folder / "model.onnx", "rb") as file:
        assert read_onnx(file).metadata == {"clockwork.labels": '["no", "yes"]'}


def test_a_list_of_tensors_is_refused_with_advice(tmp_path: Path) -> None:
    node = helper.make_node("SequenceConstruct", ["x", "x"], ["s"])
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    path = save(model_of([node], [value("x", ["N", 4])], [sequence]), tmp_path / "m.onnx")
    with pytest.raises(InvalidModel, match=r"'s' is a sequence; only tensors .* a model for each target"):
        package_files(path)


# ----- inputs with defaults ------------------------------------------------------------------------


def optional_of(files: PackageFiles, folder: Path) -> dict[str, np.ndarray]:
    """Return the defaults of a package's optional inputs, as a reader of the package finds them."""
    path = unpack(files, folder) / "model.onnx"
    with open(path, "rb") as file:
        declared = read_onnx(file)
    assert set(defaults_of(declared.inputs, declared.metadata)) <= {spec.name for spec in declared.inputs}
    return optional_inputs(check_model(path))


def with_defaults(
    nodes: list[onnx.NodeProto], defaults: list[TensorProto], inputs: list[Any]
) -> onnx.ModelProto:
    """x [N, 4] -> y [N, 4] by these operators. inputs: further ones."""
    return model_of(nodes, [value("x", ["N", 4]), *inputs], [value("y", ["N", 4])], defaults)


def test_an_input_with_a_default_that_chooses_an_ifs_body_is_optional(tmp_path: Path) -> None:
    path = save(negated_if_told(), tmp_path / "m.onnx")
    found = optional_of(package_files(path), tmp_path / "package")
    assert list(found) == ["negate"]
    assert found["negate"].tolist() == [False]
    assert package_files(path, None, None, [])[0] == ("model.onnx", path.read_bytes()), (
        "as it is where nothing is optional"
    )


def test_examples_may_bring_an_optional_input_or_leave_it_out(tmp_path: Path) -> None:
    path = save(negated_if_told(), tmp_path / "m.onnx")
    x = normal(2, 4)
    files = package_files(path, [{"x": x}, {"x": x, "negate": np.array([True])}])
    folder = unpack(files, tmp_path / "package")
    model = check_model(folder / "model.onnx")
    assert [negate.tolist() for _, negate in read_examples(folder, model)] == [[False], [True]]
    for negate, expected in ((False, x), (True, -x)):
        session = onnxruntime.InferenceSession(folder / "model.onnx")
        (y,) = session.run(None, {"x": x, "negate": np.array([negate])})
        assert (y == expected).all()


def test_every_input_with_a_small_default_is_optional(tmp_path: Path) -> None:
    """Whether or not the file has other initializers, and whatever the input is used for."""
    scaled = with_defaults(
        [helper.make_node("Mul", ["x", "scale"], ["h"]), helper.make_node("Reshape", ["h", "shape"], ["y"])],
        [initializer("scale", np.float32(2)), initializer("shape", [-1, 4], np.int64)],
        [value("shape", [2], TensorProto.INT64), value("scale", [])],
    )
    for weights in ([], [initializer("w", normal(4, 400))]):
        scaled.graph.initializer.extend(weights)
        path = save(scaled, tmp_path / "m.onnx")
        folder = tmp_path / f"package-{len(weights)}"
        assert set(optional_of(package_files(path), folder)) == {"shape", "scale"}
        assert package_files(path, None, None, [])[0] == ("model.onnx", path.read_bytes())
    scaled.ir_version = 3  # of which ONNX Runtime takes no value for an initializer
    assert package_files(save(scaled, path))[0] == ("model.onnx", path.read_bytes())


def test_weights_that_an_exporter_lists_as_inputs_stay_constants(tmp_path: Path) -> None:
    model = negated_if_told()
    model.graph.initializer.extend([initializer("w", normal(17)), initializer("b", normal(1))])
    model.graph.node.append(helper.make_node("Add", ["y", "b"], ["z"]))
    model.graph.output[0].name = "z"
    model.graph.input.append(value("b", [1]))
    path = save(model, tmp_path / "some.onnx")
    assert set(optional_of(package_files(path), tmp_path / "some")) == {"negate", "b"}
    model.graph.input.append(value("w", [17]))
    path = save(model, tmp_path / "all.onnx")
    assert list(optional_of(package_files(path), tmp_path / "all")) == ["negate"], (
        "an input of that size is a weight, and so may be the others, except where they choose an If's body"
    )
    assert list(optional_of(package_files(path, None, None, ["b"]), tmp_path / "named")) == ["b"]
    model.ir_version = 3
    assert package_files(save(model, path))[0] == ("model.onnx", path.read_bytes())


def test_more_defaults_than_a_model_may_have_optional_inputs_are_weights(tmp_path: Path) -> None:
    names = [f"d{index}" for index in range(OPTIONAL_INPUTS_MAX)]
    nodes = [helper.make_node("Sum", ["x", *names], ["y"])]
    defaults = [initializer(name, normal(1)) for name in names]
    model = with_defaults(nodes, defaults, [value(name, [1]) for name in names])
    path = save(model, tmp_path / "m.onnx")
    assert set(optional_of(package_files(path), tmp_path / "most")) == {*names}
    model.graph.initializer.append(initializer("more", normal(1)))
    model.graph.input.append(value("more", [1]))
    assert package_files(save(model, path))[0] == ("model.onnx", path.read_bytes())


def test_a_default_that_examples_bring_and_that_is_too_large_becomes_an_input(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "bias"], ["y"])]
    model = with_defaults(nodes, [initializer("bias", normal(64, 4))], [value("bias", [64, 4])])
    path = save(model, tmp_path / "m.onnx")
    assert package_files(path)[0] == ("model.onnx", path.read_bytes())
    files = package_files(path, {"x": normal(64, 4), "bias": normal(64, 4)})
    assert optional_of(files, tmp_path / "package") == {}
    with open(tmp_path / "package" / "model.onnx", "rb") as file:
        assert [spec.name for spec in read_onnx(file).inputs] == ["x", "bias"]


@pytest.mark.parametrize(
    ("default", "declared", "name", "why"),
    [
        (initializer("d", normal(17)), value("d", [17]), "d", "does not take between 1 and 64 bytes"),
        (initializer("d", normal(1, 4)), value("d", ["N", 4]), "d", "has no fixed shape"),
        (initializer("d", normal(1, 4)), value("d", [4]), "d", "not of its shape"),
        (initializer("d", normal(4)), value("d", [4], TensorProto.INT32), "d", "of another type"),
        (
            initializer("d", normal(4)),
            value("d", [4]),
            "e",
            "no input 'e' with a default; those that have: 'd'",
        ),
        (initializer("d", normal(4)), value("d", [4]), "x", "no input 'x' with a default"),
    ],
)
def test_an_input_that_cannot_be_optional_is_said(
    tmp_path: Path, default: TensorProto, declared: onnx.ValueInfoProto, name: str, why: str
) -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    path = save(with_defaults(nodes, [default], [declared]), tmp_path / "m.onnx")
    with pytest.raises(InvalidModel, match=why):
        package_files(path, None, None, [name])


@pytest.mark.parametrize(
    "text",
    [
        "no JSON", "[]", '{"negate":1}', '{"negate":[[1],"?"]}', '{"negate":[[2],"AAA="]}', '{"negate":[[1],"AAA="]}',
        '{"negate":[[true],"AA=="]}', '{"other":[[1],"AA=="]}', '{"x":[[1],"AA=="]}',
    ],
)  # fmt: skip
def test_a_package_whose_defaults_do_not_fit_is_refused(tmp_path: Path, text: str) -> None:
    model = negated_if_told()
    del model.graph.initializer[:]
    model.metadata_props.add(key=OPTIONAL_KEY, value=text)
    path = save(model, tmp_path / "m.onnx")
    with open(path, "rb") as file, pytest.raises(InvalidModel):
        read_onnx(file)
