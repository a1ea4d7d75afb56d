// The memory in which models compute: an allocator that every session of the process shares.
//
// Memory that an execution takes is charged to its account, which has a limit; the sum of all accounts has a
// limit, too. Beyond either limit the request fails: the runtime gets an exception, as it expects (see
// workspace.cpp).
//
// Good fit over segregated free lists (TLSF): allocation and release take constant time, neighbours merge at
// once, and touched memory stays touched, so that a run after the first does not fault. Payloads are
// multiples of 64 bytes and aligned to 64. Regions come from the kernel populated, on huge pages where
// possible. Safe to call from any thread.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>

#include "device/ort_api.h"

namespace clockwork::device {

// The account of executions. It lives as long as the process, because a session may keep a block for good.
struct MemoryAccount {
    std::size_t limit_bytes = 0;
    std::size_t used_bytes = 0;  // bytes of the workspace
    // bytes of the heap, see device/heap.h; negative where it freed blocks of older runs
    std::int64_t heap_bytes = 0;
    // whether it executes now; only the thread that is charged uses this and heap_bytes
    bool counts_heap = false;
    std::size_t peak_bytes = 0;          // largest sum of workspace and heap
    std::size_t refused_bytes = 0;       // bytes requested when the limit was reached; 0: it was not reached
    std::size_t beside_bytes = 0;        // bytes that the account had at that moment
    std::atomic<bool> is_ending{false};  // tells operators that the execution is to end; any thread sets it

    std::size_t taken_bytes() const {
        return __atomic_load_n(&used_bytes, __ATOMIC_RELAXED) +
               static_cast<std::size_t>(heap_bytes > 0 ? heap_bytes : 0);
    }

    const OrtApi* api = nullptr;
    OrtRunOptions* options = nullptr;  // options of the execution's runs

    bool may_take(std::size_t bytes) const {
        const std::size_t taken = taken_bytes();
        return taken <= limit_bytes && bytes <= limit_bytes - taken;
    }

    void refuse(std::size_t bytes) {
        if (refused_bytes != 0)
            return;
        refused_bytes = bytes;
        beside_bytes = taken_bytes();
    }

    // Returns whether the execution may take so many bytes more of the heap. Beyond the limit, it ends before
    // its next node. Small requests go a little further, because the runtime makes some where it cannot bear
    // an exception (when it begins the run of a subgraph, or formats an error); large ones come from kernels
    // and fail.
    bool claim_heap(std::size_t bytes) {
        if (may_take(bytes))
            return true;
        refuse(bytes);
        is_ending.store(true, std::memory_order_relaxed);
        ort_release_status(api, ort_terminate(api, options));
        return bytes <= HEAP_PIECE_BYTES && taken_bytes() + bytes <= limit_bytes + HEAP_MARGIN_BYTES;
    }

    void take_heap(std::int64_t bytes) {
        heap_bytes += bytes;
        const std::size_t taken = taken_bytes();
        peak_bytes = taken > peak_bytes ? taken : peak_bytes;
    }

private:
    static constexpr std::size_t HEAP_PIECE_BYTES = 4 << 20, HEAP_MARGIN_BYTES = 16 << 20;
};

// Charges the allocations of this thread to the account from now on; null: to none.
void charge(MemoryAccount* account);

// The account of the execution on this thread; null: none executes.
MemoryAccount* counting_account();

class Workspace : public OrtAllocator {
public:
    // info: describes CPU memory to the runtime and must outlive the workspace. limit_bytes: bound on all
    // memory that is given out.
    Workspace(const OrtMemoryInfo* info, std::size_t limit_bytes);
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;

    // Memory charged to an account (null: to none). Returns null if there is none left, or a limit is
    // reached.
    void* allocate(MemoryAccount* account, std::size_t bytes);
    void release(void* pointer);

    // Returns to the kernel every region in which nothing is given out.
    void trim();

    const OrtMemoryInfo* info() const { return info_; }
    std::size_t reserved_bytes() const { return reserved_bytes_; }  // bytes taken from the kernel
    std::size_t used_bytes() const { return used_bytes_; }          // bytes given out
    std::size_t limit_bytes() const { return limit_bytes_; }        // bound on the bytes given out

private:
    static constexpr int LEVELS = 48;
    static constexpr int STEPS = 8;

    struct Block;
    struct Region;
    struct Bin {
        int level;
        int step;
    };

    static Bin bin_of(std::size_t bytes);
    static Block* after(Block* block);
    void insert(Block* block);
    void remove(Block* block);
    Block* find(std::size_t bytes);
    Block* grow(std::size_t bytes);

    const OrtMemoryInfo* info_;
    std::mutex mutex_;
    std::uint64_t levels_ = 0;  // bit sets: the levels that have a free block, and the steps of each level
    std::uint8_t steps_[LEVELS] = {};
    Block* bins_[LEVELS][STEPS] = {};
    Region* regions_ = nullptr;
    std::size_t reserved_bytes_ = 0;
    std::size_t used_bytes_ = 0;
    std::size_t limit_bytes_;
};

}  // namespace clockwork::device
