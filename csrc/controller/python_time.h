// Measures Python's time on the messages of a port, which a turn bounds for each port.
#pragma once

#include "controller/now.h"

namespace clockwork {

class PythonTime {
public:
    // Restarts the measurement for the next port.
    void reset() { spent_ns_ = 0; }
    // Starts the time of a message for Python; settle() counts it.
    void begin() { since_ns_ = clock_ns(); }
    void settle() {
        if (since_ns_ != 0)
            add(clock_ns() - since_ns_);
        since_ns_ = 0;
    }
    void add(Ns ns) { spent_ns_ += ns; }

    Ns spent_ns() const { return spent_ns_; }

private:
    Ns spent_ns_ = 0;
    Ns since_ns_ = 0;  // time at which Python got the current message; 0: Python has none
};

}  // namespace clockwork
