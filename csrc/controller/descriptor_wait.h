// Waits for the sockets' descriptors, and for other descriptors, for which the loop returns to Python.
#pragma once

#include <poll.h>
#include <time.h>

#include <algorithm>
#include <cstddef>
#include <vector>

#include "controller/now.h"

namespace clockwork {

class DescriptorWait {
public:
    void wait_on(const std::vector<int>& own, const std::vector<int>& others) {
        descriptors_.clear();
        for (int descriptor : own)
            descriptors_.push_back({descriptor, POLLIN, 0});
        own_count_ = static_cast<std::ptrdiff_t>(own.size());
        for (int descriptor : others)
            descriptors_.push_back({descriptor, POLLIN, 0});
    }

    // Waits until a descriptor is readable, a signal comes, or `due` is reached.
    void wait(Ns due) {
        Ns timeout = std::max<Ns>(due - clock_ns(), 0);
        timespec limit{static_cast<time_t>(timeout / SECOND), static_cast<long>(timeout % SECOND)};
        int ready = ppoll(descriptors_.data(), descriptors_.size(), &limit, nullptr);
        has_other_ = ready < 0 || (ready > 0 && std::any_of(
                                                    descriptors_.begin() + own_count_, descriptors_.end(),
                                                    [](const pollfd& descriptor) { return descriptor.revents != 0; }));
    }
    // Whether the wait ended with a readable other descriptor or a signal, which Python handles.
    bool has_other() const { return has_other_; }

private:
    std::vector<pollfd> descriptors_;
    std::ptrdiff_t own_count_ = 0;  // the index of the first other descriptor
    bool has_other_ = false;
};

}  // namespace clockwork
