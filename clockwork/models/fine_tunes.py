"""Prepare a fine-tune by what was learnt from an earlier model of its architecture.

Preparing a model takes two optimisations by ONNX Runtime, a split, a proof and many parsed files. Of a
fine-tune all this is known: its file differs from that of an earlier model in the elements of weights alone
(Skeleton). Its prepared files then differ in these elements alone, too, if preparation only moves them: it
transposes, blocks and pads weights, and packs them for the processor's products. A Recipe says how. To find
it, the architecture is prepared twice with weights that are numbers of places, so that each word of the
prepared weights tells the place in the original that it comes from. If a word does not, because ONNX Runtime
computed it (it folded a batch norm into a convolution), there is no recipe, and each fine-tune is prepared in
full.

A recipe is not believed. The answers of each fine-tune's prepared files are compared with those of its
original graph in ONNX Runtime, as in a full preparation; the graph is that of the file, whose weights are
inputs here, so that all fine-tunes share its session. Its batching was proved without knowing the elements of
weights. Everything else in a file, such as constants of other types and scalars, is compared byte for byte.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import logging
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
from numpy.lib.stride_tricks import as_strided
from onnx import TensorProto, helper

from clockwork.config import models as bounds
from clockwork.device.operators import libraries_for
from clockwork.errors import InvalidModel
from clockwork.formats.checksums import FileSums, sums_of, sums_of_bytes
from clockwork.formats.interface import places_of_weights
from clockwork.formats.prepared import WEIGHTS_FILE, KnownTexts, PreparedModel
from clockwork.models.batching import why_rows_meet
from clockwork.models.holdings import ReferenceRun, build_packed, packed_runs
from clockwork.models.measure import weight_addresses
from clockwork.models.onnx_import import real_inputs
from clockwork.models.runtime import BoundRun, ModelSession, RunError, optimise
from clockwork.models.split import SplitModel, Splitter
from clockwork.system.clock import now_ns
from clockwork.wire.tensors import Array

log = logging.getLogger("clockwork.preparation")

Words: TypeAlias = npt.NDArray[np.uint32]
Indices: TypeAlias = npt.NDArray[np.int32]

P = ParamSpec("P")
T = TypeVar("T")

WORD_BYTES = 4
_ALIGNED = 16
"""Words between the beginnings of weights: ONNX Runtime's alignment of tensors."""


@dataclasses.dataclass(frozen=True, slots=True)
class Skeleton:
    """An ONNX file without the elements of its weights.

    size: bytes of the file. rest: the pieces between the weights, each with its place.
    """

    size: int
    rest: tuple[tuple[range, bytes], ...]

    @staticmethod
    def of(data: bytes, places: Sequence[range]) -> Skeleton:
        """places: of the weights' elements, which do not overlap."""
        pieces, at = [], 0
        for place in sorted(places, key=lambda place: place.start):
            pieces.append(range(at, place.start))
            at = place.stop
        pieces.append(range(at, len(data)))
        return Skeleton(len(data), tuple((piece, data[piece.start : piece.stop]) for piece in pieces))

    def fits(self, data: bytes) -> bool:
        """Whether a file differs from this one in the elements of weights at most."""
        return len(data) == self.size and all(data.startswith(held, piece.start) for piece, held in self.rest)


@dataclasses.dataclass(frozen=True, slots=True)
class Grid:
    """Indices in regular steps, as of a weight that is transposed or blocked: by axis, the innermost last.

    NumPy copies by steps faster than by indices, and a plain copy five times as fast.
    """

    start: int
    shape: tuple[int, ...]
    steps: tuple[int, ...]

    @staticmethod
    def of(indices: Indices) -> Grid | None:
        """The grid of these indices; None if they are none, or no grid."""
        shape: list[int] = []
        steps: list[int] = []
        rest = indices
        while len(rest) > 1:
            differences = np.diff(rest)
            step = int(differences[0])
            others = np.flatnonzero(differences != step)
            length = int(others[0]) + 1 if len(others) else len(rest)
            if len(rest) % length:
                return None
            blocks = rest.reshape(-1, length)
            if (np.diff(blocks, axis=1) != step).any():
                return None
            shape.insert(0, length)
            steps.insert(0, step)
            rest = blocks[:, 0]
        return Grid(int(rest[0]), tuple(shape), tuple(steps)) if len(rest) else None

    def of_words(self, source: Words, writeable: bool = False) -> Words:
        """The words at the indices, as a view."""
        strides = [step * WORD_BYTES for step in self.steps]
        return as_strided(source[self.start :], self.shape, strides, writeable=writeable)


