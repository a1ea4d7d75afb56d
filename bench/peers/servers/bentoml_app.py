"""BentoML with one worker. The model and the limit of concurrent requests (0: none) come from the
environment.

Tensors travel as base64 within JSON.
"""

from __future__ import annotations

import base64
import os

import bentoml
import numpy as np
from session import session

LIMIT = int(os.environ["PEER_CONCURRENCY"])


@bentoml.service(workers=1, traffic={"max_concurrency": LIMIT} if LIMIT else {})
class Peer:
    def __init__(self) -> None:
        self._session = session(os.environ["PEER_MODEL"])

    @bentoml.api
    def infer(self, image: str) -> dict[str, str]:
        x = np.frombuffer(base64.b64decode(image), np.float32).reshape(1, 3, 64, 64)
        [scores] = self._session.run(None, {"image": x})
        return {"scores": base64.b64encode(scores.tobytes()).decode()}
