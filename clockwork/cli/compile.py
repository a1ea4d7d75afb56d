"""`clockwork compile`: compiles an ONNX file to a program package."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from clockwork.cli.common import FILE, PATH, print_line, print_table
from clockwork.config import silence_onnxruntime
from clockwork.errors import InvalidInput, InvalidModel
from clockwork.wire.messages import PRODUCT_DTYPES


@click.command("compile")
@click.argument("model", type=FILE)
@click.option("--output", "-o", type=PATH, help="The directory to make.  [default: MODEL's name, .program]")
@click.option(
    "--arch", "archs", multiple=True, metavar="sm_NN",
    help="An architecture: sm_80, sm_90 ..., or host for this machine's processor. Repeatable.  "
    "[default: the local GPU's]",
)  # fmt: skip
@click.option(
    "--batch", "batches", multiple=True, type=click.IntRange(1), help="A batch size. Repeatable.  "
    "[default: 1, 2, 4, 8, 16]",
)  # fmt: skip
@click.option(
    "--shape", "shapes", multiple=True, metavar="INPUT:DIMS",
    help="A shape of an input with open dimensions, as ids:1,128. Repeatable, for each further set of "
    "shapes.",
)  # fmt: skip
@click.option(
    "--dtype", type=click.Choice(PRODUCT_DTYPES), default="fp32", show_default=True,
    help="Type of matrix products. tf32 and fp16 use tensor cores, with sums in fp32: tf32 cuts factors to 10 "
    "bits of mantissa, fp16 keeps factors and weights in 16 bits.",
)  # fmt: skip
@click.option("--batching", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True)
@click.option(
    "--examples", type=FILE, help="Real inputs to check the program with: .npz by input name, or .npy."
)
@click.option("--name", default="", help="The model's name in the package.  [default: MODEL's name]")
@click.option(
    "--exact", is_flag=True, help="Serve only inputs of the compiled shapes; do not pad shorter inputs."
)
@click.option(
    "--no-ptx",
    is_flag=True,
    help="Leave out the PTX of the newest --arch, which drivers compile for GPUs of later generations.",
)
@click.option("--jobs", type=click.IntRange(1), help="Variants at a time.  [default: one per processor]")
@click.option("--no-verify", is_flag=True, help="Do not run the program here and compare its answers.")
@click.option("--tune", is_flag=True, help="Time many ways to write each kernel on this machine's GPU.")
@click.option(
    "--sources",
    type=PATH,
    help="A directory for the CUDA C of every module, named as the module is in the package.",
)
@click.option("--report", is_flag=True, help="List every kernel: registers, spills, bytes, operations.")
def compile_command(
    model: Path, output: Path | None, archs: tuple[str, ...], batches: tuple[int, ...],
    shapes: tuple[str, ...], dtype: str, batching: str, examples: Path | None, name: str, jobs: int | None,
    no_verify: bool, exact: bool, no_ptx: bool, tune: bool, sources: Path | None, report: bool,
) -> None:  # fmt: skip
    """Compile an ONNX MODEL into kernels and launch lists: a program package.

    Needs the extra [compile] and no GPU. Register the result with `clockwork models add NAME DIRECTORY`.

    \b
    Examples:
      clockwork compile resnet50.onnx --arch sm_80 --arch sm_90
      clockwork compile bert.onnx --arch sm_90 --shape ids:1,128 --shape ids:1,512 --dtype fp16 --report
    """
    silence_onnxruntime()
    from clockwork.models.compile import compiler

    compiler.require()
    targets = archs or tuple(filter(None, [compiler.local_architecture()]))
    if not targets:
        raise click.UsageError(
            "this machine has no GPU whose architecture could be taken: give --arch, as sm_80"
        )
    options = compiler.CompileOptions(
        targets=targets,
        batches=batches or compiler.BATCHES,
        shapes=parse_shapes(shapes),
        batching=batching,
        dtype=dtype,
        name=name,
        examples=_examples(model, examples),
        verify=not no_verify,
        pad=not exact,
        jobs=jobs or 0,
        tune=tune,
        ptx=not no_ptx,
        sources=sources,
    )
    directory = output if output is not None else Path(f"{model.stem}.program")
    with _progress() as tell:
        try:
            summary = compiler.compile_model(model, directory, options, tell)
        except OSError as error:
            raise InvalidInput(f"{directory} cannot be written: {error}") from None
    program = summary.program
    launches = max(len(variant.launches) for variant in program.variants)
    print_line(
        f"{directory}: {len(program.variants)} variants for {', '.join(program.targets)}, of at most "
        f"{launches} launches; {program.weights_bytes / 2**20:.1f} MiB of weights; "
        f"batching: {summary.batching_note}"
    )
    if summary.padding_note:
        print_line(f"shorter inputs: {summary.padding_note}")
    if summary.verified:
        reference = (
            "ONNX Runtime in fp32 (the difference includes the loss by fp16)"
            if dtype == "fp16"
            else "ONNX Runtime"
        )
        print_line(f"against {reference}: {summary.verified}")
    if report:
        from clockwork.models.compile.report import rows_of

        for variant, statistics, log in zip(program.variants, summary.statistics, summary.logs, strict=True):
            print_line("")
            print_line(f"{variant.target} batch {variant.batch} {[list(shape) for shape in variant.shapes]}")
            print_table(*rows_of(variant, statistics, log))


compile = compile_command  # under this name clockwork.cli.root looks the command up


def parse_shapes(texts: tuple[str, ...]) -> dict[str, list[list[int]]]:
    """Parse ``ids:1,128`` into shapes by input, in the given order. Raises click.UsageError."""
    shapes: dict[str, list[list[int]]] = {}
    for text in texts:
        name, colon, dims = text.rpartition(":")
        try:
            sizes = [int(size) for size in dims.split(",")]
        except ValueError:
            sizes = []
        if not colon or not name or not sizes or min(sizes) < 1:
            raise click.UsageError(
                f"--shape {text!r} is not INPUT:DIMS with sizes of at least 1, as ids:1,128"
            )
        shapes.setdefault(name, []).append(sizes)
    return shapes


def _examples(model: Path, path: Path | None) -> list[list[Any]]:
    """Read real inputs, in the model's order, from a file. Raises InvalidModel."""
    if path is None:
        return []
    import tempfile

    from clockwork.cli import files
    from clockwork.models import onnx_import
    from clockwork.wire.packages import EXAMPLES_FILE

    given = files.read_examples(path)
    parsed = onnx_import.read_model(model)
    names = [value.name for value in onnx_import.real_inputs(parsed)]
    if not isinstance(given, dict):
        if len(names) != 1:
            raise InvalidModel(f"examples of a model with the inputs {names} are by input name: .npz")
        given = {names[0]: given}
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / EXAMPLES_FILE).write_bytes(onnx_import.pack_examples(parsed, given))
        return onnx_import.read_examples(Path(directory), parsed)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback that shows progress on stderr: a bar for each pending variant in a terminal, else a
    line for each finished variant."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    from clockwork.cli.terminal import Terminal, description

    console = Terminal(stderr=True)
    lock = threading.Lock()
    if not console.is_terminal:

        def say(variant_name: str, done: int, total: int) -> None:
            if done == total:
                with lock:
                    print_line(f"compile: {variant_name}", err=True)

        yield say
        return
    columns = (description(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def show(variant_name: str, done: int, total: int) -> None:
            with lock:
                if variant_name not in tasks:
                    tasks[variant_name] = progress.add_task(variant_name, total=total)
                if done == total:
                    progress.remove_task(tasks.pop(variant_name))
                else:
                    progress.update(tasks[variant_name], completed=done, total=total)

        yield show
