// An arena's memory: address space at first, to which pages of memory come before anything is loaded there.
//
// All of it at once would be simplest, and holds gigabytes on a worker that serves a few small models. Memory that comes
// at the first write would make the first LOAD to a page several times as long as the next. So a low part of the arena
// has memory, and grows ahead of use, off the lanes: as far as the lowest free pages can be that every known model takes.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

#include "device/memory.h"

namespace clockwork::device {

class ArenaMemory {
public:
    ArenaMemory() = default;
    ArenaMemory(const ArenaMemory&) = delete;
    ArenaMemory& operator=(const ArenaMemory&) = delete;
    ~ArenaMemory() { unmap(); }

    // Reserves the address space. False if there is none. Before anything else.
    bool map(std::int64_t page_count, std::size_t page_bytes) {
        bytes_ = round_up(std::size_t(page_count) * page_bytes, HUGE_PAGE_BYTES);
        base_ = map_untouched(bytes_);
        if (base_ == nullptr)
            return false;
        page_count_ = page_count;
        page_bytes_ = page_bytes;
        pages_ = std::make_unique<std::atomic<Page>[]>(std::size_t(page_count));  // all of them NEW
        return true;
    }

    // Gives all of it back, once. Nobody uses it any more.
    void unmap() {
        if (base_ != nullptr)
            munmap(base_, bytes_);
        base_ = nullptr;
    }

    bool is_mapped() const { return base_ != nullptr; }

    char* page(std::int64_t index) const { return base_ + std::size_t(index) * page_bytes_; }

    std::size_t bytes() const { return bytes_; }

    // Bytes of the pages that have memory.
    std::size_t held_bytes() const {
        std::size_t held = 0;
        for (std::int64_t page = 0; page < page_count_; page++)
            held += pages_[page].load(std::memory_order_relaxed) == Page::HELD;
        return held * page_bytes_;
    }

    // Pages to which a LOAD had to bring memory, although they were none that had given it up.
    std::int64_t late_count() const { return late_count_.load(std::memory_order_relaxed); }

    // ----- the load lane's, of pages that are its model's --------------------------------------

    // Has pages hold memory. False if there is none left.
    bool take(std::int64_t start, std::int64_t count) {
        const std::int64_t end = start + count;
        for (std::int64_t page = start; page < end; page++) {
            if (pages_[page].load(std::memory_order_acquire) == Page::HELD)
                continue;
            std::lock_guard<std::mutex> held(changing_);  // one page at a time: another thread may be at the same
            const Page before = pages_[page].load(std::memory_order_relaxed);
            if (before == Page::HELD)
                continue;
            if (before == Page::NEW)
                late_count_.fetch_add(1, std::memory_order_relaxed);
            if (!populate(this->page(page), page_bytes_))
                return false;
            pages_[page].store(Page::HELD, std::memory_order_release);
        }
        return true;
    }

    // Has pages hold no memory, until somebody needs it there.
    void give_up(std::int64_t start, std::int64_t count) {
        std::lock_guard<std::mutex> held(changing_);
        madvise(page(start), std::size_t(count) * page_bytes_, MADV_DONTNEED);
        for (std::int64_t page = start; page < start + count; page++)
            pages_[page].store(Page::GIVEN_UP, std::memory_order_relaxed);
    }

    // ----- any thread but a lane ---------------------------------------------------------------

    // Has every page below this one hold memory, but for those that gave it up. False if there is none left.
    bool touch_below(std::int64_t end) {
        end = std::min(end, page_count_);
        const std::int64_t piece = std::max<std::int64_t>(1, std::int64_t(HUGE_PAGE_BYTES / page_bytes_));
        for (;;) {  // in pieces: whoever changes the process's memory map waits for one of them at most
            std::lock_guard<std::mutex> held(changing_);
            if (touched_ >= end)
                return true;
            const std::int64_t until = std::min(touched_ + piece, page_count_);
            for (std::int64_t page = touched_; page < until; page++) {
                if (pages_[page].load(std::memory_order_relaxed) != Page::NEW)
                    continue;
                if (!populate(this->page(page), page_bytes_))
                    return false;
                pages_[page].store(Page::HELD, std::memory_order_release);
            }
            touched_ = until;
        }
    }

    // Does so as want() asks, until stop(). The work of a thread.
    void keep() {
        std::unique_lock<std::mutex> held(asking_);
        for (;;) {
            changed_.wait(held, [this] { return is_stopping_ || wanted_ > kept_; });
            if (is_stopping_)
                return;
            const std::int64_t wanted = wanted_;
            held.unlock();
            touch_below(wanted);  // what there is no memory for is left to the LOAD, which says so
            held.lock();
            kept_ = wanted;
        }
    }

    void want(std::int64_t end) {
        std::lock_guard<std::mutex> held(asking_);
        if (end <= wanted_)
            return;
        wanted_ = end;
        changed_.notify_one();
    }

    void stop() {
        std::lock_guard<std::mutex> held(asking_);
        is_stopping_ = true;
        changed_.notify_one();
    }

private:
    enum class Page : std::uint8_t { NEW, HELD, GIVEN_UP };

    char* base_ = nullptr;
    std::size_t bytes_ = 0;
    std::size_t page_bytes_ = 1;
    std::int64_t page_count_ = 0;
    // Only with changing_ held; any thread looks.
    std::unique_ptr<std::atomic<Page>[]> pages_;
    std::atomic<std::int64_t> late_count_{0};
    std::mutex changing_;
    std::int64_t touched_ = 0;  // pages below it are NEW no more; guarded by changing_
    std::mutex asking_;         // guards what follows
    std::condition_variable changed_;
    std::int64_t wanted_ = 0;
    std::int64_t kept_ = 0;  // the last of wanted_ that was done
    bool is_stopping_ = false;
};

}  // namespace clockwork::device
