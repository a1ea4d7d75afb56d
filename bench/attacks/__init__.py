"""What one hostile peer can take from a cluster; see bench/attacks/__main__.py. A module for each kind of attack."""
