// Memory rules `adaptive`: loads by benefit and cost.
//
// docs/policies/memory.md derives the rules, with formulas. In short: a model asks for a load while it is
// *cold* (requests wait and no device has it) or *pressed* (its devices seem unable to serve its queue in
// time). Loads that the links can finish in time go by due time; the others are *put back* behind them, by
// benefit per time of the link. Models with the least rate x load per page are evicted. While no model asks,
// busy models are copied to idle devices.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "scheduler/queue_memory.h"
#include "scheduler/shortfalls.h"
#include "scheduler/worth.h"

namespace clockwork {

inline constexpr Ns STANDING_NS = 10 * SECOND;

// A model stays pressed for this long after its policy said so.
inline constexpr Ns PRESSED_NS = 100 * MS;

inline constexpr Ns LONG_PART = 8;

inline constexpr Ns DENIED_PART = 8;

// A model is copied into free pages if at least this many requests are expected during the load.
inline constexpr double SPARE_ASKED = 1;

inline constexpr Ns COPY_PART = 3;

// Copies for single requests are loaded while at most 1/ASKING_PART as many models ask as there are links.
inline constexpr std::size_t ASKING_PART = 4;

// Interval at which the loads to put back are determined.
inline constexpr Ns ORDER_EVERY_NS = MS;

// Bound on the candidates that a device looks at for a load, and the time until it looks again if none would
// do.
inline constexpr int CANDIDATE_SCAN_MAX = 8;
inline constexpr Ns LOOK_AGAIN_NS = 5 * MS;

// Bound on the models that are passed over in one look because the device has them or cannot load them.
inline constexpr int PASSED_OVER_MAX = 64;

// Bound on the workers whose disks have a model that are looked at before it is brought to another.
inline constexpr std::size_t HOLDERS_MAX = 4;

// Devices on which a model would be served within the same such step are equal.
inline constexpr Ns SCORE_STEP_NS = 100'000;

// Bound on the models that are checked for requests that a batch makes late.
inline constexpr std::size_t DISPLACED_MAX = 16;

// The entry of a device to which no model is offered, instead of a slot.
inline constexpr std::uint32_t OFFERED_NOTHING = UINT32_MAX;

// Urgency of a load: loads of models that are greedy on the links (link_shares.h) come behind all others, and
// among either those that are put back.
struct Urgency {
    bool is_behind;
    bool is_put_back;
    double value;  // the higher the value, the sooner the load

    void archive(Archive& archive) { archive(is_behind, is_put_back, value); }

    bool operator==(const Urgency& other) const = default;
    bool operator>(const Urgency& other) const {
        if (is_behind != other.is_behind) {
            return other.is_behind;
        }
        return is_put_back != other.is_put_back ? other.is_put_back : value > other.value;
    }
};

// Slots by urgency, the most urgent first (of equal ones, the lowest slot). Urgencies may change at any time.
class SlotHeap {
public:
    bool empty() const { return heap_.empty(); }
    std::size_t size() const { return heap_.size(); }
    std::uint32_t top() const { return heap_.front(); }
    const Urgency& urgency(std::uint32_t slot) const { return urgencies_[slot]; }
    // All slots, in an arbitrary but deterministic order.
    const std::vector<std::uint32_t>& slots() const { return heap_; }
    bool holds(std::uint32_t slot) const { return slot < places_.size() && places_[slot] != NOWHERE; }
    void set(std::uint32_t slot, Urgency urgency);
    // Changes the urgency of one of many slots: nothing else may be called until restore_order().
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
    std::vector<std::uint32_t> places_;  // position in the heap, by slot
    std::vector<Urgency> urgencies_;
};

class AdaptiveMemory final : public QueueMemory {
public:
    AdaptiveMemory(SchedulerParts& parts, const Queues& queues, const Rules& rules)
        : state_(parts.state),
          arenas_(parts.arenas),
          queues_(queues),
          placement_(state_, arenas_, queues, rules),
          shortfalls_(state_, arenas_, queues, placement_),
          worths_(state_, shortfalls_.busy()) {}

    void waits(Pending& pending) override;
    void leaves(Pending& pending) override;
    void sent(Flight& flight) override;
    void look(Arena& arena) override;
    void press(Queue& queue) override;
    void turned_away(const Model& model) override;
    bool is_served_elsewhere(const Pending& pending, const Executor& executor) const override;
    bool could_copy(const Pending& pending) const override;
    bool is_needed(const Model& model, const Executor& executor) const override {
        return shortfalls_.without(model, executor).late > 0;
    }
    void found_all_busy(Model& model) override;
    bool may_evict(const Residency& residency) const override;
    std::size_t order_evictable(std::vector<Residency*>& found, std::size_t ordered) override {
        return worths_.order(found, ordered);
    }
    bool is_load_wanted(const Residency& residency) const override { return queues_.is_load_wanted(residency); }
    bool may_drop(const Model& model) const override { return queues_.may_drop(model); }
    double copy_worth(const Model& model) const override { return worths_.rate(model); }
    void store_changed(Worker& worker, Model& model) override;
    void arrived_on(Residency& residency) override;
    void gone_from(Residency& residency) override;
    void renew(Model& model) override;
    void model_gone(Model& model) override;
    void joined(Arena& arena) override;
    void archive(Archive& archive) override;
    void check_invariants() const override { asking_.check_invariants(); }

private:
    struct Demand {                  // demand for a model
        Ns slo_ns = NEVER_NS;        // SLO of its last request
        Ns pressed_ns = -NEVER_NS;   // last time that it was pressed
        Ns denied_ns = 0;            // start of the time without room; 0: it has found room
        std::uint32_t late = 0;      // its shortfall when it last entered those that ask, or asked again
        bool is_everywhere = false;  // every usable device that could load the model has it

