"""How models come, change and go: the table of all versions, and what clients, workers and storage do to it."""
