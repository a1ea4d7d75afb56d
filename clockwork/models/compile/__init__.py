"""Compiles ONNX files to program packages: see clockwork.models.compile.compiler."""
