"""The command line against a real cluster: commands that a user types, and their output."""

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

from clockwork import Client
from clockwork.formats.profiles import ModelProfile, load_profiles
from clockwork.models import zoo
from clockwork.system.clock import SECOND
from clockwork.workloads import Class, mixed, poisson
from clockwork.workloads.load_generator import Outcome, run_live
from tests.patience import PATIENCE_S
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


def test_models_go_out_of_service_and_come_back(cluster: Cluster) -> None:
    status, text = cluster.run("models", "unload", "digits")
    assert (status, text) == (0, "unloaded digits")
    status, text = cluster.run("models", "list")
    assert re.search(r"digits@1 +unloaded +0 % +5000 ms( +-){5} *$", text, re.MULTILINE), text
    shown = cluster.run("models", "show", "digits")[1]
    assert not re.search(r"^  (batching|weights|load) ", shown, re.MULTILINE), shown
    status, text = cluster.run("infer", "digits", str(DIGITS / "7.png"))
    assert (status, text) == (1, "clockwork: model 'digits' is unloaded")
    status, text = cluster.run("models", "load", "digits@1")
    assert (status, text) == (0, "digits@1 serves")
    assert cluster.run("infer", "digits", str(DIGITS / "7.png"))[0] == 0
    status, text = cluster.run("models", "load", "digits", "nope")
    assert (status, "no model 'nope' is registered" in text) == (1, True)


def test_infer_reads_images_and_arrays_alike_and_writes_files(cluster: Cluster, tmp_path: Path) -> None:
    status, text = cluster.run("infer", "digits", str(DIGITS / "7.png"), "--slo", "100")
    assert status == 0
    assert text.startswith("clockwork: an SLO is in seconds: 100 is 100 s, 100 ms is 0.1\ndigits: 7")
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


def test_status_says_how_well_actions_were_predicted(cluster: Cluster) -> None:
    assert cluster.run("infer", "digits", str(DIGITS / "7.png"))[0] == 0
    status, text = cluster.run("status", "--json")
    assert status == 0, text
    found = json.loads(text)["predictions"]
    kinds = ("infer", "load", "fetch")
    assert set(found) == {f"{kind}_{what}" for kind in kinds for what in ("duration", "completion")}
    for name, kind in found.items():  # these workers have no host store, and so no FETCH
        assert (kind["over"]["total"] + kind["under"]["total"] >= 1) == (not name.startswith("fetch"))
    status, text = cluster.run("status")
    assert status == 0
    assert "infer completion" in text
    assert "p99.99" in text


def test_a_probe_says_by_its_exit_status_who_is_well(cluster: Cluster) -> None:
    assert cluster.run("probe")[0] == 0
    status, text = cluster.run("probe", "--worker", "worker-0")
    assert (status, text) == (0, "worker-0 is ready; it has prepared 1 model")
    assert cluster.run("probe", "--worker", "another") == (1, "clockwork: no worker 'another' is connected")


@pytest.mark.slow
def test_plans_are_made_for_what_a_cluster_serves(cluster: Cluster) -> None:
    status, text = cluster.run(
        "plan",
        "rate",
        "--model",
        "digits",
        "--slo",
        "0.5",
        "--seeds",
        "1",
        "--requests",
        "2000",
        "--noise",
        "0.05",
    )
    assert status == 0, text
    assert re.search(r"rate +[0-9.e+]+ requests/s", text)
    assert "limited by" in text
    assert re.search(r"executions +sigma 5 %\n +left out", text)
    status, text = cluster.run("plan", "devices", "--model", "gpt", "--rate", "10")
    assert status == 2
    assert "no model 'gpt' (there is digits" in text


