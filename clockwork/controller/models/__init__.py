"""A version of a model by itself: its state, and the workers' answers about it."""
