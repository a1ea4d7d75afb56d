#include "scheduler/state.h"

#include <algorithm>
#include <string>
#include <unordered_map>

namespace clockwork {

void State::recycle_all() {
    has_retired_ = false;
    pool<Pending>().recycle();
    pool<Flight>().recycle();
    pool<Batch>().recycle();
    pool<Residency>().recycle();
    pool<KindSpec>().recycle([this](const KindSpec& spec) {
        estimates.release_program(spec.program_number, spec.kind);
        spec.loads->release(spec.program_number, spec.page_count);
        spec.fetches->release(spec.program_number, spec.page_count);
    });
    pool<Model>().recycle();
    pool<Arena>().recycle();
    pool<Executor>().recycle();
    pool<Worker>().recycle();
}

// ----- time ---------------------------------------------------------------------------------------

void State::follow_wake(Executor& executor) {
    if (executor.wake_ns != executor.timer_ns) {
        executor.timer_ns = executor.wake_ns;
        if (executor.wake_ns < NEVER_NS) {
            push_timer(executor.wake_ns, executor.slot | EXECUTOR_TIMER, executor.generation);
        }
    }
}

void State::push_timer(Ns at_ns, std::uint32_t slot, std::uint32_t generation) {
    timers_.push_back({at_ns, ++sequence_, slot, generation});
    std::push_heap(timers_.begin(), timers_.end(), IsLater());
}

void State::pop_timer() {
    std::pop_heap(timers_.begin(), timers_.end(), IsLater());
    timers_.pop_back();
}

void State::untouch(Executor& executor) {
    if (executor.dirty) {
        executor.dirty = false;
        dirty_.erase(std::find(dirty_.begin(), dirty_.end(), &executor));
    }
}

// ----- what must hold -----------------------------------------------------------------------------

void State::check_invariants(const Policy& policy) const {
    std::unordered_map<const Pending*, const char*> placed;
    auto place = [&](const Pending* pending, const char* where) {
        auto [found, is_new] = placed.emplace(pending, where);
        if (!is_new) {
            throw std::logic_error("request " + std::to_string(pending->request.id) + " is both " + found->second +
                                   " and " + where);
        }
    };
    for (const Arena* arena : arenas) {
        check_arena(*arena, policy);
    }
    for (const Executor* executor : executors) {
        const std::vector<Batch*>& planned = policy.planned(*executor);
        check_plan(*executor, planned);
        for (const Batch* batch : planned) {
            for (const Pending* pending : batch->pendings) {
                must(pending->batch == batch, "a planned request that names another batch");
                must(pending->flight == nullptr, "a planned request that is in flight");
                must(!pending->answered, "an answered request is planned");
                place(pending, "planned");
            }
        }
    }
    std::size_t background_count = 0;
    for (const Model* model : models) {
        for (const Pending* member = model->background.front(); member != nullptr;
             member = model->background.next(member)) {
            must(member->deadline_ns >= NEVER_NS, "a request with a deadline waits in the background");
            must(member->queue == &model->background, "a waiting request that names another queue");
            const Pending* next = model->background.next(member);
            must(next == nullptr || member->request.priority <= next->request.priority,
                 "the background is out of order");
            place(member, "background");
        }
        background_count += !model->background.empty();
        std::uint32_t servers = 0;
        for (const Residency* residency : model->residencies) {
            const Arena* arena = residency->arena;
            servers += arena->executors.size();
            must(std::find(arenas.begin(), arenas.end(), arena) != arenas.end(), "a residency in an arena that left");
            bool is_home = residency->state == ResidencyState::RESIDENT;
            for (const Executor* sibling = arena->executors.front(); sibling != nullptr; sibling = sibling->after) {
                must(is_home == model->homes.test(sibling->slot), "the index of a model's executors is wrong");
            }
            must(is_home == arena->models.test(model->slot), "the index of an arena's models is wrong");
        }
        must(servers == model->servers, "a model's executors were miscounted");
    }
    must(background_count == background.size(), "background index is wrong");
    std::vector<const Pending*> waiting;
    policy.collect_waiting(waiting);
    for (const Pending* pending : waiting) {
        must(!pending->answered && pending->flight == nullptr, "a waiting request that is answered or in flight");
        place(pending, "waiting");
    }
    flights.for_each([&](const Flight& flight) {
        for (const Pending* pending : flight.batch != nullptr ? flight.batch->pendings : std::vector<Pending*>{}) {
            if (!pending->answered) {
                must(pending->flight == &flight, "a request in a flight that it does not name");
                place(pending, "in flight");
            }
        }
    });
    must(placed.size() == pendings.size(), "a request is nowhere");
    std::unordered_map<const Model*, std::uint64_t> live;
    for (const auto& [pending, where] : placed) {
        must(pendings.find(pending->request.id) == pending, "a placed request is not open");
        ++live[pending->model];
    }
    for (const Model* model : models) {
        must(model->live == live[model], "a model's count of live requests is wrong");
    }
}

void State::check_plan(const Executor& executor, const std::vector<Batch*>& plan) {
    for (const Batch* batch : plan) {
        const Residency* residency = batch->residency;
        std::uint32_t size = 0;
        for (const Pending* pending : batch->pendings) {
            size += pending->size;
        }
        must(!batch->pendings.empty(), "an empty batch is planned");
        must(batch->size == size, "a batch of another size than its requests");
        must(batch->executor == &executor, "a batch on another executor");
        must(residency->arena == executor.arena, "a batch of a model in another arena");
        const auto& all = residency->model->residencies;
        must(std::find(all.begin(), all.end(), residency) != all.end(), "a batch without its model");
        must(std::find(residency->batches.begin(), residency->batches.end(), batch) != residency->batches.end(),
             "a batch that its residency does not know");
    }
}

void State::check_arena(const Arena& arena, const Policy& policy) {
    must(!arena.executors.empty() && arena.executors.front()->index == arena.index, "an arena without its owner");
    for (const Executor* executor = arena.executors.front(); executor != nullptr; executor = executor->after) {
        must(executor->arena == &arena && executor->worker == arena.worker && executor->index >= arena.index,
             "an executor of another arena");
    }
    arena.pages.check_invariants();
    std::unordered_map<std::uint32_t, ModelId> used;
    std::uint32_t doomed = 0;
    for (const Residency* resident = arena.resident.front(); resident != nullptr;
         resident = arena.resident.next(resident)) {
        doomed += resident->doomed;
        must(resident->state != ResidencyState::PENDING, "a load that was not sent holds pages");
        must(resident->on_device && arena.find(resident->model) == resident, "the arena's index of models is wrong");
        must(resident->starts.size() == resident->spec->runs.size(), "a model without its pages");
        for (std::size_t run = 0; run < resident->starts.size(); ++run) {
            for (std::uint32_t page = resident->starts[run]; page < resident->starts[run] + resident->spec->runs[run];
                 ++page) {
                must(used.emplace(page, resident->model->model_id).second, "a page belongs to two models");
            }
        }
    }
    for (const Executor* executor = arena.executors.front(); executor != nullptr; executor = executor->after) {
        const Reservation& lent = executor->reservation;
        must(lent.starts.size() == lent.lent_runs.size(), "pages that were lent are not where they should be");
        for (const Residency* victim : lent.victims) {
            must(victim->arena == &arena && victim->on_device && victim->doomed, "a reservation's victim is none");
        }
        for (std::size_t run = 0; run < lent.starts.size(); ++run) {
            std::uint32_t all = arena.pages.page_count();
            must(lent.starts[run] <= all && lent.lent_runs[run] <= all - lent.starts[run],
                 "pages were lent that are not");
            for (std::uint32_t page = lent.starts[run]; page < lent.starts[run] + lent.lent_runs[run]; ++page) {
                must(used.emplace(page, lent.model_id).second, "a page that was lent belongs to a model");
            }
        }
    }
    must(doomed == arena.doomed, "an arena's doomed models were miscounted");
    must(used.size() + arena.pages.free_count() == arena.pages.page_count(), "pages were lost");
    auto check = [&](const Residency* residency) {
        const auto& all = residency->model->residencies;
        must(std::find(all.begin(), all.end(), residency) != all.end(), "a residency without its model");
        std::size_t planned = 0;
        std::uint32_t flying = 0;
        for (const Executor* sibling = arena.executors.front(); sibling != nullptr; sibling = sibling->after) {
            for (const Batch* batch : policy.planned(*sibling)) {
                planned += batch->residency == residency;
            }
            for (const Flight* flight = sibling->lane.front(); flight != nullptr; flight = sibling->lane.next(flight)) {
                flying += flight->residency == residency;
            }
        }
        must(residency->batches.size() == planned, "a residency's batches are wrong");
        must(residency->flying == flying, "a residency's count of flights is wrong");
        must((residency->ready_ns == 0) == (residency->state == ResidencyState::RESIDENT),
             "a residency is ready or not, but not as it says");
    };
    for (const Residency* residency : arena.pending) {
        must(residency->state == ResidencyState::PENDING, "a load that waits was sent");
        check(residency);
    }
    for (const Residency* other_residency = arena.resident.front(); other_residency != nullptr;
         other_residency = arena.resident.next(other_residency)) {
        check(other_residency);
    }
}

void State::note_waited(const Model& model, Ns since_ns, const Executor* except) {
    std::size_t count = model.residencies.size();
    for (std::size_t looked = 0; looked < std::min(count, IDLE_LOOK_MAX); ++looked) {
        const Residency& residency = *model.residencies[(model.place_cursor + looked) % count];
        if (residency.state != ResidencyState::RESIDENT || !residency.arena->usable()) {
            continue;
        }
        const auto& all = residency.arena->executors;
        bool is_there = except != nullptr && except->arena == residency.arena && except->after != nullptr;
        Executor* there = is_there ? except->after : all.front();
        for (std::size_t seen = 0; seen < std::min<std::size_t>(all.size(), IDLE_LOOK_MAX); ++seen) {
            if (there != except && there->lane.empty()) {
                count_idle(*there, std::max(since_ns, residency.loaded_ns), now);
            }
            there = there->after != nullptr ? there->after : all.front();
        }
    }
}

}  // namespace clockwork
