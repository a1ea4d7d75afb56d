"""What lies on disk and travels between rooms: packages, prepared models, profiles, programs."""
