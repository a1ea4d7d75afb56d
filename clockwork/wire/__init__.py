"""What processes say to each other: messages, their bytes, sockets, tensors, keys and roles."""
