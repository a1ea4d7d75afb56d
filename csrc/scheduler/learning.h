// What is learnt of executions and loads, as of one clock, and what is let go of when nothing confirms it.
//
// A processor that is hot, or draws too much, is slowed down, and all that it does takes longer in proportion, as soon
// as it is. So samples are kept as of one clock, and an estimate is what they make at the clock of now. Devices of one
// kind share it: it is of the slowest of them, and what is sent to another is expected to take less (Executor::pace).
//
// An estimate far above what was told (by a profile, or by the best that was measured) may make requests seem
// impossible; then nothing is tried, and nothing would ever teach otherwise. So it holds for STALE_NS after its last
// sample. Where it was right, two samples put it back.
#pragma once

#include <cstdint>
#include <vector>

#include "scheduler/state.h"

namespace clockwork {

// How often it is looked whether raised estimates are stale, while there are any.
inline constexpr Ns STALE_EVERY_NS = 100 * MS;

class Learning {
public:
    Learning(State& state, const Deciders& deciders) : state_(state), deciders_(deciders) {}

    void set_kind_count(std::size_t count) { clocks_.resize(count); }
    double scale(std::uint32_t kind) const { return clocks_[kind].scale; }
    // The clock that a device executes at from now on.
    void set_clock(Executor& executor, std::uint32_t mhz);
    // A device's clock has changed, or it came or went.
    void follow_clocks(std::uint32_t kind);

    // An execution took so long, a load, a fetch.
    void executed(const Flight& flight, Ns took_ns);
    void loaded(Model& model, KindSpec& spec, Ns took_ns);
    void fetched(Model& model, KindSpec& spec, Ns took_ns);
    // A load, or a fetch, ended, well or not.
    void load_ended(const KindSpec& spec);
    void fetch_ended(const KindSpec& spec);

    // Looks for stale estimates, if it is time to.
    void forget_stale() {
        if (state_.now >= stale_at_ns_) {
            look_for_stale();
        }
    }

    void archive(Archive& archive) { archive(clocks_, stale_at_ns_); }
    std::size_t kind_count() const { return clocks_.size(); }

private:
    struct KindClock {
        std::uint32_t first_mhz = 0;  // what estimates are of; 0: no device said one
        double scale = 1;             // what they are multiplied by

        void archive(Archive& archive) { archive(first_mhz, scale); }
    };

    Ns at_first_clock(const Executor& executor, Ns took_ns) const;
    void tell_changed(ProgramEstimates& program);
    void note_raised();
    void look_for_stale();

    State& state_;
    const Deciders& deciders_;
    std::vector<KindClock> clocks_;  // by kind
    Ns stale_at_ns_ = NEVER_NS;      // when to look for stale estimates
    std::vector<std::uint32_t> changed_shapes_;
};

}  // namespace clockwork
