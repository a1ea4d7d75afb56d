// Choice of a device for a load, for memory managers of policies with queues.
#pragma once

#include <utility>
#include <vector>

#include "scheduler/rules.h"

namespace clockwork {

// Bound on the devices that are compared for a load.
inline constexpr std::size_t TARGET_SCAN_MAX = 16;

// Suitability of a device for a load: the lower, the better.
struct Score {
    Ns time_ns;                // time of the place; below zero: unsuitable
    std::uint32_t models = 0;  // number of models, which breaks ties of the time

    bool operator<(const Score& other) const {
        return time_ns != other.time_ns ? time_ns < other.time_ns : models < other.models;
    }
};

inline constexpr Score WORST_SCORE{NEVER_NS, UINT32_MAX};

class Placement {
public:
    Placement(State& state, Arenas& arenas, const Queues& queues, const Rules& rules)
        : state_(state), arenas_(arenas), queues_(queues), rules_(rules) {}

    // Returns the model's preparation if the model could be loaded there: prepared by the worker, small
    // enough, and not there already. Null otherwise.
    static KindSpec* loadable(const Arena& arena, const Model& model);
    // Whether some usable device could load the model.
    bool is_loadable_somewhere(const Model& model) const;
    // LOADs under way or decided on the link that the device shares with its worker's others.
    static std::uint32_t loading(const Arena& arena);
    // Whether the arena may begin a load now; see Arenas::takes_load().
    bool takes_load(Arena& arena) const { return arenas_.takes_load(arena, loading(arena)); }

    // The requests that count as a backlog: those due by due_ns, except of the model `but`. begin_backlogs()
    // must be called before a series of questions during which nothing changes.
    struct Ahead {
        Ns due_ns;
        const Model& but;
    };
    void begin_backlogs() const { round_of_shares_ += !is_held_; }
    // Begins another series, because something has changed.
    void renew_backlogs() const { ++round_of_shares_; }
    // Number of the series: as long as it stays the same, so do the answers.
    std::uint64_t series() const { return round_of_shares_; }
    // A series of questions that includes all series begun while it exists.
    class Held {
    public:
        explicit Held(const Placement& placement) : placement_(placement), was_held_(placement.is_held_) {
            placement_.begin_backlogs();
            placement_.is_held_ = true;
        }
        Held(const Held&) = delete;
        Held& operator=(const Held&) = delete;
        ~Held() { placement_.is_held_ = was_held_; }

    private:
        const Placement& placement_;
        const bool was_held_;
    };
    // The time that this backlog would keep the device, beyond the actions that it was sent. A model that
    // others also have counts where its batches will be executed: on those that are free first. Results from
    // enough_ns on are lower bounds.
    Ns backlog_ns(const Arena& arena, const Ahead& ahead, Ns enough_ns) const;

    // When the device could begin with a request of the model `but`: behind its actions, this backlog, and
    // those requests of models that are being loaded there. Results from enough_ns on are lower bounds.
    Ns begin_ns(const Arena& arena, const Ahead& ahead, Ns enough_ns) const;

    // Wakes the devices that could load the model from a store which holds it. False: there are none.
    bool offer_to_holder(const Model& model);
    // The arena of the lowest score(arena, spec, least) among TARGET_SCAN_MAX that could load the model, in
    // the order of Model::nearest(), beginning elsewhere at each call. A score that is not below `least` need
    // not be exact. Null: there is none.
    template <typename Scorer>
    Arena* find_target(const Model& model, Scorer&& score) {
        std::size_t count = model.workers.size();
        Arena* best = nullptr;
        Score least = WORST_SCORE;
        std::size_t seen = 0;
        begin_backlogs();
        for (std::size_t step = 0; step < count && seen < TARGET_SCAN_MAX; ++step) {
            const Worker* worker = state_.find_worker(model.nearest(round_, step));
            if (worker == nullptr) {
                continue;  // the worker is leaving
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
    // A device that has found no work, among TARGET_SCAN_MAX, and could load the model over an idle link into
    // free pages. The next call goes on behind the devices that could not. Null if there is none.
    Arena* find_spare(const Model& model);

    void archive(Archive& archive) { archive(round_, spare_from_); }

private:
    // When an executor is free, and its slot, which breaks ties.
    using Turn = std::pair<Ns, std::uint32_t>;
    static constexpr Turn LAST_TURN{NEVER_NS, UINT32_MAX};

    // When an executor is free, as it was found in a round.
    struct Free {
        std::uint64_t round = 0;
        Ns at_ns = 0;
    };

    Ns free_ns(const Executor& executor) const;
    Turn last_turn(const Model& model, std::size_t batches, std::size_t& takers) const;
    double part_by(const Arena& arena, const Turn& last) const;

    // The part of a model's only ready queue in the backlog of a device of a kind that has the model.
    struct Share {
        std::uint64_t round = 0;
        std::uint32_t kind = 0;
        Ns due_ns = 0;       // deadline of the queue's first request
        double time_ns = 0;  // of each executor that takes a part of it
        Turn last;           // the last of these
    };

    State& state_;
    Arenas& arenas_;
    const Queues& queues_;
    const Rules& rules_;
    std::size_t round_ = 0;
    std::uint32_t spare_from_ = 0;  // slot of the device at which find_spare() begins
    mutable std::uint64_t round_of_shares_ = 1;
    mutable bool is_held_ = false;
    mutable std::vector<Share> shares_;  // shares by the model's slot
    mutable std::vector<Free> frees_;    // by the executor's slot
    mutable std::vector<Turn> turns_;
};

}  // namespace clockwork
