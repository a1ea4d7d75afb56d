"""Ray Serve with one replica: python ray_app.py PORT TEMPORARY ROOM NAME=MODEL.onnx...

One model is loaded at the start. Of several models, a replica holds ROOM (model multiplexing, the least
recently used is evicted). Tensors travel as raw bytes.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import ray
from ray import serve
from session import session
from starlette.requests import Request
from starlette.responses import Response

PORT, TEMPORARY, ROOM = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
MODELS = dict(argument.split("=", 1) for argument in sys.argv[4:])


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 1})
class Peer:
    def __init__(self, models: dict[str, str]) -> None:
        self._models = models
        self._executor = ThreadPoolExecutor(1)
        self._only = session(*models.values()) if len(models) == 1 else None

    @serve.multiplexed(max_num_models_per_replica=ROOM or 1)
    async def load(self, name: str) -> onnxruntime.InferenceSession:
        return session(self._models[name])

    async def __call__(self, request: Request) -> Response:
        if request.method == "GET":
            return Response()
        model = self._only or await self.load(serve.get_multiplexed_model_id())
        x = np.frombuffer(await request.body(), np.float32).reshape(1, 3, 64, 64)
        # The model runs outside the event loop, which answers the router meanwhile. Ray serves fewer requests
        # if it runs inside.
        loop = asyncio.get_running_loop()
        [scores] = await loop.run_in_executor(self._executor, model.run, None, {"image": x})
        return Response(scores.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, _temp_dir=TEMPORARY, object_store_memory=100 << 20)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Peer.bind(MODELS), route_prefix="/")
    signal.pause()
