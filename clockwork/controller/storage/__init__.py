"""The thread that reads and writes files, and the repair of damaged packages."""
