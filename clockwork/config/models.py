"""Bounds of preparation: of measurements, comparisons and files."""

from __future__ import annotations

import os

# ----- models/lengths.py -----------------------------------------------------------------------

LENGTH_SECONDS = 0.04  # Time for timing executions at a length class of a model, in batches of one size
LENGTHS_TIMED = 16  # Lengths at which a model is timed whose lengths share batches: the smallest classes

# ----- models/fine_tunes.py --------------------------------------------------------------------

FINE_TUNE_BYTES_MAX = 64 << 20
"""Largest file that is prepared as a fine-tune: its preparation takes a few times as much memory."""

REFERENCE_NS_MAX = 1_000_000_000
"""Longest execution of an original graph without optimisation that serves as a reference: well below the
limit of an execution."""

PLACES_MAX = (1 << 24) - 1
"""Most places of weights that are followed: as many integers as float32 can express."""

PIECES_MAX = 64  # Most pieces in which a padded weight is copied

SKELETON_BYTES_MAX = 1 << 20  # Largest file without its weights of which a preparation process keeps a copy
ARCHITECTURES_MAX = 256  # Architectures that a preparation process remembers
TEMPLATES_MAX = 64  # Architectures of which it keeps sessions, and
TEMPLATES_BYTES_MAX = 256 << 20  # the places of their weights: at most as many bytes as the prepared models

# ----- models/measure.py -----------------------------------------------------------------------

BATCH_MAX = 16  # Largest batch that is measured, unless the user asks for another bound
BATCH_GAIN = 1.02  # Factor by which a larger batch must raise throughput over the last size that raised it
POINT_SECONDS = 0.25  # Time for a point of a profile; a slow model gets RUNS_MIN runs whatever they take
PROFILE_SECONDS = 2.0  # Time after which no further batch size is profiled
COMPARE_SECONDS = 2.0  # Time after which no further batch size is measured when two holdings are compared
COMPARE_NS = 400_000_000  # Expected time of an execution beyond which its batch is not compared
PAIRS_MIN = 5
RUNS_MIN = 3
RUNS_MAX = 50
THREADS_MAX = 256  # Most threads of a device
THREADS_ROUNDS = (5, 50)  # Least and most rounds in which executions of several threads are timed in turn
THREADS_FROM_NS = 10_000_000  # Time of an execution from which a preparation times it with more threads, too
THREADS_TIMED_MAX = 8  # Most threads that a preparation tries
LOADS_MIN = 3
LOADS_MAX = 10

# ----- models/images.py ------------------------------------------------------------------------

SIDE_MAX = 16_384  # Most pixels of a side of an image that metadata or an image file may ask for

# ----- models/layout.py ------------------------------------------------------------------------

OPEN_RUNS_MAX = 512
"""Runs that first-fit tries for a small tensor: it must not be quadratic in a model's tensors."""

# ----- models/onnx_import.py -------------------------------------------------------------------

EXAMPLES_MAX = 64  # Example inputs that are used; further ones are ignored
EXAMPLES_BYTES_MAX = 1 << 30  # Bytes of all example inputs of a package, unpacked
GRAPH_DEPTH_MAX = 64  # Deepest nesting of If/Loop/Scan bodies; ONNX Runtime recurses over them
OPTIONAL_INPUTS_MAX = 64  # Most optional inputs of a model

OPTIONAL_BYTES_MAX = 64
"""Bytes of an optional input: its value is part of the shape by which requests are queued and timed."""

OPTIONAL_RANK_MAX = 8  # Most dimensions of an optional input

# ----- models/prepare.py -----------------------------------------------------------------------

KEPT_SHARE_MAX = 0.1
KEPT_BYTES_MIN = 64 << 10
"""A program with more constant weights than KEPT_BYTES_MIN and this share of all weights costs memory that no
page counts: then the packed holding is preferred, if it works."""

