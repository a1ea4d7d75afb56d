"""The words and colours by which every view names what happens: terminal, dashboard and plots.

The colours are Okabe and Ito's (https://jfly.uni-koeln.de/color/), which people who cannot tell red from green can tell
apart. No view says anything by a colour alone: each has a word, and in a terminal a sign, too.
"""

from __future__ import annotations

from typing import NamedTuple


class Look(NamedTuple):
    """How something is named and drawn. color: "#RRGGBB", for light and dark backgrounds. sign: one character."""

    word: str
    color: str
    sign: str


EXECUTING = Look("executing", "#0072B2", "█")
LOADING = Look("loading", "#E69F00", "▒")
IDLE_WITH_WORK = Look("idle with work", "#D55E00", "░")
IDLE = Look("idle", "#999999", "·")
DEVICE_LOOKS = (EXECUTING, LOADING, IDLE_WITH_WORK, IDLE)
"""What a device may be doing. Idle with work: a request waited that it could have served."""

ANSWERED = Look("answered", "#009E73", "✓")
REFUSED = Look("refused", "#E69F00", "-")
MISSED = Look("missed", "#D55E00", "✗")
FAILED = Look("failed", "#CC79A7", "!")
WAITING = Look("waiting", "#56B4E9", "…")
ANSWER_LOOKS = (ANSWERED, REFUSED, MISSED, FAILED, WAITING)
"""What may become of a request. Answered: in time, which is goodput."""

MODEL_COLORS = ("#0072B2", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#E69F00")
"""Of the busiest models, where bars are coloured by model. Vermillion stays that of what goes wrong."""

OTHER_MODELS = Look("other models", "#999999", "█")
"""All the others."""
