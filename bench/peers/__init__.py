"""Compares Clockwork with the servers that a user would pick instead: same models, arrivals and deadlines."""
