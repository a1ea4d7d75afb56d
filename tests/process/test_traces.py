"""A running cluster is traced, and its requests are explained, from its controller's flight recorder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from clockwork.errors import Refused
from clockwork.formats.profiles import ModelProfile, copies
from clockwork.system.clock import MS
from clockwork.workloads import load_generator
from tests.patience import PATIENCE_S
from tests.process.cluster import running_cluster
from tests.sim.test_trace import check_format

SMALL = ModelProfile("small", {1: 2 * MS, 4: 4 * MS}, 40 << 20, 3 * MS, input_bytes=100, output_bytes=7)


def test_a_running_cluster_is_traced_and_explained(tmp_path: Path) -> None:
    with running_cluster(
        tmp_path / "cluster", workers=0, controller_options=("--recorder-bytes", "8MiB")
    ) as cluster:
        cluster.start_worker("--device", "emulated", "--page-size", "16MiB", "--devices", "2", arena="128MiB")
        with cluster.client() as client:
            names = [one.name for one in copies([SMALL], 4)]
            for name in names:
                client.register(name, SMALL)
            output = tmp_path / "run.json"
            traced = cluster.program(
                ["trace", "--seconds", "1.5", "-o", str(output), "--endpoint", cluster.endpoint]
            )
            settings = load_generator.LoadSettings(
                models=tuple(names), rate=200.0, duration_s=0.5, slo_s=PATIENCE_S, seed=3
            )
            while traced.process.poll() is None:
                load_generator.run(client, settings)
            assert traced.wait() == 0, traced.text
            assert "lost 0 B" in traced.text
            with pytest.raises(Refused) as refused:
                client.infer(names[1], np.zeros((1, SMALL.input_bytes), np.uint8), slo=1e-6)
        body = json.loads(output.read_text())
        check_format(body)
        names_of = {one["args"]["name"] for one in body["traceEvents"] if one["name"] == "process_name"}
        assert names_of == {"cluster", "worker-0", "requests"}
        requests = [one for one in body["traceEvents"] if one.get("cat") == "request" and one["ph"] == "X"]
        assert {one["args"]["model"] for one in requests} == {f"{name}@1" for name in names}
        assert any(one["args"]["outcome"] == "answered" for one in requests)
        assert body["otherData"]["policy"] == "adaptive"
        number = refused.value.request
        why = cluster.program(["explain", str(number), "--endpoint", cluster.endpoint])
        assert why.wait() == 0, why.text
        assert f"Request {number} for small-1@1" in why.text
        assert "It was refused at its arrival (infeasible)" in why.text
        last = cluster.program(
            ["explain", "--last-refused", "--model", "small-1", "--json", "--endpoint", cluster.endpoint]
        )
        assert last.wait() == 0, last.text
        assert json.loads(last.text)["request_id"] == number
        none = cluster.program(["explain", "999999", "--endpoint", cluster.endpoint])
        assert none.wait() == 1, none.text
        assert "there is no request 999999" in none.text
