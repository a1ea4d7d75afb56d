"""Models of Clockwork's operators whose attributes ask for memory beyond their own, against a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.attacks.operators import REFUSED, SECRET, header_alone, many_scans, operator_model
from clockwork.errors import InvalidInput, InvalidModel
from clockwork.models import samples
from clockwork.models.runtime import ModelSession
from tests.process.cluster import running_cluster
from tests.process.peers import echo_model

FILL = {"MALLOC_PERTURB_": "90"}
"""Has glibc fill freed memory with this byte, and allocated memory with its complement."""

SLO = 300.0
IMAGES: list[dict[str, int]] = [{"shortest": 32}, {"width": 333, "height": 2, "channels": 1}]
TEXTS: list[dict[str, Any]] = [{"length": 70}]


def strings(*given: str | bytes) -> np.ndarray:
    array = np.empty(len(given), object)
    array[:] = given
    return array


def test_no_model_answers_with_memory_of_another_client(tmp_path: Path) -> None:
    secret = np.frombuffer(SECRET * 2000, np.float32).reshape(1, -1)
    with running_cluster(tmp_path, environment=FILL) as cluster, cluster.client() as client:
        client.register("echo", echo_model(secret.shape[1]))
        for operator in REFUSED:
            attributes, named = REFUSED[operator][0]
            with pytest.raises(InvalidModel, match=rf"attributes? {named}\b"):
                client.register("hostile", operator_model(operator, **attributes))
        cases: list[tuple[str, dict[str, Any], str | bytes]]
        cases = [("DecodeJpeg", attributes, samples.jpeg(3000, 1)) for attributes in IMAGES]
        cases += [
            (operator, attributes, "hello world")
            for operator in ("WordPiece", "BytePairs")
            for attributes in TEXTS
        ]
        sessions, names = [], []
        for number, (operator, attributes, _) in enumerate(cases):
            model = operator_model(operator, **attributes)
            client.register(f"model-{number}", model)
            sessions.append(ModelSession(model.SerializeToString(), optimise=False))
            names.append(model.graph.input[0].name)
        for _ in range(5):
            for number, (_, _, data) in enumerate(cases):
                np.testing.assert_array_equal(client.infer("echo", secret, slo=SLO), secret)
                # The second text is padded where the operator pads, and cut where it cuts.
                batch = strings(data, data[:1] if isinstance(data, str) else data)
                found = client.infer(f"model-{number}", {names[number]: batch}, slo=SLO)
                for answer, expected in zip(found.values(), sessions[number].run([batch]), strict=True):
                    np.testing.assert_array_equal(answer, expected)
        for data, said in (
            (header_alone(5792, 5792), "fewer bytes than its pixels need"),
            (many_scans(5792, 5792, 64), "more scans"),
        ):
            with pytest.raises(InvalidInput, match=said):
                client.infer("model-0", strings(data), slo=SLO)
