"""Communication between processes: messages and their encoding, sockets, tensors, keys and roles."""
