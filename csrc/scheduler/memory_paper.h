// Memory rules `paper`: the load tracker of the original (Clockwork, OSDI '20, its source of 2020-10-28).
//
// With C = 100 ms, s = the duration of a batch of one, w = that of the load, per request:
//   exec_slo    = max(slo - BUFFER, ahead + BUFFER)
//   weights_slo = max(min(25 ms, slo - (w + s + BUFFER + ahead)), ahead + BUFFER)
//   e = s C / exec_slo, from its arrival until it is executed or answered: summed up in E_m
//   l = s C / weights_slo, until it is sent or answered, or weights_slo is over: summed up in L_m
// Each device has a load O_g = 1 ms + the sum of a_mg and a weight w_g = C / O_g, and each of its models a
// share
//   a_mg = E_m w_g / W, where W is the sum of the weights of the devices that hold the model.
// The need of a model for (another) load is
//   p_m = L_m - the sum over its devices of C (L_m w_g / W) / O_g = L_m (1 - (the sum of w_g^2) / W).
// A device whose link is predicted to be free within `ahead` loads the model of the highest need that it does
// not hold. Models without unanswered requests are evicted first, then the others, each least recently used
// first. Models that are being loaded or are in flight stay.
//
// Departures from the original:
// - A need of zero or less stops loading. (The original compared a pointer with zero, so every model with a
//   request was loaded onto every device.)
// - l leaves when weights_slo is over. (The original read a number that it had just set to zero, so l hardly
//   ever left.)
// - After a failed load the model can be loaded again. (An assignment stood where a comparison was meant.)
// - Models in flight are not evicted. (The original evicted them; the action then failed.)
// - slo is that of each request.
// - Shares are computed when a load is chosen, at most every PAPER_FLUSH_NS, not at each arrival; the sums
//   are the same.
// - The original's threads poll all devices in turn. Here a request calls one device, the least loaded (O_g)
//   of up to TARGET_SCAN_MAX whose link is free, and every device looks for a load when it changes.
// - Pages are chosen so that the load fits; the original counts them, because its pages are all alike.
#pragma once

#include <queue>
#include <set>
#include <utility>
#include <vector>

#include "scheduler/queue_memory.h"

namespace clockwork {

inline constexpr Ns PAPER_CAPACITY_NS = 100 * MS;
inline constexpr Ns PAPER_WEIGHTS_SLO_NS = 25 * MS;
inline constexpr Ns PAPER_DEVICE_LOAD_NS = MS;

// Interval at which shares and needs are computed, except for models that no device has.
inline constexpr Ns PAPER_FLUSH_NS = MS / 2;

// Bound on the models, in the order of their need, that a device looks at for one that it does not hold.
inline constexpr std::size_t PAPER_SCAN_MAX = 64;

class PaperMemory final : public QueueMemory {
public:
    PaperMemory(SchedulerParts& parts, const Queues& queues, const Rules& rules, const SchedulerOptions& options);

    void waits(Pending& pending) override;
    void leaves(Pending& pending) override;
    void sent(Flight& flight) override;
    void ended(Flight& flight) override;
    void look(Arena& arena) override;
    std::size_t order_evictable(std::vector<Residency*>& found, std::size_t ordered) override;
    bool is_load_wanted(const Residency& residency) const override { return queues_.is_load_wanted(residency); }
    bool may_drop(const Model& model) const override { return queues_.may_drop(model); }
    void store_changed(Worker& /*worker*/, Model& model) override { renew(model); }
    void arrived_on(Residency& residency) override;
    void gone_from(Residency& residency) override;
    void renew(Model& model) override;
    void model_gone(Model& model) override;
    void joined(Arena& arena) override;
    void archive(Archive& archive) override;
    void check_invariants() const override;

private:
    struct Demand {         // demand for a model
        Ns exec_ns = 0;     // the paper's E_m
        Ns weights_ns = 0;  // the paper's L_m
        double need = 0;    // the paper's p_m, as entered in needs_
        bool is_dirty = false;
        bool is_listed = false;

        void archive(Archive& archive) { archive(exec_ns, weights_ns, need, is_dirty, is_listed); }
    };
    struct Share {  // demand of a request
        Ns exec_ns = 0;
        Ns weights_ns = 0;  // the request's part of L_m; 0: removed from it
        std::uint64_t number = 0;

        void archive(Archive& archive) { archive(exec_ns, weights_ns, number); }
    };
    struct Expiry {
        Ns at_ns;
        std::uint32_t pending;  // slots of a request and of its model
        std::uint32_t model;
        std::uint64_t number;
        bool operator>(const Expiry& other) const {
            return at_ns != other.at_ns ? at_ns > other.at_ns : number > other.number;
        }
        void archive(Archive& archive) { archive(at_ns, pending, model, number); }
    };

    Ns now() const { return state_.now; }
    std::uint32_t waiting(const Model& model) const { return queues_.waiting(model); }
    Demand& demand(const Model& model);
    Share& share(const Pending& pending);
    void soil(const Model& model);
    void expire();
    void flush();
    void call(Model& model);
    Score score(const Arena& arena) const;
    bool is_for_holder(const Arena& arena, const Model& model) const;
    double weight(const Arena& arena) const {
        return static_cast<double>(PAPER_CAPACITY_NS) * arena.width() / static_cast<double>(loads_[arena.slot]);
    }

    State& state_;
    Arenas& arenas_;
    const Queues& queues_;
    Placement placement_;
    Ns ahead_ns_;
    std::vector<Demand> demands_;  // demand by the model's slot
    std::vector<Share> shares_;    // parts by the request's slot
    // by the batch's slot: execution demand of its requests (the paper's e)
    std::vector<Ns> batches_;
    std::vector<Ns> allocated_;                         // by the residency's slot: the paper's a_mg
    std::vector<Ns> loads_;                             // by the arena's slot: the paper's O_g
    std::vector<double> weights_;                       // the paper's w_g of a model's devices
    std::vector<std::uint32_t> dirty_;                  // slots of models whose needs have changed
    std::set<std::pair<double, std::uint32_t>> needs_;  // (-p_m, slot) of models with a need
    std::priority_queue<Expiry, std::vector<Expiry>, std::greater<>> expiries_;
    std::uint64_t number_ = 0;
    Ns flush_ns_ = 0;  // time before which nothing is computed again
};

}  // namespace clockwork
