// The owner of each page of an arena. The caller holds the lock of the device's hub.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace clockwork::device {

// The pages of an arena that a model claims: runs of contiguous pages, each of which may lie anywhere.
struct Claim {
    std::vector<std::int64_t> run_pages;
    std::vector<std::int64_t> run_starts;  // first page of each run; -1: the run has no pages

    void add_run(std::int64_t pages) {
        run_pages.push_back(pages);
        run_starts.push_back(-1);
    }

    // Whether the runs of this claim, if they began there, would have pages of another claim.
    bool would_meet(const std::vector<std::int64_t>& starts, const Claim& other) const {
        for (std::size_t run = 0; run < run_pages.size(); run++) {
            for (std::size_t theirs = 0; theirs < other.run_pages.size(); theirs++) {
                const std::int64_t start = other.run_starts[theirs];
                if (start >= 0 && starts[run] < start + other.run_pages[theirs] && start < starts[run] + run_pages[run])
                    return true;
            }
        }
        return false;
    }
};

class PageTable {
public:
    void resize(std::int64_t page_count) { owners_.resize(std::size_t(page_count)); }

    std::int64_t page_count() const { return std::int64_t(owners_.size()); }

    std::int64_t held_count() const {
        std::int64_t held = 0;
        for (const Claim* owner : owners_)
            held += owner != nullptr;
        return held;
    }

    // Index after the last page that is held; 0 if no page is held.
    std::int64_t end_of_held() const {
        std::int64_t end = page_count();
        while (end > 0 && owners_[std::size_t(end - 1)] == nullptr)
            end--;
        return end;
    }

    const Claim* owner(std::int64_t page) const { return owners_[std::size_t(page)]; }

    // Gives pages to a claim: run_starts has the first page of each run. Returns false, with a sentence, if a
    // run cannot be had; then the claim has no page.
    bool take(Claim& claim, const std::vector<std::int64_t>& run_starts, char* text, std::size_t text_bytes) {
        for (std::int64_t& start : claim.run_starts)
            start = -1;
        for (std::size_t run = 0; run < claim.run_pages.size(); run++) {
            const std::int64_t start = run_starts[run], pages = claim.run_pages[run];
            if (start < 0 || pages > page_count() || start > page_count() - pages) {
                std::snprintf(text, text_bytes, "run %zu at page %lld of %lld pages does not lie in an arena of %lld",
                              run, (long long)start, (long long)pages, (long long)page_count());
                release(claim);
                return false;
            }
            for (std::int64_t page = start; page < start + pages; page++) {
                if (owner(page) != nullptr) {
                    std::snprintf(text, text_bytes, "page %lld is held by another model or run", (long long)page);
                    release(claim);
                    return false;
                }
            }
            for (std::int64_t page = start; page < start + pages; page++)
                owners_[std::size_t(page)] = &claim;
            claim.run_starts[run] = start;
        }
        return true;
    }

    // Frees the pages of a claim.
    void release(Claim& claim) {
        for (std::size_t run = 0; run < claim.run_pages.size(); run++) {
            std::int64_t& start = claim.run_starts[run];
            for (std::int64_t page = 0; start >= 0 && page < claim.run_pages[run]; page++)
                owners_[std::size_t(start + page)] = nullptr;
            start = -1;
        }
    }

private:
    std::vector<const Claim*> owners_;  // owner of each page; null: the page is free
};

}  // namespace clockwork::device