@dataclasses.dataclass(frozen=True, slots=True)
class Padded:
    """Indices in regular steps, between constants, as of a weight that is blocked and padded to whole blocks.

    pieces: grids of words in the part, each with that of its words' sources.
    """

    pieces: tuple[tuple[Grid, Grid], ...]

    @staticmethod
    def of(indices: Indices, count: int) -> Padded | None:
        """The pieces of these indices, of which those from ``count`` on are constants. None if the others are
        not in regular steps, or in too many pieces.

        An axis ends before the first word that is not a further step; padding may be anything.
        """
        is_moved = has_moved = indices < count
        rest = indices.astype(np.int64)
        shape: list[int] = []
        steps: list[int] = []
        while len(rest) > 1:
            if not has_moved[:2].all():
                return None
            step = int(rest[1] - rest[0])
            others = np.flatnonzero(has_moved & (rest != rest[0] + step * np.arange(len(rest))))
            length = int(others[0]) if len(others) else len(rest)
            if len(rest) % length:
                return None
            starts = rest.reshape(-1, length) - step * np.arange(length)
            has_start = has_moved.reshape(-1, length)
            rest = starts[np.arange(len(starts)), has_start.argmax(axis=1)]
            if (has_start & (starts != rest[:, None])).any():
                return None
            has_moved = np.asarray(has_start.any(axis=1))
            shape.insert(0, length)
            steps.insert(0, step)
        if not has_moved.all():
            return None
        boxes = list(itertools.islice(_boxes(is_moved.reshape(shape)), bounds.PIECES_MAX + 1))
        if len(boxes) > bounds.PIECES_MAX:
            return None
        places = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        pieces = []
        for corner, extent in boxes:
            place = sum(map(operator.mul, corner, places))
            source = int(rest[0]) + sum(map(operator.mul, corner, steps))
            pieces.append((Grid(place, extent, tuple(places)), Grid(source, extent, tuple(steps))))
        return Padded(tuple(pieces))


