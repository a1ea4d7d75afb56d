"""Messages of clients and workers: the admission of peers, and the handling of each message."""
