"""The flight recorder's files, and what follows it as it is written."""
