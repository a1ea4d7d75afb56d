"""Models of some hundred bytes whose preparation takes unbounded memory or time."""

from __future__ import annotations

import contextlib
import re
import threading
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from bench.attacks.site import ATTACK_S_MAX, MIB, Attack, Site
from clockwork.client.blocking import Client
from clockwork.errors import ClockworkError, ModelNotFound
from clockwork.models import zoo
from clockwork.system.clock import SECOND, now_ns

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def swelling(tensor_bytes: int, count: int = 1) -> onnx.ModelProto:
    """A model that adds `count` constants of a given size, made by operators without inputs, to its input."""
    shape = helper.make_tensor("s", INT64, [1], [tensor_bytes // 4])
    # equal constants would be merged
    values = [helper.make_tensor("v", FLOAT, [1], [index]) for index in range(count)]
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], [f"c{index}"], value=value)
        for index, value in enumerate(values)
    ]
    names = [name for node in nodes for name in node.output]
    nodes += [
        helper.make_node("Sum", names, ["c"]),
        helper.make_node("ReduceMax", ["c"], ["r"]),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    return _model(nodes, [shape])


def endless(seed: int = 0) -> onnx.ModelProto:
    """A model whose execution does not end. seed: makes models that differ."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["k"], ["l"]), helper.make_node("Neg", ["z"], ["w"])],
        "b",
        [
            helper.make_tensor_value_info("i", INT64, []),
            helper.make_tensor_value_info("k", TensorProto.BOOL, []),
            helper.make_tensor_value_info("z", FLOAT, ["N", 1]),
        ],
        [
            helper.make_tensor_value_info("l", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", FLOAT, ["N", 1]),
        ],
    )
    times = helper.make_tensor("t", INT64, [], [2**62 + seed])
    return _model([helper.make_node("Loop", ["t", "", "x"], ["y"], body=body)], [times])


def _model(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["N", 1])],
        [helper.make_tensor_value_info("y", FLOAT, ["N", 1])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def swelling_models(site: Site, quick: bool) -> str:
    """A model of constants of 9.2 GB in all; the quick form has one constant, the other many."""
    model = swelling(9_200_000_000) if quick else swelling(400_000_000, 23)
    with site.client() as client:
        try:
            client.register("swelling", model, timeout=ATTACK_S_MAX)
            fate = "registered"
        except ClockworkError as error:
            fate = f"refused ({type(error).__name__})"
    peak = max(preparation_peaks(site.worker_pid), default=0)
    return f"{model.ByteSize()} bytes {fate}; its preparation had {peak / MIB:.0f} MiB at most"


def preparation_peaks(worker: int) -> list[int]:
    """Peak memory in bytes of each preparation process of a worker."""
    peaks = []
    for task in Path(f"/proc/{worker}/task").iterdir():
        for child in (task / "children").read_text().split():
            with contextlib.suppress(OSError):  # the process has ended
                if b"clockwork.worker.preparation" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{child}/status").read_text())
                    peaks.append(int(found[1]) * 1024 if found is not None else 0)
    return peaks


def endless_models(site: Site, quick: bool) -> str:
    """Endless models that one client registers at once, and then an honest model of another client."""
    models = [endless(seed) for seed in range(4)]
    began_ns = now_ns()
    with site.client() as hostile, site.client() as honest:
        threads = [
            threading.Thread(target=_register, args=(hostile, f"endless{index}", model))
            for index, model in enumerate(models)
        ]
        for thread in threads:
            thread.start()
        names = {f"endless{index}" for index in range(len(models))}
        while not names <= {model.name for model in honest.models()}:
            threading.Event().wait(0.01)
        honest.register("honest", zoo.build("mlp"), timeout=2 * ATTACK_S_MAX)
        waited_s = (now_ns() - began_ns) / SECOND
        for name in (*names, "honest"):
            with contextlib.suppress(ModelNotFound):  # the model has failed
                honest.unregister(name)
        for thread in threads:
            thread.join()
    return (
        f"an honest registration behind {len(models)} of {models[0].ByteSize()} bytes took {waited_s:.1f} s"
    )


def _register(client: Client, name: str, model: onnx.ModelProto) -> None:
    with contextlib.suppress(ClockworkError):  # the model may be unregistered before it has failed
        client.register(name, model, timeout=2 * ATTACK_S_MAX)


ATTACKS = {
    "swelling models": Attack("worker", swelling_models),
    "endless models": Attack("worker", endless_models),
}
