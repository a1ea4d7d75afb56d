"""Prepare packages for CPU devices: optimise, split, verify, choose a holding, profile.

Preparation runs in a separate process, one model at a time. A model that crashes ONNX Runtime ends only that
process, and no process with deadlines. The measurement of a program (its holding, profile, proof of batching)
is kept beside the program, so that the next model of equal architecture is only split and verified. Of
further fine-tunes even the split is known (models.fine_tunes).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from clockwork.config import models as bounds
from clockwork.device.cpu import fingerprint as device_fingerprint
from clockwork.errors import InvalidModel
from clockwork.formats.checksums import find_damage, read_plain, seal, unseal
from clockwork.formats.interface import difference as interface_difference
from clockwork.formats.interface import is_named, read_interface, undisputed
from clockwork.formats.package import (
    PackageFile,
    check_package,
    digest_of,
    hash_file,
    is_fresh,
    listed_files,
    rows_of,
)
from clockwork.formats.prepared import (
    FORMAT_VERSION,
    JUDGED,
    UNKNOWN_RANK,
    WEIGHTS_FILE,
    PreparedModel,
    TensorSpec,
    prepared_directory,
    program_damage,
    program_name,
)
from clockwork.formats.program import stored_damage
from clockwork.models import (
    answers,
    batching,
    fine_tunes,
    lengths,
    measure,
    prepare_program,
    samples,
    threads,
)
from clockwork.models import inputs as trial
from clockwork.models.fine_tunes import Templates
from clockwork.models.holdings import (
    Bound,
    Packed,
    ReferenceRun,
    build_bound,
    build_packed,
    choose_program,
    is_quantised,
    is_random,
    packed_runs,
    write_program,
)
from clockwork.models.onnx_import import (
    check_model,
    external_files,
    metadata_of,
    optional_inputs,
    read_examples,
    real_inputs,
)
from clockwork.models.runtime import ModelSession, RunError, optimise
from clockwork.models.split import SplitModel, Splitter
from clockwork.scheduler.types import ProfilePoint
from clockwork.system.records import fields_of
from clockwork.wire.packages import EXAMPLES_FILE, LIST_FILE, MODEL_FILE, PROGRAM_JSON
from clockwork.wire.tensors import STRING, Array, length_class, length_classes

TIE = 1.10  # Largest ratio of execution times, bound to packed, at which bound is chosen, as it loads faster


@dataclasses.dataclass(slots=True)
class OnnxMeasurement:
    """The measurement of a program, which is valid for every model with that program."""

    holding: str
    batches: bool
    batching_note: str
    batch_max: int
    load_ns: int
    profile: list[ProfilePoint]
    seen: list[list[list[int]]]  # the shapes of the outputs, for each trial run
    workspace_bytes: int
    by_threads: list[list[int]] = dataclasses.field(default_factory=list)  # see PreparedModel


def prepare(
    package_dir: Path, store: Path, fingerprint: str, page_bytes: int, options: Mapping[str, Any]
) -> PreparedModel:
    """Prepare the package for devices of this fingerprint, unless an intact preparation exists.

    Raises InvalidModel; DamagedPackage if the package's content differs from its digest; OSError if the store
    cannot be written.

    options: ``batching`` (auto, on, off, same-shape), ``batch_max`` (0: as measured), ``holding`` (auto; or
    bound or packed for benches and tests, in which case the measurement is not kept for other models),
    ``pages_min`` (least pages of a packed model).
    """
    package_dir, store = Path(package_dir), Path(store)
    digest = _digest(package_dir)
    target = prepared_directory(store, digest, fingerprint, options)
    found = _intact(target, page_bytes)
    if found is not None and (found.judged == JUDGED or _judge_anew(found, package_dir, target, options)):
        return found
    (store / "prepared").mkdir(parents=True, exist_ok=True)
    _remove_leftovers(store)
    work = Path(tempfile.mkdtemp(prefix=".preparing-", dir=store / "prepared"))
    made: list[Path] = [work]
    conditions, listed = _conditions(package_dir, store, fingerprint, page_bytes, options)
    try:
        tuned = _prepare_fine_tune(package_dir, store, digest, fingerprint, conditions, listed, work)
        if tuned is not None:
            install(work, target, page_bytes)
            return tuned
        declared = None  # a plain folder declares no interface
        if (package_dir / LIST_FILE).is_file():
            declared = read_interface(package_dir, check_package(package_dir), options)
        job: _Preparation | None = None
        if prepare_program.is_for(fingerprint):
            directory = work
            prepared = prepare_program.prepare_program(
                package_dir, store, digest, fingerprint, page_bytes, options, directory
            )
        else:
            job = _Preparation(package_dir, store, digest, fingerprint, page_bytes, options, work, made)
            prepared, directory = job.run()
            if declared is not None:
                prepared.outputs = undisputed(prepared.outputs, declared.outputs)
        why = interface_difference(declared, prepared) if declared is not None else ""
        if why:
            raise InvalidModel(f"the model differs from its package's declaration: {why}")
        prepared.write(directory)
        if job is not None and conditions:
            job.note(conditions, prepared, directory)
        install(directory, target, page_bytes)
        return prepared
    finally:
        for path in made:
            shutil.rmtree(path, ignore_errors=True)


_TEMPLATES = Templates()


def _conditions(
    package_dir: Path, store: Path, fingerprint: str, page_bytes: int, options: Mapping[str, Any]
) -> tuple[str, str]:
    """Return everything but the model on which a preparation depends, and the SHA-256 that the package lists
    for the model; two "" where that is not known."""
    unknown = "", ""
    if not (package_dir / LIST_FILE).is_file():
        return unknown
    try:
        files = listed_files(package_dir)
    except OSError:  # a full preparation says what is wrong
        return unknown
    others = [file for file in files if file.path != MODEL_FILE]
    sums = [file.sha256 for file in files if file.path == MODEL_FILE]
    if len(sums) != 1 or any(file.path != EXAMPLES_FILE for file in others):
        return unknown
    given = [str(store), fingerprint, page_bytes, dict(options), rows_of(others)]
    return json.dumps(given, sort_keys=True), sums[0]


def _prepare_fine_tune(
    package_dir: Path,
    store: Path,
    digest: str,
    fingerprint: str,
    conditions: str,
    listed: str,
    work: Path,
) -> PreparedModel | None:
    """Prepare a package in ``work`` as a fine-tune of a model that this process has prepared before, if it
    is one. listed: the SHA-256 that the model must have."""
    path = package_dir / MODEL_FILE
    try:
        if not conditions or not _TEMPLATES.may_fit(conditions, path.stat().st_size):
            return None
        data = path.read_bytes()
        is_hashed = is_fresh(package_dir, MODEL_FILE)
    except OSError:
        return None
    template = _TEMPLATES.find(conditions, data)
    if template is None or not (is_hashed or listed == hashlib.sha256(data).hexdigest()):
        return None
    write_program(store, program_name(template.program, fingerprint), template.program, fingerprint)
    try:
        prepared = template.prepare(data, digest, work)
    except (InvalidModel, MemoryError):  # a full preparation takes less time and memory
        _TEMPLATES.drop(conditions, data)
        prepared = None
    if prepared is None:
        for left in work.iterdir():
            left.unlink()
    return prepared


@dataclasses.dataclass
class _Preparation:
    """The steps of preparing a package."""

    _package_dir: Path
    _store: Path
    _digest: str
    _fingerprint: str
    _page_bytes: int
    options: dataclasses.InitVar[Mapping[str, Any]]
    _work: Path  # for temporary files
    _made: list[Path]

    def __post_init__(self, options: Mapping[str, Any]) -> None:
        self._batching = str(options.get("batching", "auto"))
        self._batch_max = int(options.get("batch_max", 0))
        self._forced = str(options.get("holding", "auto"))
        self._pages_min = int(options.get("pages_min", 0))
        self._meet = ""  # why_rows_meet() of the model
        self._proved: tuple[list[list[Array]], batching.Proof] | None = None
        self._sharing: lengths.Sharing | None = None
        self._sharing_note = ""

    def run(self) -> tuple[PreparedModel, Path]:
        """Return the result, and the directory with its files, which has a temporary name."""
        if (self._package_dir / PROGRAM_JSON).is_file():
            raise InvalidModel("a compiled program runs on CUDA devices; a CPU device needs the ONNX model")
        model_path = self._package_dir / MODEL_FILE
        model = check_model(model_path)
        self._metadata = metadata_of(model)
        self._contents = samples.contents_of(self._metadata)
        self._examples = read_examples(self._package_dir, model)
        self._defaults = optional_inputs(model)
        path, model_path = model_path, self._without_defaults(model, model_path)
        self._optimised = self._work / "optimised.onnx"
        size = sum(path.stat().st_size for path in self._package_dir.rglob("*") if path.is_file())
        # Without a data file of its own, the optimised model would refer to external data of the original.
        external = "optimised.data" if size > bounds.EXTERNAL_BYTES or external_files(model) else ""
        session = optimise(model_path, self._optimised, external)
        masked = self._mask_texts(model)
        self._changed = masked or model_path != path
        self._describe(session, model)
        if self._batching != "off":
            self._meet = batching.why_rows_meet(model, masked)

        splitter = Splitter(self._optimised)
        self._reference = self._expected = self._refer(session, splitter)
        if self._share_lengths(session, model):
            splitter = Splitter(self._optimised)
        del model
        program = whole = splitter.program()
        kept = self._recall_kept(whole)
        if kept:
            program = splitter.keeping(kept)
        finding = self._find(program)
        bound: Bound | None = None
        packed: Packed | None = None
        bound_dir, packed_dir = self._directory(), self._directory()
        if finding is not None and finding.holding == "packed":  # a bound holding would not be used
            packed = build_packed(self._optimised, packed_dir, self._expected)
        if packed is None or packed.error:
            bound, note = self._split(splitter, whole, kept, bound_dir)
            program = bound.program
            finding = self._find(program)
        del splitter
        self._program_model = program.model
        write_program(self._store, self._program, program.model, self._fingerprint)

        total = program.weights_bytes + program.kept_bytes
        wants_packed = self._forced != "bound" and (finding is None or finding.holding == "packed")
        if packed is None and total > 0 and wants_packed:
            packed = build_packed(self._optimised, packed_dir, self._expected)
            if packed.error and self._forced == "packed":
                raise InvalidModel(f"the packed holding does not work: {packed.error}")
        if bound is not None and bound.error and (packed is None or packed.error):
            raise InvalidModel(f"the optimised model answers differently from the original: {bound.error}")
        choices: dict[str, tuple[PreparedModel, Path]] = {}
        if bound is not None and not bound.error:
            prepared = self._prepared("bound" if bound.weights else "none", note)
            prepared.note_program(program.model)
            prepared.runs = bound.layout.runs
            prepared.weights = bound.weights
            prepared.weights_bytes = prepared.resident_bytes = program.weights_bytes
            choices[prepared.holding] = (prepared, bound_dir)
        if packed is not None and not packed.error:
            prepared = self._prepared("packed", "")
            prepared.runs = packed_runs(packed.resident_bytes, self._page_bytes, self._pages_min)
            prepared.weights_bytes = total
            prepared.resident_bytes = packed.resident_bytes
            choices["packed"] = (prepared, packed_dir)
        if "packed" in choices and program.kept_bytes > max(
            bounds.KEPT_BYTES_MIN, bounds.KEPT_SHARE_MAX * total
        ):
            choices = {"packed": choices["packed"]}
        if self._forced == "packed" and "packed" in choices:
            choices = {"packed": choices["packed"]}
        if finding is None or finding.holding not in choices:
            finding = self._measure(session, choices)
            if self._forced == "auto":
                _replace(self._finding_path(), seal(fields_of(finding)))
        prepared, directory = choices[finding.holding]
        prepared.batches = finding.batches
        prepared.batching_note = finding.batching_note
        if not finding.batches:
            prepared.lengths_note = ""
        prepared.batch_max = finding.batch_max
        prepared.load_ns = finding.load_ns
        prepared.profile = finding.profile
        prepared.workspace_bytes = finding.workspace_bytes
        prepared.by_threads = finding.by_threads
        seen = [*finding.seen, *map(_shapes, self._reference.outputs)]
        prepared.outputs = trial.seen_outputs(self._outputs, seen, finding.batches)
        prepared.outputs_verified = True
        if finding.batches:
            prepared.example = [
                list(shape) if rowless else [1, *shape[1:]]
                for shape, rowless in zip(prepared.example, self._rowless)
            ]
        return prepared, directory

    def note(self, conditions: str, prepared: PreparedModel, directory: Path) -> None:
        """Have later fine-tunes of the model prepared by what this preparation found, where they can be."""
        path = self._package_dir / MODEL_FILE
        is_plain = not (self._changed or self._sharing is not None or self._pages_min)
        if (
            is_plain
            and self._forced == "auto"
            and self._reference.deterministic
            and prepared.holding in ("bound", "packed")
            and not lengths.has_open_axis(self._inputs)
            and path.stat().st_size <= bounds.FINE_TUNE_BYTES_MAX
        ):
            made = fine_tunes.FullPreparation(
                path.read_bytes(), directory, self._work, self._optimised, prepared, self._program_model,
                self._reference, self._meet,
            )  # fmt: skip
            _TEMPLATES.note(conditions, made)

    # ----- the steps -------------------------------------------------------------------------

    def _without_defaults(self, model: onnx.ModelProto, path: Path) -> Path:
        """Write a copy without initializers as inputs (old IR), which would prevent optimisation."""
        wanted = real_inputs(model)
        if len(wanted) == len(model.graph.input) or external_files(model):
            return path
        inputs = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in wanted]
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        model.ir_version = max(model.ir_version, 4)
        path = self._work / MODEL_FILE
        path.write_bytes(model.SerializeToString())
        return path

    def _mask_texts(self, model: onnx.ModelProto) -> bool:
        """Replace a model that pads texts by a model that masks the padding, if a proof permits it.

        The answers are compared with those of the original, as for every model.
        """
        if self._batching == "off" or not any(map(lengths.is_padding_texts, model.graph.node)):
            return False
        masked = onnx.ModelProto()
        masked.CopyFrom(model)
        if external_files(model) or lengths.mask_texts(masked):
            return False
        path = self._work / "masked.onnx"
        path.write_bytes(masked.SerializeToString())
        optimise(path, self._optimised)
        return True

    def _describe(self, session: ModelSession, model: onnx.ModelProto) -> None:
        ranked = {
            value.name
            for value in (*model.graph.input, *model.graph.output)
            if value.type.tensor_type.HasField("shape")
        }
        self._inputs = [
            TensorSpec(name, dtype, _dims(shape) if shape or name in ranked else UNKNOWN_RANK)
            for name, dtype, shape in session.inputs
        ]
        self._outputs = [TensorSpec(name, dtype, _dims(shape)) for name, dtype, shape in session.outputs]
        self._rowless = [spec.name in self._defaults for spec in self._inputs]

    def _refer(self, session: ModelSession, splitter: Splitter) -> ReferenceRun:
        """Return the original model's answers to its examples, or to generated inputs."""
        if self._examples:
            sets = self._examples[: bounds.REFERENCE_SETS]
        else:
            guess, answer, error = trial.first_that_runs(
                self._inputs, lambda inputs: session.run(self._with_defaults(inputs)), self._contents
            )
            if guess is None:
                shapes = ", ".join(f"{tensor.name}{list(tensor.shape)}" for tensor in self._inputs)
                raise InvalidModel(
                    f"no made-up input of {shapes} could be run; give examples. The last: {error}"
                )
            sets, outputs = [self._with_defaults(guess)], [answer]
            self._flip(session, sets, outputs)
        try:
            if self._examples:
                outputs = [session.run(inputs) for inputs in sets]
        except RunError as error:
            raise InvalidModel(f"the model fails on its example: {error}") from None
        quantised = is_quantised(splitter.operators())
        relative = answers.QUANTISED_RELATIVE if quantised else answers.RELATIVE
        reference = ReferenceRun(session.run, sets, outputs, relative)
        if is_random(splitter.operators()):
            reference.check_deterministic()
        return reference

    def _with_defaults(self, inputs: Sequence[Array]) -> list[Array]:
        """Return inputs in which each optional input has its default value."""
        return [self._defaults.get(spec.name, array) for spec, array in zip(self._inputs, inputs)]

    def _flip(self, session: ModelSession, sets: list[list[Array]], outputs: list[list[Array]]) -> None:
        """Add a set of inputs in which all optional booleans are negated, if the model accepts it.

        Such booleans choose between the bodies of an If. The added set compares and times the other body,
        too.
        """
        flipped = [
            ~array if rowless and array.dtype == bool else array
            for array, rowless in zip(sets[0], self._rowless)
        ]
        if any(array is not kept for array, kept in zip(flipped, sets[0])):
            with contextlib.suppress(RunError):
                outputs.append(session.run(flipped))
                sets.append(flipped)

    def _share_lengths(self, session: ModelSession, model: onnx.ModelProto) -> bool:
        """Replace the model by a model with masks and inputs for the sizes of rows, if a proof permits it.

        Requests of different lengths then share batches. model: the original, changed in place. Return
        whether the model was replaced.
        """
        if not lengths.has_open_axis(self._inputs) or self._batching == "off":
            return False
        self._proved = self._prove(session)
        rows, proof = self._proved
        if proof.batches and self._defaults:
            self._sharing_note = "one length in a batch: the model has optional inputs"
            return False
        if not proof.batches:  # its program's measurement, from another model, may still say that it batches
            self._sharing_note = f"one length in a batch: {proof.note}"
            return False
        if self._batching == "same-shape":
            self._sharing_note = "one length in a batch: as it was asked for"
            return False
        if external_files(model):
            self._sharing_note = "one length in a batch: the model's weights lie in other files"
            return False
        padded = self._work / "padded.onnx"
        longest = max(rows, key=lambda row: sum(array.size for array in row))
        self._sharing, self._sharing_note = lengths.share(
            model, self._inputs, self._outputs, longest, session.run, self._reference.relative, padded
        )
        if self._sharing is None:
            return False
        self._optimised = self._work / "padded-optimised.onnx"
        optimise(padded, self._optimised)
        sharing, reference = self._sharing, self._reference
        self._expected = ReferenceRun(
            lambda inputs: session.run(inputs[: len(self._inputs)]),
            [sharing.sized(inputs) for inputs in reference.inputs],
            reference.outputs,
            reference.relative,
            reference.deterministic,
        )
        return True

    def _split(
        self, splitter: Splitter, whole: SplitModel, kept: Sequence[str], directory: Path
    ) -> tuple[Bound, str]:
        build = functools.partial(
            build_bound, directory=directory, page_bytes=self._page_bytes, reference=self._expected
        )
        bound, names, note = choose_program(splitter, whole, build, kept)
        if names and names != kept and not bound.error:
            memo = self._kept_path(whole)
            memo.parent.mkdir(parents=True, exist_ok=True)
            _replace(memo, seal({"kept": names}))
        return bound, note

    def _measure(
        self, session: ModelSession, choices: Mapping[str, tuple[PreparedModel, Path]]
    ) -> OnnxMeasurement:
        """Prove batching, time each holding, choose a holding, and profile it."""
        rows, proof = self._proved or self._prove(session)
        names = list(choices)
        for prepared, path in choices.values():
            prepared.batches = proof.batches
            prepared.write(path)
        bench = measure.Bench(self._fingerprint, self._page_bytes, [path for _, path in choices.values()])
        batch_max = self._batch_max or bounds.BATCH_MAX
        try:
            chosen = 0
            if len(names) == 2:
                sizes = measure.batch_sizes(batch_max) if proof.batches else [1]
                chosen = int(measure.overall(measure.compare(bench, rows[0], sizes)) > TIE)
            load_ns = measure.load_time(bench, chosen)
            if self._sharing is not None:
                points, batch_max = self._time_lengths(bench, chosen, rows, self._sharing, batch_max)
            else:
                points, batch_max = measure.profile(bench, chosen, rows[0], proof.batches, batch_max)
                for row in rows[1:]:
                    points += measure.profile(bench, chosen, row, proof.batches, batch_max)[0]
            points += self._time_strings(bench, chosen, rows[0], points, proof.batches, batch_max)
        except RunError as error:
            raise InvalidModel(f"the model fails on the device: {error}") from None
        finally:
            bench.close()
        seen = [_shapes(answer) for answer in self._answers(session)]
        by_threads = self._time_threads(choices[names[chosen]][1], rows[0], points[0].exec_ns)
        return OnnxMeasurement(
            names[chosen],
            proof.batches,
            proof.note,
            batch_max,
            load_ns,
            points,
            seen,
            bench.workspace_bytes,
            by_threads,
        )

    def _time_threads(self, directory: Path, row: Sequence[Array], alone_ns: int) -> list[list[int]]:
        """The times of an execution with more threads, of a model that is slow with one."""
        if alone_ns < bounds.THREADS_FROM_NS or self._fingerprint != device_fingerprint(1):
            return []
        counts = threads.thread_counts(bounds.THREADS_TIMED_MAX)
        if len(counts) == 1:
            return []
        folder = self._work / "threads"
        try:
            with threads.benches_by_threads(
                directory, self._program_model, counts, self._page_bytes, folder
            ) as benches:
                found = threads.speedups_in_turn(benches, row, [1])
        except RunError as error:
            raise InvalidModel(f"the model fails on the device with more threads: {error}") from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return [[count, max(1, round(alone_ns / found[count][1]))] for count in counts if count > 1]

    def _time_lengths(
        self,
        bench: measure.Bench,
        chosen: int,
        rows: Sequence[list[Array]],
        sharing: lengths.Sharing,
        batch_max: int,
    ) -> tuple[list[ProfilePoint], int]:
        """Time executions at length classes. Return the points, and the largest batch that raised throughput
        at any.

        The class of the first known input comes first. A model with a single symbol is timed at all classes
        up to that of the longest known input; with several symbols, only at the classes of the known inputs.
        """
        limits = sharing.lengths
        known = [sharing.sizes(row) for row in rows]
        wanted = [
            {symbol: length_class(size, limits[symbol]) for symbol, size in sizes.items()} for sizes in known
        ]
        if len(limits) == 1:
            ((symbol, limit),) = limits.items()
            longest = max(sizes[symbol] for sizes in known)
            wanted[1:] = [{symbol: size} for size in length_classes(longest, limit)[: bounds.LENGTHS_TIMED]]
        points: list[ProfilePoint] = []
        helps = 1
        for sizes in wanted:
            row = sharing.resized(rows[0], sizes)
            shape = trial.timed_shape(row, True)
            if any(point.shape == shape for point in points):
                continue
            timed, most = measure.profile(bench, chosen, row, True, batch_max, bounds.LENGTH_SECONDS)
            if points and timed[0].exec_ns > bounds.SAMPLES_NS:
                break
            points += timed
            helps = max(helps, most)
        return points, helps

    def _time_strings(
        self,
        bench: measure.Bench,
        chosen: int,
        row: list[Array],
        known: Sequence[ProfilePoint],
        batches: bool,
        batch_max: int,
    ) -> list[ProfilePoint]:
        """Time executions with strings of rising size, until executions take long. row: inputs whose strings
        are replaced.

        If the model refuses the sample of a size, it may still accept other strings of that size. The time is
        then assumed to be that of the refusal, and at least that of smaller sizes.
        """
        strings = [index for index, spec in enumerate(self._inputs) if spec.dtype == STRING]
        if not strings:
            return []
        points: list[ProfilePoint] = []
        contents = [self._contents.get(self._inputs[index].name, samples.TEXT) for index in strings]
        for size in samples.sizes_of(samples.JPEG if samples.JPEG in contents else samples.TEXT):
            inputs = list(row)
            for index, content in zip(strings, contents):
                inputs[index] = samples.sample(content, row[index].shape, size=size)
            shape = trial.timed_shape(inputs, batches, self._rowless)
            if any(point.shape == shape for point in (*known, *points)):
                continue
            try:
                timed, helps = measure.profile(
                    bench, chosen, inputs, batches, batch_max, bounds.SAMPLE_SECONDS
                )
                points += timed
                if helps == 1:  # larger strings will not gain from batches, either
                    batch_max = 1
            except RunError:
                taken = [point.exec_ns for point in (*known, *points) if point.batch == 1]
                points.append(
                    ProfilePoint(shape, 1, max(*taken, measure.refusal_time(bench, chosen, inputs)))
                )
            if points[-1].exec_ns > bounds.SAMPLES_NS:
                break
        return points

    def _prove(self, session: ModelSession) -> tuple[list[list[Array]], batching.Proof]:
        """Return a set of inputs of each shape, as single rows if the model batches, and the proof."""
        sets = self._reference.inputs
        counted = [spec for spec, rowless in zip(self._inputs, self._rowless) if not rowless]
        reason = batching.declared_reason(counted)
        if self._batching == "off":
            proof = batching.Proof(False, "switched off")
        elif self._batching == "auto" and reason:
            proof = batching.Proof(False, reason)
        elif not self._reference.deterministic:
            asked = self._batching == "on"
            proof = batching.Proof(asked, "could not be verified: it answers differently each time")
        else:
            proof = self._prove_by_rows(session, sets)
        if proof.batches:
            sets = [
                [array if rowless else array[:1] for array, rowless in zip(inputs, self._rowless)]
                for inputs in sets
            ]
        distinct = {
            trial.timed_shape(inputs, proof.batches, self._rowless): inputs for inputs in reversed(sets)
        }
        return list(distinct.values())[::-1][: bounds.PROFILED_SHAPES], proof

    def _prove_by_rows(self, session: ModelSession, sets: Sequence[Sequence[Array]]) -> batching.Proof:
        """Prove batching for all values of optional inputs. Return the first failed proof, else the last."""
        by_value: dict[Any, list[Sequence[Array]]] = {}
        for inputs in sets:
            by_value.setdefault(self._values(inputs), []).append(inputs)
        proof = batching.Proof(False, "it has no input")
        for alike in by_value.values():

            def run(rows: Sequence[Array], first: Sequence[Array] = alike[0]) -> list[Array]:
                left = iter(rows)
                return session.run(
                    [array if rowless else next(left) for array, rowless in zip(first, self._rowless)]
                )

            counted = [
                [array for array, rowless in zip(inputs, self._rowless) if not rowless] for inputs in alike
            ]
            proof = batching.prove_by_rows(run, counted, self._batching == "on", self._meet)
            if not proof.batches:
                break
        return proof

    def _values(self, inputs: Sequence[Array]) -> tuple[bytes, ...]:
        """Return the values of the optional inputs among a model's inputs."""
        return tuple(array.tobytes() for array, rowless in zip(inputs, self._rowless) if rowless)

    def _answers(self, session: ModelSession) -> list[list[Array]]:
        """Return the known answers, and the answer to inputs of another size, if the model accepts these."""
        answers = list(self._reference.outputs)
        grown = trial.resized(self._inputs, self._reference.inputs[0])
        if grown is not None:
            with contextlib.suppress(RunError):
                answers.append(session.run(grown))
        return answers

    # ----- kept measurements -----------------------------------------------------------------

    def _kept_path(self, whole: SplitModel) -> Path:
        key = hashlib.sha256(whole.model + self._fingerprint.encode()).hexdigest()
        return self._store / "kept" / f"{key}.json"

    def _recall_kept(self, whole: SplitModel) -> list[str]:
        """Return the operators that needed weights in the graph in an earlier model of this architecture."""
        try:
            body, is_sealed = unseal(read_plain(self._kept_path(whole)))
            names = body["kept"]
        except (OSError, ValueError, KeyError):
            return []
        return [str(name) for name in names] if is_sealed and type(names) is list else []

    def _find(self, program: SplitModel) -> OnnxMeasurement | None:
        """Set the model's program. Return its kept measurement, if any."""
        self._program = program_name(program.model, self._fingerprint)
        return self._recall()

    def _finding_path(self) -> Path:
        shapes = [
            [list(dims) for dims in trial.timed_shape(inputs, False, self._rowless)]
            for inputs in self._reference.inputs
        ]
        examples = bool(self._examples)
        about = [FORMAT_VERSION, JUDGED, self._meet, self._batching, self._batch_max, examples, shapes]
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        return self._store / "programs" / self._program / f"finding-{key}.json"

    def _recall(self) -> OnnxMeasurement | None:
        if self._forced != "auto":
            return None
        try:
            body, _ = unseal(read_plain(self._finding_path()))
            points = [ProfilePoint(tuple(map(tuple, point["shape"])), point["batch"], point["exec_ns"])
                      for point in body.pop("profile")]  # fmt: skip
            return OnnxMeasurement(profile=points, **body)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    # ----- helpers ---------------------------------------------------------------------------

    def _prepared(self, holding: str, note: str) -> PreparedModel:
        if not self._reference.deterministic:
            note = "; ".join(filter(None, (note, "answers differently each time: not verified")))
        return PreparedModel(
            FORMAT_VERSION, self._digest, self._fingerprint, self._program, holding, self._inputs,
            self._outputs, batches=False, batching_note="", batch_max=1, page_bytes=self._page_bytes, runs=[],
            weights=[], weights_bytes=0, resident_bytes=0, load_ns=0, profile=[], constants_note=note,
            metadata=self._metadata, example=[list(array.shape) for array in self._reference.inputs[0]],
            lengths=self._sharing.lengths if self._sharing is not None else {}, lengths_note=self._sharing_note,
            output_lengths=self._sharing.output_lengths if self._sharing is not None else [], judged=JUDGED,
        )  # fmt: skip

    def _directory(self) -> Path:
        path = Path(tempfile.mkdtemp(prefix=".preparing-", dir=self._store / "prepared"))
        self._made.append(path)
        return path


