#include "scheduler/models.h"

#include <algorithm>

namespace clockwork {

namespace {

// Calls function for the first device of each kind of a worker.
template <typename Function>
void for_each_kind(const Worker& worker, Function&& function) {
    for (auto place = worker.arenas.begin(); place != worker.arenas.end(); ++place) {
        Arena& arena = **place;
        if (std::none_of(worker.arenas.begin(), place,
                         [&](const Arena* other_arena) { return other_arena->kind == arena.kind; })) {
            function(arena);
        }
    }
}

}  // namespace

Model* Models::prepared(Worker& worker, const ModelSpec& told, bool is_stored) {
    Model* model = state_.find_model(told.model_id);
    if (model == nullptr) {
        model = state_.pool<Model>().make();
        model->model_id = told.model_id;
        model->batches = told.batches;
        state_.by_model.set(static_cast<std::uint64_t>(told.model_id), model);
        state_.models.push_back(model);
    } else if (model->draining) {
        return nullptr;
    }
    for (Arena* arena : worker.arenas) {
        state_.touch(*arena);
    }
    if (!worker.has(model)) {
        std::uint32_t variant = variant_for(*model, worker, told);
        for_each_kind(worker, [&](Arena& arena) { ++join_spec(*model, arena, variant, told).worker_count; });
        model->note_variants();
        if (worker.variants.size() <= model->slot) {
            worker.variants.resize(state_.pool<Model>().slot_count());
        }
        worker.variants[model->slot] = variant;
        keepers_.enter(*model, worker);
    } else if (worker.tier == StoreTier::DISK) {
        tell_anew(*model, worker, told, is_stored);
    }
    if (is_stored && worker.tier == StoreTier::DISK && !worker.is_stored(*model)) {
        keepers_.gained(worker, *model, model->spec(*worker.arenas.front())->stored_bytes);
    }
    return model;
}

// Takes another preparation of a model: the one that the worker was told of is no longer to be had, and the
// model was prepared again. A FETCH under way brings the new one, or fails and is ordered again. The worker's
// own word for what it has counts even where it has another by the books.
void Models::tell_anew(Model& model, Worker& worker, const ModelSpec& told, bool is_stored) {
    const StoreState state = worker.store_state(model);
    const bool is_used = (!is_stored && (state == StoreState::HELD || model.drops > 0)) ||
                         std::any_of(model.residencies.begin(), model.residencies.end(),
                                     [&](const Residency* residency) { return residency->arena->worker == &worker; });
    const std::uint32_t variant = is_used ? worker.variant_of(model) : variant_for(model, worker, told);
    if (variant == worker.variant_of(model)) {
        return;
    }
    for_each_kind(worker, [&](Arena& arena) {
        leave_spec(model, worker, arena.kind);
        ++join_spec(model, arena, variant, told).worker_count;
    });
    model.note_variants();
    worker.variants[model.slot] = variant;
    arenas_.prepared_otherwise(worker, model);
}

// The variant number of a worker's preparation: that of an equal preparation, otherwise the least number that
// has another meaning on none of its kinds of device.
std::uint32_t Models::variant_for(const Model& model, const Worker& worker, const ModelSpec& told) {
    auto said_on_all = [&](std::uint32_t variant, auto&& suits) {
        bool all = true;
        for_each_kind(worker, [&](Arena& arena) {
            const KindSpec* known = model.spec(arena.kind, variant);
            all = all && suits(known != nullptr && known->worker_count > 0 ? known : nullptr);
        });
        return all;
    };
    auto is_same = [&](const KindSpec* known) {
        return known != nullptr && known->program_number == told.program && known->runs == told.runs &&
               known->batch_max == (told.batches ? told.batch_max : 1);
    };
    for (const KindSpec* spec : model.specs) {
        if (said_on_all(spec->variant, is_same)) {
            return spec->variant;
        }
    }
    std::uint32_t variant = 1;
    while (!said_on_all(variant, [](const KindSpec* known) { return known == nullptr; })) {
        ++variant;
    }
    return variant;
}

// Returns the record of a preparation: that of connected workers with the same preparation, otherwise a
// new one, which replaces the record of workers that are gone.
KindSpec& Models::join_spec(Model& model, Arena& arena, std::uint32_t variant, const ModelSpec& told) {
    KindSpec* known = model.spec(arena.kind, variant);
    if (known != nullptr && known->worker_count > 0) {
        return *known;
    }
    KindSpec& fresh = *state_.pool<KindSpec>().make();
    fresh.kind = arena.kind;
    fresh.variant = variant;
    fresh.program_number = told.program;
    fresh.program = &state_.estimates.use_program(told.program, arena.kind);
    fresh.loads = &state_.estimates.loads(arena.kind);
    fresh.shapes = &state_.shapes;
    fresh.model_id = told.model_id;
    fresh.batch_max = told.batches ? told.batch_max : 1;
    fresh.runs = told.runs;
    fresh.page_count = 0;
    for (std::uint32_t size : told.runs) {
        fresh.page_count += size;
    }
    fresh.load_ns = told.load_ns;
    fresh.load_times = &fresh.loads->use(told.program, fresh.page_count);
    fresh.fetches = &state_.estimates.fetches(arena.kind);
    fresh.fetch_times = &fresh.fetches->use(told.program, fresh.page_count);
    fresh.stored_bytes = arena.page_bytes * fresh.page_count;
    fresh.program->seed(told.profile);
    learning_.begin_drag(arena.kind, *fresh.program);
    fresh.program->set_scale(learning_.scale(arena.kind));
    if (known != nullptr) {
        *std::find(model.specs.begin(), model.specs.end(), known) = &fresh;
        state_.retire(known);
    } else {
        model.specs.push_back(&fresh);
    }
    return fresh;
}

// Removes the preparation of a worker that is gone, or whose last device of a kind is gone.
void Models::leave_spec(Model& model, const Worker& worker, std::uint32_t kind) {
    KindSpec* spec = model.spec(kind, worker.variant_of(model));
    if (spec != nullptr && --spec->worker_count == 0 && model.leave_spec(*spec)) {
        state_.retire(spec);
    }
}

void Models::leave_worker(const Worker& worker) {
    for (Model* model : state_.models) {
        if (worker.has(model)) {
            keepers_.leave(*model, worker);
            for_each_kind(worker, [&](const Arena& arena) { leave_spec(*model, worker, arena.kind); });
        }
    }
}

void Models::leave_kind(const Worker& worker, std::uint32_t kind) {
    for (Model* model : state_.models) {
        if (worker.has(model)) {
            leave_spec(*model, worker, kind);
        }
    }
}

void Models::check_removed(Model& model) {
    keepers_.follow(model);
    if (model.live > 0 || model.gone) {
        return;
    }
    std::vector<Residency*> all = model.residencies;
    for (Residency* residency : all) {
        if (residency->state == ResidencyState::PENDING) {
            arenas_.drop_load(*residency);
        } else if (residency->is_idle()) {
            arenas_.evict(*residency);
        }
    }
    if (!model.residencies.empty() || model.unloads > 0 || !arenas_.leave_stores(model)) {
        return;
    }
    model.gone = true;
    state_.by_model.erase(static_cast<std::uint64_t>(model.model_id));
    state_.models.erase(std::find(state_.models.begin(), state_.models.end(), &model));
    std::vector<WorkerId> workers = model.workers;
    for (WorkerId id : workers) {
        Worker& worker = *state_.find_worker(id);
        if (worker.store_state(model) == StoreState::HELD) {
            keepers_.lost(worker, model);
        } else if (model.slot < worker.store.size()) {
            worker.store[model.slot] = StoredCopy();
        }
        worker.variants[model.slot] = 0;
    }
    for (KindSpec* spec : model.specs) {
        state_.retire(spec);
    }
    deciders_.policy->model_gone(model);
    std::erase(state_.links.models, &model);
    state_.retire(&model);
    state_.order(CommandKind::MODEL_GONE).model_id = model.model_id;
}

}  // namespace clockwork
