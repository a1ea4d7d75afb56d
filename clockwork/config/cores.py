"""Bounds of the division of a machine's cores into executors."""

from __future__ import annotations

# ----- scheduler/cores.py ----------------------------------------------------------------------

DIVISION_GAIN = 1.01
"""Factor by which the expected goodput with wide executors must exceed that of executors of one core."""

DIVISION_TIE = 1.0005
"""Factor by which a division's expected goodput must exceed that of one with fewer cores in wide executors.
"""

DIVISION_KEPT = 1.05
"""Factor by which a division's expected goodput must exceed that of the present one to replace it: the rates
of the last minute are not those of the next."""

DIVISION_PASSES = 24  # Most iterations by which the rates between two kinds of executors are found
LOSS_CHANGE_MIN = 1e-6  # Change of a loss below which they have been found
DIVISION_MARGIN = 0.05
"""Part of its time by which an execution may take longer: the scheduler refuses what would be late by that.
"""

DIVISION_DELAY_NS = 200_000  # Time of a request and its answer on their way, which is not the executors'
EXPONENT_MAX = 600.0  # Exponent from which a queue loses what exceeds its executors; exp(709) overflows
