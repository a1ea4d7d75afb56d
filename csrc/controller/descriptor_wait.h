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
        own_count_ = static_cast<std::ptrdiff_t>(own.size());
        for (int descriptor : others)
            descriptors_.push_back({descriptor, POLLIN, 0});
    }

    // Until a descriptor is readable, a signal comes, or it is time.
    void wait(Ns due) {
        Ns timeout = std::max<Ns>(due - clock_ns(), 0);
        timespec limit{static_cast<time_t>(timeout / SECOND), static_cast<long>(timeout % SECOND)};
        int ready = ppoll(descriptors_.data(), descriptors_.size(), &limit, nullptr);
        has_other_ = ready < 0 || (ready > 0 && std::any_of(
                                                    descriptors_.begin() + own_count_, descriptors_.end(),
                                                    [](const pollfd& one) { return one.revents != 0; }));
    }
    // Whether one of the others was readable then, or a signal came, which is Python's to look at.
    bool has_other() const { return has_other_; }

private:
    std::vector<pollfd> descriptors_;
    std::ptrdiff_t own_count_ = 0;  // the first of them
    bool has_other_ = false;
};

}  // namespace clockwork
