"""Clients of a cluster: blocking, for asyncio, and on an event loop's own thread."""

from clockwork.client.blocking import Client

__all__ = ["Client"]
