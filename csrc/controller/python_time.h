// The time that Python takes while the messages of one port are handled: a turn bounds it for each port.
#pragma once

#include "controller/now.h"

namespace clockwork {

class PythonTime {
public:
    // Nothing was taken yet of the port whose messages are handled next.
    void reset() { spent_ns_ = 0; }
    // Python is given a message; settle() counts the time from here on.
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
    Ns since_ns_ = 0;  // when Python was given the current message; 0: it was given none
};

}  // namespace clockwork
