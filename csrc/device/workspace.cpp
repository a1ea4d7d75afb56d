#include "device/workspace.h"

#include <algorithm>
#include <cstdio>
#include <new>

#include "device/memory.h"

namespace clockwork::device {

namespace {

constexpr std::size_t UNIT = 64;
// least size of a region taken from the kernel
constexpr std::size_t REGION_BYTES_LEAST = std::size_t(4) << 20;
constexpr std::size_t BYTES_MOST = std::size_t(1) << 46;  // size of the address space, above every request

thread_local MemoryAccount* charged = nullptr;

// std::bad_alloc with a sentence, made without memory.
class OutOfBudget : public std::bad_alloc {
public:
    OutOfBudget(std::size_t asked, std::size_t used, std::size_t limit) {
        std::snprintf(text_, sizeof text_, "%zu bytes are asked for, %zu are taken, and at most %zu may be", asked,
                      used, limit);
    }
    const char* what() const noexcept override { return text_; }

private:
    char text_[160];
};

// The runtime's allocator. IAllocator of the runtime has no error but std::bad_alloc: its wrapper of a C
// allocator passes null on, kernels write to whatever address they get, and tensors are made of it unchecked.
// The exception passes through frames of the runtime alone, which are C++. The runtime catches it around
// every kernel and at its C API, and makes a status of it. Null for 0 bytes, as the runtime expects.
void* allocate_for_run(OrtAllocator* self, std::size_t bytes) {
    Workspace* workspace = static_cast<Workspace*>(self);
    if (bytes == 0)
        return nullptr;
    void* found = workspace->allocate(charged, bytes);
    if (found == nullptr) {
        if (charged != nullptr)
            throw OutOfBudget(bytes, charged->taken_bytes(), charged->limit_bytes);
        throw OutOfBudget(bytes, workspace->used_bytes(), workspace->limit_bytes());
    }
    return found;
}

void release_of_run(OrtAllocator* self, void* pointer) { static_cast<Workspace*>(self)->release(pointer); }

const OrtMemoryInfo* info_for_run(const OrtAllocator* self) { return static_cast<const Workspace*>(self)->info(); }

}  // namespace

struct alignas(UNIT) Workspace::Block {
    Block* before;      // the neighbour at the lower address; null for a region's first block
    std::size_t bytes;  // size of the payload, which follows; 0 marks a region's end
    bool is_free;
    Block* next;  // the next block of its free list
    Block* previous;
    MemoryAccount* account;  // account to which the block is charged, or null
};

struct alignas(UNIT) Workspace::Region {  // followed by its first block
    Region* next;
    std::size_t bytes;
};

void charge(MemoryAccount* account) { charged = account; }

MemoryAccount* counting_account() { return charged != nullptr && charged->counts_heap ? charged : nullptr; }

Workspace::Workspace(const OrtMemoryInfo* info, std::size_t limit_bytes)
    // Version 15 of the structure: it ends with Info.
    : OrtAllocator{ORT_API_VERSION, allocate_for_run, release_of_run, info_for_run},
      info_(info),
      limit_bytes_(limit_bytes) {}

Workspace::Block* Workspace::after(Block* block) {
    return reinterpret_cast<Block*>(reinterpret_cast<char*>(block + 1) + block->bytes);
}

Workspace::Bin Workspace::bin_of(std::size_t bytes) {
    const int level = 63 - __builtin_clzll(bytes);
    return {level, int((bytes >> (level - 3)) & (STEPS - 1))};
}

void Workspace::insert(Block* block) {
    const auto [level, step] = bin_of(block->bytes);
    Block* first = bins_[level][step];
    block->is_free = true;
    block->previous = nullptr;
    block->next = first;
    if (first != nullptr)
        first->previous = block;
    bins_[level][step] = block;
    steps_[level] |= std::uint8_t(1 << step);
    levels_ |= std::uint64_t(1) << level;
}

void Workspace::remove(Block* block) {
    const auto [level, step] = bin_of(block->bytes);
    block->is_free = false;
    if (block->next != nullptr)
        block->next->previous = block->previous;
    if (block->previous != nullptr) {
        block->previous->next = block->next;
        return;
    }
    bins_[level][step] = block->next;
    if (block->next == nullptr) {
        steps_[level] &= std::uint8_t(~(1 << step));
        if (steps_[level] == 0)
            levels_ &= ~(std::uint64_t(1) << level);
    }
}

// A free block of at least this size, or null.
Workspace::Block* Workspace::find(std::size_t bytes) {
    // Rounds up to the next step, so that any block of the bin is large enough.
    auto [level, step] = bin_of(bytes + (std::size_t(1) << (bin_of(bytes).level - 3)) - 1);
    unsigned steps = level < LEVELS ? steps_[level] & (0xffu << step) : 0;
    if (steps == 0) {
        const std::uint64_t levels = level + 1 < LEVELS ? levels_ & (~std::uint64_t(0) << (level + 1)) : 0;
        if (levels == 0)
            return nullptr;
        level = __builtin_ctzll(levels);
        steps = steps_[level];
    }
    return bins_[level][__builtin_ctz(steps)];
}

Workspace::Block* Workspace::grow(std::size_t bytes) {
    // An eighth more, for the rounding of find().
    const std::size_t total =
        std::max(REGION_BYTES_LEAST, round_up(bytes + bytes / 8 + sizeof(Region) + 2 * sizeof(Block), HUGE_PAGE_BYTES));
    char* base = map_touched(total);
    if (base == nullptr)
        return nullptr;
    Region* region = new (base) Region{regions_, total};
    regions_ = region;
    reserved_bytes_ += total;
    Block* block = new (region + 1) Block{};
    block->bytes = total - sizeof(Region) - 2 * sizeof(Block);
    Block* end = new (after(block)) Block{};
    end->before = block;
    insert(block);
    return block;
}

void* Workspace::allocate(MemoryAccount* account, std::size_t asked) {
    const std::size_t bytes = round_up(std::min(asked, BYTES_MOST), UNIT);
    std::lock_guard<std::mutex> held(mutex_);
    Block* block = nullptr;
    if (used_bytes_ + bytes <= limit_bytes_ && (account == nullptr || account->may_take(bytes))) {
        block = find(bytes);
        if (block == nullptr)
            block = grow(bytes);
    }
    if (block == nullptr) {
        if (account != nullptr)
            account->refuse(asked);
        return nullptr;
    }
    remove(block);
    if (block->bytes >= bytes + sizeof(Block) + UNIT) {
        Block* rest = new (reinterpret_cast<char*>(block + 1) + bytes) Block{};
        rest->before = block;
        rest->bytes = block->bytes - bytes - sizeof(Block);
        block->bytes = bytes;
        after(rest)->before = rest;
        insert(rest);
    }
    used_bytes_ += block->bytes;
    block->account = account;
    if (account != nullptr) {
        account->used_bytes += block->bytes;
        account->peak_bytes = std::max(account->peak_bytes, account->taken_bytes());
    }
    return block + 1;
}

void Workspace::release(void* pointer) {
    if (pointer == nullptr)
        return;
    Block* block = static_cast<Block*>(pointer) - 1;
    std::lock_guard<std::mutex> held(mutex_);
    used_bytes_ -= block->bytes;
    if (block->account != nullptr)
        block->account->used_bytes -= block->bytes;
    Block* behind = after(block);
    Block* before = block->before;
    if (behind->is_free) {
        remove(behind);
        block->bytes += sizeof(Block) + behind->bytes;
    }
    if (before != nullptr && before->is_free) {
        remove(before);
        before->bytes += sizeof(Block) + block->bytes;
        block = before;
    }
    after(block)->before = block;
    insert(block);
}

void Workspace::trim() {
    std::lock_guard<std::mutex> held(mutex_);
    for (Region** link = &regions_; *link != nullptr;) {
        Region* region = *link;
        Block* first = reinterpret_cast<Block*>(region + 1);
        if (!first->is_free || after(first)->bytes != 0) {
            link = &region->next;
            continue;
        }
        remove(first);
        *link = region->next;
        reserved_bytes_ -= region->bytes;
        munmap(region, region->bytes);
    }
}

}  // namespace clockwork::device
