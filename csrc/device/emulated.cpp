#include "device/emulated.h"

#include <cstdio>
#include <iterator>

namespace clockwork::emulated {

std::string sentence(const EmulatedEnd& done) {
    const auto [a, b, c] = std::array{std::to_string(done.a), std::to_string(done.b), std::to_string(done.c)};
    switch (done.cause) {
        case FailureCause::NONE: return "";
        case FailureCause::LATE: {
            char late_ms[32];
            std::snprintf(late_ms, sizeof late_ms, "%.3f", static_cast<double>(done.a) / MS);
            return "its window closed " + std::string(late_ms) + " ms before it could start";
        }
        case FailureCause::REVOKED: return "the action was revoked";
        case FailureCause::LANE_FULL: return "the lane holds " + a + " actions, which is its bound";
        case FailureCause::NOT_FETCHED: return "the model is not in the host store";
        case FailureCause::IS_RESIDENT: return "the model is resident already, as load " + a;
        case FailureCause::OUTSIDE:
            return "run " + a + " at page " + b + " of " + c + " pages does not lie in the arena";
        case FailureCause::PAGE_HELD: return "page " + a + " is held by another model or run";
        case FailureCause::NOT_LOADED: return "load " + a + " is not here";
        case FailureCause::IN_USE: return "the model is in use";
        case FailureCause::IS_FETCHED: return "the model is in the host store already";
        case FailureCause::STORE_FULL: return a + " bytes for a host store with " + b + " bytes left";
        case FailureCause::BEING_LOADED: return "the model is being loaded";
        case FailureCause::CHANCE: return "a failure, as the emulated device's settings ask for";
        case FailureCause::ENDED: return "the execution took longer than it may and was ended";
    }
    return "";
}

// ----- settings ---------------------------------------------------------------------------------

Ns EmulatedSettings::copy_ns(std::uint64_t bytes) const {
    if (copy_bandwidth == 0)
        return 0;
    return static_cast<Ns>(static_cast<unsigned __int128>(bytes) * SECOND / copy_bandwidth);
}

double EmulatedSettings::slowness(Ns now) const {
    double result = 1;
    if (!spells.empty()) {
        const auto after = std::upper_bound(spells.begin(), spells.end(), now,
                                            [](Ns at_ns, const auto& spell) { return at_ns < spell.first; });
        if (after != spells.begin())
            result = std::prev(after)->second;
    }
    if (slow_ns > 0 && now % slow_every_ns < slow_ns)
        result *= slow_factor;
    return result;
}

// ----- the link and the host store --------------------------------------------------------------

std::uint32_t EmulatedLink::next() {
    if (!is_free() || queue_.empty())
        return NONE;
    const std::uint32_t device = queue_.front();
    queue_.pop_front();
    return device;
}

void EmulatedLink::forget(std::uint32_t device) {
    if (user_ == device)
        user_ = NONE;
    std::erase(queue_, device);
}

bool EmulatedHostStore::holds(ModelId model_id) const {
    const auto found = models_.find(model_id);
    return found != models_.end() && found->second.state == State::HELD;
}

std::size_t EmulatedHostStore::held_count() const {
    return static_cast<std::size_t>(
        std::ranges::count_if(models_, [](const auto& entry) { return entry.second.state == State::HELD; }));
}

void EmulatedHostStore::reset() {
    for (auto& [model_id, entry] : models_)
        entry.state = State::NO;
    std::erase_if(models_, [](const auto& entry) { return entry.second.loads == 0; });
    used_bytes_ = 0;
}

bool EmulatedHostStore::keep(ModelId model_id, std::uint64_t bytes) {
    if (bytes > budget_bytes_ - used_bytes_)
        return false;
    Entry& entry = models_[model_id];
    entry.state = State::HELD;
    entry.bytes = bytes;
    used_bytes_ += bytes;
    return true;
}

FailureCause EmulatedHostStore::claim(const EmulatedOrder& fetch, EmulatedEnd& done) {
    const auto found = models_.find(fetch.model_id);
    if (found != models_.end() && found->second.state != State::NO)
        return FailureCause::IS_FETCHED;
    if (fetch.bytes > budget_bytes_ - used_bytes_) {
        done.a = static_cast<std::int64_t>(fetch.bytes);
        done.b = static_cast<std::int64_t>(budget_bytes_ - used_bytes_);
        return FailureCause::STORE_FULL;
    }
    Entry& entry = models_[fetch.model_id];
    entry.state = State::FETCHING;
    entry.bytes = fetch.bytes;
    used_bytes_ += fetch.bytes;
    return FailureCause::NONE;
}

void EmulatedHostStore::fetched(ModelId model_id) {
    const auto found = models_.find(model_id);
    if (found != models_.end() && found->second.state == State::FETCHING)
        found->second.state = State::HELD;
}

void EmulatedHostStore::give_back(ModelId model_id) {
    const auto found = models_.find(model_id);
    if (found == models_.end() || found->second.state == State::NO)
        return;
    used_bytes_ -= found->second.bytes;
    found->second.state = State::NO;
    if (found->second.loads == 0)
        models_.erase(found);
}

FailureCause EmulatedHostStore::drop(ModelId model_id) {
    if (!holds(model_id))
        return FailureCause::NOT_FETCHED;
    if (models_.at(model_id).loads > 0)
        return FailureCause::BEING_LOADED;
    give_back(model_id);
    return FailureCause::NONE;
}

void EmulatedHostStore::count_load(ModelId model_id, int change) {
    Entry& entry = models_[model_id];
    entry.loads += static_cast<std::uint32_t>(change);
    if (entry.loads == 0 && entry.state == State::NO)
        models_.erase(model_id);
}

// ----- lanes ------------------------------------------------------------------------------------

EmulatedEnd EmulatedDevice::turned_away(const EmulatedOrder& order) const {
    EmulatedEnd done;
    done.of(order, FailureCause::LANE_FULL);
    done.a = settings_.run_ahead;
    return done;
}

FailureCause EmulatedDevice::check_store(const EmulatedOrder& order, EmulatedEnd& done) {
    if (order.kind == ActionKind::DROP)
        return store_->drop(order.model_id);
    const FailureCause cause = store_->claim(order, done);
    if (cause != FailureCause::NONE || !random_.chance(settings_.load_refusals))
        return cause;
    store_->give_back(order.model_id);
    return FailureCause::CHANCE;
}

// Gives the pages to the model, whose LOAD begins.
FailureCause EmulatedDevice::load(const EmulatedOrder& order, EmulatedEnd& done) {
    if (store_ && !store_->holds(order.model_id))
        return FailureCause::NOT_FETCHED;
    if (kept_count_ > 0)
        make_way(order);
    if (const EmulatedResidency* held = resident(order.model_id)) {
        done.a = static_cast<std::int64_t>(held->load_id);
        return FailureCause::IS_RESIDENT;
    }
    is_held_.resize(settings_.page_count);
    std::size_t taken = 0;  // number of runs claimed so far
    FailureCause cause = FailureCause::NONE;
    for (const auto& [first, count] : order.pages) {
        cause = take(first, count, done);
        if (cause != FailureCause::NONE)
            break;
        ++taken;
    }
    if (cause == FailureCause::OUTSIDE)
        done.a = static_cast<std::int64_t>(taken);
    if (cause == FailureCause::NONE && random_.chance(settings_.load_refusals))
        cause = FailureCause::CHANCE;
    if (cause != FailureCause::NONE) {
        for (std::size_t run = 0; run < taken; ++run)
            let_go(order.pages[run]);
        return cause;
    }
    std::uint32_t place;
    if (free_residents_.empty()) {
        place = static_cast<std::uint32_t>(residents_.size());
        residents_.emplace_back();
    } else {
        place = free_residents_.back();
        free_residents_.pop_back();
    }
    EmulatedResidency& resident = residents_[place];
    resident.model_id = order.model_id;
    resident.load_id = order.load_id;
    resident.loading = true;
    resident.kept = false;
    resident.pages = order.pages;
    places_.insert(static_cast<std::uint64_t>(order.model_id), place);
    return FailureCause::NONE;
}

// Claims a run of pages for an order, or returns why it cannot.
FailureCause EmulatedDevice::take(std::uint32_t first, std::uint32_t count, EmulatedEnd& done) {
    if (count > settings_.page_count || first > settings_.page_count - count) {
        done.b = first;
        done.c = count;
        return FailureCause::OUTSIDE;
    }
    for (std::uint32_t page = first; page < first + count; ++page) {
        if (is_held_[page]) {
            let_go({first, page - first});
            done.a = page;
            return FailureCause::PAGE_HELD;
        }
        is_held_[page] = true;
        ++held_pages_;
    }
    return FailureCause::NONE;
}

void EmulatedDevice::let_go(PageRun run) {
    for (std::uint32_t page = run.first; page < run.first + run.count; ++page)
        is_held_[page] = false;
    held_pages_ -= run.count;
}

void EmulatedDevice::release(ModelId model_id) {
    const std::uint32_t place = places_.find(static_cast<std::uint64_t>(model_id));
    for (const PageRun& run : residents_[place].pages)
        let_go(run);
    kept_count_ -= residents_[place].kept;
    residents_[place].kept = false;
    places_.erase(static_cast<std::uint64_t>(model_id));
    free_residents_.push_back(place);
}

// The time of a LOAD, UNLOAD or FETCH is over.
void EmulatedDevice::finish_move(const EmulatedOrder& order, bool fails) {
    switch (order.kind) {
        case ActionKind::LOAD:
            if (fails) {
                release(order.model_id);
            } else {
                residents_[places_.find(static_cast<std::uint64_t>(order.model_id))].loading = false;
            }
            if (link_)
                link_->leave();
            if (store_)
                store_->count_load(order.model_id, -1);
            break;
        case ActionKind::UNLOAD: release(order.model_id); break;
        case ActionKind::FETCH:
            if (fails) {
                store_->give_back(order.model_id);
            } else {
                store_->fetched(order.model_id);
            }
            break;
        default: break;
    }
}

void EmulatedDevice::hang(LaneKind which) {
    static const EmulatedOrder endless = [] {
        EmulatedOrder order;
        order.kind = ActionKind::UNLOAD;
        return order;
    }();
    LaneState& lane = at(which);
    if (store_ && lane.running->kind == ActionKind::LOAD)
        store_->count_load(lane.running->model_id, -1);
    lane.running = &endless;
}

bool EmulatedDevice::revoke(ActionId id, EmulatedEnd& done) {
    for (LaneState& lane : lanes_) {
        const auto found = std::ranges::find(lane.waiting, id, [](const EmulatedOrder* order) { return order->id; });
        if (found == lane.waiting.end())
            continue;
        const EmulatedOrder& order = **found;
        done.of(order, FailureCause::REVOKED);
        if (store_ && order.kind == ActionKind::LOAD)
            store_->count_load(order.model_id, -1);
        lane.waiting.erase(found);
        return true;
    }
    return false;
}

// Releases the models that an earlier session has left where a LOAD goes.
void EmulatedDevice::make_way(const EmulatedOrder& load) {
    const auto meets = [&](const EmulatedResidency& kept) {
        return std::ranges::any_of(load.pages, [&](const PageRun& run) {
            return std::ranges::any_of(kept.pages, [&](const PageRun& held) {
                return run.first < held.first + held.count && held.first < run.first + run.count;
            });
        });
    };
    for (std::size_t place = 0; place < residents_.size() && kept_count_ > 0; ++place) {
        const EmulatedResidency& kept = residents_[place];
        if (kept.kept && (kept.model_id == load.model_id || meets(kept)) && !executes_load(kept.model_id, kept.load_id))
            release(kept.model_id);
    }
}

std::vector<EmulatedResidency> EmulatedDevice::keep() {
    forget_actions();
    std::vector<EmulatedResidency> found;
    for (std::uint32_t place = 0; place < residents_.size(); ++place) {
        EmulatedResidency& resident = residents_[place];
        if (places_.find(static_cast<std::uint64_t>(resident.model_id)) != place)
            continue;  // the place is free
        if (resident.loading) {
            release(resident.model_id);
            continue;
        }
        kept_count_ += !resident.kept;
        resident.kept = true;
        found.push_back(resident);
    }
    return found;
}

void EmulatedDevice::release_kept(ModelId model_id) {
    const EmulatedResidency* found = owner_ ? nullptr : resident(model_id);
    const auto has_orders = [&](const EmulatedDevice* device) { return device->has_orders_for(model_id); };
    if (found && found->kept && !has_orders(this) && std::ranges::none_of(executors_, has_orders))
        release(model_id);
}

void EmulatedDevice::rename(ModelId model_id, ModelId other) {
    const std::uint32_t place = places_.find(static_cast<std::uint64_t>(model_id));
    if (place == IdTable::NONE)
        return;
    places_.erase(static_cast<std::uint64_t>(model_id));
    places_.insert(static_cast<std::uint64_t>(other), place);
    residents_[place].model_id = other;
}

void EmulatedDevice::reset() {
    forget_actions();
    held_pages_ = 0;
    kept_count_ = 0;
    std::ranges::fill(is_held_, 0);
    places_.clear();
    residents_.clear();
    free_residents_.clear();
}

void EmulatedDevice::forget_actions() {
    for (LaneState& lane : lanes_) {
        if (lane.running)
            lane.waiting.push_back(lane.running);
        for (const EmulatedOrder* order : lane.waiting) {
            if (store_ && order->kind == ActionKind::LOAD)
                store_->count_load(order->model_id, -1);
        }
        lane = LaneState{};
    }
    if (link_)
        link_->forget(number_);
    copied_ns_ = 0;
}

// ----- what there is ----------------------------------------------------------------------------

bool EmulatedDevice::executes_load(ModelId model_id, LoadId load_id) const {
    const auto matches = [&](const EmulatedOrder* order) {
        return order->model_id == model_id && order->load_id == load_id;
    };
    const LaneState& lane = at(LaneKind::EXECUTE);
    return (lane.running && matches(lane.running)) || std::ranges::any_of(lane.waiting, matches) ||
           std::ranges::any_of(
               executors_, [&](const EmulatedDevice* executor) { return executor->executes_load(model_id, load_id); });
}

bool EmulatedDevice::has_orders_for(ModelId model_id) const {
    const auto matches = [&](const EmulatedOrder* order) { return order->model_id == model_id; };
    return std::ranges::any_of(lanes_, [&](const LaneState& lane) {
        return (lane.running && matches(lane.running)) || std::ranges::any_of(lane.waiting, matches);
    });
}

}  // namespace clockwork::emulated
