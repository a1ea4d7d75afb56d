"""Writes clockwork/gateway/protocol/inference_pb2.py from inference.proto.

    python tools/proto.py

The compiler comes from grpcio-tools, in an environment of its own, at the release below and no newer: what it
writes runs with the protobuf of its own major version and of the next, so that the oldest one in use decides, which is
that of other people's clients.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

COMPILER = "grpcio-tools==1.72.2"
PROTOCOL = Path(__file__).resolve().parent.parent / "clockwork" / "gateway" / "protocol"
NAME = "inference"


def header(source: bytes) -> str:
    """The first line of what was made of a source, by which a test sees whether it is current."""
    return f"# Made by `make proto` from {NAME}.proto, sha256 {hashlib.sha256(source).hexdigest()}\n"


def main() -> None:
    source = PROTOCOL / f"{NAME}.proto"
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        python = str(Path(directory) / "bin" / "python")
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", COMPILER], check=True
        )
        made = Path(directory) / "made"
        made.mkdir()
        subprocess.run(
            [python, "-m", "grpc_tools.protoc", f"-I{PROTOCOL}", f"--python_out={made}", source.name],
            check=True,
        )  # fmt: skip
        for path in sorted(made.iterdir()):
            text = path.read_text(encoding="utf-8")
            # A pool of its own: in the common one, another package's messages of the same names would clash.
            text = text.replace("_descriptor_pool.Default()", "_descriptor_pool.DescriptorPool()")
            (PROTOCOL / path.name).write_text(header(source.read_bytes()) + text, encoding="utf-8")


if __name__ == "__main__":
    main()
