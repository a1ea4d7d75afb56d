// Models in arenas and stores: loads on demand, eviction, unloading.
//
// A load is decided with the first request that needs it. Idle models are evicted, least recently used first.
// Where they do not suffice, the busy models whose planned work ends first are *doomed*: promises made on a
// doomed model are kept, and then its pages are freed. Until then a request is planned on a doomed model only
// if no other device can serve it and the promises of the waiting load hold (Admission::delay_loads()). So a
// model with continuous traffic cannot keep another out for ever, and a promise on the new model counts from
// the time at which its victims will be idle.
//
// A worker may have a store with a budget, from which all its devices load (StoreTier). Then a model is
// *fetched* into the store before it can be loaded (bring()), and others are *dropped* from the store to make
// room: those of least worth first, never a model from which a load is under way or decided, nor one of which
// too few copies would be left (keepers.h). FETCH and DROP are orders like any other, for the worker's first
// device. The bytes of a copy count as free from the moment at which its DROP is ordered.
#pragma once

#include <vector>

#include "scheduler/flights.h"
#include "scheduler/keepers.h"

namespace clockwork {

// Bound on the LOADs sent for a model before its waiting requests are answered as failed.
inline constexpr int LOAD_ATTEMPTS_MAX = 3;

inline constexpr int UNLOAD_ATTEMPTS_MAX = 3;

// Bound on the load id of a model that a worker has kept. Later ids are above it, and stay within what a
// message takes, whatever a worker says.
inline constexpr LoadId KEPT_LOAD_ID_MAX = LoadId{1} << 62;

// Window of a LOAD: the latest start after its sending (or ten times its duration, if that is longer).
inline constexpr Ns LOAD_WINDOW_NS = SECOND;

// Beyond run_ahead actions, a lane is kept filled for one round trip plus this time, for short actions.
inline constexpr Ns FEED_NS = 200'000;

// Bound on the actions under way on one lane, whatever the delay.
inline constexpr std::uint32_t OUTSTANDING_MAX = 64;

inline constexpr Ns UNLOAD_EXPECTED_NS = 100'000;

// An eviction sooner than this after the load counts as early: the load was not worth its time. Many early
// evictions show that memory is too short for the models that are asked for.
inline constexpr Ns EVICTED_EARLY_NS = 10 * SECOND;

// Bound on the devices that are compared for a load. Where there are more, each search begins where the last
// ended.
inline constexpr std::size_t LOADABLE_MAX = 64;

// Bound on the FETCHes under way on a worker, which share the way into its store.
inline constexpr std::uint32_t FETCHES_MAX = 2;

// Bound on the copies that are compared to find those to drop.
inline constexpr std::size_t DROP_SCAN_MAX = 256;

// After a FETCH into a disk store has failed, the worker is not sent another for the model for this long;
// with each failure twice as long, up to the bound.
inline constexpr Ns FETCH_AGAIN_NS = SECOND;
inline constexpr Ns FETCH_AGAIN_MAX_NS = 60 * SECOND;
inline constexpr std::uint8_t FETCH_DOUBLINGS_MAX = 6;

// The time of a FETCH for which no worker has the model.
inline constexpr Ns OUT_OF_REACH_NS = 3600 * SECOND;

// After a refusal that a resident model would have avoided, the model is loaded; only models that idled for
// this long are evicted for it.
inline constexpr Ns WARM_IDLE_NS = SECOND;

// An arena into which a model could be loaded, and how its worker prepared it.
struct Place {
    Arena* arena;
    KindSpec* spec;
};

class Arenas {
public:
    Arenas(State& state, Flights& flights, Keepers& keepers, const Deciders& deciders)
        : state_(state), flights_(flights), keepers_(keepers), deciders_(deciders) {}

    // ----- deciding ----------------------------------------------------------------------------

    // Enter a pending load in the arena's list, with its predicted time. Null if no pages can come free. The
    // caller must accept_load() or drop_load() it before anything else is decided. doom: busy models may be
    // doomed, too.
    Residency* propose_load(Arena& arena, Model& model, KindSpec& spec, Ns key_ns, bool doom);
    void accept_load(Residency& residency);
    // Decide the load even if busy models have to be doomed for it: nothing new is sent to them, and the load
    // starts when their pages are free. False if even these do not suffice.
    bool load_by_force(Arena& arena, Model& model, KindSpec& spec);
    // Find the idle models to evict for a load, as few as suffice; false if all of them do not.
    bool find_room(Arena& arena, const Model& model, const KindSpec& spec, std::vector<Residency*>& victims);
    // Forget a load that was not sent. Nothing may be planned on it.
    void drop_load(Residency& residency);
    void drop_loads(Arena& arena);
    // Predict the end of each pending load of the arena's worker anew: its devices share the link.
    void retime_loads(Arena& arena);

