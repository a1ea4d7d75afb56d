# cython: language_level=3, cdivision=True
"""Where a CUDA device copies weights from: pinned memory, for good or by FETCH and DROP, and over which link. See csrc/device/host_pages.h."""

from libc.stdlib cimport calloc, free


cdef class Link:
    """What the devices of one process share to be loaded over; see csrc/device/link.h."""

    def __cinit__(self):
        cw_link_init(&self.link)

    def __dealloc__(self):
        cw_link_free(&self.link)


cdef class HostPages:
    """The pages of a host store with a budget, shared by the devices of one process.

    address: pinned memory of page_count pages, which is the caller's and outlives this.
    """

    def __cinit__(self, size_t address, int64_t page_bytes, int64_t page_count):
        if cw_host_init(&self.host, <char*>address, page_bytes, page_count):
            raise MemoryError
        self.is_open = True

    def __dealloc__(self):
        if self.is_open:
            cw_host_free(&self.host)

    @property
    def used_bytes(self):
        cw_host_lock(&self.host)
        cdef int64_t pages = self.host.page_count - self.host.free_count
        cw_host_unlock(&self.host)
        return pages * self.host.page_bytes


cdef class HostCopy:
    """A model's weights in the host store, or the place that they have there when they are.

    page_bytes: of each page of the file, how much is weights. path: of the file. store: where it is fetched into;
    None if it lies at ``address``, in pages of ``stride`` bytes one after the other, which the caller keeps for it.
    """

    def __cinit__(self, list page_bytes, bytes path=b"", HostPages store=None, size_t address=0, int64_t stride=0):
        cdef int64_t page
        self.path = path
        self.copy.path = self.path
        self.copy.page_count = len(page_bytes)
        self.copy.pages = <char**>calloc(len(page_bytes) + 1, sizeof(char*))
        self.copy.page_bytes = <int64_t*>calloc(len(page_bytes) + 1, sizeof(int64_t))
        if self.copy.pages == NULL or self.copy.page_bytes == NULL:
            raise MemoryError
        for page in range(self.copy.page_count):
            self.copy.page_bytes[page] = page_bytes[page]
        self.store = store
        if store is None:
            self.copy.state = CW_HOST_HELD
            for page in range(self.copy.page_count):
                self.copy.pages[page] = <char*>address + page * stride

    def __dealloc__(self):
        free(self.copy.pages)
        free(self.copy.page_bytes)

    @property
    def is_fetched(self):
        """Whether pages of a host store with a budget are its."""
        return self.store is not None and cw_host_look(&self.store.host, &self.copy) != CW_HOST_ABSENT

    def abandon(self):
        """Give those back, whoever waits for them; once they are read, if they are being read."""
        if self.store is not None:
            cw_host_lock(&self.store.host)
            cw_host_abandon(&self.store.host, &self.copy)
            cw_host_unlock(&self.store.host)
