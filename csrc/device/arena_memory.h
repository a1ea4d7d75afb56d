// The memory of an arena: reserved address space at first; pages get memory before anything is loaded there.
//
// An arena that takes all of its memory at once would be simplest, but a worker with a few small models would
// then hold gigabytes. Memory that is taken at the first write would make the first LOAD to a page several
// times as long as the next. So the low part of the arena has memory, and a thread beside the lanes extends
// it ahead of use: up to the lowest page that the free pages can reach once every known model is loaded.
//
// A model with memory of its own (a packed one) needs none in its pages, which are spare while it is there.
// Spare pages give their memory up after a while. If they did at once, models that follow each other on the
// same pages would have the system clear every page anew: for a mixture of bound and packed models, loads
// would spend twice as long on that as on copying weights.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
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

    // Reserves the address space; returns false if there is none. Must be called before any other function.
    // spare_ns: pages give their memory up when they have been spare for that long, or twice as long at most.
    bool map(std::int64_t page_count, std::size_t page_bytes, std::int64_t spare_ns) {
        age_ = std::chrono::nanoseconds(spare_ns);
        bytes_ = round_up(std::size_t(page_count) * page_bytes, HUGE_PAGE_BYTES);
        base_ = map_untouched(bytes_);
        if (base_ == nullptr)
            return false;
        page_count_ = page_count;
        page_bytes_ = page_bytes;
        pages_ = std::make_unique<std::atomic<Page>[]>(std::size_t(page_count));  // every page is NEW
        return true;
    }

    // Unmaps the arena. Call it at most once, when no thread uses the memory any more.
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
            held += has_memory(pages_[page].load(std::memory_order_relaxed));
        return held * page_bytes_;
    }

    // Number of pages that first got their memory from a LOAD, because keep() had not reached them in time.
    std::int64_t late_count() const { return late_count_.load(std::memory_order_relaxed); }

    // ----- the load lane's, of pages that are its model's --------------------------------------

    // Gives memory to `count` pages from `start` on; returns false if the machine has none left.
    bool take(std::int64_t start, std::int64_t count) {
        const std::int64_t end = start + count;
        for (std::int64_t page = start; page < end; page++) {
            if (pages_[page].load(std::memory_order_acquire) == Page::HELD)
                continue;
            // locked page by page: the thread in touch_below() may populate the same page
            std::lock_guard<std::mutex> held(changing_);
            const Page before = pages_[page].load(std::memory_order_relaxed);
            if (before == Page::HELD)
                continue;
            if (before == Page::NEW)
                late_count_.fetch_add(1, std::memory_order_relaxed);
            if (!has_memory(before) && !populate(this->page(page), page_bytes_))
                return false;
            pages_[page].store(Page::HELD, std::memory_order_release);
        }
        return true;
    }

    // Lets `count` pages from `start` on give up their memory, unless it is taken again soon. Their content
    // is lost.
    void spare(std::int64_t start, std::int64_t count) {
        {
            std::lock_guard<std::mutex> held(changing_);
            for (std::int64_t page = start; page < start + count; page++) {
                const bool has = has_memory(pages_[page].load(std::memory_order_relaxed));
                pages_[page].store(has ? Page::SPARE : Page::GIVEN_UP, std::memory_order_relaxed);
            }
        }
        std::lock_guard<std::mutex> held(asking_);
        if (!has_spare_) {
            has_spare_ = true;
            changed_.notify_one();
        }
    }

    // ----- any thread but a lane ---------------------------------------------------------------

    // Gives memory to every page below `end`, except to pages that gave it up. Returns false if there is none
    // left.
    bool touch_below(std::int64_t end) {
        end = std::min(end, page_count_);
        const std::int64_t piece = std::max<std::int64_t>(1, std::int64_t(HUGE_PAGE_BYTES / page_bytes_));
        for (;;) {  // in pieces: a thread that changes the memory map waits for at most one piece
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

    // Populates pages up to the bound given by want(), and takes the memory of pages that stay spare, until
    // stop() is called. The body of a thread.
    void keep() {
        std::unique_lock<std::mutex> held(asking_);
        auto due = std::chrono::steady_clock::now();  // of the next look at spare pages
        bool looks = false;
        for (;;) {
            const auto has_work = [&] { return is_stopping_ || wanted_ > kept_ || has_spare_ != looks; };
            if (looks)
                changed_.wait_until(held, due, has_work);
            else
                changed_.wait(held, has_work);
            if (is_stopping_)
                return;
            const auto now = std::chrono::steady_clock::now();
            if (has_spare_ && !looks) {
                looks = true;
                due = now + age_;
            }
            if (wanted_ > kept_) {
                const std::int64_t wanted = wanted_;
                held.unlock();
                touch_below(wanted);  // if memory runs out here, the LOAD that needs the page reports it
                held.lock();
                kept_ = wanted;
            }
            if (looks && now >= due) {
                has_spare_ = false;  // spare() sets it again for a page that the look has passed
                held.unlock();
                const bool left = grow_old();
                held.lock();
                has_spare_ |= left;
                looks = has_spare_;
                due = now + age_;
            }
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
    // SPARE and OLD: spare since the last look at spare pages, or for longer.
    enum class Page : std::uint8_t { NEW, HELD, SPARE, OLD, GIVEN_UP };

    static bool has_memory(Page page) { return page == Page::HELD || page == Page::SPARE || page == Page::OLD; }

    // Takes the memory of OLD pages, and makes SPARE pages OLD. Returns whether any page is OLD now.
    bool grow_old() {
        bool left = false;
        for (std::int64_t begin = 0; begin < page_count_; begin += LOOKED_AT_ONCE) {
            std::lock_guard<std::mutex> held(changing_);
            const std::int64_t end = std::min(begin + LOOKED_AT_ONCE, page_count_);
            for (std::int64_t page = begin; page < end; page++) {
                const Page before = pages_[page].load(std::memory_order_relaxed);
                if (before == Page::OLD) {
                    madvise(this->page(page), page_bytes_, MADV_DONTNEED);
                    pages_[page].store(Page::GIVEN_UP, std::memory_order_relaxed);
                } else if (before == Page::SPARE) {
                    pages_[page].store(Page::OLD, std::memory_order_relaxed);
                    left = true;
                }
            }
        }
        return left;
    }

    static constexpr std::int64_t LOOKED_AT_ONCE = 64;  // pages between two releases of the lock

    std::chrono::nanoseconds age_{0};

    char* base_ = nullptr;
    std::size_t bytes_ = 0;
    std::size_t page_bytes_ = 1;
    std::int64_t page_count_ = 0;
    // Written with changing_ held; read by any thread.
    std::unique_ptr<std::atomic<Page>[]> pages_;
    std::atomic<std::int64_t> late_count_{0};
    std::mutex changing_;
    std::int64_t touched_ = 0;  // no page below this index is NEW; guarded by changing_
    std::mutex asking_;         // guards wanted_, kept_, has_spare_ and is_stopping_
    std::condition_variable changed_;
    std::int64_t wanted_ = 0;
    std::int64_t kept_ = 0;   // the last value of wanted_ that keep() has carried out
    bool has_spare_ = false;  // whether a page may be spare
    bool is_stopping_ = false;
};

}  // namespace clockwork::device
