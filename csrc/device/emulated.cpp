#include "device/emulated.h"

#include <cstdio>
#include <iterator>

namespace clockwork::emulated {

std::string sentence(const Done& done) {
    const auto [a, b, c] = std::array{std::to_string(done.a), std::to_string(done.b), std::to_string(done.c)};
    switch (done.why) {
        case Why::NONE: return "";
        case Why::LATE: {
            char late_ms[32];
            std::snprintf(late_ms, sizeof late_ms, "%.3f", static_cast<double>(done.a) / MS);
            return "its window closed " + std::string(late_ms) + " ms before it could start";
        }
        case Why::REVOKED: return "the action was revoked";
        case Why::LANE_FULL: return "the lane holds " + a + " actions, which is its bound";
        case Why::NOT_FETCHED: return "the model is not in the host store";
        case Why::IS_RESIDENT: return "the model is resident already, as load " + a;
        case Why::OUTSIDE: return "run " + a + " at page " + b + " of " + c + " pages does not lie in the arena";
        case Why::PAGE_HELD: return "page " + a + " is held by another model or run";
        case Why::NOT_LOADED: return "load " + a + " is not here";
        case Why::IN_USE: return "the model is in use";
        case Why::IS_FETCHED: return "the model is in the host store already";
        case Why::STORE_FULL: return a + " bytes for a host store with " + b + " bytes left";
        case Why::BEING_LOADED: return "the model is being loaded";
        case Why::CHANCE: return "a failure, as the emulated device's settings ask for";
        case Why::ENDED: return "the execution took longer than it may and was ended";
    }
    return "";
}

// ----- settings ---------------------------------------------------------------------------------

Ns Settings::copy_ns(std::uint64_t bytes) const {
    if (copy_bandwidth == 0)
        return 0;
    return static_cast<Ns>(static_cast<unsigned __int128>(bytes) * SECOND / copy_bandwidth);
}

double Settings::slowness(Ns now) const {
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

std::uint32_t Link::next() {
    if (!is_free() || queue_.empty())
        return NONE;
    const std::uint32_t device = queue_.front();
    queue_.pop_front();
    return device;
}

void Link::forget(std::uint32_t device) {
    if (user_ == device)
        user_ = NONE;
    std::erase(queue_, device);
}

bool HostStore::holds(ModelId model_id) const {
    const auto found = models_.find(model_id);
    return found != models_.end() && found->second.state == State::HELD;
}

std::size_t HostStore::held_count() const {
    return static_cast<std::size_t>(
        std::ranges::count_if(models_, [](const auto& entry) { return entry.second.state == State::HELD; }));
}

void HostStore::reset() {
    for (auto& [model_id, entry] : models_)
        entry.state = State::NO;
    std::erase_if(models_, [](const auto& entry) { return entry.second.loads == 0; });
    used_bytes_ = 0;
}

Why HostStore::claim(const Order& fetch, Done& done) {
    const auto found = models_.find(fetch.model_id);
    if (found != models_.end() && found->second.state != State::NO)
        return Why::IS_FETCHED;
    if (fetch.bytes > budget_bytes_ - used_bytes_) {
        done.a = static_cast<std::int64_t>(fetch.bytes);
        done.b = static_cast<std::int64_t>(budget_bytes_ - used_bytes_);
        return Why::STORE_FULL;
    }
    Entry& entry = models_[fetch.model_id];
    entry.state = State::FETCHING;
    entry.bytes = fetch.bytes;
    used_bytes_ += fetch.bytes;
    return Why::NONE;
}

void HostStore::fetched(ModelId model_id) {
    const auto found = models_.find(model_id);
    if (found != models_.end() && found->second.state == State::FETCHING)
        found->second.state = State::HELD;
}

void HostStore::give_back(ModelId model_id) {
    const auto found = models_.find(model_id);
    if (found == models_.end() || found->second.state == State::NO)
        return;
    used_bytes_ -= found->second.bytes;
    found->second.state = State::NO;
    if (found->second.loads == 0)
        models_.erase(found);
}

Why HostStore::drop(ModelId model_id) {
    if (!holds(model_id))
        return Why::NOT_FETCHED;
    if (models_.at(model_id).loads > 0)
        return Why::BEING_LOADED;
    give_back(model_id);
    return Why::NONE;
}

void HostStore::count_load(ModelId model_id, int change) {
    Entry& entry = models_[model_id];
    entry.loads += static_cast<std::uint32_t>(change);
    if (entry.loads == 0 && entry.state == State::NO)
        models_.erase(model_id);
}

// ----- lanes ------------------------------------------------------------------------------------

Done Device::turned_away(const Order& order) const {
    Done done;
    done.of(order, Why::LANE_FULL);
    done.a = settings_.run_ahead;
    return done;
}

Why Device::check_store(const Order& order, Done& done) {
    if (order.kind == ActionKind::DROP)
        return store_->drop(order.model_id);
    const Why why = store_->claim(order, done);
    if (why != Why::NONE || !random_.chance(settings_.load_refusals))
        return why;
    store_->give_back(order.model_id);
    return Why::CHANCE;
}

// Gives the pages to the model, whose LOAD begins.
Why Device::load(const Order& order, Done& done) {
    if (store_ && !store_->holds(order.model_id))
        return Why::NOT_FETCHED;
    if (const Resident* held = resident(order.model_id)) {
        done.a = static_cast<std::int64_t>(held->load_id);
        return Why::IS_RESIDENT;
    }
    is_held_.resize(settings_.page_count);
    std::size_t taken = 0;  // number of runs claimed so far
    Why why = Why::NONE;
    for (const auto& [first, count] : order.pages) {
        why = take(first, count, done);
        if (why != Why::NONE)
            break;
        ++taken;
    }
    if (why == Why::OUTSIDE)
        done.a = static_cast<std::int64_t>(taken);
    if (why == Why::NONE && random_.chance(settings_.load_refusals))
        why = Why::CHANCE;
    if (why != Why::NONE) {
        for (std::size_t run = 0; run < taken; ++run)
            let_go(order.pages[run]);
        return why;
    }
    std::uint32_t place;
    if (free_residents_.empty()) {
        place = static_cast<std::uint32_t>(residents_.size());
        residents_.emplace_back();
    } else {
        place = free_residents_.back();
        free_residents_.pop_back();
    }
    Resident& resident = residents_[place];
    resident.model_id = order.model_id;
    resident.load_id = order.load_id;
    resident.loading = true;
    resident.pages = order.pages;
    places_.insert(static_cast<std::uint64_t>(order.model_id), place);
    return Why::NONE;
}

// Claims a run of pages for an order, or returns why it cannot.
Why Device::take(std::uint32_t first, std::uint32_t count, Done& done) {
    if (count > settings_.page_count || first > settings_.page_count - count) {
        done.b = first;
        done.c = count;
        return Why::OUTSIDE;
    }
    for (std::uint32_t page = first; page < first + count; ++page) {
        if (is_held_[page]) {
            let_go({first, page - first});
            done.a = page;
            return Why::PAGE_HELD;
        }
        is_held_[page] = true;
        ++held_pages_;
    }
    return Why::NONE;
}

void Device::let_go(PageRun run) {
    for (std::uint32_t page = run.first; page < run.first + run.count; ++page)
        is_held_[page] = false;
    held_pages_ -= run.count;
}

void Device::release(ModelId model_id) {
    const std::uint32_t place = places_.find(static_cast<std::uint64_t>(model_id));
    for (const PageRun& run : residents_[place].pages)
        let_go(run);
    places_.erase(static_cast<std::uint64_t>(model_id));
    free_residents_.push_back(place);
}

// The time of a LOAD, UNLOAD or FETCH is over.
void Device::finish_move(const Order& order, bool fails) {
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

void Device::hang(Lane which) {
    static const Order endless = [] {
        Order order;
        order.kind = ActionKind::UNLOAD;
        return order;
    }();
    LaneState& lane = at(which);
    if (store_ && lane.running->kind == ActionKind::LOAD)
        store_->count_load(lane.running->model_id, -1);
    lane.running = &endless;
}

bool Device::revoke(ActionId id, Done& done) {
    for (LaneState& lane : lanes_) {
        const auto found = std::ranges::find(lane.waiting, id, [](const Order* order) { return order->id; });
        if (found == lane.waiting.end())
            continue;
        const Order& order = **found;
        done.of(order, Why::REVOKED);
        if (store_ && order.kind == ActionKind::LOAD)
            store_->count_load(order.model_id, -1);
        lane.waiting.erase(found);
        return true;
    }
    return false;
}

void Device::reset() {
    for (LaneState& lane : lanes_) {
        if (lane.running)
            lane.waiting.push_back(lane.running);
        for (const Order* order : lane.waiting) {
            if (store_ && order->kind == ActionKind::LOAD)
                store_->count_load(order->model_id, -1);
        }
        lane = LaneState{};
    }
    if (link_)
        link_->forget(number_);
    copied_ns_ = 0;
    held_pages_ = 0;
    std::ranges::fill(is_held_, 0);
    places_.clear();
    residents_.clear();
    free_residents_.clear();
}

// ----- what there is ----------------------------------------------------------------------------

bool Device::executes_load(ModelId model_id, LoadId load_id) const {
    const auto matches = [&](const Order* order) { return order->model_id == model_id && order->load_id == load_id; };
    const LaneState& lane = at(Lane::EXECUTE);
    return (lane.running && matches(lane.running)) || std::ranges::any_of(lane.waiting, matches);
}

bool Device::has_orders_for(ModelId model_id) const {
    const auto matches = [&](const Order* order) { return order->model_id == model_id; };
    return std::ranges::any_of(lanes_, [&](const LaneState& lane) {
        return (lane.running && matches(lane.running)) || std::ranges::any_of(lane.waiting, matches);
    });
}

}  // namespace clockwork::emulated
