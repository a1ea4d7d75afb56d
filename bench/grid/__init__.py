"""The policy benchmark: goodput of every policy in many cells, against upper bounds (README.md)."""
