"""Bounds of model repositories: their folders, configurations, loads and listings."""

from __future__ import annotations

REPOSITORY_ORIGIN = "repository:"
"""The prefix of a model's origin if it was registered from repositories; their locations follow."""

# ----- repository/folders.py -------------------------------------------------------------------

FOLDERS_MAX = 100_000  # Most models of a repository
FILES_MAX = 10_000  # Most files of a version

# ----- repository/keeper.py -----------------------------------------------------------------------

REGISTERING_MAX = 16  # Versions that are registered at once, so that their disk writes overlap
FAILED_SHOWN = 8  # Failed models of its repositories that a gateway names at the end of its start
LOADING_MAX = 4  # Calls to load a model of a repository that are carried out at once; further calls wait

# ----- repository/triton_config.py ----------------------------------------------------------------

LOADED_PATH_CHARS_MAX = 500  # Longest path of a file that a load brings
OVERRIDES_MAX = 1_000  # Models whose last load has brought a configuration of its own
LABEL_CHARS_MAX = 1_000  # Longest name of a class
CONFIG_BYTES_MAX = 1 << 20
NESTING_MAX = 64  # Deepest nesting of brackets; protobuf's reader takes stack for each level

# ----- repository/remote.py -----------------------------------------------------------------------

FETCHES_AT_ONCE = 2  # Versions of a repository that are fetched at once

RETRY_MAX_S = 300.0
"""Longest pause before a failed source is asked again. The first pause is the poll interval; each doubles the
last."""

FIRST_PAUSE_S = 1.0
"""Longest pause between the first two listings of a repository; versions take effect when both agree."""

READER_IDLE_S = 30.0  # Pause between listings from which on the reader's process, of some 100 MB, is ended
