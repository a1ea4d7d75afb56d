"""Triton model repositories: folders are followed, and the cluster's models made to agree with them."""
