"""Bounds of model repositories: their folders, configurations, loads and listings."""

from __future__ import annotations

REPOSITORY_ORIGIN = "repository:"
"""How the origin of a model begins that was registered from repositories; their places follow."""

# ----- repository/folders.py -------------------------------------------------------------------

FOLDERS_MAX = 100_000
"""Most models of a repository."""

FILES_MAX = 10_000
"""Most files of a version."""

# ----- repository/keeper.py -----------------------------------------------------------------------

REGISTERING_MAX = 4
"""Versions that are registered at once: workers prepare them one by one in any case."""

FAILED_SHOWN = 8
"""Models that a gateway names of those of its repositories that could not be served at its start."""

LOADING_MAX = 4
"""Calls to load a model of a repository that are carried out at once; further ones wait."""

# ----- repository/triton_config.py ----------------------------------------------------------------

LOADED_PATH_CHARS_MAX = 500
"""The length of the path of a file that a load brings."""

OVERRIDES_MAX = 1_000
"""Models whose last load has brought a configuration of its own."""

LABEL_CHARS_MAX = 1_000
"""The length of a class's name."""

CONFIG_BYTES_MAX = 1 << 20

NESTING_MAX = 64
"""Deepest nesting of brackets: protobuf's reader takes the interpreter's stack for each level."""

# ----- repository/remote.py -----------------------------------------------------------------------

FETCHES_AT_ONCE = 2
"""Versions of a repository that are fetched at once."""

RETRY_MAX_S = 300.0
"""Longest pause before a source that failed is asked again; the first pause is the poll's, and each is twice the last."""

FIRST_PAUSE_S = 1.0
"""Longest pause between the first two listings of a repository, which must agree before anything is taken from it."""

READER_IDLE_S = 30.0
"""Pause between listings in which the reader's process, of some 100 MB, is not kept."""
