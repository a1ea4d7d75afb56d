#include "scheduler/keepers.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace clockwork {

namespace {

std::uint32_t least_copies(const SchedulerOptions& options) {
    double found = STORED_COPIES;
    for (const auto& [name, value] : options.values) {
        found = name == "stored_copies" ? value : found;
    }
    if (found < 1 || found > STORED_COPIES_MAX || std::floor(found) != found) {
        throw std::invalid_argument("option stored_copies is not a whole number from 1 to " +
                                    std::to_string(STORED_COPIES_MAX));
    }
    return static_cast<std::uint32_t>(found);
}

// Calls function(worker) for each worker that has a disk store and does not leave.
template <typename Function>
void for_each_disk(const State& state, Function&& function) {
    for (const Arena* arena : state.arenas) {
        const Worker& worker = *arena->worker;
        if (worker.arenas.front() == arena && worker.tier == StoreTier::DISK && !worker.draining) {
            function(worker);
        }
    }
}

}  // namespace

Keepers::Keepers(State& state, const SchedulerOptions& options) : state_(state), least_(least_copies(options)) {}

// ----- who keeps a model ----------------------------------------------------------------------------

void Keepers::enter(Model& model, const Worker& worker) {
    model.workers.push_back(worker.worker_id);
    if (worker.keeps(model)) {
        keep(model, worker, true);
    }
    follow(model);
    state_.has_store_news |= model.short_in != 0;
}

void Keepers::leave(Model& model, const Worker& worker) {
    auto place = std::find(model.workers.begin(), model.workers.end(), worker.worker_id);
    const bool kept = place - model.workers.begin() < static_cast<std::ptrdiff_t>(model.keepers);
    model.keepers -= kept;
    model.workers.erase(place);
    if (kept) {
        grant_grace(model);
    }
    follow(model);
}

void Keepers::drains(Model& model, const Worker& worker) {
    if (worker.keeps(model)) {
        grant_grace(model);
    }
    follow(model);
}

// Moves a worker among those that keep the model, or behind them.
void Keepers::keep(Model& model, const Worker& worker, bool keeps) {
    auto place = std::find(model.workers.begin(), model.workers.end(), worker.worker_id);
    model.keepers -= !keeps;
    std::swap(*place, model.workers[model.keepers]);
    model.keepers += keeps;
}

void Keepers::gained(Worker& worker, Model& model, std::uint64_t bytes) {
    if (worker.store.size() <= model.slot) {
        worker.store.resize(state_.pool<Model>().slot_count());
    }
    StoredCopy& copy = worker.store[model.slot];
    worker.store_used += copy.state == StoreState::NONE ? bytes : 0;
    copy.bytes = copy.state == StoreState::NONE ? bytes : copy.bytes;
    copy.state = StoreState::HELD;
    copy.place = static_cast<std::uint32_t>(worker.held.size());
    copy.used_ns = state_.now;
    copy.ready_ns = copy.again_ns = 0;
    copy.attempts = 0;
    worker.held.push_back(model.slot);
    if (worker.tier == StoreTier::DISK && worker.has(&model)) {
        keep(model, worker, true);
        follow(model);
    }
}

void Keepers::lost(Worker& worker, Model& model) {
    StoredCopy& copy = worker.store[model.slot];
    worker.store_used -= copy.bytes;
    std::uint32_t last = worker.held.back();
    worker.held[copy.place] = last;
    worker.store[last].place = copy.place;
    worker.held.pop_back();
    copy = StoredCopy();
    if (worker.tier == StoreTier::DISK) {
        keep(model, worker, false);
        follow(model);
        state_.has_store_news = true;  // there is room
    }
}

const Worker* Keepers::source(const Worker& worker, const Model& model) const {
    const Arena& own = *worker.arenas.front();
    for (std::uint32_t place = 0; place < model.keepers; ++place) {
        const Worker* keeper = state_.find_worker(model.workers[place]);
        if (keeper == nullptr || keeper == &worker) {
            continue;  // null while it is being removed
        }
        const Arena& its = *keeper->arenas.front();
        if (its.kind_said == own.kind_said && its.page_bytes == own.page_bytes) {
            return keeper;
        }
    }
    return nullptr;
}

// ----- too few copies -------------------------------------------------------------------------------

void Keepers::count(const Model& model, std::uint32_t& copies, std::uint32_t& takers) const {
    copies = takers = 0;
    for (std::size_t place = 0; place < model.workers.size(); ++place) {
        const Worker* worker = state_.find_worker(model.workers[place]);
        if (worker == nullptr || worker->draining) {
            continue;
        }
        const KindSpec* spec = model.spec(*worker->arenas.front());
        copies += place < model.keepers;
        takers += place < model.keepers || (spec != nullptr && worker->could_store(*spec));
    }
}

// The number of the list in which a model belongs, plus 1; 0: none.
std::uint8_t Keepers::list_of(const Model& model) const {
    if (model.draining || model.keepers == 0 || model.copies + model.fetches >= wanted(model)) {
        return 0;
    }
    return model.copies == 0 ? 1 : model.grace_ns == 0 ? 2 : 3;
}

