// Lists through the objects themselves.
#pragma once

#include <cstdint>

#include "scheduler/archive.h"

namespace clockwork {

// A doubly linked list through the objects themselves: entering and leaving cost nothing, whatever the length.
template <typename T, T* T::* Before, T* T::* After>
class Chain {
public:
    T* front() const { return first_; }
    T* back() const { return last_; }
    bool empty() const { return first_ == nullptr; }
    std::uint32_t size() const { return count_; }
    static T* next(const T* one) { return one->*After; }

    void push_back(T* one) {
        one->*Before = last_;
        one->*After = nullptr;
        (last_ != nullptr ? last_->*After : first_) = one;
        last_ = one;
        ++count_;
    }

    void push_front(T* one) {
        one->*Before = nullptr;
        one->*After = first_;
        (first_ != nullptr ? first_->*Before : last_) = one;
        first_ = one;
        ++count_;
    }

    // Before `place`; at the end if that is null.
    void insert(T* one, T* place) {
        if (place == nullptr) {
            push_back(one);
            return;
        }
        if (place == first_) {
            push_front(one);
            return;
        }
        one->*Before = place->*Before;
        one->*After = place;
        (place->*Before)->*After = one;
        place->*Before = one;
        ++count_;
    }

    void erase(T* one) {
        (one->*Before != nullptr ? (one->*Before)->*After : first_) = one->*After;
        (one->*After != nullptr ? (one->*After)->*Before : last_) = one->*Before;
        one->*Before = one->*After = nullptr;
        --count_;
    }

    void move_to_end(T* one) {
        if (one != last_) {
            erase(one);
            push_back(one);
        }
    }

    void archive(Archive& archive) {
        archive_by(archive, [this](T* one) { push_back(one); });
    }

protected:
    // enter(one): how one that was read comes to the end.
    template <typename Function>
    void archive_by(Archive& archive, Function&& enter) {
        static constexpr char KIND = 0;
        std::size_t count = archive.count(count_);
        T* place = first_;
        for (; count > 0; --count) {
            T* one = place;
            archive(one);
            if (archive.is_reading()) {
                archive.enter_list(&KIND, one->slot);
                enter(one);
            } else {
                place = next(one);
            }
        }
    }

private:
    T* first_ = nullptr;
    T* last_ = nullptr;
    std::uint32_t count_ = 0;
};

}  // namespace clockwork
