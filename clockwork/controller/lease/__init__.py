"""The lease of controllers that share a catalogue in PostgreSQL: one of them is active."""
