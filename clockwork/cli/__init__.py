"""The command line."""

from clockwork.cli.root import main

__all__ = ["main"]
