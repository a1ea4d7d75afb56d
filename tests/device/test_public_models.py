"""Real models from packages: each, prepared and served by the CPU device, answers as plain ONNX Runtime.

The packages (requirements-models.lock) are found without importing them, because their dependencies are not
installed; a model whose package is missing is skipped, visibly.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from clockwork.device.cpu import fingerprint
from clockwork.formats.prepared import prepared_directory
from clockwork.models.answers import difference
from clockwork.models.measure import Bench
from clockwork.models.onnx_import import package_files
from clockwork.models.prepare import prepare
from clockwork.models.runtime import ModelSession
from clockwork.wire.tensors import Array

PAGE_BYTES = 1 << 20

Inputs = dict[str, Array]


def file_type(rng: np.random.Generator) -> list[Inputs]:
    """Return the first, middle and last bytes of a file, as magika cuts them; 256 is padding."""
    files = [Path(__file__).read_bytes(), Path(np.__file__).read_bytes(), bytes(range(256)) * 9]
    rows = []
    for data in files:
        tokens = [*data[:1024], *[256] * 2048][:1024] + [*[256] * 2048, *data[-1024:]][-1024:]
        rows.append({"bytes": np.array([tokens], np.int32)})
    return rows


def voice(rng: np.random.Generator) -> list[Inputs]:
    """Windows of 32 ms and the context before them, at both sampling rates; the state's batch is axis 1."""
    rows = []
    for rate, samples in ((16000, 576), (8000, 288)):
        time = np.arange(samples) / rate
        for batch in (1, 3):
            tone = np.sin(2 * np.pi * 180 * time)[None] + 0.1 * rng.standard_normal((batch, samples))
            rows.append(
                {
                    "input": tone.astype(np.float32),
                    "state": (0.1 * rng.standard_normal((2, batch, 128))).astype(np.float32),
                    "sr": np.array(rate),
                }
            )
    return rows


def image(height: int, width: int) -> Callable[[np.random.Generator], list[Inputs]]:
    def make(rng: np.random.Generator) -> list[Inputs]:
        return [
            {"x": rng.uniform(-1, 1, (rows, 3, height, columns)).astype(np.float32)}
            for rows, columns in ((1, width), (2, width), (1, width + 32))
        ]

    return make


class Public(NamedTuple):
    package: str
    path: str
    inputs: Callable[[np.random.Generator], list[Inputs]]
    batches: bool


PUBLIC = {
    "magika": Public("magika", "models/standard_v3_3/model.onnx", file_type, True),
    "silero-vad": Public("silero_vad", "data/silero_vad.onnx", voice, False),
    "PP-OCRv4 detection": Public(
        "rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx", image(64, 96), True
    ),
    "PP-OCR direction": Public(
        "rapidocr_onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx", image(48, 192), True
    ),
    "PP-OCRv4 recognition": Public(
        "rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx", image(48, 96), True
    ),
}


def find(model: Public) -> Path:
    spec = importlib.util.find_spec(model.package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / model.path).is_file():
            return Path(folder) / model.path
    pytest.skip(f"{model.package} is not installed (requirements-models.lock)")


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.slow
def test_public_model(name: str, tmp_path: Path) -> None:
    model = PUBLIC[name]
    path = find(model)
    rows = model.inputs(np.random.default_rng(4))
    package = tmp_path / "package"
    package.mkdir()
    for file, content in package_files(path, rows[0]):
        (package / file).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    prepared = prepare(package, tmp_path, fingerprint(1), PAGE_BYTES, {})
    assert prepared.batches == model.batches, prepared.batching_note
    assert prepared.weights_bytes > 0.7 * path.stat().st_size, (
        "the weights are pages, not part of the program"
    )
    plain = ModelSession(path, optimise=True)
    bench = Bench(
        fingerprint(1), PAGE_BYTES, [prepared_directory(tmp_path, prepared.digest, fingerprint(1), {})]
    )
    try:
        bench.load(0)
        for one in rows:
            inputs = [one[spec.name] for spec in prepared.inputs]
            assert difference(bench.run(0, inputs)[0], plain.run(inputs)) == ""
    finally:
        bench.close()


def test_models_are_served_without_examples(tmp_path: Path) -> None:
    """Sizes of silero are the hardest to guess: a length, a state with its batch on axis 1, and a rate."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "model.onnx").write_bytes(find(PUBLIC["silero-vad"]).read_bytes())
    prepared = prepare(package, tmp_path, fingerprint(1), PAGE_BYTES, {})
    assert prepared.example[1] == [2, 1, 128]
    assert not prepared.batches
