"""The package that clockwork-client registers without onnx is the same as with it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from clockwork.client import plain_package, upload
from clockwork.errors import InvalidModel
from clockwork.models import packaging, zoo
from clockwork.wire.packages import PackageFiles
from clockwork.wire.tensors import DTYPES, STRING, numpy_dtype
from tests.unit.models_onnx import classifier, initializer, model_of, negated_if_told, normal, value

DIGITS = Path(packaging.__file__).with_name("data") / "digits.onnx"


def small(location_of_constant: str = "") -> onnx.ModelProto:
    """y = x * w + c, where w is an initializer and c a Constant within a branch."""
    w = helper.make_tensor("w", TensorProto.FLOAT, [4], np.arange(4, dtype=np.float32).tobytes(), raw=True)
    c = helper.make_tensor("c", TensorProto.FLOAT, [4], np.ones(4, np.float32).tobytes(), raw=True)
    if location_of_constant:
        c.ClearField("raw_data")
        c.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location_of_constant), ("offset", "0"), ("length", "16")):
            c.external_data.add(key=key, value=value)

    def branch(name: str) -> onnx.GraphProto:
        made = helper.make_tensor_value_info(name, TensorProto.FLOAT, [4])
        return helper.make_graph([helper.make_node("Constant", [], [name], value=c)], name, [], [made])

    nodes = [
        helper.make_node("Mul", ["x", "w"], ["scaled"]),
        helper.make_node("If", ["which"], ["added"], then_branch=branch("a"), else_branch=branch("b")),
        helper.make_node("Add", ["scaled", "added"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4]),
        helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]),
        helper.make_tensor_value_info("which", TensorProto.BOOL, []),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    graph = helper.make_graph(nodes, "small", inputs, [output], [w])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def both(
    model: Any, examples: Any = None, optional: list[str] | None = None
) -> tuple[PackageFiles, PackageFiles]:
    plain = plain_package.package_of(model, examples, optional)
    return plain, packaging.package_of(model, examples, optional)


@pytest.mark.parametrize("name", ["mlp", "residual_cnn", "transformer"])
def test_models_make_the_same_package_with_and_without_onnx(name: str) -> None:
    plain, checked = both(zoo.build(name))
    assert plain == checked


def test_examples_are_packed_alike_and_checked_alike() -> None:
    x = np.zeros((2, 1, 8, 8), np.float32)
    for examples in (x, {"image": x}, [{"image": x}, {"image": x[:1]}]):
        plain, checked = both(DIGITS, examples)
        assert plain == checked
        assert [path for path, _ in plain] == ["model.onnx", "examples.npz"]
    said = set()
    for package_of in (plain_package.package_of, packaging.package_of):
        for examples in ({"picture": x}, {"image": x.astype(np.float64)}, {"image": x[0]}, "a.npz", []):
            with pytest.raises(InvalidModel) as caught:
                package_of(DIGITS, examples)
            said.add(str(caught.value))
    assert len(said) == 5, "they say the same"


def test_examples_bring_an_input_with_an_initializer_or_leave_it_out() -> None:
    examples = {"x": np.zeros((1, 4), np.float32), "which": np.array(True)}
    for given in (examples, {**examples, "w": np.ones(4, np.float32)}):
        plain, checked = both(small(), given)
        assert plain == checked
    with pytest.raises(InvalidModel, match=r"keys \['w', 'which', 'x'\]"):
        plain_package.package_of(small(), {**examples, "other": np.ones(4, np.float32)})


def test_external_data_are_found_within_branches_and_in_order(tmp_path: Path) -> None:
    onnx.save(small("branch.bin"), tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="w.bin")
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(InvalidModel, match=r"external data 'w\.bin', which is not beside it"):
        plain_package.package_of(tmp_path / "net.onnx", None)
    for name in ("branch.bin", "w.bin"):
        (tmp_path / name).write_bytes(np.ones(4, np.float32).tobytes())
    plain, checked = both(str(tmp_path / "net.onnx"))
    assert plain == checked
    assert [path for path, _ in plain] == ["model.onnx", "w.bin", "branch.bin"]
    with pytest.raises(InvalidModel, match=r"external data 'w.bin', which is not beside it"):
        plain_package.package_of((tmp_path / "net.onnx").read_bytes(), None)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "examples.npz"])
def test_external_data_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    onnx.save(small(location), tmp_path / "net.onnx")
    with pytest.raises(InvalidModel, match=r"outside the model's folder|may not be called"):
        plain_package.package_of(tmp_path / "net.onnx", None)


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    for name, content in (
        ("text.onnx", b"import numpy\n"),
        ("empty.onnx", b""),
        ("cut.onnx", DIGITS.read_bytes()[:-100]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            InvalidModel, match=rf"^{name} is not an ONNX model, or damaged \({len(content)} bytes\)$"
        ):
            plain_package.package_of(tmp_path / name, None)
    (tmp_path / "pointer.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InvalidModel, match="git lfs pull"):
        plain_package.package_of(tmp_path / "pointer.onnx", None)
    with pytest.raises(InvalidModel, match=r"missing\.onnx does not exist"):
        plain_package.package_of(tmp_path / "missing.onnx", None)
    with pytest.raises(InvalidModel, match="pip install clockwork-serving"):
        plain_package.package_of(tmp_path, None)
    with pytest.raises(InvalidModel, match=r"path, bytes or an onnx.ModelProto, not int"):
        plain_package.package_of(3, None)


def test_damage_anywhere_is_refused_or_read_but_never_an_error_of_its_own() -> None:
    sound = small().SerializeToString()
    read = refused = 0
    for place in range(len(sound)):
        for byte in (0x00, 0x7F, 0xFF, sound[place] ^ 0x08):
            changed = sound[:place] + bytes([byte]) + sound[place + 1 :]
            try:
                plain_package.package_of(changed, None)
                read += 1
            except InvalidModel:
                refused += 1
    assert min(read, refused) > 0


def test_the_client_alone_falls_back_to_the_plain_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert upload._package(DIGITS, None, None) == packaging.package_of(DIGITS, None)
    monkeypatch.setitem(sys.modules, "clockwork.models.packaging", None)
    taken: list[Any] = []
    monkeypatch.setattr(plain_package, "package_of", lambda model, *_: taken.append(model) or [])
    assert upload._package(DIGITS, None, None) == []
    assert taken == [DIGITS]


# ----- interfaces that are changed -----------------------------------------------------------------


@pytest.mark.parametrize(
    "classes", [{"classlabels_strings": ["no", "yes"]}, {"classlabels_int64s": [3, -1, 7]}]
)
@pytest.mark.parametrize("kept", [(), ("standard",), ("labels",), ("standard", "labels")])
def test_lists_of_maps_become_the_same_tensors_without_onnx(
    classes: dict[str, Any], kept: Sequence[str]
) -> None:
    model = classifier(**classes)
    if "standard" in kept:
        model.opset_import.append(helper.make_opsetid("", 17))
    if "labels" in kept:
        model.metadata_props.add(key="clockwork.labels", value='["a", "b"]')
    model.metadata_props.add(key="author", value="somebody")
    plain, checked = both(model)
    assert plain == checked
    assert plain[0][1] != model.SerializeToString()


def with_default(default: TensorProto, declared: list[int] | None) -> onnx.ModelProto:
    """x [N] -> x; ``d`` has this default and shape."""
    inputs = [value("x", ["N"]), helper.make_tensor_value_info("d", default.data_type, declared)]
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    return model_of(nodes, inputs, [value("y", ["N"])], [default, initializer("w", normal(2))])


TYPED = [code for code in DTYPES if code not in (STRING,)]


@pytest.mark.parametrize("code", TYPED)
@pytest.mark.parametrize("raw", [True, False])
def test_defaults_of_every_type_are_the_same_without_onnx(code: int, raw: bool) -> None:
    array = np.array([[1, 0, 1]]).astype(numpy_dtype(code))
    if raw:
        tensor = numpy_helper.from_array(array, "d")
    else:
        tensor = helper.make_tensor("d", code, array.shape, array.ravel().tolist())
    for declared in ([1, 3], None):
        plain, checked = both(with_default(tensor, declared), None, ["d"])
        assert plain == checked


@pytest.mark.parametrize("optional", [None, [], ["negate"]])
@pytest.mark.parametrize("gives", [(), ("x",), ("x", "negate")])
def test_optional_inputs_are_the_same_without_onnx(optional: list[str] | None, gives: Sequence[str]) -> None:
    arrays = {"x": normal(2, 4), "negate": np.array([True])}
    examples = [{name: arrays[name] for name in gives}] if gives else None
    plain, checked = both(negated_if_told(), examples, optional)
    assert plain == checked


def test_what_cannot_be_optional_is_said_alike_without_onnx() -> None:
    tensors = [
        helper.make_tensor("d", TensorProto.FLOAT, [17], [0.0] * 17),
        helper.make_tensor("d", TensorProto.STRING, [1], [b"a"]),
        helper.make_tensor("d", TensorProto.FLOAT, [0], []),
    ]
    said = set()
    for package_of in (plain_package.package_of, packaging.package_of):
        for tensor in tensors:
            for name in ("d", "e"):
                with pytest.raises(InvalidModel) as caught:
                    package_of(with_default(tensor, list(tensor.dims)), None, [name])
                said.add(str(caught.value))
    assert len(said) == 3


@pytest.mark.parametrize("others", [[], ["small"], ["large"], ["small", "large"], ["small"] * 80])
@pytest.mark.parametrize("listed", [True, False])
def test_the_same_inputs_with_a_default_are_optional_without_onnx(
    others: Sequence[str], listed: bool
) -> None:
    model = negated_if_told()
    for index, size in enumerate(others):
        array = normal(4 if size == "small" else 17)
        model.graph.initializer.append(initializer(f"{size}{index}", array))
        if listed:
            model.graph.input.append(value(f"{size}{index}", array.shape))
    plain, checked = both(model)
    assert plain == checked
    assert plain[0][1] != model.SerializeToString()
    model.ir_version = 3
    plain, checked = both(model)
    assert plain == checked
    assert plain[0][1] == model.SerializeToString()
