"""A compiled model on the CUDA device beside ONNX Runtime on the same card; see __main__.py."""
