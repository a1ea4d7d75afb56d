"""Asking a cluster: a client that blocks, one for asyncio, and one for a loop's thread."""

from clockwork.client.blocking import Client

__all__ = ["Client"]
