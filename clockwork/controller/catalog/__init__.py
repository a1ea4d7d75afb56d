"""Registered models: records as values, and their form on disk."""
