"""A real Prometheus reads a cluster under load, by deploy/prometheus, and answers every query of the
dashboard."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from clockwork import Client
from clockwork.formats.profiles import ModelProfile, save_profiles
from clockwork.gateway.metrics import METRICS
from clockwork.launch.local import held_ports
from clockwork.protocol import inference_pb2 as pb
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import ROOT, Program
from tests.process.gateways import Http, method_of, tensor
from tests.unit.test_metrics_text import EVERYTHING

MILLISECOND = 1_000_000
MIB = 1 << 20

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "clockwork.json"
WINDOW = "30s"
"""Value for Grafana's $__rate_interval."""

LOAD_S = 25
IDLE_S = 5
NAMES = [f"m{index}" for index in range(8)]

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        shutil.which("prometheus") is None or shutil.which("promtool") is None,
        reason="Prometheus is not installed: apt-get install --no-install-recommends prometheus",
    ),
]


class Prometheus:
    """A running Prometheus server."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}"

    def ask(self, path: str, **arguments: str) -> Any:
        url = f"{self._base}{path}?{urllib.parse.urlencode(arguments)}"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as reply:
            body = json.load(reply)
        assert body["status"] == "success", body
        return body["data"]

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._base}/-/ready", timeout=PATIENCE_S) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def has_data(self, expression: str, begin_s: float, end_s: float) -> bool:
        """Whether an expression had a number between two times. Raises HTTPError for a wrong expression."""
        arguments = {"query": expression, "start": f"{begin_s:.3f}", "end": f"{end_s:.3f}", "step": "1"}
        rows = self.ask("/api/v1/query_range", **arguments)["result"]
        return any(value != "NaN" for row in rows for _, value in row["values"])


@contextlib.contextmanager
def running_prometheus(directory: Path, metrics_port: int) -> Iterator[Prometheus]:
    """Start Prometheus by deploy/prometheus, with the addresses and the interval of scrapes changed."""
    shutil.copytree(PROMETHEUS, directory)
    config = yaml.safe_load((directory / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for job in config["scrape_configs"]:
        for group in job["static_configs"]:
            assert group["targets"] == ["localhost:8002"]
            group["targets"] = [f"127.0.0.1:{metrics_port}"]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with held_ports(1) as [port], open(directory / "log", "wb") as log:
        server = subprocess.Popen(
            [
                "prometheus", f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'data'}", f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
        try:
            found = Prometheus(port)
            eventually(found.is_ready, "Prometheus is ready")
            yield found
        finally:
            server.terminate()
            server.wait(PATIENCE_S)


def profiles() -> list[ModelProfile]:
    """Register more models than fit on a device or in a host store, and a slow model."""
    small = [
        ModelProfile(
            name, {1: 20 * MILLISECOND, 2: 36 * MILLISECOND}, 64 * MIB, 8 * MILLISECOND,
            input_bytes=600, output_bytes=40, slo_ns=100 * MILLISECOND,
        )
        for name in NAMES
    ]  # fmt: skip
    slow = ModelProfile(
        "slow",
        {1: 900 * MILLISECOND},
        64 * MIB,
        8 * MILLISECOND,
        input_bytes=600,
        slo_ns=20_000 * MILLISECOND,
    )
    return [*small, slow]


@dataclasses.dataclass(slots=True)
class Watched:
    """Prometheus beside a cluster that was idle, and then had a load that produces every kind of event."""

    prometheus: Prometheus
    idle: tuple[float, float]  # begin and end, in seconds since the epoch
    busy: tuple[float, float]


@pytest.fixture(scope="module")
def metrics_port() -> Iterator[int]:
    with held_ports(1) as [port]:
        yield port


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, metrics_port: int) -> Iterator[Watched]:
    data = tmp_path_factory.mktemp("cluster")
    save_profiles(data / "profiles.json", profiles())
    up = Program([
        "up", "--port", "0", "--metrics-port", str(metrics_port), "--data", str(data / "models"), "--workers", "2",
        "--device", "emulated", "--arena", "256MiB", "--page-size", "16MiB", "--host-bytes", "512MiB",
        "--profiles", str(data / "profiles.json"),
    ])  # fmt: skip
    try:
        up.wait_for("Ctrl-C ends it")
        ports = {name: up.wait_for(rf"^  {name} +\S+?(\d+)(/metrics)?$")[1] for name in ("http", "grpc")}
        endpoint = up.wait_for(r"^  clients +(tcp://\S+)")[1]
        with running_prometheus(data / "prometheus", metrics_port) as found:
            eventually(lambda: scrapes(found) >= IDLE_S, "the cluster was read while it was idle")
            times = [time.time() - 2, time.time()]
            with Client(endpoint, timeout=PATIENCE_S) as client:
                drive(client, endpoint, int(ports["http"]), int(ports["grpc"]))
            times.append(time.time())
            yield Watched(found, (times[0], times[1]), (times[1], times[2]))
        assert up.stop() == 0
    finally:
        up.destroy()


def drive(client: Client, endpoint: str, http_port: int, grpc_port: int) -> None:
    """Load the cluster beyond its capacity, over all interfaces, with a shadow, disconnecting clients, and
    bad requests."""
    [first] = [one for one in profiles() if one.name == NAMES[0]]
    client.register(first.name, dataclasses.replace(first, load_ns=9 * MILLISECOND))
    client.route(first.name, {1: 1.0}, shadow={2: 1.0})
    [spec] = client.model(first.name).inputs
    size = first.input_bytes
    body = {"inputs": [tensor("UINT8", (1, size), size=size, name=spec.name)]}
    request = pb.ModelInferRequest(raw_input_contents=[bytes(size)])
    request.inputs.add(name=spec.name, datatype="UINT8", shape=[1, size])
    load = Program([
        "load", *NAMES, "--endpoint", endpoint, "--rate", "250", "--zipf", "2", "--duration", str(LOAD_S),
    ])  # fmt: skip
    http = Http(http_port)
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        call = method_of(channel, "ModelInfer")
        while load.process.poll() is None:
            for name in (*NAMES, "nobody"):
                assert http.infer(body, bytes(size), model=name).status in (200, 404, 422, 503, 504)
                request.model_name = name
                with contextlib.suppress(grpc.RpcError):
                    call(request, timeout=PATIENCE_S)
            leaver = Http(http_port)
            leaver.connection.request(
                "POST",
                "/v2/models/slow/infer",
                json.dumps({"inputs": [tensor("UINT8", (1, size), [0] * size, name=spec.name)]}),
            )
            leaver.close()
    http.close()
    assert load.wait() == 0, load.text


def scrapes(prometheus: Prometheus) -> int:
    """Return the number of scrapes of the cluster."""
    rows = prometheus.ask("/api/v1/query", query=f"count_over_time(clockwork_up[{WINDOW}])")["result"]
    return int(rows[0]["value"][1]) if rows else 0


def panels() -> list[tuple[str, list[str], bool]]:
    """Yield the panels of the dashboard: (title, expressions, whether its text explains an empty panel)."""
    found = []
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        expressions = [
            target["expr"].replace("$__rate_interval", WINDOW).replace("$model", ".*")
            for target in panel.get("targets", ())
        ]
        assert not any("$" in one for one in expressions), expressions
        if expressions:
            found.append((panel["title"], expressions, bool(panel["fieldConfig"]["defaults"].get("noValue"))))
    assert len(found) > 20
    return found


def test_both_targets_are_up_and_the_rules_are_loaded_and_well(watched: Watched) -> None:
    targets = watched.prometheus.ask("/api/v1/targets")["activeTargets"]
    assert sorted((one["labels"]["job"], one["health"], one["lastError"]) for one in targets) == [
        ("clockwork", "up", ""),
        ("clockwork-gateways", "up", ""),
    ]
    [group] = watched.prometheus.ask("/api/v1/rules")["groups"]
    named = re.findall(r"alert: (\w+)", (PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))
    assert [rule["name"] for rule in group["rules"]] == named
    assert {(rule["health"], rule.get("lastError", "")) for rule in group["rules"]} == {("ok", "")}


def test_too_much_load_is_what_the_alerts_of_it_see(watched: Watched) -> None:
    for name in ("ClockworkGoodputLow", "ClockworkTooFewDevices"):
        pending = f'ALERTS{{alertname="{name}", alertstate="pending"}}'
        assert watched.prometheus.has_data(pending, *watched.busy), name
        assert not watched.prometheus.has_data(pending, *watched.idle), name


def test_every_query_of_the_dashboard_has_data_under_load(watched: Watched) -> None:
    empty = [
        (title, one)
        for title, expressions, _ in panels()
        for one in expressions
        if not watched.prometheus.has_data(one, *watched.busy)
    ]
    assert empty == []


def test_panels_without_data_in_an_idle_cluster_say_why(watched: Watched) -> None:
    silent = [
        title
        for title, expressions, says_why in panels()
        if not says_why and not any(watched.prometheus.has_data(one, *watched.idle) for one in expressions)
    ]
    assert silent == []


def test_the_names_that_the_dashboard_offers_are_there(watched: Watched) -> None:
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    for one in board["templating"]["list"]:
        if one["type"] == "query":
            found = re.fullmatch(r"label_values\((\w+), (\w+)\)", one["definition"])
            assert found, one["definition"]
            values = watched.prometheus.ask(f"/api/v1/label/{found[2]}/values", **{"match[]": found[1]})
            assert set(NAMES) <= set(values)


def test_promtool_has_remarks_on_tritons_names_alone() -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=EVERYTHING,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    remarked = {line.split()[0] for line in done.stderr.decode().splitlines()}
    assert remarked == {name for name in METRICS if name.startswith("nv_")}


def test_promtool_takes_the_rules_and_the_configuration() -> None:
    for command in (("check", "rules", "alerts.yml"), ("check", "config", "prometheus.yml")):
        done = subprocess.run(
            ["promtool", *command],
            cwd=PROMETHEUS,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
