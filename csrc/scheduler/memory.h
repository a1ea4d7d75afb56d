// Which models are on which device, for policies with queues: what to LOAD, where and when, and what to UNLOAD.
//
// A Memory is told what waits, is sent and ends, and is asked at every look at a device whether it wants to load
// something there now. It decides; Loads does it (pages, orders, books). A load is ordered only when it can be sent
// at once, so none is ever planned for requests that have gone by then.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "scheduler/loads.h"
#include "scheduler/queue.h"

namespace clockwork {

class Queued;

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

// The time that the original keeps for what is not execution: network, and prediction errors.
inline constexpr Ns PAPER_BUFFER_NS = 5 * MS;

class Memory {
public:
    explicit Memory(Queued& queued) : queued_(queued) {}
    virtual ~Memory() = default;
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    // A request waits in a queue now (anew, if it was sent before).
    virtual void waits(Pending& pending) = 0;
    // It was answered unsent, and waits no more.
    virtual void leaves(Pending& pending) = 0;
    // A batch was sent, whose requests wait no more; it ended, well or not.
    virtual void sent(Flight& flight) = 0;
    virtual void ended(Flight& flight) { (void)flight; }
    // Order what this device should load now, by load().
    virtual void look(Device& device) = 0;
    // The requests that wait for a model cannot all be in time on the devices that have it, the policy finds.
    virtual void press(Queue& queue) { (void)queue; }
    // A model that devices have wants one now, and none of them could take work.
    virtual void found_all_busy(Model& model) { (void)model; }

    virtual bool may_evict(const Residency& residency) const {
        (void)residency;
        return true;
    }
    // See Loads.
    virtual std::size_t order_evictable(Device& device, std::vector<Residency*>& found, std::size_t ordered) {
        (void)device;
        (void)ordered;
        return found.size();
    }

    // See Loads: the host stores.
    virtual bool may_drop(const Model& model) const;
    virtual double host_worth(const Model& model) const {
        (void)model;
        return 0;
    }
    virtual void host_changed(Worker& worker, Model& model) {
        (void)worker;
        renew(model);
    }

    virtual void arrived_on(Residency& residency) { (void)residency; }
    virtual void gone_from(Residency& residency) { (void)residency; }
    // A model can be loaded in other places than before.
    virtual void renew(Model& model) { (void)model; }
    virtual void model_gone(Model& model) { (void)model; }
    virtual void device_joined(Device& device) { (void)device; }
    virtual void device_left(Device& device) { (void)device; }

    virtual void check_invariants() const {}

protected:
    // ----- what it can see and do ----------------------------------------------------------------

    Ns now() const;
    void touch(Device& device);
    Model& model_at(std::uint32_t slot) const;
    std::uint32_t waiting(const Model& model) const;
    // The model's queues; null at the end.
    Queue* queue(const Model& model, std::size_t index) const;
    // Whether the model could be loaded there: prepared by the worker, small enough, and not there already.
    KindSpec* loadable(const Device& device, const Model& model) const;
    // Whether some device that can be used now could load it.
    bool is_loadable_somewhere(const Model& model) const;
    // LOADs under way or decided on the link that the device shares with its worker's others.
    static std::uint32_t loading(const Device& device);
    // See Loads::takes_load().
    bool takes_load(Device& device) const;
    // What waits, but for one model, and is due by then: how long would it keep devices? To be asked of several, as
    // long as nothing changes.
    struct Ahead {
        Ns due_ns;
        const Model& but;
    };
    void begin_backlogs() const { ++round_of_shares_; }
    // How long it would keep the device, beyond what it was sent; a model's share of it where others have the model,
    // too. From enough_ns on it may be more.
    Ns backlog_ns(const Device& device, const Ahead& ahead, Ns enough_ns) const;
    // How long until the worker could load it from its host store; of all workers, the shortest (if no device has it).
    Ns fetch_wait_ns(const Worker& worker, const Model& model) const;
    Ns fetch_wait_ns(const Model& model) const;
    // Has the devices look that could load a model from a host store which holds it. False: none does.
    bool offer_to_host(const Model& model);
    // True if it is in the worker's host store, or needs not be; else orders its FETCH, if that can be now.
    bool bring(Device& device, Model& model);
    // The device of the lowest score of TARGET_SCAN_MAX that could load the model, others at each call. Of one that is
    // not below `least`, a score need only say so. Null if there is none.
    using Scorer = Score (*)(const Memory&, const Device&, const KindSpec&, const Model&, const Score& least);
    Device* find_target(const Model& model, Scorer scorer);
    // A device that could take work and finds none, of TARGET_SCAN_MAX, that could load the model over an idle link
    // into free pages; where none of these can, the next call goes on behind them. Null if there is none.
    Device* find_spare(const Model& model);
    // Loads it into free pages. False: there are none.
    bool load_spare(Device& device, Model& model, KindSpec& spec);
    // Sends the LOAD, evicting idle models in the order of order_evictable(). False: its pages cannot come free now.
    bool load(Device& device, Model& model, KindSpec& spec);
    // Sends it into the room that find_room() has just found.
    void load_over(Device& device, Model& model, KindSpec& spec, const std::vector<Residency*>& victims);
    // Decides the load even if busy models have to go for it: nothing new is sent to them, and it starts when their
    // pages are free. False: not even then.
    bool load_by_force(Device& device, Model& model, KindSpec& spec);
    // The idle models that would have to go for it, fewest first; false if they do not suffice.
    bool find_room(Device& device, const KindSpec& spec, std::vector<Residency*>& victims);

    Queued& queued_;

private:
    // What the ready queue of a model adds to the backlog of a device of a kind that has it.
    struct Share {
        std::uint64_t round = 0;
        std::uint32_t kind = 0;
        bool is_one = false;  // no more than one queue does
        double time_ns = 0;
    };

    std::size_t round_ = 0;
    std::uint32_t spare_from_ = 0;  // the device's slot at which find_spare() begins
    mutable std::uint64_t round_of_shares_ = 1;
    mutable std::vector<Share> shares_;  // by the model's slot
};

// name: "paper" or "adaptive". Throws std::invalid_argument for another.
std::unique_ptr<Memory> make_memory(const std::string& name, Queued& queued, const SchedulerOptions& options);

}  // namespace clockwork
