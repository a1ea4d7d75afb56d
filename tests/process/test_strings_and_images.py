"""Models that are sent JPEG images and texts, by all supported clients, against a whole cluster with its
gateway."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from clockwork.errors import InvalidInput, Refused
from clockwork.models import samples
from tests.patience import PATIENCE_S
from tests.process.cluster import ROOT, Cluster, running_cluster
from tests.process.gateways import running_gateway

ANY_SLO_S = 300.0
"""SLO of requests whose time does not matter: on a busy machine a model is thought to be slow."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE, SHORTEST = 32, 40
TOLERANCE = 1e-5
"""Tolerance of scores: pixels equal Pillow's to the bit; normalising is in float32 here and in float64
there."""


def classifier() -> onnx.ModelProto:
    """`image` (N, 3, 32, 32) to `scores` (N, 5): a mean of each quarter, and a linear layer."""
    rng = np.random.default_rng(3)
    weights = numpy_helper.from_array(rng.standard_normal((12, 5)).astype(np.float32), "w")
    nodes = [
        helper.make_node("AveragePool", ["image"], ["pooled"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["scores"]),
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 5])]
    graph = helper.make_graph(nodes, "classifier", inputs, outputs, [weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def expected(data: bytes) -> np.ndarray:
    """The scores of an image that Pillow and NumPy prepare."""
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGB")
    width, height = (SHORTEST * side // min(picture.size) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - SIDE) / 2), round((height - SIDE) / 2)
    pixels = np.asarray(picture.crop((left, top, left + SIDE, top + SIDE)), np.float64)
    values = ((pixels / 255 - MEAN) / STD).transpose(2, 0, 1)
    quarters = values.reshape(3, 2, 16, 2, 16).mean((2, 4)).reshape(-1)
    (weights,) = classifier().graph.initializer
    return quarters @ numpy_helper.to_array(weights)


def strings(*texts: str | bytes) -> np.ndarray:
    array = np.empty(len(texts), object)
    array[:] = texts
    return array


def cli(cluster: Cluster, *arguments: str) -> str:
    command = [sys.executable, "-m", "clockwork", *arguments, "--endpoint", cluster.endpoint]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


PHOTOGRAPHS = [samples.jpeg(size, seed) for seed, size in enumerate((4_000, 12_000, 30_000))]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    place = tmp_path_factory.mktemp("cluster")
    onnx.save(classifier(), place / "classifier.onnx")
    (place / "labels.txt").write_text("bee\ncat\ndog\neel\nfox\n")
    numbers = {"--mean": MEAN, "--std": STD}
    flags = [part for flag, values in numbers.items() for part in (flag, ",".join(map(str, values)))]
    with running_cluster(place / "data", arena="16MiB") as cluster:
        added = cli(
            cluster, "models", "add", "photographs", str(place / "classifier.onnx"), "--image", "--resize", str(SHORTEST), "--batch-max", "4",
            *flags, "--labels", str(place / "labels.txt"),
        )  # fmt: skip
        assert "photographs@1 is ready: image string['N']; batches of up to" in added
        yield cluster


def test_images_are_answered_as_if_pillow_had_prepared_them(cluster: Cluster) -> None:
    with cluster.client() as client:
        for data in PHOTOGRAPHS:
            np.testing.assert_allclose(
                client.infer("photographs", strings(data))[0], expected(data), atol=TOLERANCE
            )
        together = client.infer("photographs", PHOTOGRAPHS)
    np.testing.assert_allclose(together, [expected(data) for data in PHOTOGRAPHS], atol=TOLERANCE)


def test_triton_clients_and_curl_send_images(cluster: Cluster, tmp_path: Path) -> None:
    (data, scores) = PHOTOGRAPHS[1], expected(PHOTOGRAPHS[1])
    with running_gateway(cluster.endpoint) as gateway:
        for kind in ("http", "grpc"):
            module: Any = pytest.importorskip(f"tritonclient.{kind}", reason="tritonclient is not installed")
            with module.InferenceServerClient(f"127.0.0.1:{gateway.ports[kind]}") as client:
                image = module.InferInput("image", [1], "BYTES")
                image.set_data_from_numpy(strings(data))
                answer = client.infer("photographs", [image]).as_numpy("scores")
            np.testing.assert_allclose(answer[0], scores, atol=TOLERANCE)
        if shutil.which("curl") is None:
            pytest.skip("curl is not installed")
        (tmp_path / "image.jpg").write_bytes(data)
        url = f"http://127.0.0.1:{gateway.ports['http']}/v2/models/photographs/infer"

        def curl(file: Path) -> bytes:
            arguments = ["-s", url, "-H", "Inference-Header-Content-Length: 0", "--data-binary", f"@{file}"]
            return subprocess.run(
                ["curl", *arguments], stdout=subprocess.PIPE, check=True, timeout=PATIENCE_S
            ).stdout

        np.testing.assert_allclose(
            np.frombuffer(curl(tmp_path / "image.jpg")[-20:], "<f4"), scores, atol=TOLERANCE
        )
        (tmp_path / "text.txt").write_text("no image")
        error = json.loads(curl(tmp_path / "text.txt"))["error"]
    assert error == "image 0 is not a JPEG image: it begins with 6e 6f 20 69 6d 61 67 65"


def test_the_command_line_sends_a_file_as_it_is(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "image.jpg").write_bytes(PHOTOGRAPHS[0])
    best = ["bee", "cat", "dog", "eel", "fox"][int(expected(PHOTOGRAPHS[0]).argmax())]
    assert f"photographs: {best}" in cli(cluster, "infer", "photographs", str(tmp_path / "image.jpg"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "image 0 is empty, not a JPEG image"),
        (b"GIF89a" + bytes(3_500), "image 0 is not a JPEG image: it begins with 47 49 46 38 39 61 00 00"),
        (PHOTOGRAPHS[0][:-700], "image 0 is damaged: it ends too early"),
    ],
    ids=["empty", "gif", "truncated"],
)
def test_an_image_that_is_none_costs_its_batch_mates_nothing(
    cluster: Cluster, data: bytes, said: str
) -> None:
    with cluster.client() as client:
        good, bad = strings(PHOTOGRAPHS[0]), strings(data)
        # A long execution, behind which the others wait and become a batch.
        first = client.submit("photographs", strings(*[PHOTOGRAPHS[2]] * 200), slo=ANY_SLO_S)
        mates = [client.submit("photographs", good, slo=ANY_SLO_S) for _ in range(3)]
        refused = client.submit("photographs", bad, slo=ANY_SLO_S)
        mates += [client.submit("photographs", good, slo=ANY_SLO_S) for _ in range(3)]
        assert first.result().shape == (200, 5)
        with pytest.raises(InvalidInput, match=said):
            refused.result()
        for mate in mates:
            np.testing.assert_allclose(mate.result()[0], expected(PHOTOGRAPHS[0]), atol=TOLERANCE)


def test_times_are_known_by_the_size_of_an_image(cluster: Cluster) -> None:
    with cluster.client() as client:
        info = client.model("photographs")
        alone = {point.shape[0][0]: point.exec_ns for point in info.profile if point.batch == 1}
        assert sorted(alone) == [1 << power for power in (14, 16, 18, 20, 22)]
        assert alone[1 << 22] > 20 * alone[1 << 16]
        # So a deadline that a small image meets is too short for a large one, which is known before it is
        # tried.
        slo = 3 * alone[1 << 16] / 1e9 + 0.005
        with pytest.raises(Refused, match="idle device"):
            client.infer("photographs", strings(samples.jpeg(4 << 20, 1)), slo=min(slo, alone[1 << 22] / 2e9))
        assert client.infer("photographs", strings(samples.jpeg(4 << 20, 1)), slo=ANY_SLO_S).shape == (1, 5)
        # Bytes behind the end of an image are no work.
        assert client.infer(
            "photographs", strings(PHOTOGRAPHS[0] + bytes(40 << 20)), slo=ANY_SLO_S
        ).shape == (1, 5)
        # Far more work than any measured image: many scans, each over all of 14 million pixels.
        noise = np.random.default_rng(1).integers(0, 256, (3500, 4000, 3), np.uint8)
        heavy = io.BytesIO()
        Image.fromarray(noise).save(heavy, "JPEG", quality=95, progressive=True)
        with pytest.raises(Refused, match="never measured with inputs of this shape or size"):
            client.infer("photographs", strings(heavy.getvalue()), slo=ANY_SLO_S)


# ----- texts -----------------------------------------------------------------------------------------

TOKENS_MAX = 32
SENTENCES = ["the quick brown fox", "Crème brûlée [MASK] 😀", "", "数据 hello"]


@pytest.fixture(scope="module")
def tokenizer(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tokenizer before the model `sentences`, as `tokenizers` has it."""
    from tests.unit import texts  # skips where the library is not installed

    place = tmp_path_factory.mktemp("sentences")
    made = texts.word_pieces()
    texts.save(made, place, model_max_length=TOKENS_MAX, pad_token="[PAD]")
    onnx.save(texts.encoder(made.get_vocab_size()), place / "encoder.onnx")
    said = cli(
        cluster,
        "models",
        "add",
        "sentences",
        str(place / "encoder.onnx"),
        "--tokenizer",
        str(place),
        "--batch-max",
        "4",
    )
    assert "sentences@1 is ready: text string['batch']; batches of up to" in said
    return made


def embeddings(tokenizer: Any, *given: str) -> list[np.ndarray]:
    from tests.unit import texts

    return [texts.embedding_of(tokenizer, text) for text in given]


def test_texts_are_answered_as_if_the_library_had_made_tokens_of_them(
    cluster: Cluster, tokenizer: Any
) -> None:
    with cluster.client() as client:
        together = client.infer("sentences", strings(*SENTENCES))
        alone = [client.infer("sentences", [text])[0] for text in SENTENCES]
    np.testing.assert_allclose(together, embeddings(tokenizer, *SENTENCES), atol=TOLERANCE)
    np.testing.assert_allclose(alone, together, atol=TOLERANCE)


def test_triton_clients_and_curl_send_texts(cluster: Cluster, tokenizer: Any) -> None:
    expected = embeddings(tokenizer, *SENTENCES)
    with running_gateway(cluster.endpoint) as gateway:
        for kind in ("http", "grpc"):
            module: Any = pytest.importorskip(f"tritonclient.{kind}", reason="tritonclient is not installed")
            with module.InferenceServerClient(f"127.0.0.1:{gateway.ports[kind]}") as client:
                text = module.InferInput("text", [len(SENTENCES)], "BYTES")
                text.set_data_from_numpy(strings(*SENTENCES))
                answer = client.infer("sentences", [text]).as_numpy("embedding")
            np.testing.assert_allclose(answer, expected, atol=TOLERANCE)
        if shutil.which("curl") is None:
            pytest.skip("curl is not installed")
        tensor = {"name": "text", "shape": [len(SENTENCES)], "datatype": "BYTES", "data": SENTENCES}
        url = f"http://127.0.0.1:{gateway.ports['http']}/v2/models/sentences/infer"
        command = ["curl", "-s", url, "-d", json.dumps({"inputs": [tensor]})]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=PATIENCE_S)
        (output,) = json.loads(done.stdout)["outputs"]
        np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"the \xff fox", "text 0 is not UTF-8 at byte 4"),
        ("the fox " * 1_000, "text 0 has more than the 32 tokens that the model takes"),
    ],
    ids=["bytes", "long"],
)
def test_a_text_that_cannot_be_read_costs_its_batch_mates_nothing(
    cluster: Cluster, tokenizer: Any, text: str | bytes, said: str
) -> None:
    with cluster.client() as client:
        mates = [client.submit("sentences", strings(SENTENCES[0]), slo=ANY_SLO_S) for _ in range(20)]
        refused = client.submit("sentences", strings(text), slo=ANY_SLO_S)
        mates += [client.submit("sentences", strings(SENTENCES[0]), slo=ANY_SLO_S) for _ in range(20)]
        with pytest.raises(InvalidInput, match=said):
            refused.result()
        for mate in mates:
            np.testing.assert_allclose(mate.result(), embeddings(tokenizer, SENTENCES[0]), atol=TOLERANCE)
