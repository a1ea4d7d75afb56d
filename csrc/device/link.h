// The link from the host's memory to its devices: one LOAD uses it at a time, in the order of their requests.
//
// Two LOADs at once would slow each other by an amount that depends on their copies and cannot be predicted.
// The controller, too, counts on one LOAD after the other.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace clockwork::device {

class HostLink {
public:
    // Waits until the link is the caller's.
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
    std::uint64_t asked_ = 0;  // number of LOADs that have asked for the link, and number that had it
    std::uint64_t left_ = 0;
};

}  // namespace clockwork::device
