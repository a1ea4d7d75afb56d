"""A simulated cluster with an attacker, on which the takeover protocol is checked."""
