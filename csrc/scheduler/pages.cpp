#include "scheduler/pages.h"

#include <algorithm>
#include <cstddef>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>

namespace clockwork {

namespace {

std::uint64_t sum(const PageAllocator::Pages& runs) {
    return std::accumulate(runs.begin(), runs.end(), std::uint64_t{0});
}

std::string range(std::int64_t start, std::int64_t size) {
    return "pages [" + std::to_string(start) + ", " + std::to_string(start + size) + ")";
}

void same_length(const PageAllocator::Pages& starts, const PageAllocator::Pages& runs) {
    if (starts.size() != runs.size()) {
        throw std::invalid_argument(std::to_string(starts.size()) + " first pages of " + std::to_string(runs.size()) +
                                    " runs");
    }
}

}  // namespace

PageAllocator::PageAllocator(std::uint32_t page_count) : page_count_(page_count), free_count_(page_count) {
    if (page_count > 0) {
        free_.push_back({0, page_count});
    }
}

bool PageAllocator::fits(const Pages& runs) const { return sum(runs) <= page_count_; }

bool PageAllocator::allocate(const Pages& runs, Pages& starts) {
    std::uint64_t total = sum(runs);
    if (total > free_count_) {
        return false;
    }
    // Most models have their runs in this order already.
    bool is_in_order = std::is_sorted(runs.begin(), runs.end(), std::greater<>());
    if (!is_in_order) {
        order_.resize(runs.size());
        std::iota(order_.begin(), order_.end(), 0u);
        std::stable_sort(order_.begin(), order_.end(),
                         [&](std::uint32_t a, std::uint32_t b) { return runs[a] > runs[b]; });
    }
    trial_ = free_;
    starts.resize(runs.size());
    std::size_t place = 0;
    std::uint32_t last = 0;
    bool has_emptied = false;
    for (std::uint32_t rank = 0; rank < runs.size(); ++rank) {
        std::uint32_t index = is_in_order ? rank : order_[rank];
        std::uint32_t size = runs[index];
        if (size == 0) {
            throw std::invalid_argument("a run of 0 pages");
        }
        // an interval too short for one run is too short for the next run of the same length
        if (size != last) {
            place = 0;
            last = size;
        }
        while (place < trial_.size() && trial_[place].size < size) {
            ++place;
        }
        if (place == trial_.size()) {
            return false;
        }
        Interval& found = trial_[place];
        starts[index] = found.start;
        found.start += size;
        found.size -= size;
        has_emptied |= found.size == 0;
    }
    if (has_emptied) {
        std::erase_if(trial_, [](const Interval& interval) { return interval.size == 0; });
    }
    free_.swap(trial_);
    free_count_ -= static_cast<std::uint32_t>(total);
    return true;
}

void PageAllocator::free(const Pages& starts, const Pages& runs) {
    same_length(starts, runs);
    for (std::size_t index = 0; index < runs.size(); ++index) {
        free_run(starts[index], runs[index]);
    }
}

void PageAllocator::take(const Pages& starts, const Pages& runs) {
    same_length(starts, runs);
    for (std::size_t index = 0; index < runs.size(); ++index) {
        take_run(starts[index], runs[index]);
    }
}

void PageAllocator::take_run(std::int64_t start, std::int64_t size) {
    auto next = std::upper_bound(free_.begin(), free_.end(), start,
                                 [](std::int64_t page, const Interval& interval) { return page < interval.start; });
    if (size <= 0 || next == free_.begin() || start + size > std::int64_t{(next - 1)->start} + (next - 1)->size) {
        throw std::invalid_argument(range(start, size) + " are not free");
    }
    auto whole = next - 1;
    std::uint32_t first = static_cast<std::uint32_t>(start), end = static_cast<std::uint32_t>(start + size);
    Interval behind{end, whole->start + whole->size - end};
    whole->size = first - whole->start;
    if (whole->size == 0 && behind.size == 0) {
        free_.erase(whole);
    } else if (whole->size == 0) {
        *whole = behind;
    } else if (behind.size > 0) {
        free_.insert(next, behind);
    }
    free_count_ -= static_cast<std::uint32_t>(size);
}

bool PageAllocator::take_if_free(const Pages& starts, const Pages& runs) {
    if (starts.size() != runs.size()) {
        return false;
    }
    std::vector<Interval> before = free_;
    std::uint32_t free_before = free_count_;
    for (std::size_t index = 0; index < runs.size(); ++index) {
        std::uint64_t start = starts[index], end = start + runs[index];
        bool is_free = std::any_of(free_.begin(), free_.end(), [&](const Interval& interval) {
            return interval.start <= start && end <= std::uint64_t{interval.start} + interval.size;
        });
        if (!is_free || runs[index] == 0) {
            free_.swap(before);
            free_count_ = free_before;
            return false;
        }
        take_run(starts[index], runs[index]);
    }
    return true;
}

void PageAllocator::free_run(std::int64_t start, std::int64_t size) {
    auto next = std::lower_bound(free_.begin(), free_.end(), start,
                                 [](const Interval& interval, std::int64_t page) { return interval.start < page; });
    auto last_end = [&] { return std::int64_t{(next - 1)->start} + (next - 1)->size; };
    if (start < 0 || size <= 0 || start + size > page_count_ || (next != free_.end() && start + size > next->start) ||
        (next != free_.begin() && last_end() > start)) {
        throw std::invalid_argument(range(start, size) + " of " + std::to_string(page_count_) + " are not all in use");
    }
    auto count = static_cast<std::uint32_t>(size);
    bool joins_next = next != free_.end() && start + size == next->start;
    bool joins_last = next != free_.begin() && last_end() == start;
    if (joins_last && joins_next) {
        (next - 1)->size += count + next->size;
        free_.erase(next);
    } else if (joins_last) {
        (next - 1)->size += count;
    } else if (joins_next) {
        next->start = static_cast<std::uint32_t>(start);
        next->size += count;
    } else {
        free_.insert(next, {static_cast<std::uint32_t>(start), count});
    }
    free_count_ += count;
}

void PageAllocator::check_invariants() const {
    std::uint64_t total = 0;
    std::int64_t end = -1;
    for (const Interval& hole : free_) {
        if (hole.size == 0) {
            throw std::logic_error("an empty interval");
        }
        if (std::int64_t{hole.start} <= end) {
            throw std::logic_error("intervals overlap or were not joined");
        }
        end = std::int64_t{hole.start} + hole.size;
        total += hole.size;
    }
    if (total != free_count_ || end > std::int64_t{page_count_}) {
        throw std::logic_error("free pages were miscounted");
    }
}

}  // namespace clockwork
