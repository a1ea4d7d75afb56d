"""program.json: a written program is read back, and an invalid one is refused with the value and the
bound."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clockwork.errors import InvalidModel
from clockwork.formats.prepared import TensorSpec
from clockwork.formats.program import (
    Argument,
    Launch,
    Program,
    ProgramWeight,
    TargetModules,
    Variant,
    check,
    check_files,
    offsets_of,
    parse_program,
    program_hash,
    read_checks,
    read_program,
    write_program,
)

FLOAT = 1


def variant(batch: int, target: str = "host") -> Variant:
    return Variant(
        target=target,
        batch=batch,
        shapes=((batch, 3),),
        output_shapes=((batch, 2),),
        workspace=256,
        launches=(
            Launch(0, "scale", (batch, 1, 1), (32, 1, 1), 0, (
                Argument("workspace", 0, 128), Argument("input", 0, 0), Argument("weight", 0, 4),
                Argument("i32", 0, -7), Argument("i64", 0, 2**40), Argument("f32", 0, 0.5),
            )),
            Launch(0, "add", (1, 1, 1), (batch, 1, 1), 64, (
                Argument("output", 0, 0), Argument("workspace", 0, 0), Argument("weight", 1, 0),
            )),
        ),
    )  # fmt: skip


def program(**changes: Any) -> Program:
    made = Program(
        name="affine",
        inputs=(TensorSpec("x", FLOAT, ("N", 3)),),
        outputs=(TensorSpec("y", FLOAT, ("N", 2)),),
        batches=True,
        weights=(ProgramWeight(FLOAT, (3, 2), 0, 24), ProgramWeight(FLOAT, (2,), 64, 8)),
        targets={"host": TargetModules(0, ("modules/host.so",))},
        variants=(variant(4), variant(1)),
        files={},
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "host.so").write_bytes(b"code")
    (tmp_path / "weights.bin").write_bytes(bytes(72))
    return tmp_path


def test_what_is_written_is_read_again(directory: Path) -> None:
    written = write_program(directory, program())
    assert set(written.files) == {"modules/host.so", "weights.bin"}
    assert read_program(directory) == written
    check_files(written, directory)
    first = (directory / "program.json").read_bytes()
    write_program(directory, written)
    assert (directory / "program.json").read_bytes() == first


def test_a_request_runs_on_the_smallest_variant_that_has_room_for_it() -> None:
    made = program()
    assert [made.variant("host", [[rows, 3]]).batch for rows in (1, 2, 3, 4)] == [1, 4, 4, 4]  # type: ignore[union-attr]
    assert made.variant("host", [[5, 3]]) is None
    assert made.variant("host", [[1, 4]]) is None
    assert made.variant("sm_80", [[1, 3]]) is None


def test_a_program_that_does_not_batch_takes_its_own_shapes_alone() -> None:
    one = dataclasses.replace(variant(1), shapes=((3, 3),), output_shapes=((3, 2),))
    made = program(batches=False, variants=(one,))
    assert made.variant("host", [[3, 3]]) == one
    assert made.variant("host", [[2, 3]]) is None


def padded(*sides: tuple[int, int], batches: bool = True, **changes: Any) -> Program:
    """Inputs x (N, S) and m (N, S, S), for these rows and lengths."""

    def one(batch: int, length: int) -> Variant:
        shapes = (batch, length), (batch, length, length)
        launch = Launch(0, "scale", (1, 1, 1), (32, 1, 1), 0, (Argument("output", 0, 0),))
        return Variant("host", batch, shapes, ((batch, length),), 0, (launch,))

    specs = TensorSpec("x", FLOAT, ("N", "S")), TensorSpec("m", FLOAT, ("N", "S", "S"))
    return dataclasses.replace(
        program(), inputs=specs, outputs=(TensorSpec("y", FLOAT, ("N", "S")),), weights=(), batches=batches,
        variants=tuple(one(*both) for both in sides), padded=("S",), **changes,
    )  # fmt: skip


def test_a_shorter_request_runs_on_the_shortest_variant_and_then_on_the_smallest_batch() -> None:
    made = padded((1, 9), (4, 4), (1, 4), (8, 9))

    def chosen(rows: int, length: int) -> tuple[int, ...] | None:
        found = made.variant("host", [[rows, length], [rows, length, length]])
        return found and found.shapes[0]

    assert chosen(1, 3) == (1, 4)
    assert chosen(2, 4) == (4, 4)
    assert chosen(1, 5) == (1, 9)
    assert chosen(5, 2) == (8, 9)  # too many rows for the shorter length
    assert chosen(9, 2) is chosen(1, 10) is chosen(1, 0) is None
    assert made.variant("host", [[1, 3], [1, 3, 4]]) is None  # the symbol S has two sizes
    assert made.sizes([[1, 3], [1, 3, 3]]) == [3]


def test_what_pads_says_so_in_its_format_and_its_hash(directory: Path) -> None:
    made = write_program(directory, padded((1, 4)))
    assert read_program(directory) == made
    assert json.loads((directory / "program.json").read_text())["format"] == 2
    assert json.loads(program().to_json())["format"] == 1
    other = dataclasses.replace(
        made, inputs=tuple(dataclasses.replace(one, shape=tuple({"S": "T"}.get(str(dim), dim) for dim in one.shape))
                           for one in made.inputs),
        outputs=(TensorSpec("y", FLOAT, ("N", "T")),), padded=("T",),
    )  # fmt: skip
    assert program_hash(other) == program_hash(made) != program_hash(dataclasses.replace(made, padded=()))
    check(made.stripped())


@pytest.mark.parametrize(
    ("made", "entry"),
    [(program(), Argument("weight", 1, 4)), (padded((1, 4)), Argument("size", 0, 0))],
    ids=["weight", "size"],
)
def test_a_table_is_written_in_a_format_of_its_own(directory: Path, made: Program, entry: Argument) -> None:
    arguments = Argument("output", 0, 0), Argument("table", 0, 0)
    launch = Launch(0, "scale", (1, 1, 1), (32, 1, 1), 0, arguments)
    last = dataclasses.replace(made.variants[-1], launches=(launch,), table=(entry,))
    written = write_program(directory, dataclasses.replace(made, variants=(*made.variants[:-1], last)))
    assert json.loads((directory / "program.json").read_text())["format"] == 3
    assert read_program(directory) == written


def test_models_of_equal_architecture_share_a_program(directory: Path) -> None:
    first = write_program(directory, program())
    (directory / "weights.bin").write_bytes(b"other weights".ljust(200))
    second = write_program(
        directory,
        program(
            name="fine-tuned",
            inputs=(TensorSpec("image", FLOAT, ("batch", 3)),),
            outputs=(TensorSpec("label", FLOAT, ("batch", 2)),),
            weights=(ProgramWeight(FLOAT, (3, 2), 128, 24), ProgramWeight(FLOAT, (2,), 0, 8)),
        ),
    )
    assert first.files["weights.bin"] != second.files["weights.bin"]
    assert program_hash(first) == program_hash(second)
    assert first.stripped() == second.stripped()
    assert program_hash(first.stripped()) == program_hash(first)
    check(first.stripped())


@pytest.mark.parametrize("change", ["module", "grid", "dtype", "workspace"])
def test_another_computation_is_another_program(directory: Path, change: str) -> None:
    first = program_hash(write_program(directory, program()))
    made = program()
    if change == "module":
        (directory / "modules" / "host.so").write_bytes(b"other")
    elif change == "grid":
        launches = variant(1).launches
        other = dataclasses.replace(launches[1], grid=(2, 1, 1))
        made = program(variants=(dataclasses.replace(variant(1), launches=(launches[0], other)),))
    elif change == "dtype":
        made = program(inputs=(TensorSpec("x", 6, ("N", 3)),))
    else:
        made = program(variants=(variant(4), dataclasses.replace(variant(1), workspace=512)))
    assert program_hash(write_program(directory, made)) != first


def test_weights_follow_each_other_at_multiples_of_64() -> None:
    assert offsets_of([24, 64, 0, 65, 1]) == [0, 64, 128, 128, 256]


def edit(directory: Path, change: Callable[[Any], None]) -> bytes:
    write_program(directory, program())
    body = json.loads((directory / "program.json").read_text())
    change(body)
    return json.dumps(body).encode()


def put(*path: Any) -> Callable[[Any], None]:
    """Set the last of ``path`` at the place that the others name."""
    *steps, key, value = path

    def change(body: Any) -> None:
        for step in steps:
            body = body[step]
        body[key] = value

    return change


def with_ptx(target: str, paths: list[str]) -> Callable[[Any], None]:
    """Give PTX to a target."""

    def change(body: Any) -> None:
        made = body["targets"].setdefault(target, {"driver": 0, "modules": ["modules/host.so"]})
        made.update(ptx=paths, ptx_driver=12040)

    return change


def padding(symbols: list[str], more: Callable[[Any], None] | None = None) -> Callable[[Any], None]:
    """Declare the second dimension of x as S, and these symbols as padded."""

    def change(body: Any) -> None:
        body.update(format=2, padded=symbols)
        body["inputs"][0]["shape"][1] = "S"
        if more is not None:
            more(body)

    return change


def table(entries: list[Any], *more: Callable[[Any], None]) -> Callable[[Any], None]:
    """Give a table to the first variant."""

    def change(body: Any) -> None:
        body["format"] = 3
        body["variants"][0]["table"] = entries
        for one in more:
            one(body)

    return change


LAUNCH = ("variants", 0, "launches", 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put("format", 4), "has format 4, this reads 1 to 3"),
        (put(*LAUNCH, "args", 0, ["table", 0]), "argument 0 is entry 0 of the table, which has 0"),
        (table([["input", 0, 0]]), "entry 0 of the table is of kind 'input'; the kinds there are weight, size"),
        (table([["weight", 2, 0]]), "entry 0 of the table is weight 2; there are 2"),
        (table([["size", 0]]), "entry 0 of the table is size 0; 0 are padded"),
        (table([["weight", 0, 0]], put(*LAUNCH, "args", 0, ["table", 1])), "is entry 1 of the table, which has 1"),
        (table([["weight", 0, 4]], put(*LAUNCH, "args", [["table", 0]]), put(*LAUNCH, "widths", [8])),
         "pointer 0 is at 4 of weight 0, which its kernel's widest access of 8 bytes does not divide"),
        (put("format", True), "has format True"),
        (put("tolerance", 0.5), "tolerance is a number above 0 and at most 0.25, not 0.5"),
        (put("tolerance", True), "tolerance is a number above 0"),
        (put("format", 2), "has no 'padded'"),
        (put(*LAUNCH, "args", 0, ["size", 0]), "is size 0; 0 are padded"),
        (padding(["T"]), "padded symbol 'T' is of no input"),
        (padding(["S", "S"]), "are not all different"),
        (padding(["N"]), "padded symbol 'N' of 'x' is its batch"),
        (padding(["S"], put("inputs", 0, "dtype", 22)), "'x' of type 22 cannot be padded"),
        (padding(["S"], put(*LAUNCH, "args", 0, ["size", 1])), "is size 1; 1 are padded"),
        (put("weights", 0, "bytes", 23), "weight 0 has 23 bytes, its type and shape say 24"),
        (put("weights", 1, "offset", 40), "at 40, no multiple of 64"),
        (put("weights", 1, "offset", 0), "lies over another, which ends at 24"),
        (put("weights", 0, "shape", [2**40, 2**40]), "at most"),
        (put("weights", 0, "dtype", 8), "which no kernel can take"),
        (put("inputs", 0, "shape", [4, 3]), "dimension 0 of input 'x' [4, 3] is not a symbol"),
        (put("inputs", 0, "dtype", True), "dtype is an integer"),
        (put("outputs", []), "at least one output"),
        (put("variants", 0, "batch", 3), "has 4 rows; the variant's batch is 3"),
        (put("variants", 0, "shapes", [[4, 5]]), "input 'x' [4, 5] is not ['N', 3] as declared"),
        (put("variants", 0, "output_shapes", [[3, 2]]), "output 'y' [3, 2] is not ['N', 2] as declared"),
        (put("variants", 0, "shapes", []), "has shapes of 0 inputs; the program has 1"),
        (put("variants", 1, "target", "sm_80"), "target 'sm_80', which the program does not have"),
        (put("variants", 0, "workspace", 128), "offset 128 into 128 bytes of workspace"),
        (put(*LAUNCH, "module", 1), "is of module 1 of 1"),
        (put(*LAUNCH, "kernel", "a b"), "'a b' is no kernel's name"),
        (put(*LAUNCH, "grid", [1, 65536, 1]), "an integer in 1..65535, not 65536"),
        (put(*LAUNCH, "grid", [1, 1]), "a list of three integers"),
        (put(*LAUNCH, "block", [1024, 2, 1]), "a block of 2048 threads; at most 1024"),
        (put(*LAUNCH, "shared", 1 << 20), "shared is an integer in 0..232448"),
        (put(*LAUNCH, "args", 0, ["weight", 2, 0]), "is weight 2; there are 2"),
        (put(*LAUNCH, "args", 0, ["weight", 0, 24]), "offset 24 into 24 bytes of weight"),
        (put(*LAUNCH, "args", 0, ["input", 0, -1]), "offset -1"),
        (put(*LAUNCH, "args", 0, ["i32", 2**31]), "i32 2147483648 is outside"),
        (put(*LAUNCH, "widths", [4, 4]), "tells the widths of 2 pointers and has 3"),
        (put(*LAUNCH, "widths", [4, 4, 16]), "at 4 of weight 0, which its kernel's widest access of 16 bytes"),
        (put(*LAUNCH, "widths", [4, 12, 4]), "width 12 of pointer 1 is no power of two up to 64"),
        (put(*LAUNCH, "widths", [128, 4, 4]), "width 128 of pointer 0 is no power of two up to 64"),
        (put(*LAUNCH, "widths", 4), "widths is a list"),
        (put(*LAUNCH, "args", 0, ["f32", float("nan")]), "f32 nan is outside"),
        (put(*LAUNCH, "args", 0, ["i32", True]), "launches[0]: args[0] is [weight|input|output"),
        (put("files", "../x", "0" * 64), "'../x' leaves the package"),
        (put("files", "weights.bin", "0"), "is no sha256"),
        (put("targets", "gfx900", {"driver": 0, "modules": ["weights.bin"]}), "neither sm_NN nor host"),
        (put("targets", "sm_90", {"driver": 12000, "modules": ["weights.bin"]}), "'sm_90' has no variant"),
        (put("targets", "host", "ptx", ["weights.bin"]), "has no 'ptx_driver'"),
        (with_ptx("host", ["weights.bin"]), "target 'host' has PTX, which only GPUs run"),
        (with_ptx("sm_90", ["weights.bin"] * 2), "target 'sm_90' has PTX of 2 of its 1 modules"),
        (with_ptx("sm_90", ["gone.ptx"]), "'gone.ptx' of target 'sm_90' is not among the files"),
        (put("targets", "host", "modules", ["gone.so"]), "'gone.so' of target 'host' is not among the files"),
        (put("variants", 1, "launches", []), "variant 1: no launch gets output 'y' of 8 bytes"),
        (put("variants", 1, "batch", 1.5), "batch is an integer"),
        (put("batches", 1), "batches is true or false, not 1"),
        (lambda body: body.pop("weights"), "has no 'weights'"),
        (lambda body: body["variants"].append(body["variants"][0]), "the target, batch and shapes of variant 0"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(directory: Path, change: Callable[[Any], None], says: str) -> None:
    with pytest.raises(InvalidModel) as caught:
        parse_program(edit(directory, change))
    assert says in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"[" * 100_000, b"\xff", b'{"format": 1}'])
def test_what_is_no_program_at_all_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidModel):
        parse_program(data)


def test_damaged_and_missing_files_are_named(directory: Path) -> None:
    written = write_program(directory, program())
    (directory / "modules" / "host.so").write_bytes(b"edoc")
    with pytest.raises(InvalidModel, match=r"'modules/host.so' is damaged"):
        check_files(written, directory)
    (directory / "modules" / "host.so").unlink()
    with pytest.raises(InvalidModel, match=r"'modules/host.so' of the program cannot be read: No such file"):
        check_files(written, directory)
    with pytest.raises(InvalidModel, match="cannot be read"):
        write_program(directory, program())


def test_weights_that_end_before_their_file_does_are_read_and_others_are_not(directory: Path) -> None:
    (directory / "weights.bin").write_bytes(bytes(71))
    with pytest.raises(InvalidModel, match=r"weights.bin has 71 bytes, its weights end at 72"):
        check_files(write_program(directory, program()), directory)


# ----- a package written by hand ---------------------------------------------------------------


@pytest.mark.slow
def test_a_package_written_by_hand_is_checked_uploaded_and_run_like_any_other(tmp_path: Path) -> None:
    from clockwork.formats.package import PackageFile, hash_file, parse_files
    from clockwork.models.compile.host import HostExecutor
    from clockwork.models.packaging import package_of

    root = Path(__file__).resolve().parents[2]
    directory = tmp_path / "relu"
    subprocess.run(
        [sys.executable, root / "examples" / "program" / "make.py", directory], cwd=root, check=True
    )
    made = read_program(directory)
    check_files(made, directory)
    executor = HostExecutor(made, directory)
    ((inputs, outputs),) = read_checks(directory, made)
    assert np.allclose(executor.run(inputs)[0], outputs[0], atol=1e-6)
    many = [np.repeat(inputs[0], 5, axis=0)]  # on the variant for 8 rows
    assert np.allclose(executor.run(many)[0], np.repeat(outputs[0], 5, axis=0), atol=1e-6)

    files = [PackageFile(path, *hash_file(source)) for path, source in package_of(directory, None)]
    assert parse_files([[one.path, one.bytes, one.sha256] for one in files]) == files
    assert files[0].path == "program.json"
    with pytest.raises(InvalidModel, match="takes no examples"):
        package_of(directory, {"x": inputs[0]})
