"""Workloads for simulate(): the names of clockwork.workloads."""

from clockwork.workloads import *  # noqa: F403
