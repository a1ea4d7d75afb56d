// The memory in which models compute: one allocator that every session of the process shares.
//
// What an execution takes is charged to its account, which has a limit, and all of it together has one, too. Beyond
// either there is nothing; the runtime is told by an exception, which is what it expects (see workspace.cpp).
//
// Good fit over segregated free lists (TLSF): allocation and release take constant time, neighbours merge at once, and
// memory that was touched stays touched, so that a run after the first faults no page. Payloads are multiples of 64
// bytes and so aligned. Regions come from the kernel populated, and on huge pages where it has them. Safe to call from
// any thread.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>

#include "device/ort_api.h"

namespace clockwork::device {

// What one execution has taken. It lives as long as the process: a session may keep a block of it for good.
struct Account {
    std::size_t limit_bytes = 0;
    std::size_t used_bytes = 0;     // of the workspace
    std::int64_t heap_bytes = 0;    // of the heap, see device/heap.h; negative where it freed what older runs had left
    bool counts_heap = false;       // it executes now; only the thread that is charged uses this and heap_bytes
    std::size_t peak_bytes = 0;     // of both
    std::size_t refused_bytes = 0;  // what was asked for when the limit was reached; 0: it was not
    std::size_t beside_bytes = 0;   // what it had then
    std::atomic<bool> is_ending{false};  // the execution is to end, for operators to look at; any thread sets it

    std::size_t taken_bytes() const {
        return __atomic_load_n(&used_bytes, __ATOMIC_RELAXED) +
               static_cast<std::size_t>(heap_bytes > 0 ? heap_bytes : 0);
    }

    const OrtApi* api = nullptr;
    OrtRunOptions* options = nullptr;  // of its runs

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

    // Whether it may take so many bytes more of the heap. Beyond the limit it is to end before its next node: the runtime
    // takes small pieces where it cannot bear an exception (it begins a body's run, or says what failed), so these may go a
    // little further, and it is a kernel that takes more.
    bool may_take_heap(std::size_t bytes) {
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

// What this thread allocates from now on is charged to the account; null: to none.
void charge(Account* account);

// The account of an execution on this thread; null: nothing is executed here.
Account* counting_account();

class Workspace : public OrtAllocator {
public:
    // info describes CPU memory to the runtime and must outlive the workspace. limit_bytes: of all that is given out.
    Workspace(const OrtMemoryInfo* info, std::size_t limit_bytes);
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;

    // Memory charged to an account (null: to none), or null: there is none, or a limit is reached.
    void* allocate(Account* account, std::size_t bytes);
    void release(void* pointer);

    // Gives back to the kernel every region in which nothing is given out.
    void trim();

    const OrtMemoryInfo* info() const { return info_; }
    std::size_t reserved_bytes() const { return reserved_bytes_; }  // taken from the kernel
    std::size_t used_bytes() const { return used_bytes_; }          // given out
    std::size_t limit_bytes() const { return limit_bytes_; }        // of what is given out

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
    std::uint64_t levels_ = 0;  // which levels have a free block, and then which of their steps
    std::uint8_t steps_[LEVELS] = {};
    Block* bins_[LEVELS][STEPS] = {};
    Region* regions_ = nullptr;
    std::size_t reserved_bytes_ = 0;
    std::size_t used_bytes_ = 0;
    std::size_t limit_bytes_;
};

}  // namespace clockwork::device
