"""From an ONNX file to a program package: see clockwork.models.compile.package."""
