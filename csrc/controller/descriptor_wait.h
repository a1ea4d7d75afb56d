// Waiting for descriptors: those of the sockets, and others, for which the loop stops.
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
        own_count_ = descriptors_.size();
        for (int descriptor : others)
            descriptors_.push_back({descriptor, POLLIN, 0});
    }

    // Until a descriptor is readable or the time has come. Whether one of the others is readable, or a signal came.
    bool wait(Ns due) {
        Ns timeout = std::max<Ns>(due - clock_ns(), 0);
        timespec limit{static_cast<time_t>(timeout / SECOND), static_cast<long>(timeout % SECOND)};
        int ready = ppoll(descriptors_.data(), descriptors_.size(), &limit, nullptr);
        if (ready <= 0)
            return ready < 0;
        return std::any_of(descriptors_.begin() + static_cast<std::ptrdiff_t>(own_count_), descriptors_.end(),
                           [](const pollfd& one) { return one.revents != 0; });
    }

private:
    std::vector<pollfd> descriptors_;
    std::size_t own_count_ = 0;  // the first of them
};

}  // namespace clockwork
