"""The command line against a real cluster: what a user types, and what comes back."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from clockwork.models import zoo
from tests.process.cluster import ROOT, Cluster, Program, clean_environment, running_cluster, session_members

DIGITS = ROOT / "examples" / "digits"
MODEL = ROOT / "clockwork" / "models" / "data" / "digits.onnx"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        status, text = cluster.run("models", "add", "digits", str(MODEL), "--slo", "5")
        assert status == 0, text
        assert "digits@1 is ready" in text
        yield cluster


def test_infer_reads_images_and_arrays_alike_and_writes_files(cluster: Cluster, tmp_path: Path) -> None:
    for digit in (0, 7):
        status, text = cluster.run("infer", "digits", str(DIGITS / f"{digit}.png"))
        assert status == 0
        assert text.startswith(f"digits: {digit}")
    status, text = cluster.run("infer", "digits", str(DIGITS / "7.png"), "--output", str(tmp_path / "y.npz"))
    assert status == 0, text
    scores = np.load(tmp_path / "y.npz")["scores"]
    assert scores.argmax() == 7

    from PIL import Image

    with Image.open(DIGITS / "7.png") as image:
        pixels = image.convert("L").resize((8, 8))
        x = (np.asarray(pixels, np.float32) / 255)[None, None]
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", image=x)
    (tmp_path / "x.json").write_text(json.dumps(x.tolist()))
    (tmp_path / "named.json").write_text(json.dumps({"image": x.tolist()}))
    answers = []
    for name in ("x.npy", "x.npz", "x.json", "named.json"):
        status, text = cluster.run("infer", "digits", str(tmp_path / name), "--json")
        assert status == 0, text
        answers.append(np.array(json.loads(text)["scores"]))
        assert answers[-1].shape == (1, 10)
    for answer in answers[1:]:
        np.testing.assert_allclose(answer, answers[0], rtol=1e-5)
    for name in ("y.npy", "y.json"):
        status, text = cluster.run("infer", "digits", str(tmp_path / "x.npy"), "-o", str(tmp_path / name))
        assert status == 0, text
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), answers[0], rtol=1e-5)
    np.testing.assert_allclose(json.loads((tmp_path / "y.json").read_text())["scores"], answers[0], rtol=1e-5)


def test_models_come_are_shown_and_go(cluster: Cluster, tmp_path: Path) -> None:
    onnx.save_model(zoo.build("mlp"), tmp_path / "mlp.onnx")
    np.savez(tmp_path / "examples.npz", x=np.ones((4, 64), np.float32))
    status, text = cluster.run(
        "models", "add", "net", str(tmp_path / "mlp.onnx"), "--examples", str(tmp_path / "examples.npz"),
        "--batch-max", "4",
    )  # fmt: skip
    assert status == 0, text
    status, text = cluster.run("models", "list")
    assert status == 0
    assert "digits@1" in text
    assert "net@1" in text
    status, text = cluster.run("models", "list", "--json")
    assert {one["name"] for one in json.loads(text)} == {"digits", "net"}
    status, text = cluster.run("models", "show", "net")
    assert status == 0
    assert "up to 4" in text
    assert "float32" in text
    status, text = cluster.run("models", "show", "net", "--profile", str(tmp_path / "profile.json"))
    assert status == 0
    profile = json.loads((tmp_path / "profile.json").read_text())
    assert profile["name"] == "net"
    assert {point["batch"] for point in profile["profile"]} >= {1, 4}
    status, text = cluster.run("models", "remove", "net@1")
    assert (status, text) == (0, "removed net@1")
    status, text = cluster.run("models", "show", "net")
    assert status == 1
    assert "net" in text


def test_status_and_load_report_in_json_and_for_people(cluster: Cluster) -> None:
    status, text = cluster.run("status")
    assert status == 0
    assert "worker-0" in text
    assert "MiB" in text
    before = json.loads(cluster.run("status", "--json")[1])
    assert before["models"] == {"ready": 1}
    for how in (["--rate", "50"], ["--concurrency", "4"]):
        status, text = cluster.run("load", "digits", *how, "--duration", "1", "--json")
        assert status == 0, text
        report = json.loads(text[text.index("{") :])
        assert report["answered"] == report["offered"] > 10
        assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["max"]
    status, text = cluster.run("load", "digits", "--duration", "0.3")
    assert status == 0
    assert "goodput" in text
    after = json.loads(cluster.run("status", "--json")[1])
    assert after["counts"]["answered"] > before["counts"]["answered"] + 20
    assert after["counts"]["failed"] == 0


@pytest.mark.parametrize(
    ("arguments", "expected", "said"),
    [
        (["infer", "nosuch", str(DIGITS / "7.png")], 1, "nosuch"),
        (["infer", "digits", "absent.npy"], 1, "absent.npy"),
        (["infer", "digits", str(MODEL)], 1, "digits.onnx"),
        (["infer", "digits", str(DIGITS / "7.png"), "--slo", "-1"], 1, "slo"),
        (["infer", "digits", str(DIGITS / "7.png"), "--slo", "1e-7"], 1, "refused"),
        (["infer", "digits", str(DIGITS / "7.png"), "-o", "y.txt"], 1, "y.txt"),
        (["infer", "digits"], 2, "INPUTS"),
        (["models", "add", "x", "absent.onnx"], 2, "absent.onnx"),
        (["models", "add", "x", str(DIGITS / "7.png")], 1, "7.png"),
        (["models", "add", "x@1", str(MODEL)], 1, "x@1"),
        (["models", "add", "x", str(MODEL), "--slo", "1e-7"], 1, "SLO"),
        (["models", "remove", "nosuch"], 1, "nosuch"),
        (["models", "show", "digits@9"], 1, "digits@9"),
        (["load", "nosuch"], 1, "nosuch"),
        (["load", "digits", "--rate", "5", "--concurrency", "5"], 1, "one of them"),
        (["status", "--timeout", "0"], 1, "timeout"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_status(
    cluster: Cluster, arguments: list[str], expected: int, said: str
) -> None:
    options = [] if arguments == ["frobnicate"] else ["--endpoint", cluster.endpoint]
    program = cluster.program([*arguments, *options])
    assert program.wait() == expected, program.text
    lines = [line for line in program.lines if not line.startswith("Registering")]
    assert said in program.text
    if expected == 1:
        assert len(lines) == 1, program.text
        assert lines[0].startswith("clockwork: ")


def test_nobody_there_is_said_soon(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    done = subprocess.run(
        [sys.executable, "-m", "clockwork", "status", "--endpoint", f"tcp://127.0.0.1:{port}", "--timeout", "2"],
        capture_output=True, text=True, timeout=60, cwd=ROOT, env=clean_environment(),
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(rf"clockwork: .*{port}.*\n", done.stderr)


def test_up_on_a_port_in_use_says_so_and_ends(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        if port > 65533:
            pytest.skip("an ephemeral port near the end")
        program = Program(["up", "--port", str(port), "--data", str(tmp_path), "--arena", "16MiB"])
        assert program.wait() == 1
    assert f":{port}" in program.text
    assert "in use" in program.text
    assert "Traceback" not in program.text
    assert not session_members(program.pid)


def test_the_line_that_up_prints_can_be_pasted(tmp_path: Path) -> None:
    up = Program(["up", "--port", "0", "--data", str(tmp_path / "data"), "--arena", "16MiB"])
    try:
        line = up.wait_for(r"^  (\S.* infer .*)$")[1]
        up.wait_for("Ctrl-C ends it")
        done = subprocess.run(
            line, shell=True, capture_output=True, text=True, timeout=60, cwd=ROOT, env=clean_environment()
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("digits: 7")
        up.send(signal.SIGINT)
        assert up.wait(10) == 0
    finally:
        up.destroy()
