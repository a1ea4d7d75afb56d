# cython: language_level=3, cdivision=True
"""Where a CUDA device copies weights from: pinned memory, for good or by FETCH and DROP, and over which link.
See csrc/device/host_pages.h."""


cdef class Link:
    """What the devices of one process share to be loaded over; see csrc/device/link.h."""


cdef class HostPages:
    """The pages of a host store with a budget, shared by the devices of one process.

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

    page_bytes: of each page of the file, how much is weights. path: of the file. store: where it is fetched into;
    None if it lies in ``memory``, in pages of ``stride`` bytes one after the other, which the caller does not give back
    before.
    """

    def __cinit__(self, list page_bytes, bytes path=b"", HostPages store=None, PinnedBytes memory=None,
                  int64_t stride=0):
        cdef int64_t page
        self.copy.path = path
        self.store = store
        self.memory = memory
        if store is None:
            self.copy.state = COPY_HELD
        for page in range(len(page_bytes)):
            self.copy.add_page(memory.data + page * stride if store is None else NULL, page_bytes[page])

    @property
    def is_fetched(self):
        """Whether pages of a host store with a budget are its."""
        return self.store is not None and self.store.pages.state(self.copy) != COPY_ABSENT

    def abandon(self):
        """Give those back, whoever waits for them; once they are read, if they are being read."""
        if self.store is not None:
            self.store.pages.abandon(self.copy)
