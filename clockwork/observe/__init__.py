"""A cluster's history, from what its scheduler was told and what it ordered: kept, drawn, compared and explained."""
