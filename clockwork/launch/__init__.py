"""Starting clusters: on this machine, and on Ray's."""
