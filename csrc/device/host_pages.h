// A host store with a budget: pinned pages of one size, into which models are read from disk, and which are
// given back.
//
// Devices share a store. Its lock guards the free pages and the state of every copy; it is held for well
// under a microsecond, and never while a file is read. A copy in state FETCHING belongs to the thread that
// reads it; an ABANDONED copy becomes absent when its read ends.
#pragma once

#ifndef _GNU_SOURCE
#define _GNU_SOURCE  // for O_DIRECT
#endif
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

namespace clockwork::device {

enum class CopyState { ABSENT, FETCHING, ABANDONED, HELD };

// The result of a fetch or drop.
enum class HostResult { OK, FULL, FAILED, IN_USE, NOT_HELD };

// Alignment of address, offset and length that a read past the page cache (O_DIRECT) requires.
inline constexpr std::int64_t SECTOR_BYTES = 4096;

// The copy of a model's weights: page by page as in its file, with the bytes in use of each page.
struct WeightsCopy {
    CopyState state = CopyState::ABSENT;
    int loads = 0;  // LOADs of the copy that are queued or under way: it cannot be dropped
    std::string path;
    std::vector<char*> pages;              // addresses of the pages; empty where the copy is absent
    std::vector<std::int64_t> page_bytes;  // bytes in use of each page

    void add_page(char* address, std::int64_t bytes) {
        pages.push_back(address);
        page_bytes.push_back(bytes);
    }

    std::int64_t bytes() const {
        std::int64_t found = 0;
        for (std::int64_t bytes : page_bytes)
            found += bytes;
        return found;
    }
};

class HostPages {
public:
    // base: memory for the pages, which stays the caller's. page_bytes: a multiple of SECTOR_BYTES. Called
    // before any other function.
    void assign(char* base, std::int64_t page_bytes, std::int64_t page_count) {
        base_ = base;
        page_bytes_ = page_bytes;
        page_count_ = page_count;
        for (std::int64_t page = page_count - 1; page >= 0; page--)
            free_pages_.push_back(page);  // the lowest page is taken first
    }

    std::int64_t used_bytes() {
        std::lock_guard<std::mutex> held(mutex_);
        return (page_count_ - std::int64_t(free_pages_.size())) * page_bytes_;
    }

    CopyState state(const WeightsCopy& copy) {
        std::lock_guard<std::mutex> held(mutex_);
        return copy.state;
    }

    // Counts a LOAD of the copy that is queued (1), or has ended (-1).
    void pin(WeightsCopy& copy, int loads) {
        std::lock_guard<std::mutex> held(mutex_);
        copy.loads += loads;
    }

    // Reads a copy from disk. On failure the copy is unchanged, and `text` has a sentence.
    HostResult fetch(WeightsCopy& copy, char* text, std::size_t text_bytes) {
        {
            std::lock_guard<std::mutex> held(mutex_);
            if (copy.state != CopyState::ABSENT) {
                std::snprintf(text, text_bytes, "the model is in the host store already");
                return HostResult::FAILED;
            }
            if (copy.pages.size() > free_pages_.size()) {
                std::snprintf(text, text_bytes, "%zu pages for a host store with %zu pages left", copy.pages.size(),
                              free_pages_.size());
                return HostResult::FULL;
            }
            for (char*& address : copy.pages) {
                address = base_ + free_pages_.back() * page_bytes_;
                free_pages_.pop_back();
            }
            copy.state = CopyState::FETCHING;
        }
        bool is_read = read(copy, text, text_bytes);
        std::lock_guard<std::mutex> held(mutex_);
        if (is_read && copy.state == CopyState::ABANDONED) {
            std::snprintf(text, text_bytes, "the host store was emptied meanwhile");
            is_read = false;
        }
        if (!is_read) {
            give_back(copy);
            return HostResult::FAILED;
        }
        copy.state = CopyState::HELD;
        return HostResult::OK;
    }

    HostResult drop(WeightsCopy& copy) {
        std::lock_guard<std::mutex> held(mutex_);
        if (copy.state != CopyState::HELD)
            return HostResult::NOT_HELD;
        if (copy.loads != 0)
            return HostResult::IN_USE;
        give_back(copy);
        return HostResult::OK;
    }

    // Forgets a copy, even if a LOAD waits for it; a copy that is being read is forgotten after the read.
    void abandon(WeightsCopy& copy) {
        std::lock_guard<std::mutex> held(mutex_);
        if (copy.state == CopyState::HELD)
            give_back(copy);
        else if (copy.state == CopyState::FETCHING)
            copy.state = CopyState::ABANDONED;
    }

private:
    // Makes the copy absent. The lock must be held.
    void give_back(WeightsCopy& copy) {
        for (std::size_t page = copy.pages.size(); page-- > 0;)
            free_pages_.push_back((copy.pages[page] - base_) / page_bytes_);
        copy.state = CopyState::ABSENT;
    }

    // Fills the pages of a copy from its file. Returns false, with a sentence, on failure.
    //
    // The read bypasses the page cache where the file system can: a second fetch takes as long as the first,
    // and nothing is in memory twice. Elsewhere the pages are dropped from the cache after the read.
    bool read(const WeightsCopy& copy, char* text, std::size_t text_bytes) const {
        if (copy.pages.empty())
            return true;
        int file = open(copy.path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
        const bool direct = file >= 0 || errno != EINVAL;
        if (!direct)
            file = open(copy.path.c_str(), O_RDONLY | O_CLOEXEC);
        if (file < 0) {
            std::snprintf(text, text_bytes, "cannot open %s: %s", copy.path.c_str(), std::strerror(errno));
            return false;
        }
        bool failed = false;
        for (std::size_t page = 0; page < copy.pages.size() && !failed; page++) {
            const std::int64_t start = std::int64_t(page) * page_bytes_;
            const std::int64_t wanted = (copy.page_bytes[page] + SECTOR_BYTES - 1) / SECTOR_BYTES * SECTOR_BYTES;
            for (std::int64_t done = 0; done < copy.page_bytes[page];) {
                const ssize_t count = pread(file, copy.pages[page] + done, std::size_t(wanted - done), start + done);
                if (count < 0 && errno == EINTR)
                    continue;
                if (count <= 0) {
                    std::snprintf(text, text_bytes, "cannot read %s at byte %lld: %s", copy.path.c_str(),
                                  (long long)(start + done), count < 0 ? std::strerror(errno) : "it ends there");
                    failed = true;
                    break;
                }
                done += count;
            }
        }
        if (!direct)
            posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
        close(file);
        return !failed;
    }

    std::mutex mutex_;
    char* base_ = nullptr;
    std::int64_t page_bytes_ = 1;
    std::int64_t page_count_ = 0;
    std::vector<std::int64_t> free_pages_;
};

}  // namespace clockwork::device