    // Find devices onto which the model could be loaded, at most LOADABLE_MAX: first those to which its LOAD
    // could be ordered at once, and with at_once only these. `found` is overwritten.
    void find_loadable(Model& model, std::vector<Place>& found, bool at_once = false);
    bool fits_somewhere(Model& model);

    // ----- the stores ----------------------------------------------------------------------------

    // Return the time until a LOAD of the model could be ordered on this worker, if its FETCH were the next.
    // The overload for a model alone: the least over all workers.
    Ns fetch_wait_ns(const Worker& worker, const Model& model) const;
    Ns fetch_wait_ns(const Model& model) const;
    // Return the time of fetch and load for a model that is on no device, on the quickest worker. 0 where
    // there are no stores.
    Ns hops_ns(const Model& model) const;
    // Return the last moment at which fetch and load may begin, if the model's work has to begin by
    // latest_ns. Actions under way count with their predicted ends. Equal to latest_ns without stores.
    Ns last_begin_ns(const Model& model, Ns latest_ns) const;
    // Return a worker from whose store the model could be loaded, or null.
    const Worker* find_holder(const Model& model) const;
    // Return true if a LOAD of the model may be ordered on this worker. Otherwise order its FETCH, if the
    // bound allows another and there is room, or room can be made by dropping copies last used before
    // `before_ns`.
    bool bring(Worker& worker, Model& model, Ns before_ns = NEVER_NS);
    // Return whether bring() may order a FETCH of the model, if there is room.
    bool could_bring(const Worker& worker, const Model& model) const;
    // Order the drop of copies for as many bytes as a worker's disk has beyond its budget, if there are any.
    void trim(Worker& worker);
    // Order the drop of copies for what a worker was promised for models that it prepares, if they suffice:
    // also of models that have too few copies then, but no last ones.
    void make_room_for_new(Worker& worker);
    // Return the bytes that a disk store has free, or could have after such drops. Looks at all it holds.
    std::uint64_t room_for_new(const Worker& worker) const;
    // Have a copy in the store, or on its way there, count as the worker's present preparation of the model.
    void prepared_otherwise(Worker& worker, Model& model);
    // Fetch or load a model after a request was refused because the model was too far away.
    void warm(Model& model);
    // Order the drop of a model's copies in all host stores. True when no worker moves one. (A worker removes
    // a model that is gone from its disk by itself.)
    bool leave_stores(Model& model);

    // ----- acting ------------------------------------------------------------------------------

    // Send the pending loads of the arena's worker whose pages are free, the first by key first, while its
    // link takes them.
    void start_loads(Arena& arena);
    // Return whether another LOAD may be sent now with this many under way: the link is kept filled for one
    // round trip, unless a load is overdue. If the link is full, the device is woken when it no longer is.
    bool takes_load(Arena& arena, std::uint32_t under_way) const;
    // Load into free pages, or over models that have idled for WARM_IDLE_NS. False if there are none.
    bool load_idly(Arena& arena, Model& model, KindSpec& spec) {
        return load_now(arena, model, spec, state_.now - WARM_IDLE_NS);
    }
    // Load over the victims that find_room() has just returned.
    void load_over(Arena& arena, Model& model, KindSpec& spec, const std::vector<Residency*>& victims);
    // Load into free pages, or over idle models last used before `before_ns`. False if these do not suffice.
    bool load_now(Arena& arena, Model& model, KindSpec& spec, Ns before_ns);
    // Load into free pages without a request for the model: see Scheduler::preload().
    bool preload(Arena& arena, Model& model);
    // Take the pages that a reservation wants: free pages, or those of its victims and of idle models, which
    // are evicted. False where these do not suffice. dooms: busy models then become its victims, if their
    // pages would suffice.
    bool make_way(Arena& arena, Reservation& reservation, bool dooms);
    // Lift the doom of these models, unless another load or reservation counts on them; clears the list.
    void absolve(const Arena& arena, std::vector<Residency*>& victims);
    // Send the UNLOAD of a model whose pages have been given back to the allocator.
    void send_unload(Residency& residency);
    // Give the model's pages back and send its UNLOAD. The model must be idle.
    void evict(Residency& residency);
    // Remove a residency whose device is gone.
    void forget(Residency& residency);

    // ----- results -----------------------------------------------------------------------------

