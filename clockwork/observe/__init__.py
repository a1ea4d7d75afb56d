"""A cluster's present and history, from its numbers and its scheduler's steps: kept, drawn, compared and explained."""
