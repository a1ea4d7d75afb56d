"""Where a CUDA device copies weights from: pinned memory, for good or by FETCH and DROP."""

from libc.stdint cimport int64_t

cdef extern from "device/host_pages.h" nogil:
    enum cw_host_state:
        CW_HOST_ABSENT
        CW_HOST_FETCHING
        CW_HOST_ABANDONED
        CW_HOST_HELD
    enum cw_host_result:
        CW_HOST_OK
        CW_HOST_FULL
        CW_HOST_FAILED
        CW_HOST_IN_USE
        CW_HOST_NOT_HELD
    ctypedef struct cw_host:
        int64_t page_bytes
        int64_t page_count
        int64_t free_count
    ctypedef struct cw_host_copy:
        cw_host_state state
        const char* path
        int64_t page_count
        char** pages
        int64_t* page_bytes
    int cw_host_init(cw_host*, char* base, int64_t page_bytes, int64_t page_count)
    void cw_host_free(cw_host*)
    void cw_host_lock(cw_host*)
    void cw_host_unlock(cw_host*)
    void cw_host_abandon(cw_host*, cw_host_copy*)
    cw_host_result cw_host_fetch(cw_host*, cw_host_copy*, char* text, size_t text_bytes)
    cw_host_result cw_host_drop(cw_host*, cw_host_copy*)
    void cw_host_pin(cw_host*, cw_host_copy*, int loads)
    cw_host_state cw_host_look(cw_host*, const cw_host_copy*)

cdef extern from "device/link.h" nogil:
    ctypedef struct cw_link:
        pass
    void cw_link_init(cw_link*)
    void cw_link_free(cw_link*)
    void cw_link_take(cw_link*)
    void cw_link_leave(cw_link*)

cdef class Link:
    cdef cw_link link

cdef class HostPages:
    cdef cw_host host
    cdef bint is_open

cdef class HostCopy:
    cdef cw_host_copy copy
    cdef HostPages store  # None: it is there for good
    cdef bytes path
