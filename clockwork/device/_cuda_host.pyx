# cython: language_level=3, cdivision=True
"""Where a CUDA device copies weights from: pinned memory, for good or by FETCH and DROP, and over which link.
See csrc/device/host_pages.h."""


cdef class Link:
    """What the devices of one process share to be loaded over; see csrc/device/link.h."""


cdef class HostPages:
    """Pinned pages for weights, shared by the devices of one process.

    memory: of page_count pages; the caller gives it back, when nobody uses this any more.
    """

    def __cinit__(self, PinnedBytes memory not None, int64_t page_bytes, int64_t page_count):
        self.memory = memory
        self.pages.assign(memory.data, page_bytes, page_count)

    @property
    def used_bytes(self):
        return self.pages.used_bytes()


cdef class HostCopy:
    """A model's weights in the host store, or the place that they have there when they are.

    page_bytes: of each page of the file, how much is weights. path: of the file. store: whose pages it takes. is_fixed:
    read() brings it, and it stays until abandon(); else it comes by FETCH and goes by DROP.
    """

    def __cinit__(self, list page_bytes, bytes path, HostPages store not None, bint is_fixed=False):
        self.copy.path = path
        self.store = store
        self.is_fixed = is_fixed
        for size in page_bytes:
            self.copy.add_page(NULL, size)

    def read(self):
        """Bring it from disk. Raises MemoryError where too few pages are free, and OSError."""
        cdef char[512] text
        cdef HostResult result
        with nogil:
            result = self.store.pages.fetch(self.copy, text, sizeof(text))
        if result != HOST_OK:
            raise (MemoryError if result == HOST_FULL else OSError)((<bytes>text).decode(errors="replace"))

    @property
    def is_fetched(self):
        """Whether pages are its that only a DROP gives back."""
        return not self.is_fixed and self.store.pages.state(self.copy) != COPY_ABSENT

    def abandon(self):
        """Give its pages back, whoever waits for them; once they are read, if they are being read."""
        self.store.pages.abandon(self.copy)
