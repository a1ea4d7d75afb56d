"""Attacks of one hostile peer on a cluster, a module for each kind; see bench/attacks/__main__.py."""
