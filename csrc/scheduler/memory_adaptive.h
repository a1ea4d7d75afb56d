// Memory rules `adaptive`: loads by benefit and cost.
//
// A model asks for a load while requests wait for it and no device has it, but for those on which it has to go (it is
// *cold*), or while those that have it seem unable to serve its queue in time (it is *pressed*: a batch is sent late,
// or the first request has waited for longer than a load takes and for one part in LONG_PART of its SLO) and there is
// another that could load it.
//
// *Order.* As long as the links can load in time whatever is asked for, the next load is the one that has to be done
// the soonest. What they cannot load in time is *put back* behind the others: of those that have to be done before the
// one that would be too late, and it, those with the least benefit per time of the link, as few as that takes (Moore
// and Hodgson's rule). Counted in requests:
//   benefit = those that wait and would still be in time if the load began now + standing (if it is cold)
//   standing of a model = what is lost each time that it has to be loaded anew
//                       = rate (load + wait), who comes before it is back
//                       + min(1, rate STANDING_NS), who calls for it, if the SLO is too tight to wait for a load
// where `wait` is the time that a load waits for a link now. Those with the least rate x load per page make room;
// never one that has requests waiting, is in flight or is being loaded. So an idle link loads whatever is asked for,
// and a busy one what would be asked for again.
//
// *Place.* A model that begins to ask calls the device, of some, on which its first request would be served the
// soonest: when it is loaded, and what waits there and is due earlier has been done. A pressed model is loaded, one
// device at a time, only where that would be sooner than on those that have it, or later by no more than one part in
// COPY_PART of a load: the copy is there for those who come next, too. A cold one is loaded by force (busy models make
// room, as their work ends) if all were busy for one part in DENIED_PART of its SLO. Devices that share a link fill their
// free pages evenly.
//
// *Spare.* While nobody asks, a model whose queue finds all its devices busy is copied onto one that is idle, into free
// pages, over an idle link: nothing is late for it, so nobody would ask, and the device would stay idle.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "scheduler/decay.h"
#include "scheduler/queue_memory.h"

namespace clockwork {

// Arrivals are counted with this half-life: long enough to know a model that is asked for once a minute, short enough
// to follow a change within seconds.
inline constexpr Ns RATE_HALF_LIFE_NS = 10 * SECOND;
inline constexpr Ns STANDING_NS = 10 * SECOND;

// A model is pressed for this long after its policy said so.
inline constexpr Ns PRESSED_NS = 100 * MS;

inline constexpr Ns LONG_PART = 8;

inline constexpr Ns DENIED_PART = 8;

// A model is copied into free pages if so many are expected to ask for it while it is loaded.
inline constexpr double SPARE_ASKED = 1;

inline constexpr Ns COPY_PART = 3;

// What is put back is found anew after this.
inline constexpr Ns ORDER_EVERY_NS = MS;

// Candidates that a device looks at for one load, and how long it does not look again if none would do.
inline constexpr int CANDIDATE_SCAN_MAX = 8;
inline constexpr Ns LOOK_AGAIN_NS = 5 * MS;

// Models that it passes over for that, since it has them or cannot have them.
inline constexpr int PASSED_OVER_MAX = 64;

// Devices on which a model would be served within the same such step are equally good for it.
inline constexpr Ns SCORE_STEP_NS = 100'000;

// Models that are put in order at once to make room: few loads need more.
inline constexpr std::size_t EVICTABLE_ORDERED = 8;

// Instead of the slot of a model that a device may copy.
inline constexpr std::uint32_t OFFERED_NOTHING = UINT32_MAX;

// How much something wants to be the next: what is put back comes behind all that is not.
struct Urgency {
    bool is_put_back;
    double value;  // the higher, the sooner

    void archive(Archive& archive) { archive(is_put_back, value); }

    bool operator==(const Urgency& other) const = default;
    bool operator>(const Urgency& other) const {
        return is_put_back != other.is_put_back ? other.is_put_back : value > other.value;
    }
};

// Slots by urgency, the most urgent first (of equal ones, the lowest slot); a slot's urgency may change at any time.
class SlotHeap {
public:
    bool empty() const { return heap_.empty(); }
    std::size_t size() const { return heap_.size(); }
    std::uint32_t top() const { return heap_.front(); }
    const Urgency& urgency(std::uint32_t slot) const { return urgencies_[slot]; }
    // All of them, in no particular order (but always the same).
    const std::vector<std::uint32_t>& slots() const { return heap_; }
    bool holds(std::uint32_t slot) const { return slot < places_.size() && places_[slot] != NOWHERE; }
    void set(std::uint32_t slot, Urgency urgency);
    // Changes many that it holds: nothing else may be asked of it until restore_order() was called.
    void change(std::uint32_t slot, Urgency urgency) { urgencies_[slot] = urgency; }
    void restore_order();
    void erase(std::uint32_t slot);
    void check_invariants() const;
    void archive(Archive& archive, std::uint32_t limit);

private:
    static constexpr std::uint32_t NOWHERE = UINT32_MAX;

    bool is_above(std::uint32_t slot, std::uint32_t other) const {
        const Urgency &first = urgencies_[slot], &second = urgencies_[other];
        return first == second ? slot < other : first > second;
    }
    void put(std::size_t place, std::uint32_t slot) {
        heap_[place] = slot;
        places_[slot] = static_cast<std::uint32_t>(place);
    }
    void rise(std::size_t place);
    void sink(std::size_t place);

