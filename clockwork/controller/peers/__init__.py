"""Clients and workers: their rights, their number and the workers' clocks."""
