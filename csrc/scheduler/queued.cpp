#include "scheduler/queued.h"

#include <algorithm>

namespace clockwork {

Queued::Queued(SchedulerParts& parts, const SchedulerOptions& options, const MakeRules& make_rules,
               const MakeMemory& make_memory)
    : state_(parts.state),
      arenas_(parts.arenas),
      requests_(parts.requests),
      executions_(parts.executions),
      recovery_(parts.recovery),
      idle_(parts.idle),
      queues_(parts.state),
      rules_(make_rules({state_, arenas_, requests_, idle_, queues_, *this, memory_}, options)),
      habits_(rules_->habits),
      memory_(make_memory(options.memory.empty() ? habits_.memory : options.memory, parts, queues_, *rules_, options)) {
}

// ----- requests ----------------------------------------------------------------------------------

void Queued::arrive(Pending& pending) {
    Queue& queue = queues_.of(pending);
    if (refuse_unknown(pending, queue)) {
        return;
    }
    if (pending.deadline_ns >= NEVER_NS) {
        requests_.open(pending);
        requests_.to_background(pending);
    } else if (!check_near(pending)) {
        arenas_.warm(*pending.model);
    } else if (rules_->admit(pending)) {
        requests_.open(pending);
        pending.key_ns = ++order_;
        enqueue(pending, queue);
    }
}

// Refuses a request of a shape that was never measured. True: refused. An admitted request has its shape
// measured for later ones.
bool Queued::refuse_unknown(Pending& pending, Queue& queue) {
    const Request& request = pending.request;
    const Model& model = *pending.model;
    std::uint32_t shape = request.shape;
    if (!queue.is_profiled) {
        queue.is_profiled = std::any_of(model.specs.begin(), model.specs.end(), [shape](const KindSpec* spec) {
            Curve* curve = spec->program->curve(shape);
            return curve != nullptr && curve->is_profiled();
        });
    }
    if (!queue.is_profiled && idle_.is_unseen(model, shape)) {
        idle_.remember_unseen(model, request);
        Ns least = model.least_alone_ns(shape, pending.size);
        if (pending.deadline_ns < NEVER_NS && least >= NEVER_NS) {
            requests_.refuse(pending, Reason::UNPROFILED, idle_.why_unmeasured(model, shape));
            return true;
        }
        Ns slo = pending.deadline_ns - request.arrived_ns;
        if (pending.deadline_ns < NEVER_NS && least > pending.deadline_ns - state_.now) {
            requests_.refuse(pending, Reason::UNPROFILED, AnswerSentence(AnswerText::BOUND_ABOVE_SLO, least, slo),
                             std::max(least, slo + 1));
            return true;
        }
    }
    return false;
}

// Refuses a request whose deadline does not allow fetch, load and execution, where stores count. False:
// refused.
bool Queued::check_near(Pending& pending) {
    const Model& model = *pending.model;
    if (state_.tiered == 0 || !model.residencies.empty()) {
        return true;
    }
    Ns least = model.least_alone_ns(pending.request.shape, pending.size);
    Ns needs = arenas_.hops_ns(model) + (least < NEVER_NS ? least : 0);
    if (state_.now + needs <= pending.deadline_ns) {
        return true;
    }
    Ns arrived = pending.request.arrived_ns, slo = pending.deadline_ns - arrived;
    Ns feasible = std::max(state_.now - arrived + needs, slo + 1);
    requests_.refuse(pending, Reason::DEADLINE, AnswerSentence(AnswerText::COULD_BE_ANSWERED, feasible, slo), feasible,
                     arenas_.hops_ns(model));
    return false;
}

bool Queued::replace(Pending& pending) {
    if (state_.now >= pending.deadline_ns) {
        return false;
    }
    enqueue(pending, queues_.of(pending));
    return true;
}

void Queued::enqueue(Pending& pending, Queue& queue) {
    queues_.enter(pending, queue);
    memory_->waits(pending);
    bool was_ready = queue.ready;
    if (!queue.ready || queue.front().pending == &pending) {
        review(queue);
    }
    // A device that found no request in time in this queue may find this one.
    if (was_ready && queue.ready && !summoned_.test(queue.model->slot)) {
        wake(*queue.model);
    }
}

void Queued::unplan(Pending& pending) {
    if (pending.queue != nullptr) {
        requests_.leave_background(pending);
        return;
    }
    Queue& queue = queues_.of(pending);
    if (!queues_.leave(pending, queue)) {
        return;  // the request is being planned again
    }
    memory_->leaves(pending);
    if (!reviewing_) {
        review(queue);
    }
}

void Queued::drop(Queue& queue, const Waiting& waiting) {
    Pending& pending = *waiting.pending;
    memory_->press(queue);
    memory_->turned_away(*queue.model);
    contest_devices(*queue.model, state_.now);
    bool is_over = state_.now >= pending.deadline_ns;
    if (habits_.promises_nothing && !is_over) {
        turn_out(queue, pending);
        return;
    }
    requests_.fail(pending, Status::DEADLINE_MISSED,
                   is_over ? AnswerText::DEADLINE_PASSED : AnswerText::CANNOT_BE_IN_TIME);
}

// Refuses a waiting request, with the feasible SLO by the present state of its model's devices.
void Queued::turn_out(const Queue& queue, Pending& pending) {
    const Arena* first = nullptr;
    const KindSpec* spec = nullptr;
    Ns start = NEVER_NS;
    auto consider = [&](const Arena& arena, const KindSpec& there, Ns ready_ns) {
        Ns arrives = state_.now + arena.worker->there_ns + rules_->inputs_ns(*arena.worker);
        Ns free = std::max({arena.free_ns(state_.now), ready_ns, arrives});
        if (free < start) {
            start = free;
            first = &arena;
            spec = &there;
        }
    };
    const Model& model = *queue.model;
    std::size_t count = std::min(model.residencies.size(), OUTLOOK_MAX);
    for (std::size_t place = 0; place < count; ++place) {
        const Residency& residency = *model.residencies[place];
        if (residency.arena->usable() && !residency.doomed) {
            consider(*residency.arena, *residency.spec, residency.ready_ns);
        }
    }
    if (first == nullptr) {  // a load would come first, as the next on its link
        count = std::min(model.workers.size(), OUTLOOK_MAX);
        for (std::size_t place = 0; place < count; ++place) {
            const Worker* worker = state_.find_worker(model.workers[place]);
            if (worker == nullptr || worker->draining) {
                continue;
            }
            Ns begin =
                std::max(worker->link_free_ns, state_.now + arenas_.fetch_wait_ns(*worker, model) + worker->there_ns);
            for (const Arena* arena : worker->arenas) {
                const KindSpec* there = model.spec(*arena);
                if (there != nullptr && there->page_count <= arena->pages.page_count()) {
                    consider(*arena, *there, begin + there->load_planned_ns() + worker->back_ns + worker->there_ns);
                }
            }
        }
    }
    if (first == nullptr) {
        requests_.fail(pending, Status::REFUSED, AnswerText::CANNOT_BE_IN_TIME, Reason::DEADLINE);
        return;
    }
    // Its batch would include the requests behind it; later batches follow on each of the devices. Higher
    // levels of its model go before.
    std::uint32_t rows = queue.rows(), before = 0;
    for (const auto& other : queues_.of(model)) {
        before += other->level < queue.level ? other->rows() : 0;
    }
    std::uint32_t most = pending.alone ? pending.size : std::max(std::min(rows, spec->batch_max), pending.size);
    Ns takes = rules_->duration_ns(*spec, queue.shape, most);
    Ns devices = static_cast<Ns>(std::max(model.servers, 1u));
    Ns wait = start + takes * before / most / devices + takes + first->worker->back_ns - state_.now;
    Ns slo = pending.deadline_ns - pending.request.arrived_ns;
    Ns feasible = std::max(state_.now - pending.request.arrived_ns + wait, slo + 1);
    Ns rest = takes * (rows - most) / most / devices;
    requests_.fail(pending, Status::REFUSED, AnswerSentence(AnswerText::COULD_BE_ANSWERED, feasible, slo),
                   Reason::DEADLINE, feasible, wait + rest);
}

void Queued::review(Queue& queue) {
    bool was_reviewing = reviewing_, was_ready = queue.ready;
    Model& model = *queue.model;
    reviewing_ = true;
    Ns hopeless = NEVER_NS;  // bound of the front request
    while (!queue.empty() && (hopeless = rules_->hopeless_ns(queue, queue.front())) <= state_.now) {
        drop(queue, queue.front());
    }
    reviewing_ = was_reviewing;
    queue.ready = false;
    if (!queue.empty()) {
        Ns ready = rules_->ready_ns(queue);
        const Waiting& front = queue.front();
        Ns wake = hopeless;
        if (Ns outgrown = rules_->outgrown_ns(queue, front); outgrown > state_.now) {
            wake = std::min(wake, outgrown);
        } else {
            memory_->press(queue);
        }
        queue.ready = ready <= state_.now;
        if (queue.ready) {
            queue.rank = packed_rank(queue.level, rules_->rank_ns(queue));
        } else {
            wake = std::min(wake, ready);
        }
        if (queue.timer_order != front.order || wake < queue.timer_ns) {
            queue.timer_order = front.order;
            queue.timer_ns = wake;
            state_.set_timer(wake, *front.pending);
        }
    }
    if (queue.ready || was_ready) {
        queues_.publish(model);
    }
    if (queue.ready && !was_ready) {
        call(model);
    }
}

// Handles a request's timer: the queue's front is hopeless, or the queue is ready.
void Queued::expire(Pending& pending) {
    if (pending.flight != nullptr || pending.queue != nullptr || pending.deadline_ns >= NEVER_NS) {
        return;  // handled by answer_overdue()
    }
    Queue& queue = queues_.of(pending);
    queue.timer_order = -1;
    queue.timer_ns = NEVER_NS;
    review(queue);
}

// Has a device that could take work look at a model's queues.
void Queued::call(Model& model) {
    if (!wake(model) && habits_.spreads) {
        memory_->found_all_busy(model);
    }
}

// Wakes a hungry device of the model. False: there is none.
bool Queued::wake(Model& model) {
    Executor* executor = queues_.find_hungry(model);
    if (executor == nullptr) {
        return false;
    }
    queues_.mark_fed(*executor);
    called_[executor->slot].push_back(&model);
    summoned_.set(model.slot);
    state_.touch(*executor);
    return true;
}

void Queued::forget_calls(const Executor& executor) {
    for (const Model* model : called_[executor.slot]) {
        summoned_.clear(model->slot);
    }
    called_[executor.slot].clear();
}

// ----- devices -----------------------------------------------------------------------------------

void Queued::dispatch(Executor& executor) {
    executor.wake_ns = NEVER_NS;
    queues_.mark_fed(executor);
    answer_overdue(executor);
    recovery_.watch_loads(*executor.arena);
    std::vector<Model*>& called = called_[executor.slot];
    if (executor.worker->draining) {
        forget_calls(executor);
        return;
    }
    for (const Model* model : called) {
        summoned_.clear(model->slot);
    }
    if (has_pending_loads(*executor.worker)) {
        arenas_.start_loads(*executor.arena);
    }
    memory_->look(*executor.arena);
    if (feed(executor)) {
        queues_.mark_hungry(executor);
    } else {
        // Other devices may take the models for which this device was called, or whose requests it left over.
        for (Model* model : called) {
            if (queues_.has_ready(*model)) {
                call(*model);
            }
        }
    }
    called.clear();
}

// Sends a device work as far ahead as it needs. True if it could take more.
bool Queued::feed(Executor& executor) {
    const Worker& worker = *executor.worker;
    while (true) {
        if (executor.is_closed() || executions_.is_held_up(executor)) {
            return false;
        }
        std::uint32_t lane = executor.lane.size();
        Ns free = executor.free_ns(state_.now), inputs = rules_->inputs_ns(worker);
        if (lane >= (habits_.counts_lane ? executor.run_ahead : OUTSTANDING_MAX)) {
            // One more action must be under way before the results are back, or the device waits a round
            // trip.
            Ns due = free - worker.there_ns - worker.back_ns - FEED_NS - inputs;
            if (lane >= OUTSTANDING_MAX || due > state_.now) {
                if (lane < OUTSTANDING_MAX) {
                    executor.wake_at(due);
                }
                return false;
            }
        }
        Ns due = free - worker.there_ns - rules_->ahead_ns(executor) - inputs;
        due = std::max(due, inputs_due_ns(*executor.arena, state_.now, rules_->ahead_ns(executor) + inputs));
        if (due > state_.now) {
            executor.wake_at(due);
            return false;
        }
        if (!state_.background.empty() && state_.now >= executor.aged_ns && serve_background(executor, true)) {
            continue;
        }
        Choice choice = rules_->choose(executor, free);
        if (choice.queue == nullptr && executor.lane.empty()) {
            choice = rules_->attempt(executor, free);
        }
        if (choice.queue != nullptr) {
            if (executor.must_wait(*(*choice.queue)[choice.first].pending)) {
                return false;  // the end of the actions under way wakes the device
            }
            send(executor, choice);
        } else if (state_.background.empty() || !serve_background(executor, false)) {
            break;
        }
    }
    if (!state_.background.empty()) {  // memory may be short, or another device has the model
        executor.wake_at(state_.now + BACKGROUND_RETRY_NS);
    }
    if (idle_.has_unmeasured() && executor.lane.empty()) {
        idle_.measure(executor);
    }
    return true;
}

void Queued::send(Executor& executor, const Choice& choice) {
    Queue& queue = *choice.queue;
    Residency& residency = *choice.residency;
    Model& model = *queue.model;
    // The duration of a trial is no error of the estimates, which it was sent against.
    bool is_trial = choice.hoped_ns != 0;
    Curve* curve = is_trial ? nullptr : residency.spec->program->curve(queue.shape);
    Batch* batch = executions_.make_batch(executor, residency, queue.shape, curve, 0);
    const Pending& oldest = *queue[choice.first].pending;
    Ns waited = state_.now - oldest.request.arrived_ns, budget = oldest.deadline_ns - oldest.request.arrived_ns;
    if (habits_.presses_late && waited > budget / PRESSED_PART) {
        memory_->press(queue);
    }
    queues_.take(queue, choice.first, choice.count, batch->pendings);
    for (const QueueRange& more : choice.filling) {
        queues_.take(*more.queue, more.first, more.count, batch->pendings);
    }
    for (Pending* pending : batch->pendings) {
        batch->size += pending->size;
        batch->limit_ns = std::min(batch->limit_ns, pending->deadline_ns);
    }
    batch->duration_ns = is_trial ? choice.hoped_ns : rules_->duration_ns(*residency.spec, queue.shape, batch->size);
    Flight* flight = executions_.send(*batch);
    rules_->sent(*batch, *flight, state_.out.list.back());
    memory_->sent(*flight);
    executor.wake_at(batch->limit_ns);
    called_[executor.slot].push_back(&model);
    review(queue);
    for (const QueueRange& more : choice.filling) {
        review(*more.queue);
    }
}

// Answers requests on a device at their deadlines, whether their results have come or not.
void Queued::answer_overdue(Executor& executor) {
    for (Flight* flight = executor.lane.front(); flight != nullptr; flight = executor.lane.next(flight)) {
        Batch* batch = flight->batch;
        if (flight->kind != ActionKind::INFER || batch->limit_ns >= NEVER_NS) {
            continue;
        }
        if (batch->limit_ns <= state_.now) {
            batch->limit_ns = NEVER_NS;
            for (Pending* pending : batch->pendings) {
                if (!pending->answered && pending->deadline_ns <= state_.now) {
                    requests_.fail(*pending, Status::DEADLINE_MISSED, AnswerText::DEADLINE_PASSED);
                } else if (!pending->answered) {
                    batch->limit_ns = std::min(batch->limit_ns, pending->deadline_ns);
                }
            }
        }
        executor.wake_at(batch->limit_ns);
    }
}

// ----- requests without a deadline ---------------------------------------------------------------

// Sends the oldest background request whose model is here. aged: only one that has waited long, within the
// share of background work.
bool Queued::serve_background(Executor& executor, bool aged) {
    for (Model* model : idle_.background()) {
        if (aged && state_.now - model->background.front()->request.arrived_ns < BACKGROUND_AGE_NS) {
            continue;
        }
        Residency* residency = executor.arena->find(model);
        if (executor.must_wait(*model->background.front())) {
            continue;
        }
        if (is_usable(residency)) {
            send_background(executor, *residency);
            if (aged) {
                Ns took = executor.lane.back()->duration_ns;
                executor.aged_ns = std::max(executor.aged_ns, state_.now) + took * BACKGROUND_SHARE;
            }
            return true;
        }
        if (residency == nullptr && executor.arena->pending.empty() && executor.arena->loading == 0) {
            idle_.load_background(*executor.arena, *model);
        }
    }
    return false;
}

void Queued::send_background(Executor& executor, Residency& residency) {
    Model& model = *residency.model;
    PendingList& queue = model.background;
    std::uint32_t shape = queue.front()->request.shape;
    Curve* curve = residency.spec->program->curve(shape);
    Batch* batch = executions_.make_batch(executor, residency, shape, curve, 0);
    bool alone = queue.front()->alone || curve == nullptr;
    while (Pending* pending = queue.front()) {
        bool is_first = batch->pendings.empty();
        bool joins = !alone && !pending->alone && pending->request.shape == shape &&
                     batch->size + pending->size <= residency.spec->batch_max;
        if (!is_first && !joins) {
            break;
        }
        batch->size += pending->size;
        batch->pendings.push_back(queue.pop_front());
    }
    requests_.left_background(model);
    Ns duration = planned_ns(residency, shape, batch->size);
    batch->duration_ns = duration > 0 ? duration : PROFILE_NS_MAX;  // a guess; the request has time
    memory_->sent(*executions_.send(*batch));
}

// ----- models, and where they are ----------------------------------------------------------------

void Queued::load_done(Residency& residency, Ns took_ns) {
    Model& model = *residency.model;
    if (model.residencies.size() == 1) {
        for (const auto& queue : queues_.of(model)) {
            for (std::uint32_t place = 0; place < queue->size(); ++place) {
                (*queue)[place].pending->load_ns = took_ns;
            }
        }
        for (Pending* pending = model.background.front(); pending != nullptr;
             pending = model.background.next(pending)) {
            pending->load_ns = took_ns;
        }
    }
    memory_->arrived_on(residency);
    if (residency.arena->executors.size() > 1 && queues_.has_ready(model)) {
        wake(model);  // each executor that takes a batch wakes the next
    }
}

void Queued::load_given_up(Residency& residency, const AnswerSentence& said) {
    Model& model = *residency.model;
    if (model.residencies.size() > 1) {
        return;
    }
    const Queues::List& queues = queues_.of(model);
    for (std::size_t index = 0; index < queues.size(); ++index) {
        Queue& queue = *queues[index];
        while (!queue.empty()) {
            requests_.fail(*queue.front().pending, Status::UNAVAILABLE, said);
        }
    }
}

void Queued::model_gone(Model& model) {
    rules_->model_gone(model);
    queues_.remove_model(model);
    memory_->model_gone(model);
}

void Queued::joined(Executor& executor) {
    if (executor.slot >= called_.size()) {
        called_.resize(state_.pool<Executor>().slot_count());
    }
    forget_calls(executor);
    memory_->joined(*executor.arena);
}

void Queued::left(Executor& executor) {
    queues_.mark_fed(executor);
    forget_calls(executor);
}

void Queued::model_prepared(Model& model) {
    queues_.add_model(model);
    memory_->renew(model);
}

void Queued::strand(Model& model) {
    if (queues_.waiting(model) == 0) {
        return;
    }
    if (model.is_somewhere() || arenas_.fits_somewhere(model)) {
        memory_->renew(model);
        return;
    }
    const Queues::List& queues = queues_.of(model);
    for (std::size_t index = 0; index < queues.size(); ++index) {
        Queue& queue = *queues[index];
        while (!queue.empty()) {
            recovery_.abandon(*queue.front().pending);
        }
    }
}

void Queued::check_invariants() const {
    queues_.check_invariants();
    memory_->check_invariants();
}

}  // namespace clockwork
