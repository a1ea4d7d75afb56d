// The worth of copies: the order in which models are evicted. docs/policies/memory.md derives it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "scheduler/busy.h"
#include "scheduler/decay.h"
#include "scheduler/state.h"

namespace clockwork {

// Half-life of the count of arrivals: long enough for a model that is asked for once a minute, short enough
// to follow a change within seconds.
inline constexpr Ns RATE_HALF_LIFE_NS = 10 * SECOND;

// Number of models that are sorted at once for eviction: few loads need more.
inline constexpr std::size_t EVICTABLE_ORDERED = 8;

// Counts requests of models, and orders evictions by the link time that each page of a copy saves.
class Worths {
public:
    Worths(State& state, const BusyParts& busy) : state_(state), busy_(busy) {}

    // Counts an arrival. slo_ns: the time from it to its deadline.
    void arrived(const Model& model, std::uint32_t rows, Ns slo_ns);
    void model_gone(const Model& model);

    // Rows of a model that arrive per nanosecond.
    double rate(const Model& model) const;
    // Sorts as Memory::order_evictable() says: the copy that saves least link time per page first.
    std::size_t order(std::vector<Residency*>& found, std::size_t ordered);

    void archive(Archive& archive);

private:
    struct Asked {
        DecayedCount count;
        Ns slo_ns = NEVER_NS;  // SLO of the last request

        void archive(Archive& archive) { archive(count, slo_ns); }
    };
    struct Density {   // worth per page; of equal ones, the least recently used is evicted first
        bool is_kept;  // evicted last: the links are divided, and it is within its share
        double worth;
        std::uint32_t place;
        Residency* residency;
        bool operator<(const Density& other) const {
            if (is_kept != other.is_kept) {
                return other.is_kept;
            }
            return worth != other.worth ? worth < other.worth : place < other.place;
        }
    };

    bool is_of_use(const Model& model, const KindSpec& spec) const;
    double worth(const Residency& residency, double busy) const;

    State& state_;
    const BusyParts& busy_;
    std::vector<Asked> asked_;  // by the model's slot
    std::vector<Density> densities_;
};

}  // namespace clockwork
