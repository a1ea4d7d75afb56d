"""Requests that come together are answered as if each had come alone, even for models that mix the rows of a
batch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.batching import exported
from clockwork.formats.checksums import seal, unseal
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import Cluster, Reference, running_cluster, same

TOGETHER = 32

MEETING = (
    "mixing-ortquant_dynamic-argmax17", "mixing-torchscript17-if_sum", "mixing-torchscript17-if_mask_all",
    "mixing-torch17-where_max",
)  # fmt: skip
"""Models that mix rows for some inputs only, or behind an argmax."""

INDEPENDENT = ("torch17-lstm_bf_h0", "torchnew-mha_mask", "skl2onnx-rf", "tf2onnx-op17-gru")

MODELS = {name: (model, rows) for name, model, rows in exported() if name in (*MEETING, *INDEPENDENT)}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


def drawn(rows: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """Inputs of one row, with different values and magnitudes."""
    rng = np.random.default_rng(seed)
    return [
        (rng.permutation(one.reshape(-1))[: one[0].size].reshape(one[:1].shape) * 4.0 ** rng.integers(-2, 4)).astype(one.dtype)
        if one.dtype.kind == "f" else one[(row := int(rng.integers(len(one)))) : row + 1]
        for one in rows
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in (MEETING[0], INDEPENDENT[0]) else pytest.mark.slow)
        for name in (*MEETING, *INDEPENDENT)
    ],
)
def test_requests_together_are_answered_as_alone(cluster: Cluster, name: str) -> None:
    model, rows = MODELS[name]
    expected = Reference(model)
    with cluster.client() as client:
        info = client.register(name, model)
        assert info.batches == (name in INDEPENDENT), info.batching_note
        names = [value.name for value in info.inputs]
        first = expected.outputs[0]
        for turn in range(8):
            asked = [
                dict(zip(names, drawn(rows, TOGETHER * turn + at), strict=True)) for at in range(TOGETHER)
            ]
            answers = [client.submit(name, one, slo=PATIENCE_S) for one in asked]
            for one, answer in zip(asked, answers, strict=True):
                assert same(answer.result()[first], expected(one)), name


def test_a_model_that_an_older_version_batched_is_judged_again(tmp_path: Path) -> None:
    """Both were declared to batch because three rows answered alike: one is proven to, the other is prepared
    anew."""
    data = tmp_path / "data"
    kept, meeting = MODELS[INDEPENDENT[0]][0], MODELS["mixing-torchscript17-if_sum"][0]
    with running_cluster(data) as cluster, cluster.client() as client:
        assert client.register("kept", kept).batches
        assert not client.register("meeting", meeting).batches
    shutil.rmtree(data / "tmp")
    for path in data.glob("worker*/prepared/*/prepared.json"):
        body, _ = unseal(path.read_bytes())
        old = {key: value for key, value in body.items() if key != "judged"}
        path.write_bytes(seal(old | {"batches": True, "batching_note": "proven: 3 different rows"}))
    with running_cluster(data) as cluster, cluster.client() as client:
        eventually(lambda: {one.state for one in client.models()} == {"ready"}, "both are ready")
        eventually(lambda: not client.model("meeting").batches, "it is judged again")
        assert client.model("kept").batches
        assert client.model("kept").batching_note == "proven: no operator lets rows meet"
