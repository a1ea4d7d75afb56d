#include "worker/snapshots.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "wire/shared.h"

namespace clockwork::worker {

namespace {

std::string no_room(std::int64_t size, const std::string& holds, std::int64_t bytes_max) {
    return "no room for a copy of " + std::to_string(size) + " bytes: this worker holds " + holds + " bytes, at most " +
           std::to_string(bytes_max) + " at once";
}

}  // namespace

SnapshotPlace& SnapshotPlace::operator=(SnapshotPlace&& other) noexcept {
    if (this != &other) {
        give_back();
        memory_ = std::move(other.memory_);
        owner_ = other.owner_;
        offset_ = other.offset_;
        size_ = other.size_;
        data_ = std::exchange(other.data_, nullptr);
    }
    return *this;
}

void SnapshotPlace::give_back() {
    if (memory_ != nullptr)
        memory_->give_back(owner_, offset_, wire::aligned(size_));
    memory_.reset();
    data_ = nullptr;
}

Snapshots::~Snapshots() {
    if (memory_ != nullptr)
        munmap(memory_, static_cast<std::size_t>(bounds_.bytes));
}

SnapshotPlace Snapshots::take(std::int64_t owner, std::int64_t size, std::string& flaw) {
    const std::int64_t whole = wire::aligned(size);
    SnapshotPlace place;
    std::lock_guard<std::mutex> held(mutex_);
    const auto mine = used_.find(owner);
    const std::int64_t used = mine != used_.end() ? mine->second : 0;
    if (whole > bounds_.owner_bytes - used) {
        flaw = no_room(size, "of process " + std::to_string(owner) + "'s tensors " + std::to_string(used),
                       bounds_.owner_bytes);
        return place;
    }
    if (memory_ == nullptr) {
        void* const mapped = mmap(nullptr, static_cast<std::size_t>(bounds_.bytes), PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapped == MAP_FAILED) {
            flaw = std::string("this worker has no memory for copies of clients' tensors: ") + std::strerror(errno);
            return place;
        }
        memory_ = static_cast<char*>(mapped);
    }
    const std::int64_t offset = find(whole);
    if (offset < 0) {
        flaw = no_room(size, "of clients' tensors " + std::to_string(used_bytes_), bounds_.bytes);
        return place;
    }
    used_[owner] = used + whole;
    used_bytes_ += whole;
    was_used_ = true;
    place.memory_ = shared_from_this();
    place.owner_ = owner;
    place.offset_ = offset;
    place.size_ = size;
    place.data_ = memory_ + offset;
    return place;
}

// Takes the lowest free range of this size. Returns its offset; -1: there is none.
std::int64_t Snapshots::find(std::int64_t size) {
    const auto range = std::find_if(free_.begin(), free_.end(), [&](const auto& free) { return free.second >= size; });
    if (range == free_.end())
        return -1;
    const std::int64_t offset = range->first;
    range->first += size;
    range->second -= size;
    if (range->second == 0)
        free_.erase(range);
    return offset;
}

void Snapshots::give_back(std::int64_t owner, std::int64_t offset, std::int64_t size) {
    std::lock_guard<std::mutex> held(mutex_);
    const auto mine = used_.find(owner);
    mine->second -= size;
    if (mine->second == 0)
        used_.erase(mine);
    used_bytes_ -= size;
    auto next = std::lower_bound(free_.begin(), free_.end(), std::pair{offset, std::int64_t(0)});
    const bool joins_next = next != free_.end() && offset + size == next->first;
    const bool joins_former = next != free_.begin() && std::prev(next)->first + std::prev(next)->second == offset;
    if (joins_former) {
        std::prev(next)->second += size + (joins_next ? next->second : 0);
        if (joins_next)
            free_.erase(next);
    } else if (joins_next) {
        *next = {offset, size + next->second};
    } else {
        free_.insert(next, {offset, size});
    }
}

void Snapshots::tidy(Ns now) {
    std::lock_guard<std::mutex> held(mutex_);
    if (used_bytes_ != 0 || was_used_) {
        used_ns_ = now;
        was_used_ = false;
        has_pages_ = true;
    } else if (has_pages_ && now - used_ns_ >= bounds_.idle_ns) {
        madvise(memory_, static_cast<std::size_t>(bounds_.bytes), MADV_DONTNEED);
        has_pages_ = false;
    }
}

std::int64_t Snapshots::used_bytes() {
    std::lock_guard<std::mutex> held(mutex_);
    return used_bytes_;
}

}  // namespace clockwork::worker