// Has a model wait for the return of a worker. The list of such models is in the order in which that ends.
void Keepers::grant_grace(Model& model) {
    if (state_.disks > 0) {
        model.grace_ns = state_.now + RESTART_GRACE_NS;
        if (model.short_in == 3) {
            state_.scarce[2].move_to_end(&model);
        }
    }
}

// Finds the workers that may still be looking for models on their disks.
void Keepers::note_looking() const {
    looking_.clear();
    for_each_disk(state_, [&](const Worker& worker) {
        if (state_.now - worker.joined_ns < STORE_LOOK_MAX_NS) {
            looking_.push_back(&worker);
        }
    });
}

// Whether one of them may have the model. by_its_kind: and could be brought it by another.
bool Keepers::is_looked_for(const Model& model, bool by_its_kind) const {
    return std::any_of(looking_.begin(), looking_.end(), [&](const Worker* worker) {
        return !worker->has(&model) && (!by_its_kind || source(*worker, model) != nullptr);
    });
}

Ns Keepers::end_graces() {
    auto& awaited = state_.scarce[2];
    if (awaited.empty() || awaited.front()->grace_ns > state_.now) {
        return awaited.empty() ? NEVER_NS : awaited.front()->grace_ns;
    }
    note_looking();
    while (!awaited.empty() && awaited.front()->grace_ns <= state_.now) {
        Model& model = *awaited.front();
        if (is_looked_for(model, true)) {
            grant_grace(model);
        } else {
            model.grace_ns = 0;
            follow(model);
        }
    }
    return awaited.empty() ? NEVER_NS : awaited.front()->grace_ns;
}

void Keepers::follow(Model& model) {
    if (state_.disks == 0 && model.short_in == 0) {
        return;  // nobody asks
    }
    count(model, model.copies, model.takers);
    std::uint8_t list = state_.disks > 0 ? list_of(model) : 0;
    model.grace_ns = list == 0 ? 0 : model.grace_ns;
    if (list == model.short_in) {
        return;
    }
    if (model.short_in != 0) {
        state_.scarce[model.short_in - 1].erase(&model);
    }
    model.short_in = list;
    if (list != 0) {
        state_.scarce[list - 1].push_back(&model);
        state_.has_store_news = true;
    }
}

std::uint64_t Keepers::sole_copies(const Worker& worker) const {
    std::uint64_t found = 0;
    for (const Model* model : state_.models) {
        found +=
            !model->draining && model->takers > 0 && model->copies == 0 && worker.has(model) && worker.keeps(*model);
    }
    return found;
}

// Whether no disk that lacks the model has room for it, so that no copy can be made.
bool Keepers::is_cramped(const Model& model) const {
    const std::size_t end = std::min<std::size_t>(model.workers.size(), model.keepers + CRAMPED_WORKERS_MAX);
    for (std::size_t place = model.keepers; place < end; ++place) {
        const Worker* worker = state_.find_worker(model.workers[place]);
        const KindSpec* spec = model.spec(*worker->arenas.front());
        if (!worker->draining && spec != nullptr && spec->stored_bytes <= worker->store_free()) {
            return false;
        }
    }
    return true;
}

StoreStatus Keepers::status() const {
    StoreStatus found;
    found.awaited = state_.scarce[2].size();
    found.scarce = state_.scarce[0].size() + state_.scarce[1].size() + found.awaited;
    found.copying = state_.copying;
    if (state_.disks == 0) {
        return found;
    }
    std::uint32_t looked = 0;
    for (std::size_t list : {0, 1}) {
        const Model* model = state_.scarce[list].front();
        for (; model != nullptr && looked < CRAMPED_MAX; model = state_.scarce[list].next(model), ++looked) {
            found.cramped += is_cramped(*model);
        }
    }
    note_looking();
    for (const Model* model : state_.models) {
        found.lost += !model->draining && model->keepers == 0 && !is_looked_for(*model, false);
    }
    for_each_disk(state_, [&](const Worker& worker) {
        found.bytes += worker.store_bytes;
        found.used += worker.store_used;
        found.room = std::max(found.room, worker.store_free());
    });
    return found;
}

void Keepers::check_invariants() const {
    for (const Model* model : state_.models) {
        std::uint32_t copies = 0, takers = 0;
        for (std::size_t place = 0; place < model->workers.size(); ++place) {
            must(state_.find_worker(model->workers[place])->keeps(*model) == (place < model->keepers),
                 "the workers that keep a model are not its first");
        }
        if (state_.disks == 0) {
            must(model->short_in == 0, "a model is scarce without a disk store");
            continue;
        }
        count(*model, copies, takers);
        must(copies == model->copies && takers == model->takers, "the copies of a model were miscounted");
        must(model->short_in == list_of(*model), "a model with too few copies is in no list");
        must(model->short_in != 0 || model->grace_ns == 0, "a model with enough copies waits for more");
    }
    for (std::uint8_t list : {1, 2, 3}) {
        auto is_in = [list](const Model* model) { return model->short_in == list; };
        must(std::count_if(state_.models.begin(), state_.models.end(), is_in) ==
                 static_cast<std::ptrdiff_t>(state_.scarce[list - 1].size()),
             "the list of models with too few copies is wrong");
    }
}

}  // namespace clockwork