    // Note the end of a LOAD. The caller then calls loaded() or failed(); after false from failed(), the load
    // is pending again, and is to be dropped.
    void load_ended(Flight& flight);
    void loaded(Residency& residency);
    // Takes a model that the worker has loaded for an earlier controller. Null, and nothing done, where its
    // pages are not free any more, or the arena has the model, or is about to.
    Residency* adopt(Arena& arena, Model& model, LoadId load_id, const std::vector<std::uint32_t>& starts);
    bool failed(Residency& residency);
    // Note the end of an UNLOAD. True: nothing is left to do about it.
    bool unload_ended(Flight& flight, Status status);
    // Note the end of a FETCH. False: it failed for the last time, and its model is not to be had.
    bool fetch_ended(Flight& flight, Status status);
    // Note the end of a DROP. True: nothing is left to do about it.
    bool drop_ended(Flight& flight, Status status);
    // Remove a FETCH or DROP from the actions under way.
    void end_store_action(Flight& flight);
    // Unload a model that its device reports as absent. Nothing may be planned on it.
    void lose(Residency& residency);

    void archive(Archive& archive) { archive(mark_); }
    void check_invariants() const;

private:
    struct Dropped {
        bool is_wanted;  // too few copies are left
        bool is_of_use;  // the model is on a device of the worker
        double worth;
        Ns used_ns;
        Model* model;
    };

    // Whether an UNLOAD or a DROP was refused, and may be tried again.
    static bool is_refused(Status status) {
        return status == Status::IN_USE || status == Status::DEVICE_ERROR || status == Status::ACTION_CANCELLED ||
               status == Status::TOO_LATE;
    }
    template <typename Function>
    void for_each_store(const Model& model, Function&& function) const;
    static bool is_pinned(const Worker& worker, const Model& model);
    static Ns again_ns(const Worker& worker, const Model& model);
    bool may_drop(const Worker& worker, const Model& model, Ns before_ns, bool gives_up = false) const;
    bool find_dropped(Worker& worker, std::uint64_t bytes, Ns before_ns, bool gives_up = false);
    void drop_found(Worker& worker);
    Residency& stand_in(Worker& worker, Model& model);
    void send_fetch(Worker& worker, Model& model, const KindSpec& spec);
    void send_drop(Worker& worker, Model& model, std::uint8_t attempts);
    // Order an UNLOAD or a DROP without a window.
    void order_release(ActionKind kind, CommandKind order, Residency& residency);
    bool find_victims(Residency& residency, bool doom);
    bool is_load_overdue(const Worker& worker) const;
    // A load that takes pages from others.
    struct Taker {
        const Model* model = nullptr;  // its model; null: another use of the pages
        bool spares_kept = false;      // takes no pages of models within their shares of divided links
    };
    bool find_victims_for(Residency& residency, bool doom, Taker taker);
    void find_busy(Arena& arena, Taker taker);
    bool may_take(Taker taker, const Residency& residency) const {
        return taker.model == nullptr || !is_kept(state_, *residency.model) ||
               (!taker.spares_kept && !is_beyond_on_links(state_, *taker.model));
    }
    // Free room for these runs on trial_ by evicting idle models, which are appended to the victims. False:
    // they do not suffice.
    bool try_idle(Arena& arena, Taker taker, const std::vector<std::uint32_t>& runs, std::vector<Residency*>& victims);
    void doom_for(Arena& arena, Reservation& reservation);
    Residency* make_residency(Arena& arena, Model& model, KindSpec& spec, Ns key_ns);
    Residency* next_load(const Worker& worker, Ns time);
    bool start_load(Residency& residency);
    void send_load(Residency& residency, bool hurries = true);
    void send_at_once(Residency& residency, bool hurries = true);
    void enter_pending(Residency& residency);
    bool make_room(Arena& arena, Residency& residency, Ns before_ns);
    void unload_victims(Residency& residency);
    template <typename Function>
    void for_each_evictable(Arena& arena, const Residency& load, Ns before_ns, Function&& function);
    void doom_more(Arena& arena, Residency& residency);
    void forget_victim(Arena& arena, Residency& residency);
    void gone(Residency& residency);
    template <typename Function>
    std::size_t for_each_loadable(const Model& model, std::size_t first, Function&& function);

    State& state_;
    Flights& flights_;
    Keepers& keepers_;
    const Deciders& deciders_;
    PageAllocator trial_;  // scratch copy of the pages, for find_victims() and find_room()
    PageAllocator::Pages trial_starts_;
    std::vector<Residency*> evictable_;
    std::vector<Residency*> victims_;
    std::vector<std::size_t> heads_;  // by arena of a worker: number of pending loads that are timed
    std::vector<Residency*> by_key_;  // the first pending load of each arena of a worker
    std::vector<Residency*> absolved_;
    std::vector<PredictedEnd> endings_;
    std::vector<Dropped> dropped_;
    std::vector<Place> warm_places_;
    std::uint32_t mark_ = 0;
};

}  // namespace clockwork
