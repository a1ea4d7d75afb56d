"""Services of the operating system: clock, limits, waiting."""
