"""Writes clockwork/gateway/protocol/NAME_pb2.py from each NAME.proto there.

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


def header(source: Path) -> str:
    """The first line of what was made of a source, by which a test sees whether it is current."""
    return f"# Made by `make proto` from {source.name}, sha256 {hashlib.sha256(source.read_bytes()).hexdigest()}\n"


def main() -> None:
    sources = sorted(PROTOCOL.glob("*.proto"))
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        python = str(Path(directory) / "bin" / "python")
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", COMPILER], check=True
        )
        for source in sources:
            subprocess.run(
                [
                    python,
                    "-m",
                    "grpc_tools.protoc",
                    f"-I{PROTOCOL}",
                    f"--python_out={directory}",
                    source.name,
                ],
                check=True,
            )
            name = f"{source.stem}_pb2.py"
            text = (Path(directory) / name).read_text(encoding="utf-8")
            # A pool of its own: in the common one, another package's messages of the same names would clash.
            text = text.replace("_descriptor_pool.Default()", "_descriptor_pool.DescriptorPool()")
            (PROTOCOL / name).write_text(header(source) + text, encoding="utf-8")


if __name__ == "__main__":
    main()
