"""Ray Serve with one replica: python ray_app.py PORT TEMPORARY ROOM QUEUED

PEER_MANIFEST names the models. One model is loaded at the start. Of several models, a replica holds ROOM
(model multiplexing, the least recently used is evicted). At most QUEUED requests wait (-1: any number), and
others are refused. Tensors travel as raw bytes.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import manifest
import numpy as np
import onnxruntime
import ray
from ray import serve
from session import session
from starlette.requests import Request
from starlette.responses import Response

PORT, TEMPORARY, ROOM, QUEUED = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])


@serve.deployment(num_replicas=1, max_queued_requests=QUEUED, ray_actor_options={"num_cpus": 1})
class Peer:
    def __init__(self, models: dict[str, manifest.Entry]) -> None:
        self._models = models
        self._executor = ThreadPoolExecutor(1)
        self._loader = ThreadPoolExecutor(1)
        self._loads = 0
        self._only = next(iter(models)) if len(models) == 1 else ""
        self._session = self._open(self._only) if self._only else None

    @serve.multiplexed(max_num_models_per_replica=ROOM or 1)
    async def load(self, name: str) -> onnxruntime.InferenceSession:
        self._loads += 1
        return await asyncio.get_running_loop().run_in_executor(self._loader, self._open, name)

    def _open(self, name: str) -> onnxruntime.InferenceSession:
        return session(self._models[name].path, self._models[name].is_optimised)

    async def __call__(self, request: Request) -> Response:
        if request.method == "GET":
            return Response(str(self._loads))
        name = self._only or serve.get_multiplexed_model_id()
        model = self._session or await self.load(name)
        entry = self._models[name]
        x = np.frombuffer(await request.body(), np.float32).reshape(entry.shape)
        # The model runs outside the event loop, which answers the router meanwhile. Ray serves fewer requests
        # if it runs inside.
        loop = asyncio.get_running_loop()
        [scores] = await loop.run_in_executor(self._executor, model.run, None, {entry.input: x})
        return Response(scores.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, _temp_dir=TEMPORARY, object_store_memory=100 << 20)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Peer.bind(manifest.read()), route_prefix="/")
    signal.pause()
