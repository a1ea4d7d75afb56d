"""Clockwork: a serving system for deep-learning models whose every action is planned."""

__version__ = "0.1.0"