def _boxes(is_moved: npt.NDArray[np.bool_]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield corner and extent of boxes that together cover the true elements."""
    if not is_moved.ndim:
        if is_moved:
            yield (), ()
        return
    differs = (is_moved[1:] != is_moved[:-1]).reshape(len(is_moved) - 1, -1).any(axis=1)
    for first, end in itertools.pairwise([0, *(np.flatnonzero(differs) + 1).tolist(), len(is_moved)]):
        for corner, extent in _boxes(is_moved[first]):
            yield (first, *corner), (end - first, *extent)


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """How a file is made of the words of an original's weights.

    base: the file's content but for the moved words in the parts. parts: places of whole words in the file,
    with the index of each word's source.
    """

    base: bytes
    parts: list[tuple[range, Grid | Padded | Indices]]

    def begin(self) -> npt.NDArray[np.uint8]:
        """The file's content without the parts, aligned as ONNX Runtime's tensors are."""
        size = len(self.base)
        content = _aligned_words(-(-size // WORD_BYTES)).view(np.uint8)[:size]
        content[:] = np.frombuffer(self.base, np.uint8)
        return content

    @property
    def taken_bytes(self) -> int:
        """Memory that the recipe takes once it is begun."""
        return sum(part.nbytes for _, part in self.parts if isinstance(part, np.ndarray))


class Making:
    """A recipe over the memory from which and into which the file is made, again and again.

    content: of Recipe.begin().
    """

    def __init__(self, recipe: Recipe, source: Words, content: npt.NDArray[np.uint8]) -> None:
        self._source = source
        self.content = content
        self._copied: list[tuple[Words, Words]] = []
        self._taken: list[tuple[Words, Indices]] = []
        for place, how in recipe.parts:
            part = content[place.start : place.stop].view(np.uint32)
            if isinstance(how, Grid):
                self._copied.append((part.reshape(how.shape), how.of_words(source)))
            elif isinstance(how, Padded):
                for piece, words in how.pieces:
                    self._copied.append((piece.of_words(part, writeable=True), words.of_words(source)))
            else:
                self._taken.append((part, how))

    def make(self) -> None:
        """Write the parts into the content, from the present words of the source."""
        for part, words in self._copied:
            np.copyto(part, words)
        for part, indices in self._taken:
            self._source.take(indices, out=part, mode="clip")  # the other modes take a copy


@dataclasses.dataclass(slots=True)
class FullPreparation:
    """A full preparation, from which fine_tunes may learn. reference: answers of the original model."""

    data: bytes  # of the package's model.onnx
    directory: Path
    work: Path  # for temporary files
    optimised: Path
    prepared: PreparedModel
    program: bytes
    reference: ReferenceRun
    why_rows_meet: str


class Originals:
    """The original graph of an architecture, with its weights as inputs, and their places in its file.

    Raises Unlike in its constructor where the graph has no weights that only move.
    """

    def __init__(self, data: bytes) -> None:
        self.model = onnx.ModelProto.FromString(data)
        graph = self.model.graph
        if len(real_inputs(self.model)) != len(graph.input):
            raise Unlike("initializers are inputs")
        places = places_of_weights(io.BytesIO(data))
        self.tensors = [tensor for tensor in graph.initializer if _is_weight(tensor, places)]
        self.places = [places[tensor.name] for tensor in self.tensors]
        self.skeleton = Skeleton.of(data, self.places)
        self.starts, self.count = [], 0  # of each weight among the words, and the number of words
        for place in self.places:
            self.starts.append(self.count)
            self.count += -(-len(place) // (WORD_BYTES * _ALIGNED)) * _ALIGNED
        if not self.tensors or self.count > bounds.PLACES_MAX:
            raise Unlike("it has no weights that could be followed")

    def words_of(self, data: bytes, words: Words | None = None) -> Words:
        """The words of all weights in a file, in a new array or at the beginning of ``words``."""
        if words is None:
            words = _aligned_words(self.count)
        for place, start in zip(self.places, self.starts):
            count = len(place) // WORD_BYTES
            words[start : start + count] = np.frombuffer(data, np.uint32, count, place.start)
        return words

    def addresses(self, words: Words) -> list[tuple[int, Sequence[int], int]]:
        """(dtype, shape, address) of each weight among the words."""
        base = words.ctypes.data
        return [
            (tensor.data_type, list(tensor.dims), base + start * WORD_BYTES)
            for tensor, start in zip(self.tensors, self.starts)
        ]

    def with_weights(self, words: Words) -> onnx.ModelProto:
        """The model with other weights."""
        marked = onnx.ModelProto()
        marked.CopyFrom(self.model)
        held = {tensor.name: tensor for tensor in marked.graph.initializer}
        for tensor, place, start in zip(self.tensors, self.places, self.starts):
            held[tensor.name].raw_data = words[start : start + len(place) // WORD_BYTES].tobytes()
        return marked

    def without_weights(self) -> onnx.ModelProto:
        """The model with its weights as inputs, behind its own."""
        bare = onnx.ModelProto()
        bare.CopyFrom(self.model)
        names = {tensor.name for tensor in self.tensors}
        kept = [tensor for tensor in self.model.graph.initializer if tensor.name not in names]
        del bare.graph.initializer[:]
        bare.graph.initializer.extend(kept)
        bare.graph.input.extend(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            for tensor in self.tensors
        )
        return bare

    def with_unknown_weights(self) -> onnx.ModelProto:
        """The model for a proof that does not know the elements of weights."""
        model = self.with_weights(_aligned_words(self.count))
        names = {tensor.name for tensor in self.tensors}
        for tensor in model.graph.initializer:
            if tensor.name in names:
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL
        return model


class _Beside:
    """A context in which functions run one after another on a second thread, and whose end waits for them."""

    _threads = ThreadPoolExecutor(1, "beside")

    def __init__(self) -> None:
        self._futures: list[Future[Any]] = []

    def run(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> Future[T]:
        """Have a function run after those before it. Raises MemoryError if the thread cannot be started."""
        try:
            future = self._threads.submit(function, *arguments, **named)
        except RuntimeError as error:
            raise MemoryError(str(error)) from None
        self._futures.append(future)
        return future

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        wait(self._futures)


class Unlike(Exception):
    """Nothing is learnt from a model, because its fine-tunes may differ in more than is known."""


class Template:
    """The common part of the fine-tunes of an architecture. Its sessions are of the thread that made it."""

    def __init__(self, made: FullPreparation) -> None:
        """Raises Unlike, RunError, InvalidModel."""
        self._originals = originals = Originals(made.data)
        self.skeleton = originals.skeleton
        if why_rows_meet(originals.with_unknown_weights()) != made.why_rows_meet:
            raise Unlike("the proof about rows depends on weights")
        self._prepared = made.prepared
        self._texts = KnownTexts(made.prepared)
        self._inputs = made.reference.inputs
        self._relative = made.reference.relative
        self._shapes = [[array.shape for array in answer] for answer in made.reference.outputs]
        self._original = ModelSession(originals.without_weights().SerializeToString(), optimise=False)
        words = originals.words_of(made.data)
        begun_ns = now_ns()
        references = self._bound(self._original, originals.addresses(words))
        if made.reference.difference(lambda inputs: self._run_of(references, inputs)):
            raise Unlike("its graph answers differently with weights as inputs")
        if now_ns() - begun_ns > bounds.REFERENCE_NS_MAX:
            raise Unlike("its graph takes too long without optimisation")
        self.program = made.program
        is_bound = made.prepared.holding == "bound"
        self._session = ModelSession(made.program, optimise=False) if is_bound else None
        self._libraries = libraries_for(made.optimised)
        recipe, constants = self._learn(made, words)
        # The memory over which the sessions run for one fine-tune after another
        self._source = _aligned_words(originals.count + len(constants))
        self._source[originals.count :] = constants
        self._making = Making(recipe, self._source, recipe.begin())
        self._recipe_bytes = recipe.taken_bytes
        self._references = self._bound(self._original, originals.addresses(self._source))
        if self._session is not None:
            known = made.prepared
            addresses = weight_addresses(
                known.weights, known.runs, known.page_bytes, self._making.content.data
            )
            self._runs = self._bound(self._session, addresses)

    def _bound(
        self, session: ModelSession, weights: Sequence[tuple[int, Sequence[int], int]]
    ) -> list[BoundRun]:
        return [session.bound(inputs, weights) for inputs in self._inputs]

    @property
    def taken_bytes(self) -> int:
        """Memory that the template takes, but for its sessions."""
        return self._source.nbytes + self._making.content.nbytes + self._recipe_bytes

    def prepare(self, data: bytes, digest: str, directory: Path) -> PreparedModel | None:
        """Write the prepared files of a fine-tune. Return their description.

        None: the files do not answer as the original does, or its answers have other shapes. Raises
        RunsTooLong, OSError, MemoryError.

        A second thread makes and writes the weights, while this thread runs the original and then the
        program: most of both needs no interpreter.
        """
        self._originals.words_of(data, self._source)
        with _Beside() as beside:
            made = beside.run(self._making.make)
            written = beside.run(self._write, directory) if self._session is not None else None
            try:
                answers = [run.run() for run in self._references]
            except RunError:
                return None
            if [[array.shape for array in answer] for answer in answers] != self._shapes:
                return None
            reference = ReferenceRun(self._run_original, self._inputs, answers, self._relative)
            prepared = dataclasses.replace(self._prepared, digest=digest)
            made.result()
            if written is None:
                content = self._making.content.tobytes()
                packed = build_packed(content, directory, reference, self._libraries)
                if packed.error:
                    return None
                prepared.resident_bytes = packed.resident_bytes
                prepared.runs = packed_runs(packed.resident_bytes, prepared.page_bytes)
                prepared.note_files(sums_of(directory))
            else:
                if reference.difference(self._run_prepared):
                    return None
                prepared.note_files({WEIGHTS_FILE: written.result()})
        prepared.write_like(directory, self._texts)
        return prepared

    def _write(self, directory: Path) -> FileSums:
        """Write weights.bin as it was made, and return its sums."""
        content = self._making.content.data
        (directory / WEIGHTS_FILE).write_bytes(content)
        return sums_of_bytes(content)

    def _run_original(self, inputs: Sequence[Array]) -> list[Array]:
        """Run the original graph with the fine-tune's weights. inputs: one of the known sets."""
        return self._run_of(self._references, inputs)

    def _run_prepared(self, inputs: Sequence[Array]) -> list[Array]:
        """Run the program with the fine-tune's prepared weights. inputs: one of the known sets."""
        return self._run_of(self._runs, inputs)

    def _run_of(self, runs: Sequence[BoundRun], inputs: Sequence[Array]) -> list[Array]:
        known = next(run for run, known in zip(runs, self._inputs, strict=True) if known is inputs)
        return known.run()

    def _learn(self, made: FullPreparation, words: Words) -> tuple[Recipe, Words]:
        """Return the recipe of weights.bin, or else of the optimised model, and the words that all fine-tunes
        have in it."""
        count = self._originals.count
        numbers = np.arange(count, dtype=np.float32)
        # Words that were computed, scaled or rectified do not agree on a place in both.
        marks = (numbers + 1, numbers - count)
        whole = Splitter(made.optimised).program()
        marked = [self._split(made, mark.view(np.uint32)) for mark in marks]
        if any(split.model != self.program for split in (whole, *marked)):
            raise Unlike("its program depends on its weights")
        base, places = self._places(made, whole)
        parts: list[tuple[range, Grid | Padded | Indices]] = []
        constants = _aligned_words(0)
        for place, *three in zip(places, whole.weights, *(split.weights for split in marked), strict=True):
            contents = [bytes(constant.data()) for constant in three]
            if len(set(contents)) == 1:
                continue
            if place is None or len(set(map(len, contents))) > 1 or len(contents[0]) % WORD_BYTES:
                raise Unlike("a weight of it cannot be replaced")
            own, *others = (np.frombuffer(content, np.uint32) for content in contents)
            indices, more = _sources([own, *others], words, count, count + len(constants))
            part = range(place, place + len(contents[0]))
            padded = Padded.of(indices, count) if len(more) else None
            if padded is not None:
                parts.append((part, padded))
                continue
            constants = np.concatenate([constants, more])
            parts.append((part, Grid.of(indices) or indices))
        return Recipe(base, parts), constants

    def _places(self, made: FullPreparation, whole: SplitModel) -> tuple[bytes, list[int | None]]:
        """Return the content of weights.bin, or else of the optimised model, and the place of each weight in
        that file."""
        if self._session is not None:
            starts = list(itertools.accumulate(made.prepared.runs, initial=0))
            page_bytes = made.prepared.page_bytes
            return (made.directory / WEIGHTS_FILE).read_bytes(), [
                starts[weight.run] * page_bytes + weight.offset for weight in made.prepared.weights
            ]
        content = made.optimised.read_bytes()
        found = places_of_weights(io.BytesIO(content))
        names = [constant.tensor.name for constant in whole.weights]
        return content, [found[name].start if name in found else None for name in names]

    def _split(self, made: FullPreparation, words: Words) -> SplitModel:
        """Optimise and split the architecture with these weights. Its names and the order of its operators
        are canonical only after that."""
        path, optimised = made.work / "marked.onnx", made.work / "marked-optimised.onnx"
        path.write_bytes(self._originals.with_weights(words).SerializeToString())
        optimise(path, optimised)
        return Splitter(optimised).program()


def _sources(three: Sequence[Words], words: Words, count: int, first: int) -> tuple[Indices, Words]:
    """Return the index of the source of each word, and the constants among the words, from index ``first``
    on. Raises Unlike where a word was computed.

    three: the words of a file with the weights ``words``, and with weights that are places.
    """
    own, *marked = three
    upward, downward = (content.view(np.float32) for content in marked)
    with np.errstate(invalid="ignore"):
        place = upward - 1
        is_moved = (place >= 0) & (place < count) & (downward == place - count) & (np.floor(place) == place)
    indices = np.where(is_moved, place, 0).astype(np.int32)
    is_fixed = ~is_moved
    if (words[indices] != own)[is_moved].any() or any((own != other)[is_fixed].any() for other in marked):
        raise Unlike("a word of it is computed")
    constants, which = np.unique(own[is_fixed], return_inverse=True)
    indices[is_fixed] = first + which.astype(np.int32)
    return indices, constants


def _is_weight(tensor: TensorProto, places: Mapping[str, range]) -> bool:
    """Whether a tensor of the graph is a weight that fine-tuning changes. Scalars belong to the graph."""
    size = math.prod(tensor.dims)
    return (
        tensor.data_type == TensorProto.FLOAT
        and len(tensor.dims) > 0
        and size > 0
        and len(places.get(tensor.name, range(0))) == WORD_BYTES * size
    )


def _aligned_words(count: int) -> Words:
    """Zeros that begin at a multiple of ONNX Runtime's alignment."""
    words = np.zeros(count + _ALIGNED, np.uint32)
    start = -words.ctypes.data // WORD_BYTES % _ALIGNED
    return words[start : start + count]


@dataclasses.dataclass(slots=True)
class _Entry:
    """An architecture that was prepared in full. template: None until its second model, or if it has none."""

    skeleton: Skeleton
    template: Template | None = None
    is_tried: bool = False  # whether there was an attempt to learn


class Templates:
    """The templates of a process. Those used last are kept, within bounds of number and memory.

    conditions: text that stands for everything but the model on which a preparation depends.
    """

    def __init__(self) -> None:
        self._entries: dict[str, list[_Entry]] = {}  # by conditions and size of the file

    def may_fit(self, conditions: str, size: int) -> bool:
        """Whether there is a template for files of this size."""
        entries = self._entries.get(f"{conditions} {size}", ())
        return any(entry.template is not None for entry in entries)

    def find(self, conditions: str, data: bytes) -> Template | None:
        """The template for a model, whose file's content is ``data``."""
        entry = self._find(conditions, data)
        return entry.template if entry is not None else None

    def note(self, conditions: str, made: FullPreparation) -> None:
        """Take a full preparation: the first of an architecture is remembered, and its second learnt from."""
        entry = self._find(conditions, made.data)
        try:
            if entry is None:
                skeleton = Originals(made.data).skeleton
                if sum(len(held) for _, held in skeleton.rest) <= bounds.SKELETON_BYTES_MAX:
                    self._entries.setdefault(f"{conditions} {len(made.data)}", []).append(_Entry(skeleton))
                    self._bound()
            elif not entry.is_tried:
                entry.is_tried = True
                entry.template = Template(made)
                self._bound()
        except (Unlike, RunError, InvalidModel) as error:  # the model itself is prepared
            log.debug("nothing is learnt for fine-tunes: %s", error)
        except (OSError, MemoryError) as error:  # this machine lacks something for now
            if entry is not None:
                entry.is_tried = False
            log.debug("nothing is learnt for fine-tunes yet: %s", error)

    def drop(self, conditions: str, data: bytes) -> None:
        """Forget a template whose session is unusable."""
        entry = self._find(conditions, data)
        if entry is not None:
            entry.template = None

    def _find(self, conditions: str, data: bytes) -> _Entry | None:
        key = f"{conditions} {len(data)}"
        entries = self._entries.get(key, ())
        for entry in entries:
            if entry.skeleton.fits(data):
                self._entries[key] = self._entries.pop(key)  # used last
                return entry
        return None

    def _bound(self) -> None:
        """Drop the architectures that were used least recently, beyond the bounds."""
        while len(self._entries) > 1:
            entries = [entry for found in self._entries.values() for entry in found]
            templates = [entry.template for entry in entries if entry.template is not None]
            taken = sum(template.taken_bytes for template in templates)
            if (
                len(entries) <= bounds.ARCHITECTURES_MAX
                and len(templates) <= bounds.TEMPLATES_MAX
                and taken <= bounds.TEMPLATES_BYTES_MAX
            ):
                return
            del self._entries[next(iter(self._entries))]
