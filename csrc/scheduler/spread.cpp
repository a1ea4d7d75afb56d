#include "scheduler/spread.h"

#include <algorithm>

namespace clockwork {

void Spread::look() {
    if (state_.disks == 0) {
        next_ns_ = NEVER_NS;
        return;
    }
    restore();
    fill();
}

void Spread::restore() {
    next_ns_ = keepers_.end_graces();
    if (state_.has_store_news) {
        state_.has_store_news = false;
        restore_ns_ = 0;
        pause_ns_ = RESTORE_PAUSE_NS;
    }
    if (state_.scarce[0].empty() && state_.scarce[1].empty()) {
        return;
    }
    if (state_.now < restore_ns_) {
        next_ns_ = std::min(next_ns_, restore_ns_);
        return;
    }
    bool may_drop = true, is_any = false;
    for (std::size_t place : {0, 1}) {
        auto& list = state_.scarce[place];
        std::uint32_t tries = std::min(list.size(), RESTORE_TRIES);
        for (; tries > 0 && !list.empty() && state_.copying < COPYING_MAX; --tries) {
            Model& model = *list.front();
            list.move_to_end(&model);
            is_any |= copy(model, may_drop);
        }
    }
    if (!is_any) {
        restore_ns_ = state_.now + pause_ns_;
        next_ns_ = std::min(next_ns_, restore_ns_);
        pause_ns_ = std::min(2 * pause_ns_, RESTORE_PAUSE_MAX_NS);
    }
}

// Has a model copied to the worker with the most room, of those that are brought nothing; may_drop: it may be
// one without room, whose store drops another model. False: there is none.
bool Spread::copy(Model& model, bool& may_drop) {
    Worker* roomiest = nullptr;
    Worker* other = nullptr;
    std::size_t count = model.workers.size() - model.keepers, first = worker_cursor_++;
    for (std::size_t step = 0; step < std::min(count, SPREAD_SCAN_MAX); ++step) {
        Worker* worker = state_.find_worker(model.workers[model.keepers + (first + step) % count]);
        if (worker->fetching > 0 || !arenas_.could_bring(*worker, model)) {
            continue;
        }
        if (worker->store_free() < model.spec(*worker->arenas.front())->stored_bytes) {
            other = other == nullptr ? worker : other;
        } else if (roomiest == nullptr || worker->store_free() > roomiest->store_free()) {
            roomiest = worker;
        }
    }
    if (roomiest == nullptr && may_drop) {
        may_drop = other == nullptr;
        roomiest = other;
    }
    std::uint32_t before = model.fetches;
    if (roomiest != nullptr) {
        arenas_.bring(*roomiest, model);
    }
    return model.fetches > before;
}

void Spread::fill() {
    if (state_.now < fill_ns_) {
        return;
    }
    fill_ns_ = state_.now + FILL_EVERY_NS;
    candidates_.clear();
    std::uint64_t known = std::min<std::uint64_t>(asked_count_, FILL_REQUESTS);
    for (std::uint64_t place = 0; place < known && state_.copying < COPYING_MAX; ++place) {
        Model* model = state_.find_model(asked_[place]);
        if (double worth = model != nullptr ? deciders_.memory->copy_worth(*model) : 0; worth > 0) {
            candidates_.push_back({model, worth});
        }
    }
    std::size_t count = state_.arenas.size();
    for (std::size_t step = 0; step < std::min(count, FILL_WORKERS); ++step) {
        Arena& arena = *state_.arenas[arena_cursor_++ % count];
        Worker& worker = *arena.worker;
        if (worker.arenas.front() != &arena || worker.tier != StoreTier::DISK || worker.draining) {
            continue;
        }
        arenas_.trim(worker);
        if (state_.copying < COPYING_MAX && worker.fetching == 0 && worker.store_free() > 0) {
            fill(worker);
        }
    }
}

// Brings a worker the model of the most worth, by copy, of those that it lacks and has room for.
void Spread::fill(Worker& worker) {
    Model* best = nullptr;
    double most = 0;
    for (const Candidate& candidate : candidates_) {
        const Model& model = *candidate.model;
        double worth = candidate.worth / (model.copies + model.fetches + 1);
        if (worth > most && worker.store_state(model) == StoreState::NONE && arenas_.could_bring(worker, model) &&
            model.spec(*worker.arenas.front())->stored_bytes <= worker.store_free()) {
            best = candidate.model;
            most = worth;
        }
    }
    if (best != nullptr) {
        arenas_.bring(worker, *best);
    }
}

}  // namespace clockwork
