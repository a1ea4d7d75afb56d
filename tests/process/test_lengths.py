"""Requests of different length share batches in a real cluster, are answered as alone, and `models show` says
so."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import helper

from clockwork.models import zoo
from tests.patience import PATIENCE_S
from tests.process.cluster import Cluster, Reference, running_cluster, same, total_sent
from tests.unit.models_onnx import initializer, model_of, value

LENGTHS = [int(length) for length in np.random.default_rng(0).integers(1, 60, 200)]


TRIES = 5
"""If this process is held up while it sends, requests come one by one, and few gather."""


def sentence(length: int, rows: int = 1) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(length).integers(0, 100, (rows, length))
    return {"ids": ids, "mask": np.ones((rows, length), np.int64)}


def encoder() -> onnx.ModelProto:
    return zoo.build("transformer", layers=2, width=96, heads=2, sequence=None, vocabulary=100)


def last_position() -> onnx.ModelProto:
    nodes = [helper.make_node("Gather", ["x", "last"], ["y"], axis=1)]
    last = [initializer("last", np.array(-1), np.int64)]
    return model_of(nodes, [value("x", ["N", "S", 4])], [value("y", ["N", 4])], last, opset=18)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.mark.slow
def test_sentences_of_any_length_share_executions(cluster: Cluster) -> None:
    model = encoder()
    expected = Reference(model)
    sentences = [sentence(length) for length in LENGTHS]
    with cluster.client() as client:

        def executions(name: str) -> int:
            before = total_sent(client.status(), "infer")
            # an execution behind which the others gather
            blocker = client.submit(name, sentence(512, rows=24))
            answers = [client.submit(name, one, slo=PATIENCE_S) for one in sentences]
            for length, one, answer in zip(LENGTHS, sentences, answers, strict=True):
                assert same(answer.result()["embedding"], expected(one)), length
            assert blocker.result()["embedding"].shape == (24, 96)
            return total_sent(client.status(), "infer") - before - 1

        for name, batching in (("shared", "auto"), ("exact", "same-shape")):
            info = client.register(name, model, batching=batching, batch_max=8)
            assert info.lengths == (("S",) if name == "shared" else ())
        # Each length has a shape of its own where none is shared; they are 8 classes.
        assert executions("exact") >= len(set(LENGTHS))
        assert any(0 < executions("shared") < len(set(LENGTHS)) for _ in range(TRIES))
        _, shown = cluster.run("models", "show", "shared")
        assert "lengths share a batch (S): proven to change nothing, and tried" in shown
        _, shown = cluster.run("models", "show", "exact")
        assert "one length in a batch: as it was asked for" in shown


def test_what_is_not_proven_stays_exact_and_says_why(cluster: Cluster) -> None:
    with cluster.client() as client:
        info = client.register("last", last_position())
        assert (info.lengths, info.batches) == ((), True)
        _, shown = cluster.run("models", "show", "last")
        assert "one length in a batch: operator Gather picks positions of an open axis" in shown
        x = np.random.default_rng(0).standard_normal((1, 60, 4)).astype(np.float32)
        answers = [client.submit("last", x[:, :length]) for length in LENGTHS]
        for length, answer in zip(LENGTHS, answers, strict=True):
            assert same(answer.result(), x[:, length - 1])
