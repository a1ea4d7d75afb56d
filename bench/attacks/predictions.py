"""Requests that take far longer than predicted: loops whose length is in the data, and images of few
bytes.
"""

from __future__ import annotations

import concurrent.futures
import io
import threading
from collections import Counter
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

from bench.attacks.messages import listed
from bench.attacks.operators import operator_model
from bench.attacks.site import ATTACK_S_MAX, Attack, Site
from bench.reference import Plain
from clockwork.client.blocking import Client
from clockwork.errors import ClockworkError
from clockwork.models import samples
from clockwork.system.clock import SECOND, now_ns

CALIBRATION_STEPS = 20_000
PHOTOGRAPH_RATE = 5.0
PHOTOGRAPH_SLO_S = 0.1
HEAVY_RATE = 2.0
HEAVY_SIDE = 5_000


class Size(NamedTuple):
    """Sizes of the attacks."""

    loops: int = 400
    loop_s: float = 1.2
    loop_slo_s: float = 10.0
    images_s: float = 20.0


QUICK, WHOLE = Size(12, 0.3, 3.0, 2.0), Size()


def _size(quick: bool) -> Size:
    return QUICK if quick else WHOLE


def loop_model() -> onnx.ModelProto:
    """A model that loops n times, n being its input: some 20 us with its measured input, else unbounded."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["k"], ["l"]), helper.make_node("Neg", ["z"], ["w"])],
        "b",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("k", TensorProto.BOOL, []),
            helper.make_tensor_value_info("z", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("l", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.INT64, [1]),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Squeeze", ["n"], ["t"]),
            helper.make_node("Loop", ["t", "", "n"], ["y"], body=body),
        ],
        "loop",
        [helper.make_tensor_value_info("n", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [1])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def steps(count: int) -> np.ndarray:
    return np.array([count], np.int64)


def outcome(answer: concurrent.futures.Future[object]) -> str:
    try:
        answer.result(ATTACK_S_MAX)
    except ClockworkError as error:
        return type(error).__name__
    return "answered"


def slow_by_data(site: Site, quick: bool) -> str:
    """Concurrent loops that each take far longer than with the data of their model's measurement."""
    size = _size(quick)
    plain = Plain(loop_model())  # built here, so that the cluster has no prediction for it
    step_s = min(plain.block({"n": steps(CALIBRATION_STEPS)}, 1) for _ in range(3)) / CALIBRATION_STEPS
    with site.client() as client:
        client.infer("loop", steps(1), slo=ATTACK_S_MAX)  # this request loads the model
        long = steps(int(size.loop_s / step_s))
        answers = [client.submit("loop", long, slo=size.loop_slo_s) for _ in range(size.loops)]
        return listed(Counter(outcome(answer) for answer in answers))


def heavy_image() -> bytes:
    """An image with as many bytes as a photograph of a megapixel, but 25 megapixels in ten scans."""
    buffer = io.BytesIO()
    Image.new("L", (HEAVY_SIDE, HEAVY_SIDE)).save(buffer, "JPEG", progressive=True)
    return buffer.getvalue()


def heavy_images(site: Site, quick: bool) -> str:
    """Two images a second that take far longer than photographs, beside photographs with a short SLO."""
    size, heavy = _size(quick), heavy_image()
    photograph = samples.jpeg(len(heavy), 1)
    stop = threading.Event()

    def ask(client: Client, image: bytes, slo_s: float) -> str:
        try:
            client.infer("images", [image], slo=slo_s)
        except ClockworkError as error:
            return type(error).__name__
        return "answered"

    def attack(client: Client) -> None:
        while not stop.wait(1 / HEAVY_RATE):
            ask(client, heavy, 5.0)

    with site.client() as client, site.client() as attacking:
        ask(client, photograph, ATTACK_S_MAX)  # this request loads the model
        thread = threading.Thread(target=attack, args=(attacking,))
        thread.start()
        try:
            end_ns, found = now_ns() + round(size.images_s * SECOND), Counter[str]()
            while now_ns() < end_ns:
                stop.wait(1 / PHOTOGRAPH_RATE)
                found[ask(client, photograph, PHOTOGRAPH_SLO_S)] += 1
        finally:
            stop.set()
            thread.join()
    return f"photographs: {listed(found)}"


def _loops(quick: bool) -> dict[str, onnx.ModelProto]:
    return {"loop": loop_model()}


def _images(quick: bool) -> dict[str, onnx.ModelProto]:
    return {"images": operator_model("DecodeJpeg")}


ATTACKS = {
    "slow by data": Attack("worker", slow_by_data, _loops),
    "heavy images": Attack("worker", heavy_images, _images),
}
"""The attacked process and the attack, by name."""
