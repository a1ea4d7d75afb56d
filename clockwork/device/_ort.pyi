"""Types of the binding to ONNX Runtime, for checkers."""

class Runtime:
    version: str
    path: str

def count_heap(library: bytes) -> bool: ...
def runtime() -> Runtime: ...
