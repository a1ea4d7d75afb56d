// What lies in arenas and host stores: loads on demand, eviction, unloading.
//
// A load is decided with the first request that needs it. Idle models make room, least recently used first; where
// they do not suffice, the busy ones whose planned work ends first are *doomed*: what was promised on them is still
// done, and then their pages go. Until then only a request that no other device can serve is planned on them, and only if
// what the load was promised for is still in time (Admission::delay_loads()). So a model with continuous traffic cannot
// keep another out for ever, and a promise made on the new one is accounted from the time at which its victims will be
// idle.
//
// A worker may have a host store with a budget, from which all its devices load. Then a model is *fetched* into it from
// disk before it can be loaded (bring()), and others are *dropped* from it to make room: the least worth first, never
// one from which a load is under way or decided. Both are orders like any other, for the worker's first device; a copy's
// bytes are the controller's to give away from the moment at which its DROP is ordered.
#pragma once

#include <vector>

#include "scheduler/flights.h"

namespace clockwork {

// Times that a LOAD is sent before the requests that wait for it are answered.
inline constexpr int LOAD_ATTEMPTS_MAX = 3;

inline constexpr int UNLOAD_ATTEMPTS_MAX = 3;

// A LOAD may start this much later than it was sent (or ten times its duration, if that is longer).
inline constexpr Ns LOAD_WINDOW_NS = SECOND;

// Beyond run_ahead actions, a lane is kept filled for one round trip and this, for short actions.
inline constexpr Ns FEED_NS = 200'000;

// Actions of one lane that may be under way, whatever the delay.
inline constexpr std::uint32_t OUTSTANDING_MAX = 64;

inline constexpr Ns UNLOAD_EXPECTED_NS = 100'000;

// A model that makes room for another sooner than this after it was loaded was not worth its load: many of them say that
// memory is too short for what is asked for.
inline constexpr Ns EVICTED_EARLY_NS = 10 * SECOND;

// Devices that are compared before a model is loaded onto one; where there are more, each search begins where the last
// one ended.
inline constexpr std::size_t LOADABLE_MAX = 64;

// FETCHes that a worker is sent before the first has been answered: they share one disk.
inline constexpr std::uint32_t FETCHES_MAX = 2;

// A refusal that a resident model would have avoided loads it, evicting only what idled this long.
inline constexpr Ns WARM_IDLE_NS = SECOND;

// An arena into which a model could be loaded, and how its worker prepared it.
struct Place {
    Arena* arena;
    KindSpec* spec;
};

class Arenas {
public:
    Arenas(State& state, Flights& flights, const Deciders& deciders)
        : state_(state), flights_(flights), deciders_(deciders) {}

    // ----- deciding ----------------------------------------------------------------------------

    // A pending load, entered in the device's queue with its predicted time. Null if pages cannot come free.
    // The caller either accept_load()s it or drop_load()s it, before anything else is decided.
    // doom: busy models may have to make room, not only idle ones.
    Residency* propose_load(Arena& arena, Model& model, KindSpec& spec, Ns key_ns, bool doom);
    void accept_load(Residency& residency);
    // Decides the load even if busy models have to go for it: nothing new is sent to them, and it starts when their
    // pages are free. False: not even then.
    bool load_by_force(Arena& arena, Model& model, KindSpec& spec);
    // The idle models that would have to go for it, fewest first; false if they do not suffice.
    bool find_room(Arena& arena, const KindSpec& spec, std::vector<Residency*>& victims);
    // Forget a load that was not sent. Nothing may be planned on it.
    void drop_load(Residency& residency);
    void drop_loads(Arena& arena);
    // Predict anew when each load that waits will be done.
    void retime_loads(Arena& arena);

    // Devices that the model is not on, but could be; at most LOADABLE_MAX. `found` is overwritten.
    void find_loadable(Model& model, std::vector<Place>& found);
    bool fits_somewhere(Model& model);

    // ----- the host stores -----------------------------------------------------------------------

    // How long until a LOAD of it could be ordered there, if its FETCH were the next; of all workers, the shortest.
    Ns fetch_wait_ns(const Worker& worker, const Model& model) const;
    Ns fetch_wait_ns(const Model& model) const;
    // What a model that is on no device needs until work can be sent to it: fetch and load, where it is the quickest. 0
    // where there are no host stores.
    Ns hops_ns(const Model& model) const;
    // The last moment at which its fetch and load may begin, if its work has to begin by latest_ns. What is under way
    // counts as it is thought to end. The same as latest_ns without host stores.
    Ns last_begin_ns(const Model& model, Ns latest_ns) const;
    // A worker from whose host store it could be loaded; null: none.
    const Worker* find_host(const Model& model) const;
    // True if a LOAD of the model may be ordered on this worker. Else its FETCH is ordered, if one more may be under way
    // and there is room, or room can be made of copies last used before then.
    bool bring(Worker& worker, Model& model, Ns before_ns = NEVER_NS);
    // A request was refused whose model is too far away.
    void warm(Model& model);
    // True when no worker holds a copy of a model that is being removed, nor moves one.
    bool leave_hosts(Model& model);

