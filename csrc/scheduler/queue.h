// Requests that wait, in the order of their deadlines.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "scheduler/records.h"

namespace clockwork {

// A request in a queue, with all fields that the choice of a batch reads.
struct Waiting {
    Ns deadline_ns;
    std::int64_t order;  // order of arrival, equal to Pending::key_ns
    Pending* pending;
    std::uint32_t size;
    bool alone;

    bool operator<(const Waiting& other) const {
        return deadline_ns != other.deadline_ns ? deadline_ns < other.deadline_ns : order < other.order;
    }
};

// Requests of one model, shape and level that wait for a device, by (deadline, order of arrival).
//
// Entering at the end and leaving at the front cost O(1). Elsewhere the place is found by bisection and the
// shorter side moves up: a few cache lines where a search of a linked list would touch every request.
class Queue {
public:
    Queue(Model* model, std::uint32_t shape, std::uint8_t level) : model(model), shape(shape), level(level) {}

    bool empty() const { return head_ == items_.size(); }
    std::uint32_t size() const { return static_cast<std::uint32_t>(items_.size() - head_); }
    std::uint32_t rows() const { return rows_; }
    const Waiting& front() const { return items_[head_]; }
    const Waiting& back() const { return items_.back(); }
    const Waiting& operator[](std::size_t place) const { return items_[head_ + place]; }
    // Whether every request has one row and may share a batch: the first n requests are a batch of n.
    bool is_plain() const { return rows_ == size() && alone_ == 0; }

    void insert(const Waiting& waiting) {
        rows_ += waiting.size;
        alone_ += waiting.alone;
        if (empty() || items_.back() < waiting) {
            if (items_.size() == items_.capacity() && head_ > items_.size() / 2) {
                compact();
            }
            items_.push_back(waiting);
            return;
        }
        auto place = std::upper_bound(begin(), items_.end(), waiting);
        if (head_ > 0 && place - begin() < items_.end() - place) {
            std::move(begin(), place, begin() - 1);
            --head_;
            *(place - 1) = waiting;
        } else {
            items_.insert(place, waiting);
        }
    }

    // Returns the entry that a copy was made of; null if it is no longer here.
    const Waiting* find(const Waiting& waiting) {
        auto place = std::lower_bound(begin(), items_.end(), waiting);
        return place == items_.end() || place->pending != waiting.pending ? nullptr : &*place;
    }

    // Returns false if the request is not here.
    bool erase(const Pending& pending) {
        auto place =
            std::lower_bound(begin(), items_.end(), Waiting{pending.deadline_ns, pending.key_ns, nullptr, 0, false});
        if (place == items_.end() || place->pending != &pending) {
            return false;
        }
        rows_ -= place->size;
        alone_ -= place->alone;
        if (place - begin() < items_.end() - place) {
            std::move_backward(begin(), place, place + 1);
            ++head_;
            settle();
        } else {
            items_.erase(place);
        }
        return true;
    }

    // Takes `count` requests from place `first` on, and appends them.
    void take(std::uint32_t first, std::uint32_t count, std::vector<Pending*>& taken) {
        auto from = begin() + first, to = from + count;
        for (auto place = from; place != to; ++place) {
            rows_ -= place->size;
            alone_ -= place->alone;
            taken.push_back(place->pending);
        }
        std::move_backward(begin(), from, to);
        head_ += count;
        settle();
    }

    void pop_front() {
        rows_ -= front().size;
        alone_ -= front().alone;
        ++head_;
        settle();
    }

    // Returns the number of requests, from `first` on, that make a batch of at most `rows_max` rows: at least
    // one, and exactly one for a request that shares no batch.
    std::uint32_t count_up_to(std::uint32_t first, std::uint32_t rows_max) const {
        const Queue& self = *this;
        std::uint32_t there = size() - first;
        if (is_plain()) {
            return std::min(there, std::max(rows_max, 1u));
        }
        if (self[first].alone) {
            return 1;
        }
        std::uint32_t rows = self[first].size, count = 1;
        while (count < there && !self[first + count].alone && rows + self[first + count].size <= rows_max) {
            rows += self[first + count].size;
            ++count;
        }
        return count;
    }

    Model* model;
    std::uint32_t shape;
    std::uint8_t level;
    bool is_profiled = false;       // some kind of device keeps a curve for its shape
    bool ready = false;             // the queue wants a device now, and is published to free devices
    std::uint64_t rank = 0;         // rank of the ready queue: the lower, the sooner
    Ns timer_ns = NEVER_NS;         // time of the queue's timer
    std::int64_t timer_order = -1;  // order number of the request for which the timer is set

    // Archives all but the model, shape and level.
    void archive(Archive& archive);

private:
    std::vector<Waiting>::iterator begin() { return items_.begin() + static_cast<std::ptrdiff_t>(head_); }

    void settle() {
        if (head_ == items_.size()) {
            items_.clear();
            head_ = 0;
        }
    }

    void compact() {
        items_.erase(items_.begin(), begin());
        head_ = 0;
    }

    std::vector<Waiting> items_;
    std::size_t head_ = 0;
    std::uint32_t rows_ = 0;
    std::uint32_t alone_ = 0;
};

}  // namespace clockwork
