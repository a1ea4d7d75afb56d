// Free pages of a device's arena. The controller allocates them, so that a load that it orders always fits.
#pragma once

#include <cstdint>
#include <vector>

#include "scheduler/archive.h"

namespace clockwork {

// Free pages as sorted intervals; the same calls always give the same pages.
//
// A model's weights are several runs of pages: each run is contiguous, and runs may lie anywhere.
class PageAllocator {
public:
    using Pages = std::vector<std::uint32_t>;

    struct Interval {
        std::uint32_t start;
        std::uint32_t size;
    };

    explicit PageAllocator(std::uint32_t page_count = 0);

    std::uint32_t page_count() const { return page_count_; }
    std::uint32_t free_count() const { return free_count_; }
    const std::vector<Interval>& intervals() const { return free_; }  // free intervals, lowest first

    // Whether these runs would fit an empty arena.
    bool fits(const Pages& runs) const;

    // Fills `starts` with the first page of each run, in the order of `runs`. False, and nothing taken, if
    // they do not fit now. First fit at the lowest page, longest runs first, because fragmentation shuts out
    // long runs.
    bool allocate(const Pages& runs, Pages& starts);

    // Frees pages from allocate(). Throws std::invalid_argument for pages that are free already or do not
    // exist.
    void free(const Pages& starts, const Pages& runs);
    void free_run(std::int64_t start, std::int64_t size);

    // Takes exactly these free pages again: the inverse of free().
    void take(const Pages& starts, const Pages& runs);
    void take_run(std::int64_t start, std::int64_t size);

    // Takes these pages if they are free, whatever the numbers. False, and nothing taken, if they are not.
    bool take_if_free(const Pages& starts, const Pages& runs);

    void archive(Archive& archive);

    // Throws std::logic_error where the intervals overlap or are out of order.
    void check_invariants() const;

private:
    std::uint32_t page_count_;
    std::uint32_t free_count_;
    std::vector<Interval> free_;
    std::vector<Interval> trial_;       // allocate() works on this copy, and keeps it only if all runs fit
    std::vector<std::uint32_t> order_;  // indices of the runs, by length
};

}  // namespace clockwork