        void archive(Archive& archive) { archive(slo_ns, pressed_ns, denied_ns, late, is_everywhere); }
    };

    Ns now() const { return state_.now; }
    std::uint32_t waiting(const Model& model) const { return queues_.waiting(model); }
    Demand& demand(const Model& model);
    const Demand* known(const Model& model) const {
        return model.slot < demands_.size() ? &demands_[model.slot] : nullptr;
    }
    // Whether no device has the model, or all that do have doomed it, leave, or are too slow.
    bool is_cold(const Model& model) const {
        return std::none_of(model.residencies.begin(), model.residencies.end(), [&](const Residency* residency) {
            return is_promised(*residency) && !queues_.is_too_slow(model, *residency->spec);
        });
    }
    // Whether a load of the model is decided or under way.
    bool is_coming(const Model& model) const {
        return std::any_of(model.residencies.begin(), model.residencies.end(), [&](const Residency* residency) {
            return residency->state != ResidencyState::RESIDENT && is_promised(*residency) &&
                   !queues_.is_too_slow(model, *residency->spec);
        });
    }
    bool asks(const Model& model, bool is_cold);
    double benefit(const Model& model, const KindSpec& spec, Ns begin_ns, Ns load, Ns delays_ns, bool is_cold) const;
    double standing(const Model& model, Ns load) const;
    bool waits_long(const Model& model) const;
    bool is_wanting(const Model& model);
    // The shortfall of the model, where there is time for copies that would serve it.
    std::uint32_t late(const Model& model) const {
        return shortfalls_.has_time(model) ? shortfalls_.of(model).late : 0;
    }
    bool press_short(Model& model);
    void press_displaced();
    void ask(Model& model);
    Ns latest_ns(const Model& model, const KindSpec& spec, Ns hops) const;
    static double shared_ns(const Model& model, Ns load);
    Urgency urgency(const Model& model, bool is_cold, bool is_put_back) const;
    void put_in_order(const Arena& arena);
    Ns served_ns(const Arena& arena, const KindSpec& spec, const Queue& queue, Ns ready_ns, Ns enough_ns) const;
    Ns loaded_ns(const Arena& arena, const KindSpec& spec, const Model& model) const;
    bool earns_copy(const Arena& arena, const KindSpec& spec, const Model& model) const;
    bool is_late_on(const Arena& arena, const KindSpec& spec, const Model& model) const;
    Arena* in_time(const Arena& arena, const Model& model) const;
    Score score(const Arena& arena, const KindSpec& spec, const Model& model, const Score& least) const;
    Arena* roomier(const Arena& arena, const KindSpec& spec, const Model& model) const;
    bool is_left_to_others(const Worker& worker, const Model& model, Ns fetch, bool is_cold) const;
    void copy_freely(Arena& arena);
    bool try_load(Arena& arena, Model& model, KindSpec& spec);

    // A requested load, for planning the links.
    struct Wish {
        std::uint32_t slot;
        bool is_cold;
        bool is_behind;
        bool is_put_back = false;
        double load_ns = 0;  // load time divided by the number of links
        double due_ns = 0;   // latest end of the load
        double density = 0;  // benefit per time of the link
    };
    struct Due {  // sort key of a wish
        bool is_behind;
        double due_ns;
        std::uint32_t slot;
        std::uint32_t wish;  // index in wishes_
    };

    State& state_;
    Arenas& arenas_;
    const Queues& queues_;
    Placement placement_;
    Shortfalls shortfalls_;
    Worths worths_;
    SlotHeap asking_;              // models that ask; the benefit may have shrunk since
    std::vector<Demand> demands_;  // demand by the model's slot
    std::vector<Ns> again_ns_;     // by the arena's slot: no load is considered before this time
    // By the arena's slot: a model that it may copy into free pages, in this step.
    std::vector<std::uint32_t> offered_;
    Ns ordered_ns_ = 0;  // last time of put_in_order()
    std::vector<Wish> wishes_;
    std::vector<Due> by_due_;  // wishes that may still be in time
    // Heap, the least dense first: the negative density, and the place in by_due_.
    std::vector<std::pair<double, std::uint32_t>> planned_;
    std::vector<std::uint32_t> silent_;  // models that no longer ask
    // Slots that are for the devices of other workers, and their urgencies.
    std::vector<std::pair<std::uint32_t, Urgency>> left_;
    // Slots looked at without success, and whether they were put back.
    std::vector<std::pair<std::uint32_t, bool>> aside_;
    std::vector<Residency*> victims_;
    std::vector<std::uint32_t> loaded_;     // models that a device loads in a look
    std::vector<std::uint32_t> displaced_;  // models whose requests a batch may make late
};

}  // namespace clockwork
