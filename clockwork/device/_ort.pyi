"""Types of the binding to ONNX Runtime, for checkers."""

class Runtime:
    version: str
    path: str

def runtime() -> Runtime: ...
