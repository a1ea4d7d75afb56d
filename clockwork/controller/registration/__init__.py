"""Registration of models: the table of all versions, and the events of clients, workers and storage."""
