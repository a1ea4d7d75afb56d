// Learning from executions and loads: samples are stored as of one clock, and estimates that nothing confirms
// are forgotten.
//
// A processor that is hot, or draws too much power, is slowed down, and all executions take longer in
// proportion at once. So samples are stored as of one clock, and an estimate converts them to the present
// clock. Devices of one kind share that clock: it is the slowest one's, and an execution on another device is
// expected to take less (Executor::pace).
//
// An estimate far above its basis (a profile, or the best measured time) may make requests seem impossible;
// then nothing is tried, and nothing would ever correct it. So it holds for STALE_NS after its last sample.
// Where it was right, two samples restore it.
#pragma once

#include <cstdint>
#include <vector>

#include "scheduler/state.h"

namespace clockwork {

// Interval of the search for stale estimates, while any are raised.
inline constexpr Ns STALE_EVERY_NS = 100 * MS;

class Learning {
public:
    Learning(State& state, const Deciders& deciders) : state_(state), deciders_(deciders) {}

    void set_kind_count(std::size_t count) { kinds_.resize(count); }
    double scale(std::uint32_t kind) const { return kinds_[kind].scale; }
    // Notes how many executors arenas of a kind have, and how much longer executions take beside all others
    // by a worker's measurement.
    void set_neighbours(std::uint32_t kind, std::uint32_t executors, double slowdown);
    // Begins with that for a program; see Drag::begin().
    void begin_drag(std::uint32_t kind, ProgramEstimates& program) const {
        program.begin_drag(kinds_[kind].drag, kinds_[kind].drag_most);
    }
    // Notes the clock that a device executes at from now on.
    void set_clock(Executor& executor, std::uint32_t mhz);
    // Adjusts the estimates of a kind after a device's clock has changed, or a device came or went.
    void follow_clocks(std::uint32_t kind);

    // Adds samples of an execution, a load, and a fetch.
    void executed(const Flight& flight, Ns took_ns);
    void loaded(KindSpec& spec, Ns took_ns);
    void fetched(KindSpec& spec, Ns took_ns);
    // Notes that a load or a fetch ended, successfully or not.
    void load_ended(const KindSpec& spec);
    void fetch_ended(const KindSpec& spec);

    // Looks for stale estimates at intervals of STALE_EVERY_NS.
    void forget_stale() {
        if (state_.now >= stale_at_ns_) {
            look_for_stale();
        }
    }

    void archive(Archive& archive) { archive(kinds_, stale_at_ns_); }
    std::size_t kind_count() const { return kinds_.size(); }

private:
    struct Kind {
        std::uint32_t first_mhz = 0;  // clock of the samples; 0: no device reports one
        double scale = 1;             // factor from the samples to the present clock
        double drag = 0;              // the neighbours' drag that a worker measured
        double drag_most = 0;         // its bound; 0: executions have no neighbours

        void archive(Archive& archive) {
            archive(first_mhz, scale, drag, drag_most);
            Archive::need(0 <= drag && drag <= drag_most && drag_most <= DRAG_MAX, "a drag is out of its range");
        }
    };

    Ns at_first_clock(const Executor& executor, Ns took_ns) const;
    void tell_changed(ProgramEstimates& program);
    void note_raised();
    void look_for_stale();

    State& state_;
    const Deciders& deciders_;
    std::vector<Kind> kinds_;    // by kind of device
    Ns stale_at_ns_ = NEVER_NS;  // time of the next search for stale estimates
    std::vector<std::uint32_t> changed_shapes_;
};

}  // namespace clockwork
