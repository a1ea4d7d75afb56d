// Memory from the kernel, on huge pages where possible, and touched before it is used.
#pragma once

#include <sys/mman.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace clockwork::device {

inline constexpr std::size_t SMALL_PAGE_BYTES = 4096;
inline constexpr std::size_t HUGE_PAGE_BYTES = std::size_t(2) << 20;

inline std::size_t round_up(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }

// Touches pages, so that later accesses do not fault. Returns false, see errno, if there is no memory.
inline bool populate(char* base, std::size_t bytes) {
    if (madvise(base, bytes, MADV_POPULATE_WRITE) == 0)
        return true;
    if (errno != EINVAL)  // EINVAL comes from kernels before 5.14
        return false;
    for (std::size_t at = 0; at < bytes; at += SMALL_PAGE_BYTES)
        static_cast<volatile char*>(base)[at] = 0;
    return true;
}

// Zeroed address space, aligned to huge pages and to be released by munmap(). bytes: a multiple of
// SMALL_PAGE_BYTES. Null if none is left.
inline char* map_untouched(std::size_t bytes) {
    void* found = mmap(nullptr, bytes + HUGE_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED)
        return nullptr;
    char* base = static_cast<char*>(found);
    const std::size_t skip =
        (HUGE_PAGE_BYTES - reinterpret_cast<std::uintptr_t>(base) % HUGE_PAGE_BYTES) % HUGE_PAGE_BYTES;
    if (skip != 0)
        munmap(base, skip);
    munmap(base + skip + bytes, HUGE_PAGE_BYTES - skip);
    base += skip;
    madvise(base, bytes, MADV_HUGEPAGE);  // advice only: a kernel without huge pages may decline it
    return base;
}

// Like map_untouched(), with every page touched.
inline char* map_touched(std::size_t bytes) {
    char* base = map_untouched(bytes);
    if (base != nullptr && !populate(base, bytes)) {
        munmap(base, bytes);
        return nullptr;
    }
    return base;
}

}  // namespace clockwork::device
