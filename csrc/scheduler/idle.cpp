#include "scheduler/idle.h"

#include <algorithm>
#include <utility>

namespace clockwork {

const std::vector<Model*>& Idle::background() {
    scan_.clear();
    for (Model* model = state_.background.front(); model != nullptr && scan_.size() < BACKGROUND_SCAN_MAX;
         model = state_.background.next(model)) {
        scan_.push_back(model);
    }
    return scan_;
}

// Whether work is planned for an executor of the arena.
bool Idle::has_plan(const Arena& arena) const {
    const Executor* executor = arena.executors.front();
    while (executor != nullptr && deciders_.policy->planned(*executor).empty()) {
        executor = executor->after;
    }
    return executor != nullptr;
}

void Idle::load_background(Arena& arena, Model& model) {
    bool aged = state_.now - model.background.front()->request.arrived_ns > BACKGROUND_AGE_NS;
    if (model.is_within_reach() && !aged) {
        return;
    }
    KindSpec* spec = model.spec(arena);
    if (spec == nullptr || spec->page_count > arena.pages.page_count() || !arena.worker->could_store(*spec)) {
        return;
    }
    if (std::any_of(model.residencies.begin(), model.residencies.end(),
                    [&](const Residency* residency) { return residency->arena == &arena; })) {
        return;
    }
    if (!aged) {
        arenas_.find_loadable(model, elsewhere_);
        for (const Place& place : elsewhere_) {
            const Arena& other = *place.arena;
            bool is_idle = other.is_idle() && !has_plan(other) && other.pending.empty() && other.loading == 0;
            if (is_idle && std::make_pair(other.has_room(*place.spec), other.pages.free_count()) >
                               std::make_pair(arena.has_room(*spec), arena.pages.free_count())) {
                return;  // the device will consider this model, too
            }
        }
    }
    if (!aged && arena.worker->tier == StoreTier::DISK && !arena.worker->is_stored(model) &&
        arenas_.find_holder(model) != nullptr) {
        return;  // the devices of a worker that has it consider it, too
    }
    if (!arenas_.bring(*arena.worker, model)) {
        return;  // the device tries again when that action is done
    }
    if (Residency* residency = arenas_.propose_load(arena, model, *spec, state_.now + BACKGROUND_AGE_NS, aged);
        residency != nullptr) {
        arenas_.accept_load(*residency);
    }
}

bool Idle::is_unseen(const Model& model, std::uint32_t shape) {
    return std::none_of(model.specs.begin(), model.specs.end(),
                        [shape](const KindSpec* spec) { return spec->program->curve(shape) != nullptr; });
}

void Idle::remember_unseen(const Model& model, const Request& request) {
    for (const KindSpec* spec : model.specs) {
        remember(model, *spec, request, false);
    }
}

void Idle::doubt(const Pending& pending) {
    const Model& model = *pending.model;
    const Request& request = pending.request;
    Ns slo = pending.deadline_ns - request.arrived_ns;
    for (const KindSpec* spec : model.specs) {
        Curve* curve = spec->program->curve(request.shape);
        std::uint32_t rows = model.batches ? request.rows : 1;
        // An execution that takes a small part of the SLO is not the cause of the refusal.
        if (curve != nullptr && curve->exec_ns(rows) > slo / 2 && !curve->is_confirmed(rows, state_.now)) {
            remember(model, *spec, request, true);
        }
    }
}

void Idle::remember(const Model& model, const KindSpec& spec, const Request& request, bool is_doubted) {
    bool known = std::any_of(unmeasured_.begin(), unmeasured_.end(), [&](const Unmeasured& unmeasured) {
        return unmeasured.program == spec.program_number && unmeasured.kind == spec.kind &&
               unmeasured.shape == request.shape;
    });
    if (known) {
        return;
    }
    if (unmeasured_.size() >= PROFILE_TABLE_MAX) {
        unmeasured_.erase(unmeasured_.begin());
    }
    std::uint32_t rows = model.batches ? request.rows : 1;
    unmeasured_.push_back({spec.program_number, spec.kind, request.shape, model.model_id, rows, 0, is_doubted});
    for (Executor* executor : state_.executors) {
        if (executor->arena->kind == spec.kind) {
            state_.touch(*executor);
        }
    }
}

void Idle::shapes_in_use(std::vector<std::uint32_t>& found) const {
    for (const Unmeasured& unmeasured : unmeasured_) {
        found.push_back(unmeasured.shape);
    }
    for (const Failed& failed : failed_) {
        found.push_back(failed.shape);
    }
}

AnswerText Idle::why_unmeasured(const Model& model, std::uint32_t shape) const {
    bool has_failed = std::any_of(failed_.begin(), failed_.end(), [&](const Failed& failed) {
        return failed.shape == shape && std::any_of(model.specs.begin(), model.specs.end(), [&](const KindSpec* spec) {
                   return spec->program_number == failed.program && spec->kind == failed.kind;
               });
    });
    return has_failed ? AnswerText::NOT_MEASURABLE : AnswerText::NEVER_MEASURED;
}

void Idle::note_ended(const Unmeasured& unmeasured, bool is_measured) {
    std::erase_if(failed_, [&](const Failed& failed) {
        return failed.program == unmeasured.program && failed.kind == unmeasured.kind &&
               failed.shape == unmeasured.shape;
    });
    if (!is_measured && unmeasured.attempts >= PROFILE_ATTEMPTS_MAX) {
        if (failed_.size() >= PROFILE_TABLE_MAX) {
            failed_.erase(failed_.begin());
        }
        failed_.push_back({unmeasured.program, unmeasured.kind, unmeasured.shape});
    }
}

// Returns the model's preparation that runs the program to be measured, or null.
KindSpec* Idle::measured_spec(const Model& model, const Unmeasured& unmeasured) {
    auto found = std::find_if(model.specs.begin(), model.specs.end(), [&](const KindSpec* spec) {
        return spec->kind == unmeasured.kind && spec->program_number == unmeasured.program;
    });
    return found != model.specs.end() ? *found : nullptr;
}

void Idle::measure(Executor& executor) {
    Arena& arena = *executor.arena;
    Ns due = executor.idle_since_ns + PROFILE_IDLE_NS;
    if (due > state_.now) {
        executor.wake_at(due);
        return;
    }
    for (std::size_t place = 0; place < unmeasured_.size();) {
        Unmeasured& unmeasured = unmeasured_[place];
        if (unmeasured.kind != arena.kind) {
            ++place;
            continue;
        }
        Model* model = state_.find_model(unmeasured.model_id);
        KindSpec* spec = model != nullptr ? measured_spec(*model, unmeasured) : nullptr;
        Ns bound = 0;
        Curve* known = spec != nullptr ? spec->program->curve(unmeasured.shape) : nullptr;
        bool is_over = spec == nullptr || model->draining || (known != nullptr) != unmeasured.is_doubted;
        if (!is_over) {
            bound = known != nullptr ? known->planned_ns(unmeasured.rows)
                                     : spec->program->bound_ns(state_.shapes, unmeasured.shape, unmeasured.rows);
            is_over = unmeasured.attempts >= PROFILE_ATTEMPTS_MAX || bound > PROFILE_NS_MAX;
        }
        if (is_over) {
            if (!unmeasured.is_doubted) {
                note_ended(unmeasured, known != nullptr);
            }
            unmeasured_.erase(unmeasured_.begin() + static_cast<std::ptrdiff_t>(place));
            continue;
        }
        if (bound == 0) {
            bound = PROFILE_NS_MAX;
        }
        Residency* residency = arena.find(model);
        if (residency == nullptr && unmeasured.is_doubted) {  // any other model that runs the program will do
            residency = arena.resident.front();
            while (residency != nullptr && residency->spec->program != spec->program) {
                residency = arena.resident.next(residency);
            }
        }
        if (residency == nullptr) {
            KindSpec* own = model->spec(arena);
            if (own != nullptr && model->residencies.empty() && arena.loading == 0) {
                if (own->page_count <= arena.pages.page_count()) {
                    arenas_.load_idly(arena, *model, *own);
                }
                return;
            }
            ++place;
            continue;
        }
        if (!is_usable(residency)) {
            ++place;
            continue;
        }
        ++unmeasured.attempts;
        executions_.measure(executor, *residency, unmeasured.shape, unmeasured.rows, bound);
        return;
    }
}

}  // namespace clockwork
