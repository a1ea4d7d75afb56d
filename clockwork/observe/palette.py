"""The words and colours of outcomes and device states in every view: terminal, dashboard and plots.

The colours are Okabe and Ito's (https://jfly.uni-koeln.de/color/), which colour-blind people can tell apart.
No view relies on a colour alone: each state has a word, and in a terminal a sign, too.
"""

from __future__ import annotations

from typing import NamedTuple


class StateStyle(NamedTuple):
    """Name, colour and sign of a state. color: "#RRGGBB", for light and dark backgrounds. sign: one
    character."""

    word: str
    color: str
    sign: str


EXECUTING = StateStyle("executing", "#0072B2", "█")
LOADING = StateStyle("loading", "#E69F00", "▒")
IDLE_WITH_WORK = StateStyle("idle with work", "#D55E00", "░")
IDLE = StateStyle("idle", "#999999", "·")
DEVICE_LOOKS = (EXECUTING, LOADING, IDLE_WITH_WORK, IDLE)
"""States of a device. Idle with work: a request waited that the device could have served."""

ANSWERED = StateStyle("answered", "#009E73", "✓")
REFUSED = StateStyle("refused", "#E69F00", "-")
MISSED = StateStyle("missed", "#D55E00", "✗")
FAILED = StateStyle("failed", "#CC79A7", "!")
WAITING = StateStyle("waiting", "#56B4E9", "…")
ANSWER_LOOKS = (ANSWERED, REFUSED, MISSED, FAILED, WAITING)
"""Outcomes of a request. Answered means in time, which is goodput."""

MODEL_COLORS = ("#0072B2", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#E69F00")
"""Colours of the busiest models. Vermillion is kept for failures."""

OTHER_MODELS = StateStyle("other models", "#999999", "█")
"""The look of all models without a colour."""
