"""The messages of clients and workers: who is let in, and what each message leads to."""
