"""Compares Clockwork with other servers that a user could choose: same models, arrivals and deadlines."""