    // ----- acting ------------------------------------------------------------------------------

    void start_loads(Arena& arena);
    // Whether one more LOAD may be sent now, if so many are under way: the link is kept filled for one round trip. If it
    // is filled, the device wakes when it is no more.
    bool takes_load(Arena& arena, std::uint32_t under_way) const;
    // Load into free pages, or those of models that have idled long. False if there are none.
    bool load_idly(Arena& arena, Model& model, KindSpec& spec) {
        return load_now(arena, model, spec, state_.now - WARM_IDLE_NS);
    }
    // Load into the room that find_room() has just found.
    void load_over(Arena& arena, Model& model, KindSpec& spec, const std::vector<Residency*>& victims);
    // Load into free pages, or those of idle models that were last used before then. False if there are none.
    bool load_now(Arena& arena, Model& model, KindSpec& spec, Ns before_ns);
    // Load into free pages without a request for it: see Scheduler.
    bool preload(Arena& arena, Model& model);
    // Take the pages that a reservation wants, free ones or those of its victims and of idle models, which are ordered off.
    // False where they do not suffice; dooms: then busy models become its victims, if theirs would suffice.
    bool make_way(Arena& arena, Reservation& reservation, bool dooms);
    // These are doomed no more, unless others count on them; clears the list.
    void absolve(const Arena& arena, std::vector<Residency*>& victims);
    // Order a model off its device. Its pages must have been given back to the allocator already.
    void send_unload(Residency& residency);
    // Give its pages back and order it off. It must be idle.
    void evict(Residency& residency);
    // The device is gone.
    void forget(Residency& residency);

    // ----- results -----------------------------------------------------------------------------

    // A LOAD ended. The caller says what follows: loaded(), or false from failed(), after which the load waits as one
    // that was not sent, to be dropped.
    void load_ended(Flight& flight);
    void loaded(Residency& residency);
    bool failed(Residency& residency);
    // True: there is nothing more to do about it.
    bool unload_ended(Flight& flight, Status status);
    // False: it failed for the last time.
    bool fetch_ended(Flight& flight, Status status);
    // True: there is nothing more to do about it.
    bool drop_ended(Flight& flight, Status status);
    // A FETCH or DROP is under way no more.
    void end_host_action(Flight& flight);
    // The device says that the model is not there; nothing is planned on it.
    void lose(Residency& residency);

    void archive(Archive& archive) { archive(mark_); }
    void check_invariants() const;

private:
    struct Dropped {
        double worth;
        Ns used_ns;
        Model* model;
    };

    // Whether an UNLOAD or a DROP came to nothing, and may be tried again.
    static bool is_refused(Status status) {
        return status == Status::IN_USE || status == Status::DEVICE_ERROR || status == Status::ACTION_CANCELLED ||
               status == Status::TOO_LATE;
    }
    template <typename Function>
    void for_each_store(const Model& model, Function&& function) const;
    static bool is_pinned(const Worker& worker, const Model& model);
    Residency& stand_in(Worker& worker, Model& model);
    void send_fetch(Worker& worker, Model& model, const KindSpec& spec);
    void send_drop(Worker& worker, Model& model, std::uint8_t attempts);
    // An UNLOAD or a DROP: at once, and at any time from now on.
    void order_release(FlightKind kind, CommandKind order, Residency& residency);
    bool find_victims(Residency& residency, bool doom);
    void find_busy(Arena& arena);
    // Makes room for these runs on trial_ by idle models, which it appends to the victims. False: they do not suffice.
    bool try_idle(Arena& arena, const std::vector<std::uint32_t>& runs, std::vector<Residency*>& victims);
    void doom_for(Arena& arena, Reservation& reservation);
    Residency* make_residency(Arena& arena, Model& model, KindSpec& spec, Ns key_ns);
    void send_load(Residency& residency, bool hurries = true);
    void send_at_once(Residency& residency, bool hurries = true);
    void enter_pending(Residency& residency);
    bool make_room(Arena& arena, Residency& residency, Ns before_ns);
    void unload_victims(Residency& residency);
    template <typename Function>
    void for_each_evictable(Arena& arena, const std::vector<Residency*>& chosen, Ns before_ns, Function&& function);
    void doom_more(Arena& arena, Residency& residency);
    void forget_victim(Arena& arena, Residency& residency);
    void gone(Residency& residency);
    template <typename Function>
    std::size_t for_each_loadable(const Model& model, std::size_t first, Function&& function);

    State& state_;
    Flights& flights_;
    const Deciders& deciders_;
    PageAllocator trial_;  // find_victims() and find_room() try things on it
    PageAllocator::Pages trial_starts_;
    std::vector<Residency*> evictable_;
    std::vector<Residency*> victims_;
    std::vector<Residency*> absolved_;
    std::vector<Ending> endings_;
    std::vector<Dropped> dropped_;
    std::vector<Place> warm_places_;
    std::uint32_t mark_ = 0;
};

}  // namespace clockwork
