"""Simulation: virtual time, network, workloads."""
