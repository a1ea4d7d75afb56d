"""Requests outside their SLOs at half of the capacity of the paper's cluster, counted one by one."""
