"""A model that another worker has prepared is taken over only if it is what it says, and runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clockwork.device.cpu import fingerprint
from clockwork.errors import InvalidModel
from clockwork.formats.bundles import bundle_in
from clockwork.formats.checksums import seal, unseal
from clockwork.formats.package import hash_file
from clockwork.formats.prepared import PREPARED_FILE, PROGRAM_FILE, WEIGHTS_FILE, prepared_directory
from clockwork.models.bundles import take_over
from clockwork.models.prepare import prepare
from clockwork.wire.packages import LIST_FILE
from tests.unit.models_onnx import save_package, small_net

PAGE_BYTES = 64 << 10
FINGERPRINT = fingerprint(1)


class Taking:
    """A bundle that has arrived in another store, and the attempt to take it over."""

    def __init__(self, made: Path, digest: str, root: Path, options: dict[str, Any]) -> None:
        self.digest, self.options = digest, options
        self.store = root / "other"
        (self.store / "prepared").mkdir(parents=True)
        self.bundle = root / "bundle"
        self.bundle.mkdir()
        directory = prepared_directory(made, digest, FINGERPRINT, options)
        program = unseal((directory / PREPARED_FILE).read_bytes())[0]["program"]
        for file in bundle_in(directory):
            source = made / "programs" / program if file.path == PROGRAM_FILE else directory
            assert hash_file(source / file.path) == (file.bytes, file.sha256)
            shutil.copy(source / file.path, self.bundle)
        (self.bundle / LIST_FILE).write_text("[]")
        self.made = directory

    @property
    def target(self) -> Path:
        return prepared_directory(self.store, self.digest, FINGERPRINT, self.options)

    def change(self, **fields: Any) -> None:
        """Change fields of its description, as a liar would, with the right seal."""
        body, _ = unseal((self.bundle / PREPARED_FILE).read_bytes())
        (self.bundle / PREPARED_FILE).write_bytes(seal(body | fields))

    def take(self) -> None:
        take_over(self.bundle, self.store, self.digest, FINGERPRINT, PAGE_BYTES, self.options)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store in which a model is prepared in both holdings, and the digest of its package."""
    root = tmp_path_factory.mktemp("made")
    package = save_package(small_net(1), root / "package")
    for holding in ("bound", "packed"):
        prepared = prepare(package, root / "store", FINGERPRINT, PAGE_BYTES, {"holding": holding})
    return root / "store", prepared.digest


@pytest.fixture
def bound(made: tuple[Path, str], tmp_path: Path) -> Iterator[Taking]:
    taking = Taking(*made, tmp_path, {"holding": "bound"})
    yield taking
    assert not list(taking.store.glob("prepared/.*")), "something was left"
    assert not taking.bundle.exists()


@pytest.mark.parametrize("holding", ["bound", "packed"])
def test_what_was_prepared_elsewhere_is_as_if_it_was_prepared_here(
    made: tuple[Path, str], tmp_path: Path, holding: str
) -> None:
    taking = Taking(*made, tmp_path, {"holding": holding})
    taking.take()
    here, there = (
        {path.name: path.read_bytes() for path in place.iterdir()} for place in (taking.target, taking.made)
    )
    assert here == there
    assert len(list(taking.store.glob(f"programs/*/{PROGRAM_FILE}"))) == (holding == "bound")
    assert bundle_in(taking.target) == bundle_in(taking.made)
    taking = Taking(*made, tmp_path / "again", {"holding": holding})
    taking.store = tmp_path / "other"
    taking.take()  # another process may have taken it meanwhile


LIES: dict[str, tuple[Callable[[Taking], Any], str]] = {
    "of another package": (lambda it: it.change(digest="1" * 64), "is prepared from package"),
    "of another kind of device": (lambda it: it.change(fingerprint="other"), "was prepared for other"),
    "of other pages": (lambda it: it.change(page_bytes=4096), "pages of 4096 bytes"),
    "of another format": (lambda it: it.change(format_version=99), "format 99"),
    "judged by old rules": (lambda it: it.change(judged=1, batches=True), "another version's rules"),
    "untried": (lambda it: it.change(untried=True), "another version's rules"),
    "of another holding": (lambda it: it.change(holding="packed"), "does not have the files"),
    "of more pages than bytes": (lambda it: it.change(runs=[1 << 30]), "is not of the size of its pages"),
    "without checksums": (lambda it: it.change(checksums={}), "of which it has checksums"),
    "with a weight outside its run": (
        lambda it: it.change(weights=[{"dtype": 1, "shape": [4], "run": 0, "offset": 1 << 40, "bytes": 16}]),
        "in a run of",
    ),
    "with an output of another type": (
        lambda it: it.change(outputs=[{"name": "y", "dtype": 7, "shape": ["N", 8]}]),
        "its output",
    ),
    "with an output too many": (
        lambda it: it.change(outputs=2 * [{"name": "y", "dtype": 1, "shape": [""]}]),
        "outputs",
    ),
    "without an input": (lambda it: it.change(inputs=[], example=[]), "its program takes"),
    "beyond a message's bounds": (lambda it: it.change(load_ns=-1), "exceeds a bound of messages"),
    "of fields that are none": (lambda it: it.change(surprise=1), "holds no prepared model"),
    "no JSON": (lambda it: (it.bundle / PREPARED_FILE).write_bytes(b"\0" * 100), "holds no prepared model"),
    "without a seal": (
        lambda it: (it.bundle / PREPARED_FILE).write_text(json.dumps({"digest": it.digest})),
        "holds no prepared model",
    ),
    "of another program": (
        lambda it: (it.bundle / PROGRAM_FILE).write_bytes(b"another"),
        "another than it names",
    ),
    "with a file too many": (
        lambda it: (it.bundle / "packed.onnx").write_bytes(b""),
        "does not have the files",
    ),
    "with fewer weights": (
        lambda it: (it.bundle / WEIGHTS_FILE).write_bytes(b"1"),
        "is not of the size of its pages",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_is_not_what_it_says_is_not_taken(bound: Taking, lie: str) -> None:
    tell, why = LIES[lie]
    tell(bound)
    with pytest.raises(InvalidModel, match=why):
        bound.take()
    assert not bound.target.exists()


def test_a_program_that_does_not_run_is_not_taken(bound: Taking) -> None:
    """A program under its own name that is no model: what a worker that lies from the start could record."""
    from clockwork.formats.prepared import program_name

    (bound.bundle / PROGRAM_FILE).write_bytes(b"no model")
    bound.change(program=program_name(b"no model", FINGERPRINT))
    with pytest.raises(InvalidModel):
        bound.take()
    assert not bound.target.exists()


def test_inputs_of_the_trial_are_of_the_shapes_that_were_profiled(bound: Taking, monkeypatch: Any) -> None:
    from clockwork.models import measure

    seen: list[list[tuple[int, ...]]] = []
    run = measure.Bench.run

    def note(bench: measure.Bench, index: int, inputs: Any) -> Any:
        seen.append([np.shape(array) for array in inputs])
        return run(bench, index, inputs)

    monkeypatch.setattr(measure.Bench, "run", note)
    bound.take()
    assert seen == [[tuple(shape) for shape in json.loads(_body(bound.target))["example"]]]


def _body(directory: Path) -> str:
    return (directory / PREPARED_FILE).read_text()
