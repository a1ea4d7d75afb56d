"""Bounds of preparation: what is measured, for how long, how often."""

from __future__ import annotations

# ----- models/measure.py -----------------------------------------------------------------------

BATCH_MAX = 16
"""The largest batch that is tried, unless the user asks for another bound."""

POINT_SECONDS = 0.25
"""Time for one point of a profile; a slow model gets RUNS_MIN runs whatever they take."""

PROFILE_SECONDS = 2.0
"""No further batch size is begun after this."""

COMPARE_SECONDS = 2.0
"""No further batch size is begun after this when two holdings are compared."""

COMPARE_NS = 400_000_000
"""No batch is compared of which one execution is expected to take longer."""

PAIRS_MIN = 5
RUNS_MIN = 3
RUNS_MAX = 50
THREADS_MAX = 256
"""Threads of a device that are thought possible."""

POOL_BYTES = 1 << 20
"""Workspace and slots that a CUDA device begins with here; a model has them grow."""

LOADS_MIN = 3
LOADS_MAX = 10

# ----- models/images.py ------------------------------------------------------------------------

SIDE_MAX = 16_384
"""The most pixels of one side of an image that metadata or an image file may ask for."""

# ----- models/layout.py ------------------------------------------------------------------------

OPEN_RUNS_MAX = 512
"""Runs that are looked at for a small tensor: first-fit must not be quadratic in a model's tensors."""

# ----- models/onnx_import.py -------------------------------------------------------------------

EXAMPLES_MAX = 64
"""Example inputs beyond these are not looked at."""

EXAMPLES_BYTES_MAX = 1 << 30
"""All example inputs of a package, unpacked."""

GRAPH_DEPTH_MAX = 64
"""Nesting of If/Loop/Scan bodies; ONNX Runtime recurses over them."""

# ----- models/prepare.py -----------------------------------------------------------------------

KEPT_SHARE_MAX = 0.1
KEPT_BYTES_MIN = 64 << 10
"""A program that keeps more weights than both inside costs memory that no page counts: then packed is
better, if it works."""

EXTERNAL_BYTES = 1_500_000_000
"""Models beyond this are optimised into a file with external data: protobuf ends at 2 GB."""

REFERENCE_SETS = 4
"""Examples of which the answers are compared."""

PROFILED_SHAPES = 4
"""Different input shapes among the examples that are profiled."""

LEFTOVER_SECONDS = 86_400
"""Temporary directories older than this belong to a process that died."""

# ----- models/prepare_program.py ---------------------------------------------------------------

CHECKS_RUN_MAX = 4
"""Checks of a package that are run on the device."""

# ----- models/inputs.py ------------------------------------------------------------------------

GUESS_SECONDS = 20.0
"""Guessing dimensions gives up after this; one try of a large model takes a second."""

# ----- models/compile/interpret.py -------------------------------------------------------------

CONSTANT_INDICES_MAX = 8
"""A Gather by so many constant indices becomes slices; by more, it reads them from memory."""

KNOWN_MAX = 256
"""Elements of a tensor that may say a shape."""
