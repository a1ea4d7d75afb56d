# cython: language_level=3, cdivision=True
"""The source of a CUDA device's weights: pinned memory, permanent or by FETCH and DROP, and the link.

See csrc/device/host_pages.h."""


cdef class HostLink:
    """The link over which all devices of a process are loaded; see csrc/device/link.h."""


cdef class HostPages:
    """Pinned pages for weights, shared by the devices of one process.

    memory: has page_count pages; the caller frees it after the last use of this object.
    """

    def __cinit__(self, PinnedBytes memory not None, int64_t page_bytes, int64_t page_count):
        self.memory = memory
        self.pages.assign(memory.data, page_bytes, page_count)

    @property
    def used_bytes(self):
        return self.pages.used_bytes()


cdef class WeightsCopy:
    """The copy of a model's weights in the host store, present or not.

    page_bytes: the bytes of weights in each page of the file. path: the file. store: the owner of the pages.
    is_fixed: read() brings the weights, which stay until abandon(); otherwise FETCH brings and DROP frees
    them.
    """

    def __cinit__(self, list page_bytes, bytes path, HostPages store not None, bint is_fixed=False):
        self.copy.path = path
        self.store = store
        self.is_fixed = is_fixed
        for size in page_bytes:
            self.copy.add_page(NULL, size)

    def read(self):
        """Read the weights from disk. Raises OSError, and MemoryError if too few pages are free."""
        cdef char[512] text
        cdef HostResult result
        with nogil:
            result = self.store.pages.fetch(self.copy, text, sizeof(text))
        if result != HOST_OK:
            raise (MemoryError if result == HOST_FULL else OSError)((<bytes>text).decode(errors="replace"))

    @property
    def is_fetched(self):
        """Whether the copy has pages that only a DROP frees."""
        return not self.is_fixed and self.store.pages.state(self.copy) != COPY_ABSENT

    def abandon(self):
        """Free the pages at once, or at the end of a running read."""
        self.store.pages.abandon(self.copy)