def test_files_are_registered_in_one_run_and_a_bad_one_stops_no_other(
    cluster: Cluster, tmp_path: Path
) -> None:
    folder = tmp_path / "tunes"
    folder.mkdir()
    base = zoo.build("mlp", width=16, depth=1)
    for index in range(6):
        (folder / f"tune-{index}.onnx").write_bytes(zoo.fine_tune(base, index).SerializeToString())
    (folder / "tune-3.onnx").write_bytes(b"no model")
    (folder / "notes.txt").write_text("beside the models")
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(zoo.fine_tune(base, 9).SerializeToString())
    add = ["models", "add", "--each", str(folder), "--each", str(alone), "--slo", "5"]
    status, text = cluster.run(*add)
    assert status == 1
    assert "clockwork: tune-3: tune-3.onnx is not an ONNX model (8 bytes)" in text
    assert "6 models are ready" in text
    names = ["alone", *(f"tune-{index}" for index in (0, 1, 2, 4, 5))]
    for name in names:
        shown = json.loads(cluster.run("models", "show", name, "--json")[1])
        assert (shown["state"], shown["slo_ns"]) == ("ready", 5 * SECOND)
    (folder / "tune-3.onnx").unlink()
    status, text = cluster.run(*add)
    assert (status, text.splitlines()[-1]) == (0, "6 models are ready")
    same = tmp_path / "alone"
    same.mkdir()
    (same / "alone.onnx").write_bytes(b"")
    status, text = cluster.run("models", "add", "--each", str(same), "--each", str(alone))
    assert status == 2
    assert "would have the same name" in text
    cluster.run("models", "remove", *names)


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
    (profile,) = load_profiles(tmp_path / "profile.json")
    raw = json.loads(cluster.run("models", "show", "net", "--json")[1])
    assert set(profile.exec_ns) >= {1, 4}
    assert profile == ModelProfile(
        "net", {point["batch"]: point["exec_ns"] for point in raw["profile"]}, raw["weights_bytes"],
        raw["load_ns"], input_bytes=64 * 4, output_bytes=10 * 4, program=raw["program"], batch_max=4,
        page_bytes=raw["page_bytes"], page_count=raw["pages"], runs=tuple(raw["runs"]),
    )  # fmt: skip
    assert min(profile.weights_bytes, profile.load_ns, profile.page_count) > 0
    status, text = cluster.run("models", "show", "net", "--profile", "-")
    assert status == 0
    assert json.loads(text) == json.loads((tmp_path / "profile.json").read_text())
    status, text = cluster.run("models", "remove", "net@1")
    assert (status, text) == (0, "removed net@1")
    status, text = cluster.run("models", "show", "net")
    assert status == 1
    assert "net" in text


@pytest.mark.slow
def test_status_and_load_report_in_json_and_for_people(cluster: Cluster, tmp_path: Path) -> None:
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
    (tmp_path / "trace.csv").write_text("HashFunction,minute_1\nf,7\ng,5\n")
    for how in (
        ["--arrivals", "gamma", "--cv", "2"], ["--bursts", "0.01", "0.02"], ["--ramp", "2", "0.5"],
        ["--trace", "synthetic"], ["--trace", str(tmp_path / "trace.csv"), "--mapping", "shuffled"],
    ):  # fmt: skip
        status, text = cluster.run("load", "digits", "--rate", "60", *how, "--duration", "1", "--json")
        assert status == 0, text
        report = json.loads(text[text.index("{") :])
        assert report["answered"] == report["offered"] > 10
    status, text = cluster.run("load", "digits", "--duration", "0.3")
    assert status == 0
    assert "goodput" in text
    after = json.loads(cluster.run("status", "--json")[1])
    assert after["counts"]["answered"] > before["counts"]["answered"] + 20
    assert after["counts"]["failed"] == 0


@pytest.mark.parametrize("how", [["--rate", "40"], ["--concurrency", "3"], []])
def test_load_that_is_interrupted_reports_what_was_sent(cluster: Cluster, how: list[str]) -> None:
    program = Program(["load", "--endpoint", cluster.endpoint, "digits", *how, "--duration", "60"])
    program.wait_for(r"sent \d+  answered [1-9]")
    program.send(signal.SIGINT)
    assert program.wait() == 130, program.text
    assert "interrupted" in program.text
    (offered,) = re.findall(r"offered +(\d+) in", program.text)
    assert re.findall(r"answered +(\d+) \(100", program.text) == [offered]