def _shapes(answer: Sequence[Array]) -> list[list[int]]:
    return [list(array.shape) for array in answer]


def _dims(shape: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return declared dimensions, in which names that a converter generated become ""."""
    return tuple(dim if isinstance(dim, int) or is_named(dim) else "" for dim in shape)


def _digest(package_dir: Path) -> str:
    """Return a package's digest; for a plain folder, that of the package that it would make."""
    listed = package_dir / LIST_FILE
    if listed.is_file():
        return package_dir.name  # check_package() compares the content with it
    files = []
    for path in sorted(package_dir.rglob("*")):
        if path.is_file():
            files.append(PackageFile(path.relative_to(package_dir).as_posix(), *hash_file(path)))
    return digest_of(files)


def _read(directory: Path, page_bytes: int) -> PreparedModel | None:
    """Read an earlier preparation; None unless intact, with this page size, and judged by today's rules."""
    prepared = _intact(directory, page_bytes)
    return prepared if prepared is not None and prepared.judged == JUDGED else None


def _intact(directory: Path, page_bytes: int) -> PreparedModel | None:
    """Read an earlier preparation; None unless every byte is intact and its page size is the given size."""
    try:
        prepared = PreparedModel.read(directory)
        if prepared.holding in ("bound", prepare_program.HOLDING) and prepared.runs:
            size = (directory / WEIGHTS_FILE).stat().st_size
            if size != sum(prepared.runs) * prepared.page_bytes:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if prepared.holding != prepare_program.HOLDING and is_unasked(prepared):
        return None
    if prepared.page_bytes != page_bytes or find_damage(directory, prepared.checksums):
        return None
    path = measure.program_path(directory, prepared.program)
    if path.with_name(PROGRAM_JSON).is_file():
        damage = stored_damage(path.parent)
    else:
        damage = program_damage(path, prepared.fingerprint)
    return None if damage else prepared


def _judge_anew(
    prepared: PreparedModel, package_dir: Path, directory: Path, options: Mapping[str, Any]
) -> bool:
    """Judge an earlier preparation, judged by older rules, by the current rules of batching.

    Returns True, with the preparation updated on disk, if it satisfies them; else it has to be made again.
    """
    model = package_dir / MODEL_FILE  # absent in a compiled package, whose batching is decided at compilation
    if prepared.batches and model.is_file() and options.get("batching", "auto") != "on":
        if batching.why_rows_meet(check_model(model)):
            return False
        if prepared.holding != prepare_program.HOLDING:
            prepared.batching_note = batching.PROVEN
    prepared.judged = JUDGED
    prepared.rewrite(directory)
    return True


def is_unasked(prepared: PreparedModel) -> bool:
    """Whether a model was prepared by a version without shared batches of different lengths."""
    return prepared.batches and not prepared.lengths_note and lengths.has_open_axis(prepared.inputs)


def _replace(path: Path, data: bytes) -> None:
    """Write a file atomically, but not durably: after a crash of the machine, the file may be empty."""
    with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=".incoming-", delete=False) as file:
        file.write(data)
    os.replace(file.name, path)


def install(directory: Path, target: Path, page_bytes: int) -> None:
    """Rename the finished directory into place.

    The program is synced already. The other files are synced by the worker (worker.syncing) before it opens
    the model. If a crash of the machine loses the directory or the content of its files, the loss is
    detected, and the model prepared again.
    """
    os.chmod(directory, 0o755)
    if target.exists() and _read(target, page_bytes) is None:
        old = Path(tempfile.mkdtemp(prefix=".old-", dir=target.parent))
        os.rename(target, old / "replaced")
        shutil.rmtree(old, ignore_errors=True)
    try:
        os.rename(directory, target)
    except OSError:
        if _read(target, page_bytes) is None:  # otherwise another process has installed the same preparation
            raise


@functools.cache
def _remove_leftovers(store: Path) -> None:
    """Remove temporary directories of preparations that crashed, once in the life of this process."""
    for parent in (store / "prepared", store / "programs"):
        for path in parent.glob(".[pio]*-*"):
            try:
                if time.time() - path.stat().st_mtime > bounds.LEFTOVER_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)
            except FileNotFoundError:
                continue
