"""Views of a cluster's present and history: they record, draw, compare and explain its numbers and scheduler
steps."""
