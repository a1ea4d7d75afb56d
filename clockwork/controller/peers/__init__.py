"""What is known of clients and workers: who may connect, how many, and what their clocks say."""
