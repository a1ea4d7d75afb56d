// Intrusive lists.
#pragma once

#include <cstdint>

#include "scheduler/archive.h"

namespace clockwork {

// A doubly linked list through the objects themselves: entering and leaving take constant time.
template <typename T, T* T::* Before, T* T::* After>
class Chain {
public:
    T* front() const { return first_; }
    T* back() const { return last_; }
    bool empty() const { return first_ == nullptr; }
    std::uint32_t size() const { return count_; }
    static T* next(const T* entry) { return entry->*After; }

    void push_back(T* entry) {
        entry->*Before = last_;
        entry->*After = nullptr;
        (last_ != nullptr ? last_->*After : first_) = entry;
        last_ = entry;
        ++count_;
    }

    void push_front(T* entry) {
        entry->*Before = nullptr;
        entry->*After = first_;
        (first_ != nullptr ? first_->*Before : last_) = entry;
        first_ = entry;
        ++count_;
    }

    // Inserts before `place`; at the end if that is null.
    void insert(T* entry, T* place) {
        if (place == nullptr) {
            push_back(entry);
            return;
        }
        if (place == first_) {
            push_front(entry);
            return;
        }
        entry->*Before = place->*Before;
        entry->*After = place;
        (place->*Before)->*After = entry;
        place->*Before = entry;
        ++count_;
    }

    void erase(T* entry) {
        (entry->*Before != nullptr ? (entry->*Before)->*After : first_) = entry->*After;
        (entry->*After != nullptr ? (entry->*After)->*Before : last_) = entry->*Before;
        entry->*Before = entry->*After = nullptr;
        --count_;
    }

    void move_to_end(T* entry) {
        if (entry != last_) {
            erase(entry);
            push_back(entry);
        }
    }

    void archive(Archive& archive) {
        archive_by(archive, [this](T* entry) { push_back(entry); });
    }

protected:
    // enter(entry): appends an entry that was read.
    template <typename Function>
    void archive_by(Archive& archive, Function&& enter) {
        static constexpr char KIND = 0;
        std::size_t count = archive.count(count_);
        T* place = first_;
        for (; count > 0; --count) {
            T* entry = place;
            archive(entry);
            if (archive.is_reading()) {
                archive.enter_list(&KIND, entry->slot);
                enter(entry);
            } else {
                place = next(entry);
            }
        }
    }

private:
    T* first_ = nullptr;
    T* last_ = nullptr;
    std::uint32_t count_ = 0;
};

}  // namespace clockwork
