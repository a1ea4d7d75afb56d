"""Models from remote places: object stores (s3, gs, az), the Hugging Face Hub and HTTP servers; and object
stores in which a controller keeps packages.

A source lists files and sends them; nothing is written to it. A process of its own (reader.py) talks to it by
fsspec and the libraries behind that. So no library, however slow or broken its source is, runs in a process
that serves.

    location.py   a source's URL, and the library that it needs
    reading.py    requests to the reader's process: list, describe, fetch; with bounds of time and bytes
    reader.py     the reader's process
    objects.py    packages in an object store, which are written too, by such processes
    cache.py      fetched files on the local disk
"""
