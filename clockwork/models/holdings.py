"""The two ways to hold a model's weights on a CPU, written to a directory and verified there.

*bound*: the program has no weights; weights.bin holds them page by page, and a run binds their addresses.
*packed*: the whole optimised model, with ONNX Runtime's own prepacked weights in a file that is mapped.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import mmap
from collections.abc import Callable, Sequence
from pathlib import Path

from clockwork.formats.checksums import set_aside
from clockwork.formats.durable import write_durably
from clockwork.formats.package import put_in_place
from clockwork.formats.prepared import (
    PACKED_DATA_FILE,
    PACKED_FILE,
    PROGRAM_FILE,
    WEIGHTS_FILE,
    WeightSpec,
    program_damage,
)
from clockwork.models.answers import difference
from clockwork.models.layout import WeightLayout, lay_out, write_weights
from clockwork.models.measure import weight_addresses
from clockwork.models.runtime import ModelSession, RunError
from clockwork.models.split import SplitModel, Splitter
from clockwork.system.files import check_room
from clockwork.wire.tensors import Array


@dataclasses.dataclass(slots=True)
class ReferenceRun:
    """Inputs, and the answers of the original model in ONNX Runtime, which every holding must reproduce."""

    run: Callable[[Sequence[Array]], list[Array]]
    inputs: list[list[Array]]
    outputs: list[list[Array]]
    relative: float
    deterministic: bool = True  # False: answers differ each time, and only their types can be compared

    def check_deterministic(self) -> None:
        """Run the model once more, and note whether its answers are the same."""
        if self.deterministic:
            again = self.run(self.inputs[0])
            self.deterministic = not difference(again, self.outputs[0], self.relative)

    def difference(self, run: Callable[[Sequence[Array]], list[Array]]) -> str:
        """Describe how another run of the model differs, as a sentence; "" if it does not. A RunError is
        described, too."""
        text = self._difference(run)
        if text and self.deterministic:
            self.check_deterministic()
            if not self.deterministic:
                text = self._difference(run)
        return text

    def _difference(self, run: Callable[[Sequence[Array]], list[Array]]) -> str:
        for inputs, expected in zip(self.inputs, self.outputs):
            try:
                actual = run(inputs)
            except RunError as error:
                return str(error)
            if self.deterministic:
                text = difference(actual, expected, self.relative)
            else:
                ranks = [(a.ndim, a.dtype) for a in actual] == [(e.ndim, e.dtype) for e in expected]
                text = "" if ranks else "outputs of another type"
            if text:
                return text
        return ""


# ----- bound ---------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class Bound:
    """A program and its weights, written to a directory and compared with the original."""

    program: SplitModel
    layout: WeightLayout
    weights: list[WeightSpec]
    error: str  # reason why the holding does not work; "": it works


def build_bound(program: SplitModel, directory: Path, page_bytes: int, reference: ReferenceRun) -> Bound:
    """Write weights.bin, then run the program over that file."""
    sizes = [constant.size for constant in program.weights]
    layout = lay_out(sizes, page_bytes)
    weights = [
        WeightSpec(constant.tensor.data_type, constant.shape, run, offset, size)
        for constant, size, (run, offset) in zip(program.weights, sizes, layout.places)
    ]
    path = directory / WEIGHTS_FILE
    path.unlink(missing_ok=True)
    if weights:
        write_weights(path, layout, [constant.data() for constant in program.weights], page_bytes)
    error = _verify(program.model, path, layout, weights, page_bytes, reference)
    return Bound(program, layout, weights, error)


def _verify(
    model: bytes,
    path: Path,
    layout: WeightLayout,
    weights: Sequence[WeightSpec],
    page_bytes: int,
    reference: ReferenceRun,
) -> str:
    try:
        session = ModelSession(model, optimise=False)
    except RunError as error:
        return str(error)
    if not weights:
        return reference.difference(session.run)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        addresses = weight_addresses(weights, layout.runs, page_bytes, memory)
        return reference.difference(lambda inputs: session.run(inputs, addresses))


def choose_program(
    splitter: Splitter, whole: SplitModel, build: Callable[[SplitModel], Bound], known: Sequence[str]
) -> tuple[Bound, list[str], str]:
    """Return the working program with the fewest weights in the graph, the operators that keep weights, and
    the reason.

    whole: the program without weights in the graph. known: operators that needed their weights in an earlier
    model of this architecture.
    """
    if known:
        bound = build(splitter.keeping(known))
        if not bound.error:
            return bound, list(known), _kept_note(bound.program, known, "")
    bound = build(whole)
    if not bound.error:
        return bound, [], ""
    reason = bound.error
    users = splitter.weight_users()
    bound = build(splitter.keeping(users))
    if bound.error:
        bound = build(splitter.program(lambda constant: True))
        return bound, users, _kept_note(bound.program, users, reason)
    # Take the weights out of the graph again, by type of operator, except for types that fail without them.
    kept = users
    for name in users:
        trial = build(splitter.keeping([operator for operator in kept if operator != name]))
        if not trial.error:
            kept = [operator for operator in kept if operator != name]
    bound = build(splitter.keeping(kept))
    return bound, kept, _kept_note(bound.program, kept, reason)


def _kept_note(program: SplitModel, operators: Sequence[str], reason: str) -> str:
    count, size = len(program.kept), program.kept_bytes
    why = f": {reason}" if reason else ""
    return f"{count} weights ({size} bytes) of {', '.join(operators)} stay inside the program{why}"


def write_program(store: Path, name: str, model: bytes, fingerprint: str) -> None:
    """Write a program to the store, unless the store has an undamaged copy."""
    place = store / "programs" / name
    if place.is_dir() and program_damage(place / PROGRAM_FILE, fingerprint):
        set_aside(place)
    put_in_place(place, PROGRAM_FILE, lambda made: write_durably(made / PROGRAM_FILE, model))


# ----- packed --------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class Packed:
    resident_bytes: int  # bytes of the mapped file and the session's other memory
    error: str  # reason why the holding does not work; "": it works


def build_packed(
    optimised: Path | bytes,
    directory: Path,
    reference: ReferenceRun,
    libraries: Sequence[str] | None = None,
) -> Packed:
    """Write packed.onnx and packed.data, then run that model. Raises OSError.

    optimised: the file, or its content. libraries: see ModelSession.
    """
    target = directory / PACKED_FILE
    data = directory / PACKED_DATA_FILE
    try:
        ModelSession(
            optimised, optimise=False, save_to=target, packed_data=PACKED_DATA_FILE, libraries=libraries
        )
        before = _heap_bytes()
        session = ModelSession(target, optimise=False, libraries=libraries)
        heap = max(_heap_bytes() - before, target.stat().st_size)
    except RunError as error:
        check_room(directory)  # ONNX Runtime does not look whether a file is closed well
        return Packed(0, str(error))
    mapped = data.stat().st_size if data.is_file() else 0
    return Packed(mapped + heap, reference.difference(session.run))


def packed_runs(resident_bytes: int, page_bytes: int, pages_min: int = 0) -> list[int]:
    """The runs of pages that a packed model is charged for."""
    return [1] * max(1, pages_min, -(-resident_bytes // page_bytes))


class _MallocInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [(name, ctypes.c_size_t) for name in
                ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
                 "fordblks", "keepcost")]  # fmt: skip


def _heap_bytes() -> int:
    """Return the bytes allocated by this process; without mallinfo2() (musl), its anonymous RSS."""
    mallinfo2 = _mallinfo2()
    if mallinfo2 is None:
        text = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("RssAnon"))
    info = mallinfo2()
    return int(info.uordblks) + int(info.hblkhd)


@functools.cache
def _mallinfo2() -> Callable[[], _MallocInfo] | None:
    """glibc's function; None: another library of C, which has none."""
    try:
        function = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return None
    function.restype = _MallocInfo
    found: Callable[[], _MallocInfo] = function
    return found


def is_random(operators: Sequence[str]) -> bool:
    """Whether a model draws random numbers."""
    return any(name.startswith(("Random", "Bernoulli", "Multinomial", "Dropout")) for name in operators)


def is_quantised(operators: Sequence[str]) -> bool:
    """Whether a model is quantised, so that answers may differ by rounding to integers."""
    return any(
        "Quant" in name or "QLinear" in name or "Integer" in name or "QGemm" in name for name in operators
    )
