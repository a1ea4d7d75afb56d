"""What the operating system gives a process: clock, limits, waiting."""