def test_the_simulators_arrivals_are_sent_to_a_live_cluster(cluster: Cluster) -> None:
    workload = mixed(
        poisson([40.0, 20.0], 2 * SECOND, seed=3),
        [Class(1, 5 * SECOND), Class(1, 4 * SECOND, 2), Class(2, 1)],
    )
    arrivals = workload.collect()
    with Client(cluster.endpoint) as client:
        live = run_live(client, workload, ["digits", "digits@1"])
    assert np.array_equal(live.arrivals.t_ns, arrivals.t_ns)
    possible = arrivals.cls < 2
    assert set(live.outcome[possible]) == {Outcome.GOOD}
    assert set(live.outcome[~possible]) == {Outcome.REFUSED}  # with an SLO of a nanosecond all are refused
    assert live.latency_ns.min() > 0
    assert live.report.offered == len(arrivals)
    assert live.report.within_slo == possible.sum() > 20
    assert [one["within_slo"] for one in live.report.classes[2:]] == [0]


@pytest.mark.parametrize(
    ("arguments", "expected", "said"),
    [
        (["infer", "nosuch", str(DIGITS / "7.png")], 1, "nosuch"),
        (["infer", "digits", "absent.npy"], 2, "absent.npy"),
        (["infer", "digits", str(MODEL)], 2, "digits.onnx"),
        (["infer", "digits", str(DIGITS / "7.png"), "--slo", "-1"], 2, "-1 is not above 0 s"),
        (["infer", "digits", str(DIGITS / "7.png"), "--slo", "1e-7"], 1, "refused"),
        (["infer", "digits", str(DIGITS / "7.png"), "-o", "y.txt"], 2, "y.txt"),
        (["infer", "digits"], 2, "INPUTS or --example"),
        (["infer", "digits", "--example", "10"], 2, "there are 0, 1, 2"),
        (["models", "add", "x", "absent.onnx"], 2, "absent.onnx"),
        (["models", "add", "x", str(DIGITS / "7.png")], 1, "7.png"),
        (["models", "add", "x", str(DIGITS)], 1, "digits is a folder without program.json"),
        (
            ["models", "add", "x", str(MODEL.parent)],
            1,
            "this one holds digits.onnx, which can be given itself",
        ),
        (["models", "add", "x", str(MODEL), "--batch-max", "4097"], 2, "4097 is not in the range 0<=x<=4096"),
        (["models", "add", "x@1", str(MODEL)], 1, "x@1"),
        (["models", "add", "x", str(MODEL), "--slo", "1e-7"], 1, "SLO"),
        (["models", "remove", "nosuch"], 1, "nosuch"),
        (["models", "show", "digits@9"], 1, "digits has no version '9'"),
        (["load", "nosuch"], 1, "nosuch"),
        (["load", "digits", "--rate", "5", "--concurrency", "5"], 2, "one of them"),
        (["load", "digits", "--trace", "synthetic"], 2, "open loop"),
        (["load", "digits", "--rate", "5", "--trace", "absent.csv"], 2, "absent.csv"),
        (
            ["load", "digits", "--rate", "5", "--arrivals", "gamma", "--cv", "0"],
            2,
            "0.0 is not in the range 0.01<=x<=100",
        ),
        (["status", "--timeout", "0"], 2, "0 is not above 0 s"),
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
        capture_output=True, text=True, timeout=PATIENCE_S, cwd=ROOT, env=clean_environment(),
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
            line,
            shell=True,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            cwd=ROOT,
            env=clean_environment(),
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("digits: 7")
        up.send(signal.SIGINT)
        assert up.wait(PATIENCE_S) == 0
    finally:
        up.destroy()


def test_who_takes_the_neighbouring_port_is_told_which_one_it_is(cluster: Cluster, tmp_path: Path) -> None:
    worker = cluster.program(["worker", "--connect", cluster.endpoint, "--store", str(tmp_path)])
    assert worker.wait() == 1, worker.text
    assert "this port is for clients; workers connect to another" in worker.text
    client = cluster.program(["status", "--endpoint", cluster.worker_endpoint])
    assert client.wait() == 1, client.text
    assert "this port is for workers; clients connect to another" in client.text