EXTERNAL_BYTES = 1_500_000_000
"""Size of models beyond which they are optimised into a file with external data: protobuf ends at 2 GB."""

REFERENCE_SETS = 4  # Examples whose answers are compared
PROFILED_SHAPES = 4  # Different input shapes of the examples that are profiled
LEFTOVER_SECONDS = 86_400  # Age of temporary directories beyond which they belong to a process that died

# ----- models/samples.py -----------------------------------------------------------------------

TEXT_SIZES = (64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20)
JPEG_SIZES = (16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20)
"""Bytes of the texts, and work of the images (csrc/jpeg.h), with which a model is timed. A request with
strings between two of these sizes is predicted to take the time of the larger size, until similar requests
have been executed."""

JPEG_PIXELS_MAX = 1 << 25
"""Pixels of an image that is decoded, if its model does not say another bound: a small file may hold very
many."""

SAMPLE_SECONDS = 0.08  # Time for timing executions with strings of one size, in batches of one size
SAMPLES_NS = 500_000_000  # Duration of an execution beyond which no larger strings are timed

# ----- models/tokenizers.py --------------------------------------------------------------------

TOKENIZER_PROBES = 100
"""Texts of random characters, and as many of a vocabulary's tokens, with which a tokenizer is compared with
its library's."""

# ----- models/trials.py ------------------------------------------------------------------------

CHECKS_RUN_MAX = 4  # Checks of a package that run on the device

# ----- models/inputs.py ------------------------------------------------------------------------

GUESS_SECONDS = 20.0  # Time after which guessing dimensions gives up; a try of a large model takes a second

# ----- models/compile/interpret.py -------------------------------------------------------------

CONSTANT_INDICES_MAX = 8
"""Constant indices up to which a Gather becomes slices; with more, it reads them from memory."""

FOLDED_MAX = 5_000
"""Operators on small constants that are computed for a proof about rows, each in about 0.1 ms; the others are
not known."""

FOLLOWED_RANK_MAX = 64
"""Most dimensions of a tensor that is followed; an operator may make more than are served."""

BODY_TURNS_MAX = 4  # Most passes over a loop's body until the knowledge of its state no longer changes

FOLLOWED_MAX = 100_000
"""Operators of a model that are followed, those in bodies of loops each time, until a proof about rows is
given up."""

DEGREE_MAX = 16  # Most open dimensions that are multiplied in a term of a size
TERMS_MAX = 64  # Most terms of a size that is computed from open dimensions
KNOWN_MAX = 256  # Most elements of a tensor whose values are tracked because it may be a shape

# ----- models/runtime.py -----------------------------------------------------------------------

PREPARATION_LONG_RUN_NS = 2_000_000_000
"""Duration of an execution during preparation beyond which the preparation is slow at once."""

# ----- models/trials.py ------------------------------------------------------------------------

TRIAL_FIRST_NS = 10_000_000
"""Time of a device that a worker asks for to execute a model, or load a page of it, for the first time."""

TRIAL_COPIES = 3
"""A model of fewer pages has each copied so often to time a LOAD of it; a larger one copies enough."""

TRIAL_CLAIMS_MAX = 20
"""Reservations in which the pages for a model's trial may still be in use, before the trial is given up."""

TRIAL_RUNS = 5
"""Executions of each batch size by which a model on a GPU is timed; the last of those to warm up is the first
of them."""

TRIAL_LONG_RUNS = 3
"""The same for a batch size that takes longer than a RESERVE for several executions; other work waits for
each."""

TRIAL_WARM, TRIAL_WARM_RUNS = 0.97, 20
"""Executions before those: until one takes more than this part of the one before, and at most so many."""


def bare_environment(**values: str) -> dict[str, str]:
    """Return the variables that every program needs, and ``values``, for a child process that must not depend
    on this process's environment."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
    return {**{name: os.environ[name] for name in kept if name in os.environ}, **values}
