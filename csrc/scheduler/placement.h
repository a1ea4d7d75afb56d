// Where a model could be loaded, for memory managers of policies with queues.
#pragma once

#include <vector>

#include "scheduler/rules.h"

namespace clockwork {

// Devices among which one is chosen for a load.
inline constexpr std::size_t TARGET_SCAN_MAX = 16;

// How well a device would do for a load: the lower, the better.
struct Score {
    Ns time_ns;                // below zero: not at all
    std::uint32_t models = 0;  // among those of the same time

    bool operator<(const Score& other) const {
        return time_ns != other.time_ns ? time_ns < other.time_ns : models < other.models;
    }
};

inline constexpr Score WORST_SCORE{NEVER_NS, UINT32_MAX};

class Placement {
public:
    Placement(State& state, Arenas& arenas, const Queues& queues, const Rules& rules)
        : state_(state), arenas_(arenas), queues_(queues), rules_(rules) {}

    // Whether the model could be loaded there: prepared by the worker, small enough, and not there already.
    static KindSpec* loadable(const Arena& arena, const Model& model);
    // Whether some device that can be used now could load it.
    bool is_loadable_somewhere(const Model& model) const;
    // LOADs under way or decided on the link that the device shares with its worker's others.
    static std::uint32_t loading(const Arena& arena);
    // See Arenas::takes_load().
    bool takes_load(Arena& arena) const { return arenas_.takes_load(arena, loading(arena)); }

    // What waits, but for one model, and is due by then: how long would it keep devices? To be asked of several, as
    // long as nothing changes.
    struct Ahead {
        Ns due_ns;
        const Model& but;
    };
    void begin_backlogs() const { ++round_of_shares_; }
    // How long it would keep the device, beyond what it was sent; a model's share of it where others have the model,
    // too. From enough_ns on it may be more.
    Ns backlog_ns(const Arena& arena, const Ahead& ahead, Ns enough_ns) const;

    // Has the devices look that could load a model from a host store which holds it. False: none does.
    bool offer_to_host(const Model& model);
    // The arena of the lowest score(arena, spec, least) of TARGET_SCAN_MAX that could load the model, others at each
    // call. Of one that is not below `least`, a score need only say so. Null if there is none.
    template <typename Scorer>
    Arena* find_target(const Model& model, Scorer&& score) {
        std::size_t count = model.workers.size();
        Arena* best = nullptr;
        Score least = WORST_SCORE;
        std::size_t seen = 0;
        begin_backlogs();
        for (std::size_t step = 0; step < count && seen < TARGET_SCAN_MAX; ++step) {
            const Worker* worker = state_.find_worker(model.workers[(round_ + step) % count]);
            if (worker == nullptr) {
                continue;  // it is just leaving
            }
            for (Arena* arena : worker->arenas) {
                ++seen;
                KindSpec* spec = loadable(*arena, model);
                if (spec == nullptr) {
                    continue;
                }
                Score here = score(*arena, *spec, least);
                if (here.time_ns >= 0 && here < least) {
                    best = arena;
                    least = here;
                }
            }
        }
        ++round_;
        return best;
    }
    // A device that could take work and finds none, of TARGET_SCAN_MAX, that could load the model over an idle link
    // into free pages; where none of these can, the next call goes on behind them. Null if there is none.
    Arena* find_spare(const Model& model);

    void archive(Archive& archive) { archive(round_, spare_from_); }

private:
    // What the ready queue of a model adds to the backlog of a device of a kind that has it.
    struct Share {
        std::uint64_t round = 0;
        std::uint32_t kind = 0;
        bool is_one = false;  // no more than one queue does
        double time_ns = 0;
    };

    State& state_;
    Arenas& arenas_;
    const Queues& queues_;
    const Rules& rules_;
    std::size_t round_ = 0;
    std::uint32_t spare_from_ = 0;  // the device's slot at which find_spare() begins
    mutable std::uint64_t round_of_shares_ = 1;
    mutable std::vector<Share> shares_;  // by the model's slot
};

}  // namespace clockwork
