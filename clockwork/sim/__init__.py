"""Simulation: virtual time, network, workloads."""

from clockwork.sim.world import Closed, Cluster, Errors, Histogram, Open, Report, Tally, simulate

__all__ = ["Closed", "Cluster", "Errors", "Histogram", "Open", "Report", "Tally", "simulate"]
