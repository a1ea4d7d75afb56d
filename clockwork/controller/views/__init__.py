"""Answers about the state of a controller; queries change nothing."""
