"""Models from where they live: object stores (s3, gs, az), the Hugging Face Hub and HTTP servers.

A source lists files and gives them; nothing is written to it. What talks to it is a process of its own (reader.py), by
fsspec and the libraries behind that, so that no library, however slow or broken its source is, has a part in a process
that serves.

    location.py   a source's URL, and the library that it needs
    reading.py    asks the reader's process: list, describe, fetch; with bounds of time and bytes
    reader.py     the reader's process
    cache.py      what has been fetched, on the local disk
"""
