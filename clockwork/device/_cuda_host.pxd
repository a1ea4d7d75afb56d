"""Where a CUDA device copies weights from: pinned memory, for good or by FETCH and DROP."""

from libc.stdint cimport int64_t
from libcpp.string cimport string
from libcpp.vector cimport vector

from clockwork.device._cudriver cimport PinnedBytes

cdef extern from "device/host_pages.h" namespace "clockwork::device" nogil:
    enum CopyState "clockwork::device::CopyState":
        COPY_ABSENT "clockwork::device::CopyState::ABSENT"
        COPY_HELD "clockwork::device::CopyState::HELD"
    enum HostResult "clockwork::device::HostResult":
        HOST_OK "clockwork::device::HostResult::OK"
        HOST_FULL "clockwork::device::HostResult::FULL"
        HOST_IN_USE "clockwork::device::HostResult::IN_USE"
        HOST_NOT_HELD "clockwork::device::HostResult::NOT_HELD"
    cppclass CWeightsCopy "clockwork::device::WeightsCopy":
        CopyState state
        string path
        vector[char*] pages
        vector[int64_t] page_bytes
        void add_page(char* address, int64_t size) except +
        int64_t bytes()
    cppclass CHostPages "clockwork::device::HostPages":
        void assign(char* base, int64_t page_bytes, int64_t page_count) except +
        int64_t used_bytes()
        CopyState state(const CWeightsCopy&)
        void pin(CWeightsCopy&, int loads)
        HostResult fetch(CWeightsCopy&, char* text, size_t text_bytes)
        HostResult drop(CWeightsCopy&)
        void abandon(CWeightsCopy&)

cdef extern from "device/link.h" namespace "clockwork::device" nogil:
    cppclass CHostLink "clockwork::device::HostLink":
        void take()
        void leave()

cdef class HostLink:
    cdef CHostLink link

cdef class HostPages:
    cdef CHostPages pages
    cdef PinnedBytes memory  # keeps the memory of the pages alive

cdef class WeightsCopy:
    cdef CWeightsCopy copy
    cdef HostPages store  # the store that owns its pages
    cdef readonly bint is_fixed  # whether the copy stays as long as a device knows its model
