"""Start of clusters, on this machine and on a Ray cluster."""
