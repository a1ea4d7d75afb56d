"""The flight recorder's files, and the threads that follow its ring."""
