// The lateness of the exchange's loop, and the processor time of its stages.
#pragma once

#include <time.h>

#include <algorithm>
#include <array>
#include <cstddef>

#include "controller/counts.h"
#include "controller/now.h"

namespace clockwork {

// stages: the number of the loop's stages; the time between two calls of run() is counted behind them.
template <std::size_t stages>
class LoopTimes {
public:
    // This thread's processor time by stage, then Python's between two calls of run(), if is_timed.
    std::array<Ns, stages + 1> spent_ns{};
    bool is_timed = false;

    // Counts the processor time since the last lap for a stage.
    void lap(std::size_t stage) {
        if (!is_timed)
            return;
        timespec time;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
        Ns now = Ns{time.tv_sec} * SECOND + time.tv_nsec;
        spent_ns[stage] += lap_ns_ != 0 ? now - lap_ns_ : 0;
        lap_ns_ = now;
    }

    // Begins a turn, whose events were due no earlier than this.
    void begin_turn(Ns due_ns) {
        due_ns_ = due_ns;
        is_idle_ = true;
    }
    void note_work() { is_idle_ = false; }
    // Ends a turn. A turn without events is not counted.
    void end_turn() {
        if (!is_idle_)
            lag_.add(clock_ns() - due_ns_);
    }

    // Time from a turn's oldest event, when it was due or can have arrived, until all its consequences were
    // sent.
    const Durations& lag() const { return lag_; }

private:
    Ns lap_ns_ = 0;
    Ns due_ns_ = 0;
    bool is_idle_ = true;
    Durations lag_;
};

}  // namespace clockwork