    std::vector<std::uint32_t> heap_;
    std::vector<std::uint32_t> places_;  // by slot
    std::vector<Urgency> urgencies_;
};

class AdaptiveMemory final : public QueueMemory {
public:
    AdaptiveMemory(Parts& parts, const Queues& queues, const Rules& rules)
        : state_(parts.state), arenas_(parts.arenas), queues_(queues), placement_(state_, arenas_, queues, rules) {}

    void waits(Pending& pending) override;
    void leaves(Pending& pending) override;
    void sent(Flight& flight) override;
    void look(Arena& arena) override;
    void press(Queue& queue) override;
    void found_all_busy(Model& model) override;
    bool may_evict(const Residency& residency) const override;
    std::size_t order_evictable(std::vector<Residency*>& found, std::size_t ordered) override;
    bool is_load_wanted(const Residency& residency) const override { return queues_.is_load_wanted(residency); }
    bool may_drop(const Model& model) const override { return queues_.may_drop(model); }
    double host_worth(const Model& model) const override { return rate(model); }
    void host_changed(Worker& worker, Model& model) override;
    void arrived_on(Residency& residency) override;
    void gone_from(Residency& residency) override;
    void renew(Model& model) override;
    void model_gone(Model& model) override;
    void joined(Arena& arena) override;
    void archive(Archive& archive) override;
    void check_invariants() const override { asking_.check_invariants(); }

private:
    struct Demand {  // of a model
        DecayedCount count;
        Ns slo_ns = NEVER_NS;        // of its last request
        Ns pressed_ns = -NEVER_NS;   // last
        Ns denied_ns = 0;            // since when it found no room; 0: it did
        bool is_everywhere = false;  // no device was left that could load it, and it has gone from none since

        void archive(Archive& archive) { archive(count, slo_ns, pressed_ns, denied_ns, is_everywhere); }
    };

    struct Density {  // of what a page holds; of those that are equal, the least recently used goes first
        double worth;
        std::uint32_t place;
        Residency* residency;
        bool operator<(const Density& other) const {
            return worth != other.worth ? worth < other.worth : place < other.place;
        }
    };

    Ns now() const { return state_.now; }
    std::uint32_t waiting(const Model& model) const { return queues_.waiting(model); }
    Demand& demand(const Model& model);
    const Demand* known(const Model& model) const {
        return model.slot < demands_.size() ? &demands_[model.slot] : nullptr;
    }
    // Whether no device has it, or all that do have doomed it, or leave.
    static bool is_cold(const Model& model) {
        return std::all_of(model.residencies.begin(), model.residencies.end(), [](const Residency* residency) {
            return residency->doomed || residency->is_stuck || !residency->arena->usable();
        });
    }
    // Whether a load of it is decided or under way.
    static bool is_coming(const Model& model) {
        return std::any_of(model.residencies.begin(), model.residencies.end(), [](const Residency* residency) {
            return residency->state != ResidencyState::RESIDENT && !residency->doomed && !residency->is_stuck &&
                   residency->arena->usable();
        });
    }
    // Whether it asks for a load.
    bool asks(const Model& model, bool is_cold);
    double benefit(const Model& model, const KindSpec& spec, Ns begin_ns, Ns load, Ns delays_ns, bool is_cold) const;
    double standing(const Model& model, Ns load) const;
    double rate(const Model& model) const;
    bool waits_long(const Model& model) const;
    void ask(Model& model);
    Ns latest_ns(const Model& model, const KindSpec& spec, Ns hops) const;
    static double shared_ns(const Model& model, Ns load);
    Urgency urgency(const Model& model, bool is_cold, bool is_put_back) const;
    void put_in_order(const Arena& arena);
    const Queue* first_queue(const Model& model) const;
    Ns served_ns(const Arena& arena, const KindSpec& spec, const Queue& queue, Ns ready_ns, Ns enough_ns) const;
    Ns loaded_ns(const Arena& arena, const KindSpec& spec, const Model& model) const;
    bool earns_copy(const Arena& arena, const KindSpec& spec, const Model& model) const;
    Score score(const Arena& arena, const KindSpec& spec, const Model& model, const Score& least) const;
    Arena* roomier(const Arena& arena, const KindSpec& spec, const Model& model) const;
    void copy_freely(Arena& arena);
    bool try_load(Arena& arena, Model& model, KindSpec& spec);

    // A load that is asked for, when the links are planned.
    struct Wish {
        std::uint32_t slot;
        bool is_cold;
        bool is_put_back = false;
        double load_ns = 0;  // of all links together
        double due_ns = 0;   // when it has to be done, begun at the latest
        double density = 0;  // benefit per time
    };
    struct Due {  // by which wishes are sorted
        double due_ns;
        std::uint32_t slot;
        std::uint32_t wish;  // its place in wishes_
    };

    State& state_;
    Arenas& arenas_;
    const Queues& queues_;
    Placement placement_;
    SlotHeap asking_;                     // models; what it says may have shrunk since
    std::vector<Demand> demands_;         // by the model's slot
    std::vector<Ns> again_ns_;            // by the arena's: no look before
    std::vector<std::uint32_t> offered_;  // by the arena's: a model that it may copy for nothing, in this step
    Ns ordered_ns_ = 0;                   // when put_in_order() did it last
    std::vector<Wish> wishes_;
    std::vector<Due> by_due_;                                // those that may still be in time
    std::vector<std::pair<double, std::uint32_t>> planned_;  // the least dense first: its density, negative; by due
    std::vector<std::uint32_t> silent_;                      // that no longer ask
    std::vector<std::pair<std::uint32_t, bool>> aside_;      // and whether they were put back
    std::vector<Residency*> victims_;
    std::vector<Density> densities_;
};

}  // namespace clockwork
