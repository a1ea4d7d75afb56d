// The way from the host's memory to its devices: one LOAD uses it at a time, in the order of their asking.
//
// Two at once would each take longer by what the other happens to copy, which nobody can predict. The controller counts
// on one after the other, too.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace clockwork::device {

class Link {
public:
    // Waits until it is the caller's.
    void take() {
        std::unique_lock<std::mutex> held(mutex_);
        const std::uint64_t place = asked_++;
        turn_.wait(held, [&] { return left_ == place; });
    }

    void leave() {
        std::lock_guard<std::mutex> held(mutex_);
        left_++;
        turn_.notify_all();
    }

private:
    std::mutex mutex_;
    std::condition_variable turn_;
    std::uint64_t asked_ = 0;  // how many have asked for it, and how many had it
    std::uint64_t left_ = 0;
};

}  // namespace clockwork::device
