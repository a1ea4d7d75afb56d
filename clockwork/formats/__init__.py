"""Formats on disk and between processes: packages, prepared models, profiles, programs."""
