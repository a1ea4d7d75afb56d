"""GET /metrics, on a port of its own."""

from __future__ import annotations

from aiohttp import web

from clockwork.errors import InvalidInput
from clockwork.gateway.errors import NotFound
from clockwork.gateway.http import GET, PROTOCOL, HttpServer, Path
from clockwork.gateway.metrics import CONTENT_TYPE, PARTS, MetricsSource
from clockwork.gateway.security import Tokens
from clockwork.gateway.service import InferenceService
from clockwork.gateway.settings import GatewaySettings


class MetricsServer(HttpServer):
    """Serves /metrics.

    Requests need the client's token, if there is any; Prometheus can be configured to send it.
    """

    def __init__(
        self, service: InferenceService, settings: GatewaySettings, tokens: Tokens, seats_max: int,
        source: MetricsSource,
    ) -> None:  # fmt: skip
        super().__init__(service, settings, tokens, seats_max)
        self._source = source

    def _find(self, path: list[str]) -> Path:
        if path[1:] != ["metrics"]:
            raise NotFound(f"there is no {'/'.join(path)[:200]!r} on this port, only /metrics")
        return METRICS

    async def _metrics(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        of = request.query.get("of", "")
        if of and of not in PARTS:
            raise InvalidInput(f"of is {' or '.join(PARTS)}, not {of[:40]!r}")
        headers = {"Content-Type": CONTENT_TYPE, "Vary": "Accept-Encoding"}
        with self._service.counters.uncounted(PROTOCOL):
            if takes_gzip(request.headers.get("Accept-Encoding", "")):
                text = await self._source.gzipped(of)
                headers["Content-Encoding"] = "gzip"
            else:
                text = await self._source.text(of)
        return web.Response(body=text, headers=headers)


def takes_gzip(accepted: str) -> bool:
    """Whether the value of an Accept-Encoding header names gzip with a weight above 0."""
    for encoding in accepted.lower().split(","):
        name, _, weight = encoding.partition(";")
        if name.strip() in ("gzip", "x-gzip"):
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


METRICS = Path("/metrics", MetricsServer._metrics, GET)
