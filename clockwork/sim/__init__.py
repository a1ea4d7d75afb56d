"""Simulation: virtual time, network, workloads."""

from clockwork.sim.world import Closed, Cluster, Errors, Histogram, Open, Report, Tally, WorkerShape, simulate

__all__ = ["Closed", "Cluster", "Errors", "Histogram", "Open", "Report", "Tally", "WorkerShape", "simulate"]
