"""What the gateway's HTTP server offers, as an OpenAPI document."""

from __future__ import annotations

from typing import Any


def document(*, with_token: bool) -> dict[str, Any]:
    return {"openapi": "3.0.3", "info": {"title": "clockwork", "version": "1"}, "paths": {}}
