// A worker's private memory for copies of clients' tensors, bounded for each owner and in all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "scheduler/types.h"

namespace clockwork::worker {

struct SnapshotBounds {
    std::int64_t bytes = 0;        // in all
    std::int64_t owner_bytes = 0;  // of each owner
    Ns idle_ns = 0;                // the time without a copy after which pages go back to the system
};

class Snapshots;

// A copy's place, which is free again when this object ends. Any thread may end it.
class SnapshotPlace {
public:
    SnapshotPlace() = default;
    ~SnapshotPlace() { give_back(); }
    SnapshotPlace(SnapshotPlace&& other) noexcept { *this = std::move(other); }
    SnapshotPlace& operator=(SnapshotPlace&& other) noexcept;
    SnapshotPlace(const SnapshotPlace&) = delete;
    SnapshotPlace& operator=(const SnapshotPlace&) = delete;

    char* data() const { return data_; }  // null: no place
    std::int64_t size() const { return size_; }

private:
    friend class Snapshots;
    void give_back();

    std::shared_ptr<Snapshots> memory_;
    std::int64_t owner_ = 0;
    std::int64_t offset_ = 0;
    std::int64_t size_ = 0;
    char* data_ = nullptr;
};

// Memory for copies, as one mapping, which the first take() makes. take() uses the lowest free place, so that
// pages are used again. Any thread may call methods. Places keep the memory alive.
class Snapshots : public std::enable_shared_from_this<Snapshots> {
public:
    explicit Snapshots(const SnapshotBounds& bounds) : bounds_(bounds), free_{{0, bounds.bytes}} {}
    ~Snapshots();
    Snapshots(const Snapshots&) = delete;
    Snapshots& operator=(const Snapshots&) = delete;

    // Returns an aligned, uninitialised place of `size` bytes, at least 1; without data, and with a sentence,
    // where a bound is reached.
    SnapshotPlace take(std::int64_t owner, std::int64_t size, std::string& flaw);
    // Gives the pages back to the system if no place has been held for a while.
    void tidy(Ns now);
    std::int64_t used_bytes();

private:
    friend class SnapshotPlace;
    std::int64_t find(std::int64_t size);
    void give_back(std::int64_t owner, std::int64_t offset, std::int64_t size);

    const SnapshotBounds bounds_;
    std::mutex mutex_;
    char* memory_ = nullptr;
    std::vector<std::pair<std::int64_t, std::int64_t>> free_;  // (offset, size), ascending, never adjacent
    std::unordered_map<std::int64_t, std::int64_t> used_;      // bytes, by owner
    std::int64_t used_bytes_ = 0;
    Ns used_ns_ = 0;         // the time of the last tidy() that found memory in use
    bool was_used_ = false;  // whether memory was taken since the last tidy()
    bool has_pages_ = false;
};

}  // namespace clockwork::worker
