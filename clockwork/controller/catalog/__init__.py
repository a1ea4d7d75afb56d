"""What is registered: records as values, and how they lie on disk."""
