"""The command line against a fake controller: its input, its output, and its errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from clockwork.cli import root as cli
from clockwork.cli.common import DURATION, Duration, say_bytes, say_enough
from clockwork.cli.serve import PackageFlags
from clockwork.errors import ConfigError
from clockwork.formats.profiles import parse_profiles
from clockwork.system.words import say_count, say_figure
from clockwork.wire import transport
from clockwork.wire.keys import read_allowed_keys, read_controller_keys, read_peer_keys
from clockwork.wire.messages import Answer, Failure, InferRequest, Query, Reply, Status, Unregister
from clockwork.wire.roles import Role
from clockwork.wire.tensors import encode_array
from tests.process.fake_controller import FakeController

LABELS = [str(digit) for digit in range(10)]

MODELS: dict[str, dict[str, Any]] = {
    "digits": {
        "name": "digits", "version": 1, "state": "ready", "slo_ns": 0, "holding": "bound",
        "inputs": [{"name": "image", "dtype": "float32", "shape": ["n", 1, 8, 8]}],
        "outputs": [{"name": "scores", "dtype": "float32", "shape": ["n", 10]}],
        "batches": True, "batch_max": 8, "batching_note": "proven", "weights_bytes": 1 << 20, "pages": 1,
        "load_ns": 1000, "digest": "d" * 64, "metadata": {"clockwork.labels": json.dumps(LABELS)},
        "profile": [{"shape": [[1, 8, 8]], "batch": 1, "exec_ns": 2_000_000}],
        "counts": {"answered": 3}, "devices": [{"worker": "w", "device": 0, "state": "resident"}],
    },
    "two": {
        "name": "two", "version": 2, "state": "ready", "slo_ns": 50_000_000,
        "inputs": [
            {"name": "ids", "dtype": "int64", "shape": ["n", "length"]},
            {"name": "text", "dtype": "string", "shape": [1]},
        ],
        "outputs": [], "example": [[1, 5], [1]],
    },
}  # fmt: skip

STATUS = {
    "version": "9", "policy": "edf", "uptime_ns": 5 * 10**9, "clients": 1, "models": {"ready": 2}, "programs": 1,
    "counts": {"answered": 7, "refused": 1, "refusals": {"deadline": 1}},
    "workers": [
        {"name": "a-worker", "rtt_ns": 1_000_000, "jitter_ns": 20_000, "stats": {"rss_bytes": 1 << 20},
         "devices": [{"kind": "cpu", "name": "EPYC", "page_bytes": 1 << 20, "page_count": 64,
                      "plan": {"pages_free": 32, "resident": 1}}]},
    ],
}  # fmt: skip


def serve(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
    """Knows the models above; `digits` always sees a 7, `two` returns its inputs."""
    if type(message) is Query:
        if message.what == "model" and message.argument not in MODELS:
            text = f"no model {message.argument!r} is registered"
            controller.send(identity, Failure(message.request_id, Status.MODEL_NOT_FOUND, text, {}))
            return
        body = {"models": {"models": list(MODELS.values()), "next": ""}, "status": STATUS}.get(
            message.what
        ) or MODELS[message.argument]
        controller.send(identity, Reply(message.request_id, body))
    elif type(message) is Unregister and message.model.startswith("nope"):
        text = f"no model {message.model!r} is registered"
        controller.send(identity, Failure(message.request_id, Status.MODEL_NOT_FOUND, text, {}))
    elif type(message) is Unregister:
        controller.send(identity, Reply(message.request_id, None))
    elif type(message) is InferRequest and message.model == "digits":
        scores = np.full((1, 10), 0.01, np.float32)
        scores[0, 7] = 0.9
        dtype, shape, frame = encode_array(scores)
        controller.send(
            identity, Answer(message.request_id, 1, [["scores", dtype, shape, 0]], [0] * 4), [frame]
        )
    elif type(message) is InferRequest:
        controller.send(identity, Answer(message.request_id, 1, message.tensors, [0] * 4), frames)


@pytest.fixture(scope="module")
def controller() -> Iterator[FakeController]:
    with FakeController(handle=serve) as controller:
        yield controller


@pytest.fixture
def run(controller: FakeController, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CLOCKWORK_ENDPOINT", controller.endpoint)
    controller.handle = serve

    def run(*arguments: str | Path, ok: bool = True) -> Result:
        result = CliRunner().invoke(cli.cli, [str(one) for one in arguments])
        assert "Traceback" not in result.output
        assert (result.exit_code == 0) == ok, result.output
        return result

    return run


def test_a_model_that_failed_is_said_to_have_with_the_reason(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = {"name": "digits", "version": 1, "state": "failed", "text": "it is damaged"}
    monkeypatch.setitem(MODELS, "digits", failed)
    said = {
        ("infer", "digits", "--example", "7"): "model 'digits' is failed: it is damaged\n",
        ("load", "digits"): "model 'digits' is failed and takes no load yet: it is damaged\n",
        (
            "models",
            "show",
            "digits",
            "--profile",
            "-",
        ): "model 'digits' is failed and has no profile: it is damaged\n",
    }
    for arguments, text in said.items():
        assert text in run(*arguments, ok=False).output
    monkeypatch.setitem(MODELS, "digits", failed | {"text": ""})
    assert "model 'digits' is failed\n" in run("infer", "digits", "--example", "7", ok=False).output


# ----- durations -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0.1", 0.1), ("100ms", 0.1), ("100 ms", 0.1), ("250us", 250e-6), ("7ns", 7e-9), ("2s", 2.0), ("5min", 300.0),
        ("1e-3", 1e-3), (".5h", 1800.0),
    ],
)  # fmt: skip
def test_a_duration_is_a_number_with_a_unit_or_of_seconds(text: str, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "ms", "1 m", "1e", "nan", "inf", "1ms2", "1,5s", "1 Ms", "x" * 1000])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"is no duration: a number and a unit") as caught:
        DURATION.convert(text, None, None)
    assert len(caught.value.message) < 250


def test_a_duration_in_another_unit_within_bounds() -> None:
    kind = Duration(0, 1, unit="ms")
    assert kind.convert("0.05", None, None) == 50e-6
    assert kind.convert("1s", None, None) == 1.0
    with pytest.raises(click.BadParameter, match="1001 is not at least 0 s and at most 1 s"):
        kind.convert("1001", None, None)


def test_a_missing_library_is_named_before_anything_is_fetched(
    run: Any, controller: FakeController, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    before = len(controller.received)
    result = run("models", "add", "m", "https://127.0.0.1:9/m.onnx", "--tokenizer", tmp_path, ok=False)
    assert "pip install 'clockwork-serving[text]'" in result.stderr
    assert len(controller.received) == before


# ----- infer ---------------------------------------------------------------------------------


def test_an_slo_with_a_unit(run: Any, controller: FakeController) -> None:
    run("infer", "digits", "--example", "7", "--slo", "250ms")
    assert controller.of(InferRequest)[-1].slo_ns == 250_000_000


def test_an_array_of_another_type_is_answered_with_the_call_that_converts_it(
    run: Any, controller: FakeController, tmp_path: Path
) -> None:
    def refuse(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
        if type(message) is not InferRequest:
            serve(controller, identity, message, frames)
            return
        details = {"tensor": "image", "expected": "float32", "got": "float64"}
        controller.send(
            identity, Failure(message.request_id, Status.INVALID_INPUT, "input 'image' ...", details)
        )

    np.save(tmp_path / "in.npy", np.zeros((1, 1, 8, 8)))
    controller.handle = refuse
    result = run("infer", "digits", tmp_path / "in.npy", ok=False)
    assert (result.exit_code, "NumPy converts it: .astype('float32')" in result.stderr) == (1, True)


def test_an_image_becomes_a_visible_answer(run: Any, controller: FakeController, tmp_path: Path) -> None:
    Image.new("L", (16, 16), 200).save(tmp_path / "seven.png")
    result = run("infer", "digits", tmp_path / "seven.png", "--slo", "0.5", "--priority", "1")
    assert result.stdout.splitlines()[0] == "digits: 7"
    assert "taken as grey of 8x8 pixels, stretched from 16x16, layout NCHW" in result.stderr
    request = controller.of(InferRequest)[-1]
    assert request.tensors == [["image", 1, [1, 1, 8, 8], 0]]
    assert (request.slo_ns, request.priority) == (500_000_000, 1)


def test_numpy_and_json_files(run: Any, controller: FakeController, tmp_path: Path) -> None:
    image = np.zeros((2, 1, 8, 8), np.float32)
    np.save(tmp_path / "a.npy", image)
    np.savez(tmp_path / "a.npz", image)
    np.savez(tmp_path / "named.npz", image=image)
    (tmp_path / "a.json").write_text(json.dumps(image.tolist()))
    (tmp_path / "named.json").write_text(json.dumps({"image": image.tolist()}))
    for name in ("a.npy", "a.npz", "named.npz", "a.json", "named.json"):
        run("infer", "digits", tmp_path / name)
        assert controller.of(InferRequest)[-1].tensors == [["image", 1, [2, 1, 8, 8], 0]]


def test_several_inputs_by_name(run: Any, controller: FakeController, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array([[1, 2]]))
    (tmp_path / "text.json").write_text('["hello"]')
    result = run("infer", "two", f"ids={tmp_path / 'ids.npy'}", f"text={tmp_path / 'text.json'}", "--json")
    assert json.loads(result.output) == {"ids": [[1, 2]], "text": ["hello"]}
    (tmp_path / "all.json").write_text('{"ids": [[3]], "text": ["x"]}')
    text = run("infer", "two", tmp_path / "all.json").output
    assert "ids  int64 [1, 1]" in text
    assert "'x'" in text


@pytest.mark.parametrize("name", ["out.npz", "out.json"])
def test_outputs_to_files(run: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "all.json").write_text('{"ids": [[3]], "text": ["x"]}')
    run("infer", "two", tmp_path / "all.json", "-o", tmp_path / name)
    if name.endswith(".npz"):
        with np.load(tmp_path / name) as loaded:
            assert loaded["ids"].tolist() == [[3]]
            assert loaded["text"].tolist() == ["x"]
    else:
        assert json.loads((tmp_path / name).read_text()) == {"ids": [[3]], "text": ["x"]}


def test_one_output_to_npy(run: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.zeros((1, 1, 8, 8), np.float32))
    run("infer", "digits", tmp_path / "in.npy", "-o", tmp_path / "out.npy")
    assert np.load(tmp_path / "out.npy").argmax() == 7


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("infer", "digits", "absent.npy"), "absent.npy cannot be read"),
        (("infer", "digits", "absent.png"), "absent.png"),
        (("infer", "digits", "other=absent.npy"), "no input 'other'; it has image"),
        (("infer", "digits", "file.xyz"), ".npy, .npz, .json, .txt or image"),
        (("infer", "two", "ids.npy"), "say ids=ids.npy"),
        (("infer", "digits", "x.npy", "-o", "out.csv"), ".npy, .npz, .json"),
        (("load", "digits", "--rate", "-1"), "rate -1"),
        (("load", "digits", "--rate", "0"), "rate 0 asks nothing: leave --rate out for closed loop"),
        (("load", "digits", "--duration", "0"), "0 is not above 0 s"),
        (("load", "digits", "--rate", "5", "--concurrency", "5"), "open loop"),
        (("infer",), "Missing argument 'MODEL'"),
        (("infer", "digits"), "infer takes INPUTS or --example"),
        (("infer", "digits", "--example", "ten"), "there is no example 'ten'"),
        (("models", "add"), "models add takes a NAME and an ONNX FILE"),
        (("models", "add", "m", "absent.onnx"), "'absent.onnx' does not exist"),
        (("models", "add", "--each", "absent"), "'absent' does not exist"),
        (("models", "add", "--each", "."), ". holds no ONNX file"),
        (("models", "add", "m", "--each", "."), "--each takes no NAME"),
        (("models", "add", "--each", ".", "--profiles", "paper"), "--each or --profiles"),
        (("models", "show"), "Missing argument 'NAME'"),
        (("plan", "devices", "--profiles", "absent.json", "--rate", "5"), "absent.json"),
        (("up", "--workers", "0", "--profiles", "paper"), "--profiles needs a worker"),
        (("up", "--profiles", "paper"), "--profiles is for --device emulated; cpu computes"),
        (("up", "--host", "0.0.0.0"), "0.0.0.0 is reachable from other machines: give --keys DIR"),
        (("infer", "digits", "x.npy", "--slo", "100 parsecs"), "'100 parsecs' is no duration"),
        (("status", "--timeout", "soon"), "a number and a unit, as 100ms, 250us, 2s or 5min"),
        (("worker", "--drain", "-1s"), "-1s is not at least 0 s"),
        (("gateway", "--repository-poll-secs", "1ms"), "1ms is not at least 0.1 s"),
        (("status", "--timeout", "-1"), "-1 is not above 0 s"),
        (("status", "--endpoint", "nonsense"), "nonsense"),
        (("status", "--key", "absent.key"), "absent.key"),
        (("controller", "--policy", "clairvoyant"), "no scheduling policy 'clairvoyant' (there is edf, "),
        (("controller", "--option", "lead"), "a policy's option is NAME=NUMBER, not 'lead'"),
        (("controller", "--save-devices", "--policy", "edf"), "--save-devices needs --policy adaptive"),
        (
            ("up", "--port", "6000", "--grpc-port", "6002"),
            "--grpc-port 6002 is the port for events (--port 6000 takes",
        ),
        (("up", "--http-port", "5555"), "--http-port 5555 is the port for clients"),
        (("up", "--http-port", "8002"), "--metrics-port 8002 is the port of --http-port"),
        (("up", "--save-devices", "--policy", "fifo"), "--save-devices needs --policy adaptive"),
        (("up", "--host-bytes", "1GiB", "--policy", "edf"), "--host-bytes needs --policy adaptive"),
        (("up", "--package-cache", "1GiB"), "--package-cache is for packages in an object store"),
        (("controller", "--package-cache", "1GiB", "--packages", "/srv"), "--packages URL"),
        (("up", "--store-bytes", "1"), "a store of 1 bytes: --store-bytes is 1048576 to"),
    ],
)
def test_a_wrong_command_line_is_answered_with_the_usage_and_status_2(
    run: Any, arguments: tuple[str, ...], said: str
) -> None:
    result = run(*arguments, ok=False)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.startswith("Usage: ")
    assert not result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("infer", "nope", "x.npy"), "no model 'nope'"),
        (("load", "nope"), "no model 'nope'"),
        (("models", "show", "nope"), "no model 'nope'"),
    ],
)
def test_what_fails_is_one_line_on_stderr_and_status_1(
    run: Any, arguments: tuple[str, ...], said: str
) -> None:
    result = run(*arguments, ok=False)
    assert result.exit_code == 1
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not result.stdout


def test_a_file_by_input_name_has_the_model_s_names(run: Any, tmp_path: Path) -> None:
    image = np.zeros((1, 1, 8, 8), np.float32)
    np.savez(tmp_path / "other.npz", picture=image)
    (tmp_path / "other.json").write_text(json.dumps({"picture": image.tolist()}))
    for name in ("other.npz", "other.json"):
        stderr = run("infer", "digits", tmp_path / name, ok=False).stderr
        assert "model 'digits' has no input 'picture'; it has image" in stderr


@pytest.mark.parametrize("second", ["in.npy", "image=in.npy"])
def test_an_input_is_given_once(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("in.npy", np.zeros((1, 1, 8, 8), np.float32))
    stderr = run("infer", "digits", "in.npy", second, ok=False).stderr
    assert f"input 'image' is given twice, the second time by {second}" in stderr


def test_damaged_files(run: Any, tmp_path: Path) -> None:
    for name in ("a.npy", "a.npz", "a.json", "a.png"):
        (tmp_path / name).write_bytes(b"\x93NUMPY garbage" if name == "a.npy" else b"garbage")
        assert name in run("infer", "digits", tmp_path / name, ok=False).stderr


def test_a_refusal_says_what_would_have_been_admitted(
    run: Any, controller: FakeController, tmp_path: Path
) -> None:
    np.save(tmp_path / "in.npy", np.zeros((1, 1, 8, 8), np.float32))

    def refuse(controller: FakeController, identity: bytes, message: Any, frames: list[Any]) -> None:
        if type(message) is InferRequest:
            details = {"reason": "deadline", "feasible_slo_ns": 20_000_000, "retry_after_ns": 5_000_000}
            controller.send(identity, Failure(message.request_id, Status.REFUSED, "too busy", details))
        else:
            serve(controller, identity, message, frames)

    controller.handle = refuse
    stderr = run("infer", "digits", tmp_path / "in.npy", ok=False).stderr
    assert "too busy" in stderr
    assert "reason: deadline; an SLO of 20 ms would have been enough; retry after 5 ms" in stderr


def test_small_and_single_things_are_said_as_what_they_are() -> None:
    assert [say_bytes(count) for count in (0, 500, 41_900, 170_000, 32 << 20)] == [
        "0 B",
        "500 B",
        "41 KiB",
        "0.2 MiB",
        "32.0 MiB",
    ]
    assert [say_count(count, "page") for count in (0, 1, 2)] == ["0 pages", "1 page", "2 pages"]
    figures = (0, 4.7e-05, 0.0062, 0.012, 0.2, 3.24, 120, 1234, 98.7)
    assert [say_figure(value) for value in figures] == [
        "0",
        "less than 0.01",
        "less than 0.01",
        "0.01",
        "0.2",
        "3.2",
        "120",
        "1,200",
        "99",
    ]
    assert [say_figure(value, 3) for value in (95.24, 1234.5)] == ["95.2", "1,230"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.02, "20 ms"), (0.050013903, "50.1 ms"), (0.0501, "50.1 ms"), (1.3903e-05, "14 us"), (0.00099999, "1 ms"), (0.99999, "1 s"), (12.341, "12.4 s"), (1234.5, "1240 s")],
)  # fmt: skip
def test_what_would_be_enough_is_rounded_up(seconds: float, said: str) -> None:
    assert say_enough(seconds) == said


# ----- models and status ---------------------------------------------------------------------


def test_models(run: Any, controller: FakeController, tmp_path: Path) -> None:
    text = run("models", "list").output
    assert "digits@1" in text
    assert "two@2" in text
    assert "50 ms" in text
    assert [one["name"] for one in json.loads(run("models", "list", "--json").output)] == ["digits", "two"]
    text = run("models", "show", "digits").output
    assert "image  float32 ['n', 1, 8, 8]" in text
    assert "2.00 ms" in text
    assert "w device 0: resident" in text
    run("models", "show", "digits", "--profile", tmp_path / "profile.json")
    text = (tmp_path / "profile.json").read_text()
    (profile,) = parse_profiles(json.loads(text))
    assert profile.name == "digits"
    assert profile.exec_ns == {point["batch"]: point["exec_ns"] for point in MODELS["digits"]["profile"]}
    assert run("models", "show", "digits", "--profile", "-").output == text
    assert "has no profile\n" in run("models", "show", "two", "--profile", "-", ok=False).output
    assert json.loads(run("models", "show", "digits", "--json").output) == MODELS["digits"]
    assert run("models", "remove", "digits", "two@2").output == "removed digits\nremoved two@2\n"
    assert [message.model for message in controller.of(Unregister)[-2:]] == ["digits", "two@2"]


def test_a_model_that_cannot_be_removed_keeps_no_other_from_it(run: Any, controller: FakeController) -> None:
    result = run("models", "remove", "nope", "digits", "nope2", ok=False)
    assert (result.exit_code, result.stdout) == (1, "removed digits\n")
    assert result.stderr.splitlines() == [
        "clockwork: no model 'nope' is registered",
        "clockwork: no model 'nope2' is registered",
    ]


def test_status(run: Any) -> None:
    text = run("status").output
    for part in (
        "policy edf",
        "2 ready",
        "7 answered",
        "1 deadline",
        "a-worker",
        "cpu: EPYC",
        "64 MiB",
        "32 MiB",
    ):
        assert part in text
    assert json.loads(run("status", "--json").output) == STATUS


# ----- load ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", [("--rate", "200"), ("--rate", "200", "--arrivals", "constant"), ("--concurrency", "4"), ()]
)
def test_load_reports_what_became_of_it(run: Any, how: tuple[str, ...]) -> None:
    result = run("load", "digits", "two", "--duration", "0.3", "--json", *how)
    report = json.loads(result.stdout)
    assert report["offered"] == report["answered"] > 10
    assert report["refused"] == report["missed"] == report["timeouts"] == 0
    assert not report["errors"]
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p99"] <= report["latency_ms"]["max"]
    assert "offered" in run("load", "digits", "--duration", "0.05", *how).stdout


# ----- the program itself --------------------------------------------------------------------


def every_command() -> list[list[str]]:
    found: list[list[str]] = []

    def walk(command: click.Command | None, path: list[str]) -> None:
        assert command is not None, path
        found.append(path)
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                walk(command.get_command(context, name), [*path, name])

    walk(cli.cli, [])
    return found


@pytest.mark.parametrize("path", every_command(), ids=" ".join)
def test_every_command_explains_itself(path: list[str]) -> None:
    result = CliRunner().invoke(cli.cli, [*path, "--help"])
    assert result.exit_code == 0
    if path and path not in (["models"], ["keys"]):
        assert "Example" in result.output, "help shows how it is called"


def test_keys(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.cli, ["keys", "new", str(tmp_path / "keys")])
    assert result.exit_code == 0
    controller = read_controller_keys(tmp_path / "keys" / "controller.key")
    assert controller.allowed == ()
    listed = read_allowed_keys(tmp_path / "keys" / "allowed.keys")
    for role in Role:
        peer = read_peer_keys(tmp_path / "keys" / f"{role}.key")
        assert peer.controller == controller.public
        assert peer.role is listed[peer.public].role is role
        assert os.stat(tmp_path / "keys" / f"{role}.key").st_mode & 0o077 == 0
    assert len(listed) == len(Role)
    keys = str(tmp_path / "keys")
    assert CliRunner().invoke(cli.cli, ["keys", "add", keys, "alice", "--role", "operator"]).exit_code == 0
    result = CliRunner().invoke(cli.cli, ["keys", "list", keys])
    assert "alice" in result.output
    result = CliRunner().invoke(cli.cli, ["keys", "revoke", keys, "alice"])
    assert result.output == "revoked alice (operator)\n"
    assert "alice" not in CliRunner().invoke(cli.cli, ["keys", "list", keys]).output
    assert CliRunner().invoke(cli.cli, ["keys", "revoke", keys, "alice"]).exit_code == 1
    again = CliRunner().invoke(cli.cli, ["keys", "new", str(tmp_path / "keys")])
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    assert transport.new_key_pair() != transport.new_key_pair()


def test_python_dash_m_reaches_the_same_program() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "clockwork", "status", "--endpoint", "nonsense"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("Usage: clockwork status ")
    with pytest.raises(ConfigError):
        raise ConfigError(result.stderr)


def test_a_package_cache_has_a_least_size() -> None:
    """By the flags themselves: the command asks first for a library of the object store."""
    PackageFlags("", "s3://bucket/place", 1 << 20).check()
    with pytest.raises(ConfigError, match="--package-cache of 1 bytes: it is 1048576 bytes or more"):
        PackageFlags("", "s3://bucket/place", 1).check()
