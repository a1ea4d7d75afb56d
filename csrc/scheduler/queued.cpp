#include "scheduler/queued.h"

#include <algorithm>
#include <stdexcept>

namespace clockwork {

namespace {

// Of a rank, for the time; what is above is the level.
constexpr std::uint32_t RANK_BITS = 56;
constexpr Ns RANK_BIAS = Ns{1} << 54;

}  // namespace

double option(const SchedulerOptions& options, std::string_view name, double otherwise) {
    for (const auto& [known, value] : options.values) {
        if (known == name) {
            return value;
        }
    }
    return otherwise;
}

Queued::Queued(const SchedulerOptions& options, const std::string& memory, Ns schedule_ahead_ns)
    : Idle(options),
      schedule_ahead_ns_(schedule_ahead_ns),
      memory_(make_memory(options.memory.empty() ? memory : options.memory, *this, options)) {}

std::uint64_t Queued::packed_rank(std::uint8_t level, Ns rank_ns) {
    Ns most = (Ns{1} << RANK_BITS) - 1;
    Ns low = std::clamp<Ns>(std::clamp(rank_ns, -RANK_BIAS, most) + RANK_BIAS, 0, most);
    return std::uint64_t{level} << RANK_BITS | static_cast<std::uint64_t>(low);
}

// ----- requests -----------------------------------------------------------------------------------

void Queued::arrive(Pending& pending) {
    const Request& request = pending.request;
    Model& model = *pending.model;
    std::uint32_t shape = request.shape;
    Queue& queue = queue_of(at(model), pending);
    if (!queue.is_profiled) {
        queue.is_profiled = std::any_of(model.specs.begin(), model.specs.end(), [shape](const KindSpec* spec) {
            Curve* curve = spec->program->curve(shape);
            return curve != nullptr && curve->is_profiled();
        });
    }
    if (!queue.is_profiled && is_unseen(model, shape)) {
        remember_unseen(model, request);
        Ns least = model.least_alone_ns(shape, pending.size);
        if (pending.deadline_ns < NEVER_NS && least >= NEVER_NS) {
            refuse(pending, Reason::UNPROFILED, Text::NEVER_MEASURED);
            return;
        }
        Ns slo = pending.deadline_ns - request.arrived_ns;
        if (pending.deadline_ns < NEVER_NS && least > pending.deadline_ns - now_) {
            refuse(pending, Reason::UNPROFILED, Said(Text::BOUND_ABOVE_SLO, least, slo), std::max(least, slo + 1));
            return;
        }
    }
    if (pending.deadline_ns >= NEVER_NS) {
        open(pending);
        to_background(pending);
    } else if (!is_near(pending)) {
        warm(model);
    } else if (admit(pending)) {
        open(pending);
        pending.key_ns = ++order_;
        enqueue(pending, queue);
    }
}

// Whether fetch, load and execution fit its deadline, where host stores have to be counted; if not, it was refused.
bool Queued::is_near(Pending& pending) {
    const Model& model = *pending.model;
    if (tiered_ == 0 || !model.residencies.empty()) {
        return true;
    }
    Ns least = model.least_alone_ns(pending.request.shape, pending.size);
    Ns needs = hops_ns(model) + (least < NEVER_NS ? least : 0);
    if (now_ + needs <= pending.deadline_ns) {
        return true;
    }
    Ns arrived = pending.request.arrived_ns, slo = pending.deadline_ns - arrived;
    Ns feasible = std::max(now_ - arrived + needs, slo + 1);
    refuse(pending, Reason::DEADLINE, Said(Text::COULD_BE_ANSWERED, feasible, slo), feasible, hops_ns(model));
    return false;
}

bool Queued::replace(Pending& pending) {
    if (now_ >= pending.deadline_ns) {
        return false;
    }
    enqueue(pending, queue_of(at(*pending.model), pending));
    return true;
}

Queue& Queued::queue_of(ModelState& state, const Pending& pending) {
    std::uint32_t shape = pending.request.shape;
    std::uint8_t level = pending.request.priority;
    if (state.last != nullptr && state.last_shape == shape && state.last_level == level) {
        return *state.last;
    }
    state.last_shape = shape;
    state.last_level = level;
    for (const auto& queue : state.queues) {
        if (queue->shape == shape && queue->level == level) {
            state.last = queue.get();
            return *queue;
        }
    }
    if (state.queues.size() >= QUEUES_KEPT) {
        std::erase_if(state.queues, [](const auto& queue) { return queue->empty() && !queue->ready; });
    }
    state.last = state.queues.emplace_back(std::make_unique<Queue>(pending.model, shape, level)).get();
    return *state.last;
}

void Queued::enqueue(Pending& pending, Queue& queue) {
    queue.insert({pending.deadline_ns, pending.key_ns, &pending, pending.size, pending.alone});
    set_waiting(*pending.model, waiting(*pending.model) + 1);
    memory_->waits(pending);
    if (!queue.ready || reviews_growth_ || queue.front().pending == &pending) {
        review(queue);
    }
}

void Queued::unplan(Pending& pending) {
    if (pending.queue != nullptr) {
        leave_background(pending);
        return;
    }
    ModelState& state = at(*pending.model);
    Queue& queue = queue_of(state, pending);
    if (!queue.erase(pending)) {
        return;  // it was being planned again
    }
    set_waiting(*pending.model, waiting(*pending.model) - 1);
    memory_->leaves(pending);
    if (!reviewing_) {
        review(queue);
    }
}

void Queued::set_waiting(const Model& model, std::uint32_t count) {
    waiting_[model.slot] = count;
    if (count > 0) {
        asked_.set(model.slot);
    } else {
        asked_.clear(model.slot);
    }
}

bool Queued::has_work(const Device& device) const {
    bool found = false;
    Bits::for_each_in_both(devices_state_[device.slot].models, asked_, [&found](std::uint32_t) {
        found = true;
        return false;
    });
    return found;
}

// The last time at which even the shortest batch, at once and on the fastest kind of device, would still be in time.
Ns Queued::last_start_ns(const Queue& queue, const Waiting& one) const {
    Ns least = queue.model->least_alone_ns(queue.shape, 1);
    return last_begin_ns(*queue.model, least < NEVER_NS ? one.deadline_ns - least : one.deadline_ns);
}

void Queued::drop(Queue& queue, const Waiting& one) {
    Pending& pending = *one.pending;
    memory_->press(queue);
    contest_devices(*queue.model, now_);
    bool is_over = now_ >= pending.deadline_ns;
    if (promises_nothing_ && !is_over) {
        turn_out(queue, pending);
        return;
    }
    fail(pending, Status::DEADLINE_MISSED, is_over ? Text::DEADLINE_PASSED : Text::CANNOT_BE_IN_TIME);
}

// Refuses who waited, with what is seen now of the devices that have its model, or will have it.
void Queued::turn_out(const Queue& queue, Pending& pending) {
    const Device* first = nullptr;
    const KindSpec* spec = nullptr;
    Ns start = NEVER_NS;
    auto consider = [&](const Device& device, const KindSpec& there, Ns ready_ns) {
        Ns arrives = now_ + device.worker->there_ns + inputs_ns(device);
        Ns free = std::max({device.free_ns(now_), ready_ns, arrives});
        if (free < start) {
            start = free;
            first = &device;
            spec = &there;
        }
    };
    const Model& model = *queue.model;
    std::size_t count = std::min(model.residencies.size(), OUTLOOK_MAX);
    for (std::size_t place = 0; place < count; ++place) {
        const Residency& one = *model.residencies[place];
        if (one.device->usable() && !one.doomed) {
            consider(*one.device, *one.spec, one.ready_ns);
        }
    }
    if (first == nullptr) {  // a load would have to come first, as if it were the next on its link
        count = std::min(model.workers.size(), OUTLOOK_MAX);
        for (std::size_t place = 0; place < count; ++place) {
            const Worker* worker = find_worker(model.workers[place]);
            if (worker == nullptr || worker->draining) {
                continue;
            }
            Ns begin = std::max(worker->link_free_ns, now_ + worker->there_ns);
            for (const Device* device : worker->devices) {
                const KindSpec* there = model.spec(*device);
                if (there != nullptr && there->page_count <= device->pages.page_count()) {
                    consider(*device, *there, begin + there->load_planned_ns() + worker->back_ns + worker->there_ns);
                }
            }
        }
    }
    if (first == nullptr) {
        fail(pending, Status::REFUSED, Text::CANNOT_BE_IN_TIME, Reason::DEADLINE);
        return;
    }
    // It would have gone with those behind it; after it their batches follow, on each of the devices.
    std::uint32_t rows = queue.rows();
    std::uint32_t most = pending.alone ? pending.size : std::max(std::min(rows, spec->batch_max), pending.size);
    Ns takes = duration_ns(*spec, queue.shape, most);
    Ns wait = start + takes + first->worker->back_ns - now_;
    Ns slo = pending.deadline_ns - pending.request.arrived_ns;
    Ns feasible = std::max(now_ - pending.request.arrived_ns + wait, slo + 1);
    Ns rest = takes * (rows - most) / most / static_cast<Ns>(std::max<std::size_t>(model.residencies.size(), 1));
    fail(pending, Status::REFUSED, Said(Text::COULD_BE_ANSWERED, feasible, slo), Reason::DEADLINE, feasible,
         wait + rest);
}

void Queued::review(Queue& queue) {
    bool was_reviewing = reviewing_, was_ready = queue.ready;
    Model& model = *queue.model;
    reviewing_ = true;
    Ns hopeless = NEVER_NS;  // of the front
    while (!queue.empty() && (hopeless = hopeless_ns(queue, queue.front())) <= now_) {
        drop(queue, queue.front());
    }
    reviewing_ = was_reviewing;
    queue.ready = false;
    if (!queue.empty()) {
        Ns ready = ready_ns(queue);
        const Waiting& front = queue.front();
        Ns wake = hopeless;
        queue.ready = ready <= now_;
        if (queue.ready) {
            queue.rank = packed_rank(queue.level, rank_ns(queue));
        } else {
            wake = std::min(wake, ready);
        }
        if (queue.timer_order != front.order || wake < queue.timer_ns) {
            queue.timer_order = front.order;
            queue.timer_ns = wake;
            set_timer(wake, *front.pending);
        }
    }
    if (queue.ready || was_ready) {
        publish(at(model), model);
    }
    if (queue.ready && !was_ready) {
        call(model);
    }
}

// Enters the best ready queue of a model in the indexes.
void Queued::publish(ModelState& state, const Model& model) {
    state.best = nullptr;
    Ns first_due = NEVER_NS;
    for (const auto& queue : state.queues) {
        if (queue->ready) {
            first_due = std::min(first_due, queue->front().deadline_ns);
        }
        bool is_better =
            queue->ready && (state.best == nullptr || queue->rank < state.best->rank ||
                             (queue->rank == state.best->rank && queue->front().order < state.best->front().order));
        if (is_better) {
            state.best = queue.get();
        }
    }
    if (state.best == nullptr) {
        work_.clear(model.slot);
        return;
    }
    work_.set(model.slot);
    if (model.slot >= ranks_.size()) {
        ranks_.resize(model.slot + 1, 0);
        first_due_ns_.resize(model.slot + 1, 0);
    }
    ranks_[model.slot] = state.best->rank;
    first_due_ns_[model.slot] = first_due;
}

// A timer: what waits at the front is hopeless, or its queue ready.
void Queued::expire(Pending& pending) {
    if (pending.flight != nullptr || pending.queue != nullptr || pending.deadline_ns >= NEVER_NS) {
        return;  // see answer_overdue()
    }
    Queue& queue = queue_of(at(*pending.model), pending);
    queue.timer_order = -1;
    queue.timer_ns = NEVER_NS;
    review(queue);
}

// A device that could take work has a look at a model's queues.
void Queued::call(Model& model) {
    Device* found = nullptr;
    Bits::for_each_in_both(hungry_, at(model).homes, [&](std::uint32_t slot) {
        Device* device = device_pool_.at(slot);
        if (!device->usable() || !is_usable(device->find(&model))) {
            return true;
        }
        found = device;
        return false;
    });
    if (found != nullptr) {
        hungry_.clear(found->slot);
        at(*found).called.push_back(&model);
        touch(*found);
    } else if (spreads_) {
        memory_->found_all_busy(model);
    }
}

// ----- devices ------------------------------------------------------------------------------------

Queue* Queued::first_ready(Device& device, Residency*& residency) {
    // Residencies lie far apart in memory: that of the best is looked up alone, and it can nearly always be used.
    for (bool looks = false;; looks = true) {
        std::uint32_t best = UINT32_MAX;
        std::uint64_t least = 0;
        Bits::for_each_in_both(at(device).models, work_, [&](std::uint32_t slot) {
            std::uint64_t rank = ranks_[slot];
            bool is_better = best == UINT32_MAX || rank < least ||
                             (rank == least && states_[slot].best->front().order < states_[best].best->front().order);
            if (is_better && (!looks || is_usable(device.find(model_pool_.at(slot))))) {
                best = slot;
                least = rank;
            }
            return true;
        });
        if (best == UINT32_MAX) {
            return nullptr;
        }
        residency = device.find(model_pool_.at(best));
        if (is_usable(residency)) {
            return states_[best].best;
        }
    }
}

std::uint32_t Queued::count_up_to(const Queue& queue, std::uint32_t first, std::uint32_t rows_max) {
    std::uint32_t there = queue.size() - first;
    if (queue.is_plain()) {
        return std::min(there, std::max(rows_max, 1u));
    }
    if (queue[first].alone) {
        return 1;
    }
    std::uint32_t rows = queue[first].size, count = 1;
    while (count < there && !queue[first + count].alone && rows + queue[first + count].size <= rows_max) {
        rows += queue[first + count].size;
        ++count;
    }
    return count;
}

void Queued::dispatch(Device& device) {
    device.wake_ns = NEVER_NS;
    hungry_.clear(device.slot);
    answer_overdue(device);
    watch_loads(device);
    DeviceState& state = at(device);
    if (device.worker->draining) {
        state.called.clear();
        return;
    }
    if (!device.pending.empty()) {
        start_loads(device);
    }
    memory_->look(device);
    if (feed(device)) {
        hungry_.set(device.slot);
    } else {
        // Others may take what this device was called for, or left over.
        for (Model* model : state.called) {
            if (work_.test(model->slot)) {
                call(*model);
            }
        }
    }
    state.called.clear();
}

// Sends a device work as far ahead as it needs. True if it could take more.
bool Queued::feed(Device& device) {
    const Worker& worker = *device.worker;
    while (true) {
        if (is_closed(device)) {
            return false;
        }
        std::uint32_t lane = device.lane.size();
        Ns free = device.free_ns(now_), inputs = inputs_ns(device);
        if (lane >= (counts_lane_ ? device.run_ahead : OUTSTANDING_MAX)) {
            // One more must be under way before the results are back, or the device waits a round trip.
            Ns due = free - worker.there_ns - worker.back_ns - FEED_NS - inputs;
            if (lane >= OUTSTANDING_MAX || due > now_) {
                if (lane < OUTSTANDING_MAX) {
                    device.wake_at(due);
                }
                return false;
            }
        }
        Ns due = free - worker.there_ns - ahead_ns(device) - inputs;
        if (due > now_) {
            device.wake_at(due);
            return false;
        }
        if (!background_.empty() && now_ >= device.aged_ns && serve_background(device, true)) {
            continue;
        }
        if (Choice choice = choose(device, free); choice.queue != nullptr) {
            if (must_wait(device, *(*choice.queue)[choice.first].pending)) {
                return false;  // the end of what is under way brings the device back here
            }
            send(device, choice);
        } else if (background_.empty() || !serve_background(device, false)) {
            break;
        }
    }
    if (!background_.empty()) {  // memory may be short, or another device have the model
        device.wake_at(now_ + BACKGROUND_RETRY_NS);
    }
    if (!unmeasured_.empty() && device.lane.empty()) {
        measure(device);
    }
    return true;
}

void Queued::send(Device& device, const Choice& choice) {
    Queue& queue = *choice.queue;
    Residency& residency = *choice.residency;
    Model& model = *queue.model;
    Batch* batch = make_batch(residency, queue.shape, residency.spec->program->curve(queue.shape), 0);
    const Pending& oldest = *queue[choice.first].pending;
    Ns waited = now_ - oldest.request.arrived_ns, budget = oldest.deadline_ns - oldest.request.arrived_ns;
    if (presses_late_ && waited > budget / PRESSED_PART) {
        memory_->press(queue);
    }
    queue.take(choice.first, choice.count, batch->pendings);
    queue.timer_order = -1;  // a request may come back: its timer is for where it is now
    set_waiting(model, waiting(model) - choice.count);
    for (Pending* pending : batch->pendings) {
        batch->size += pending->size;
        batch->limit_ns = std::min(batch->limit_ns, pending->deadline_ns);
    }
    batch->duration_ns = duration_ns(*residency.spec, queue.shape, batch->size);
    Flight* flight = send_batch(*batch);
    sent(*batch, *flight, out.list.back());
    memory_->sent(*flight);
    device.wake_at(batch->limit_ns);
    at(device).called.push_back(&model);
    review(queue);
}

// What is on a device is answered at its deadline, whether it has come back or not.
void Queued::answer_overdue(Device& device) {
    for (Flight* flight = device.lane.front(); flight != nullptr; flight = device.lane.next(flight)) {
        Batch* batch = flight->batch;
        if (flight->kind != FlightKind::INFER || batch->limit_ns >= NEVER_NS) {
            continue;
        }
        if (batch->limit_ns <= now_) {
            batch->limit_ns = NEVER_NS;
            for (Pending* pending : batch->pendings) {
                if (!pending->answered && pending->deadline_ns <= now_) {
                    fail(*pending, Status::DEADLINE_MISSED, Text::DEADLINE_PASSED);
                } else if (!pending->answered) {
                    batch->limit_ns = std::min(batch->limit_ns, pending->deadline_ns);
                }
            }
        }
        device.wake_at(batch->limit_ns);
    }
}

// ----- requests without a deadline ----------------------------------------------------------------

// Sends the oldest whose model is here. aged: only of those that have waited long, and no more than their share.
bool Queued::serve_background(Device& device, bool aged) {
    find_background();
    for (Model* model : scan_) {
        if (aged && now_ - model->background.front()->request.arrived_ns < BACKGROUND_AGE_NS) {
            continue;
        }
        Residency* residency = device.find(model);
        if (must_wait(device, *model->background.front())) {
            continue;
        }
        if (is_usable(residency)) {
            send_background(*residency);
            if (aged) {
                Ns took = device.lane.back()->duration_ns;
                device.aged_ns = std::max(device.aged_ns, now_) + took * BACKGROUND_SHARE;
            }
            return true;
        }
        if (residency == nullptr && device.pending.empty() && device.loading == 0) {
            load_background(device, *model);
        }
    }
    return false;
}

void Queued::send_background(Residency& residency) {
    Model& model = *residency.model;
    PendingList& queue = model.background;
    std::uint32_t shape = queue.front()->request.shape;
    Curve* curve = residency.spec->program->curve(shape);
    Batch* batch = make_batch(residency, shape, curve, 0);
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
    if (queue.empty()) {
        background_.erase(&model);
    } else {
        background_.move_to_end(&model);
    }
    Ns duration = planned_ns(residency, shape, batch->size);
    batch->duration_ns = duration > 0 ? duration : PROFILE_NS_MAX;  // anyone's guess; the request has time
    memory_->sent(*send_batch(*batch));
}

// ----- models, and where they are -----------------------------------------------------------------

bool Queued::is_load_wanted(const Residency& residency) const {
    const Model& model = *residency.model;
    return waiting(model) > 0 || !model.background.empty();
}

void Queued::load_done(Residency& residency, Ns took_ns) {
    Model& model = *residency.model;
    ModelState& state = at(model);
    state.homes.set(residency.device->slot);
    at(*residency.device).models.set(model.slot);
    if (model.residencies.size() == 1) {
        for (const auto& queue : state.queues) {
            for (std::uint32_t place = 0; place < queue->size(); ++place) {
                (*queue)[place].pending->load_ns = took_ns;
            }
        }
        for (Pending* one = model.background.front(); one != nullptr; one = model.background.next(one)) {
            one->load_ns = took_ns;
        }
    }
    memory_->arrived_on(residency);
}

void Queued::load_given_up(Residency& residency, const Said& said) {
    Model& model = *residency.model;
    if (model.residencies.size() > 1) {
        return;
    }
    ModelState& state = at(model);
    for (std::size_t index = 0; index < state.queues.size(); ++index) {
        Queue& queue = *state.queues[index];
        while (!queue.empty()) {
            fail(*queue.front().pending, Status::UNAVAILABLE, said);
        }
    }
}

void Queued::residency_gone(Residency& residency) {
    if (residency.state != ResidencyState::PENDING) {
        at(*residency.model).homes.clear(residency.device->slot);
        at(*residency.device).models.clear(residency.model->slot);
    }
    memory_->gone_from(residency);
}

void Queued::model_gone(Model& model) {
    work_.clear(model.slot);
    memory_->model_gone(model);
}

void Queued::device_joined(Device& device) {
    if (device.slot >= devices_state_.size()) {
        devices_state_.resize(device_pool_.slot_count());
    }
    at(device) = DeviceState();
    memory_->device_joined(device);
}

void Queued::device_left(Device& device) {
    hungry_.clear(device.slot);
    at(device) = DeviceState();
    memory_->device_left(device);
}

void Queued::model_prepared(Model& model, Worker& worker) {
    (void)worker;
    if (model.slot >= states_.size()) {
        states_.resize(model_pool_.slot_count());
        waiting_.resize(model_pool_.slot_count(), 0);
    }
    ModelState& state = at(model);
    if (state.generation != model.generation) {  // the slot had another model before
        state = ModelState();
        state.generation = model.generation;
        set_waiting(model, 0);
    }
    for (const auto& queue : state.queues) {
        queue->is_profiled = false;  // a worker of another kind may know other shapes: arrive() looks again
    }
    memory_->renew(model);
}

void Queued::strand(Model& model) {
    Idle::strand(model);
    ModelState& state = at(model);
    if (waiting(model) == 0) {
        return;
    }
    if (model.is_somewhere() || fits_somewhere(model)) {
        memory_->renew(model);
        return;
    }
    for (std::size_t index = 0; index < state.queues.size(); ++index) {
        Queue& queue = *state.queues[index];
        while (!queue.empty()) {
            abandon(*queue.front().pending);
        }
    }
}

// ----- what must hold -----------------------------------------------------------------------------

void Queued::collect_waiting(std::vector<const Pending*>& found) const {
    for (const Model* model : models_) {
        for (const auto& queue : states_[model->slot].queues) {
            for (std::uint32_t place = 0; place < queue->size(); ++place) {
                found.push_back((*queue)[place].pending);
            }
        }
    }
}

void Queued::check_invariants() const {
    Idle::check_invariants();
    for (const Model* model : models_) {
        const ModelState& state = states_[model->slot];
        std::uint32_t waiting = 0;
        bool ready = false;
        for (const auto& queue : state.queues) {
            waiting += queue->size();
            ready |= queue->ready;
            must(!queue->ready || !queue->empty(), "an empty queue wants a device");
            std::uint32_t rows = 0;
            for (std::uint32_t place = 0; place < queue->size(); ++place) {
                const Waiting& one = (*queue)[place];
                must(place == 0 || (*queue)[place - 1] < one, "a queue is out of order");
                must(one.pending->deadline_ns == one.deadline_ns && one.pending->size == one.size &&
                         one.pending->alone == one.alone && one.pending->model == model &&
                         one.pending->request.shape == queue->shape && one.pending->request.priority == queue->level,
                     "a queue holds what does not belong there");
                rows += one.size;
            }
            must(rows == queue->rows(), "a queue's rows were miscounted");
            if (!queue->empty()) {
                must(queue->front().order == queue->timer_order, "nobody looks after a queue's front");
            }
        }
        must(waiting == waiting_[model->slot], "a model's waiting requests were miscounted");
        must(ready == work_.test(model->slot), "the index of models with work is wrong");
        must((waiting > 0) == asked_.test(model->slot), "the index of models that are asked for is wrong");
        must(ready == (state.best != nullptr), "a model's best queue is wrong");
        for (const Residency* one : model->residencies) {
            bool is_home = one->state == ResidencyState::RESIDENT;
            must(is_home == state.homes.test(one->device->slot), "the index of a model's devices is wrong");
            must(is_home == devices_state_[one->device->slot].models.test(model->slot),
                 "the index of a device's models is wrong");
        }
    }
    memory_->check_invariants();
}

}  // namespace clockwork
