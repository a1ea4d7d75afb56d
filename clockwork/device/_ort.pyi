"""Types of the binding to ONNX Runtime, for checkers."""

class Runtime:
    version: str
    path: str

def count_heap(library: bytes) -> bool: ...
def without_source(message: str) -> str:
    """ONNX Runtime's message without the places in its source: path, line and signature of a function, which may be longer than
    the cause that follows them."""
    ...

def runtime() -> Runtime: ...
