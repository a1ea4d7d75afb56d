"""Writes clockwork/protocol/NAME_pb2.py from each NAME.proto there.

python tools/proto.py

The compiler is grpcio-tools, in an environment of its own, at the release below. Its output runs with the
protobuf of its own major version and of the next, so the compiler must be as old as the oldest protobuf of
users' clients.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

COMPILER = "grpcio-tools==1.72.2"
PROTOCOL = Path(__file__).resolve().parent.parent / "clockwork" / "protocol"


def header(source: Path) -> str:
    """Return the first line of a source's output, by which a test checks that the output is current."""
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
            # The output gets a descriptor pool of its own: in the common pool, messages of the same names in
            # another package would clash.
            text = text.replace("_descriptor_pool.Default()", "_descriptor_pool.DescriptorPool()")
            (PROTOCOL / name).write_text(header(source) + text, encoding="utf-8")


if __name__ == "__main__":
    main()
