"""Types of the binding to ONNX Runtime, for checkers."""

class Runtime:
    version: str
    path: str

def count_heap(library: bytes) -> bool: ...
def without_source(message: str) -> str:
    """Remove the source locations from a message of ONNX Runtime.

    A location has a path, a line and a function's signature, and may be longer than the cause that follows
    it."""
    ...

def runtime() -> Runtime: ...
