"""Native code of tests: programs with sanitizers, the fake GPU driver, and an extension that shows parts of
the controller."""

from pathlib import Path

import clockwork

# The extension of the build under test: `make debug` has another extension, beside its own package.
__path__ = [str(Path(clockwork.__file__).resolve().parents[1] / "tests" / "native"), *__path__]
