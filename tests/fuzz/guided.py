"""Runs a target under atheris: ``python -m tests.fuzz.guided <target> <libFuzzer's options and corpora>``."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["clockwork"]):  # before any other import of clockwork
    from tests.fuzz.targets import TARGETS


def main() -> None:
    target = TARGETS[sys.argv[1]]

    def run(data: bytes) -> None:
        target(data)

    atheris.Setup([sys.argv[0], *sys.argv[2:]], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
