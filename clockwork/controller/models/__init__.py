"""A version of a model by itself: where it is in its life, and what workers have said of it."""
