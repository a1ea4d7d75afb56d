// The state of each part of a scheduler, written and read.
#include "scheduler/archive.h"

#include <algorithm>
#include <map>

#include "scheduler/adaptive.h"
#include "scheduler/dispatcher.h"
#include "scheduler/memory_adaptive.h"
#include "scheduler/memory_paper.h"
#include "scheduler/plan.h"
#include "scheduler/queued.h"

namespace clockwork {

namespace {

// The list kind of planned batches that a program's estimates time.
constexpr char PLANNED = 0;

// Archives a table by the slots of records, for all slots; `fresh` is the value of records without an entry.
template <typename Record, typename T>
void archive_table(Archive& archive, State& state, std::vector<T>& table, const T& fresh = T()) {
    std::size_t slots = state.pool<Record>().slot_count();
    if (!archive.is_reading() && table.size() < slots) {
        table.resize(slots, fresh);
    }
    archive(table);
    Archive::need(table.size() == slots, "a table differs in size from the objects");
}

}  // namespace

// ----- estimates ----------------------------------------------------------------------------------

void Window::archive(Archive& archive) {
    archive.within<std::uint32_t>(count_, 0, WINDOW);
    for (std::uint32_t place = 0; place < count_; ++place) {
        archive(samples_[place], besides_[place]);
    }
    archive(newest_ns_, outlier_ns_);
}

void Surprises::archive(Archive& archive) {
    archive.within<std::uint32_t>(count_, 0, ERRATIC_COUNT);
    archive(behaved_, worst_ns_, newest_ns_);
}

void Curve::archive(Archive& archive) {
    archive(seeds_, windows_, raw_, profiled_, scale_, surprises_, usual_ns_, was_outlier_);
    archive.choice(rule_, EstimateRule::PERCENTILE);
    if (!archive.is_reading()) {
        return;
    }
    auto is_batch = [](const auto& entry) { return 1 <= entry.first && entry.first <= BATCH_TABLE_MAX; };
    auto is_before = [](const auto& pair, const auto& other) { return pair.first < other.first; };
    Archive::need(std::all_of(seeds_.begin(), seeds_.end(), is_batch) &&
                      std::all_of(windows_.begin(), windows_.end(), is_batch) &&
                      std::is_sorted(seeds_.begin(), seeds_.end(), is_before) &&
                      std::is_sorted(windows_.begin(), windows_.end(), is_before) &&
                      (!seeds_.empty() || !windows_.empty()) && raw_.size() <= BATCH_TABLE_MAX + 1,
                  "an estimate is none");
    for (const auto& [batch, window] : windows_) {
        Archive::need(!window.empty(), "an estimate is without a sample");
    }
    planned_.assign(raw_.size(), 0);
    for (std::size_t batch = 1; batch < raw_.size(); ++batch) {
        planned_[batch] = with_margin(raw_[batch]);
    }
}

void ProgramEstimates::archive(Archive& archive) {
    archive.choice(rule, EstimateRule::PERCENTILE);
    archive(users, scale_, drag_);
    for (std::size_t count = archive.count(curves_.size()), place = 0; place < count; ++place) {
        std::uint32_t shape = archive.is_reading() ? 0 : curves_[place].first;
        archive(shape);
        if (archive.is_reading()) {
            Archive::need(curve(shape) == nullptr, "a shape is there twice");
            add(shape);
        }
        archive(*curves_[place].second);
    }
    Batch** place = &planned;
    Batch* before = nullptr;
    std::size_t count = 0;
    for (const Batch* batch = planned; batch != nullptr; batch = batch->after) {
        ++count;
    }
    for (count = archive.count(count); count > 0; --count) {
        archive(*place);
        if (archive.is_reading()) {
            archive.enter_list(&PLANNED, (*place)->slot);
            (*place)->before = before;
        }
        before = *place;
        place = &before->after;
    }
}

void LoadTimes::archive(Archive& archive) {
    archive(window, ns, users);
    Archive::need((ns > 0) == !window.empty(), "a load time is of no load, or none of loads");
}

void LoadEstimates::archive(Archive& archive) {
    archive.table(times_, [&](LoadTimes& times) { archive(times); });
    archive(ratios_, ratio_, page_ns_, unseeded_);
}

void PageTimes::archive(Archive& archive) {
    archive.within<std::uint32_t>(count_, 0, SAMPLES_MAX);
    archive.within<std::uint32_t>(next_, 0, SAMPLES_MAX - 1);
    for (std::uint32_t place = 0; place < count_; ++place) {
        archive(samples_[place].page_count, samples_[place].ns);
        Archive::need(samples_[place].page_count > 0 && samples_[place].ns > 0, "a time of pages is not positive");
    }
    archive(newest_ns_);
    if (archive.is_reading() && count_ > 0) {
        fit();
    }
}

void Estimates::archive(Archive& archive) {
    archive.choice(rule_, EstimateRule::PERCENTILE);
    archive.table(programs_, [&](ProgramEstimates& program) { archive(program); });
    archive.table(loads_, [&](LoadEstimates& loads) { archive(loads); });
    archive.table(fetches_, [&](LoadEstimates& fetches) { archive(fetches); });
}

// ----- requests, batches, actions -----------------------------------------------------------------

void Pending::archive(Archive& archive) {
    archive(request.id, request.model_id, request.rows, request.shape, request.bytes, request.copied_bytes);
    archive(request.arrived_ns, request.deadline_ns, request.priority, request.is_spare);
    archive(model, deadline_ns, size, part);
    archive.maybe(batch);
    archive.maybe(flight);
    archive(load_ns, key_ns, attempts, evidence, widenings, failed_on, answered, alone);
}

void Batch::archive(Archive& archive) {
    archive(residency, executor, shape, size, key_ns, limit_ns, duration_ns, pendings, planned);
    // The curve of a batch under way may be gone.
    ProgramEstimates& program = *residency->spec->program;
    bool has_curve = curve != nullptr && curve == program.curve(shape);
    archive(has_curve);
    if (archive.is_reading() && has_curve) {
        curve = program.curve(shape);
        Archive::need(curve != nullptr, "a batch is of a shape without estimates");
    }
}

void Flight::archive(Archive& archive) {
    archive(action_id);
    archive.choice(kind, static_cast<ActionKind>(ACTION_KINDS - 1));
    Archive::need(kind != ActionKind::RESERVE, "a reservation is among the actions of models");
    archive(revoked, is_recalled, is_apart, was_executing, is_narrow, arena, residency);
    archive.maybe(executor);
    archive.maybe(batch);
    archive(expected_ns, alone_ns, duration_ns, charged_ns, sent_ns, there_ns, begin_ns, predicted_end_ns,
            waits_since_ns, leaves_work, inputs);
    archive(copied_bytes);
    Archive::need(executes(kind) == (executor != nullptr) && executes(kind) == (batch != nullptr),
                  "an action does not match its batch");
}

void Residency::archive(Archive& archive) {
    archive(model, spec, arena);
    archive.choice(state, ResidencyState::RESIDENT);
    archive(doomed, on_device, is_stuck, attempts, flying, batches, key_ns, ready_ns, clear_ns, used_ns, loaded_ns);
    archive(load_id, action_id, starts, victims, share);
}

// ----- models -------------------------------------------------------------------------------------

void KindSpec::archive(Archive& archive) {
    archive(kind, variant, page_count, load_ns, stored_bytes, batch_max, program_number);
    archive(model_id, worker_count, runs);
    if (archive.is_reading()) {
        State& state = *archive.books;
        program = state.estimates.find_program(program_number, kind);
        Archive::need(program != nullptr, "a model is of a program without estimates");
        loads = &state.estimates.loads(kind);
        fetches = &state.estimates.fetches(kind);
        load_times = loads->find(program_number, page_count);
        fetch_times = fetches->find(program_number, page_count);
        Archive::need(load_times != nullptr && fetch_times != nullptr, "a model's loads are without estimates");
        shapes = &state.shapes;
    }
}

void Model::archive(Archive& archive) {
    archive(model_id, batches, draining, gone, is_varied, aside, load_evidence, residencies, specs, workers,
            background);
    archive(live, served, unloads, fetches, drops, place_cursor, asked_cursor, load_cursor, touched);
    archive(keepers, copies, takers);
    archive.within<std::uint8_t>(short_in, 0, 3);
    archive(grace_ns);
    Archive::need(keepers <= workers.size(), "more workers keep a model than have it");
    homes.archive(archive, archive.books->pool<Executor>().slot_count());
    archive(demand, asked, loads, unanswerable, overruns, overrun_ns);
    Archive::need(!specs.empty(), "a model is prepared nowhere");
}

// ----- workers ------------------------------------------------------------------------------------

void PageAllocator::archive(Archive& archive) {
    archive(page_count_, free_count_);
    std::size_t count = archive.count(free_.size());
    free_.resize(count);
    for (Interval& interval : free_) {
        archive(interval.start, interval.size);
    }
}

// Only batches that are not known to have arrived are archived: entries of others are not read again.
void InputsWay::archive(Archive& archive) {
    bool was_used = !sent_.empty();
    archive(was_used, last_, seen_);
    Archive::need(seen_ <= last_ && last_ - seen_ <= INPUTS_UNDER_WAY && (was_used || last_ == 0),
                  "more inputs are under way than can be");
    sent_.resize(was_used ? INPUTS_UNDER_WAY : 0);
    for (std::uint64_t number = first(); number <= last_; ++number) {
        Sent& sent = sent_[number % INPUTS_UNDER_WAY];
        archive(sent.sent_ns, sent.end_bytes, sent.expected_ns, sent.ready_ns);
    }
    archive(sent_bytes_, seen_bytes_, seen_ready_ns_, sample_bytes_, sample_ns_);
    archive(time_, late_, batches_, free_ns_);
}

void ByteTime::archive(Archive& archive) {
    for (Sample& sample : samples_) {
        archive(sample.byte_ns, sample.seen_ns);
    }
    archive(sample_count_, byte_ns_, learnt_ns_);
}

void BatchBytes::archive(Archive& archive) { archive(most_); }

void CopyTime::archive(Archive& archive) { archive(time_, batches_, ready_ns_); }

void Executor::archive(Archive& archive) {
    archive(arena, worker, index, run_ahead, lane, lane_end_ns, head_end_ns, predicted, wake_ns, timer_ns, aged_ns);
    archive(idle_since_ns, served, clock_mhz, pace, time, lead, late, dirty, gaps, reservation, stretches);
}

void Arena::archive(Archive& archive) {
    archive(worker, index, number, kind, kind_said, executors, page_bytes, pages, run_ahead);
    models.archive(archive, archive.books->pool<Model>().slot_count());
    archive(resident, doomed, pending, loading, shares, asked, inputs_asked, evicted_early, mark);
    Archive::need(!executors.empty(), "a device is without an executor");
    if (archive.is_reading()) {
        for (Residency* residency = resident.front(); residency != nullptr; residency = resident.next(residency)) {
            by_model.set(static_cast<std::uint64_t>(residency->model->model_id), residency);
        }
    }
}

void Worker::archive(Archive& archive) {
    archive(worker_id, arenas, link, there_ns, back_ns, link_free_ns, reserved_ns, loads_ns, loads_from_ns);
    archive(predicted_loads, inputs, inputs_asked, copies, flights);
    archive(variants);
    archive.choice(tier, StoreTier::DISK);
    archive(store_bytes, store_used, store, held, held_cursor, fetching, fetch_free_ns, fetches_ns, predicted_fetches);
    archive(promised, joined_ns, draining);
}

// ----- the books ----------------------------------------------------------------------------------

void State::archive(Archive& archive) {
    archive.books = this;
    std::apply([&](auto&... pool) { (pool.archive_slots(archive), ...); }, pools_);
    archive(estimates, shapes);
    // Pools come before the pools whose records refer to them.
    archive(pool<KindSpec>(), pool<Model>(), pool<Residency>(), pool<Arena>(), pool<Executor>(), pool<Worker>());
    archive(pool<Batch>(), pool<Flight>(), pool<Pending>());
    archive(now, models, arenas, executors, background, tiered, predictions, links, judged_from_ns, judged_until_ns);
    archive(disks, copying, scarce[0], scarce[1], scarce[2], has_store_news);
    archive(timers_, sequence_, dirty_, action_id_, load_id_);
    if (!archive.is_reading()) {
        return;
    }
    pool<Model>().for_each_used([](Model& model) {
        model.background.sort();
        for (const Residency* residency : model.residencies) {
            model.servers += residency->arena->executors.size();
        }
    });
    auto enter = [](auto& map, std::uint64_t id, auto& entry) {
        Archive::need(map.find(id) == nullptr, "something is there twice");
        map.set(id, &entry);
    };
    pool<Model>().for_each_used(
        [&](Model& other_model) { enter(by_model, static_cast<std::uint64_t>(other_model.model_id), other_model); });
    pool<Worker>().for_each_used(
        [&](Worker& worker) { enter(by_worker, static_cast<std::uint32_t>(worker.worker_id), worker); });
    pool<Flight>().for_each_used([&](Flight& flight) { enter(flights, flight.action_id, flight); });
    pool<Pending>().for_each_used([&](Pending& pending) {
        if (!pending.answered) {
            enter(pendings, pending.request.id, pending);
        }
    });
    check_read();
}

// Checks that indices and references which were read lie within bounds. check_invariants() checks the rest.
void State::check_read() {
    for (const Timer& timer : timers_) {
        bool is_executors = (timer.slot & EXECUTOR_TIMER) != 0;
        Archive::need(is_executors ? (timer.slot & ~EXECUTOR_TIMER) < pool<Executor>().slot_count()
                                   : timer.slot < pool<Pending>().slot_count(),
                      "a timer is nobody's");
    }
    // Reference counts that were read must match the references: they decide what is kept.
    std::map<const ProgramEstimates*, std::uint32_t> users;
    std::map<const KindSpec*, std::uint32_t> workers;
    pool<KindSpec>().for_each_used([&](KindSpec& spec) { ++users[spec.program]; });
    pool<Model>().for_each_used([&](Model& model) {
        for (WorkerId id : model.workers) {
            const Worker* worker = find_worker(id);
            Archive::need(worker != nullptr && worker->has(&model), "a model was prepared by nobody");
            for (const KindSpec* spec : model.specs) {
                bool is_its = worker->variant_of(model) == spec->variant &&
                              std::any_of(worker->arenas.begin(), worker->arenas.end(),
                                          [spec](const Arena* arena) { return arena->kind == spec->kind; });
                workers[spec] += is_its;
            }
        }
    });
    pool<KindSpec>().for_each_used([&](KindSpec& spec) {
        Archive::need(spec.worker_count == workers[&spec], "a preparation is of another number of workers");
    });
    estimates.for_each_program([&](const ProgramEstimates& program) {
        Archive::need(program.users == users[&program], "a program has another number of users");
    });
    pool<Flight>().for_each_used([&](Flight& flight) {
        const Worker& worker = *flight.arena->worker;
        const Model& model = *flight.residency->model;
        bool is_of_store = lane_of(flight.kind) == LaneKind::FETCH;
        Archive::need(flight.inputs <= worker.inputs.last() && (!is_of_store || model.slot < worker.store.size()) &&
                          (flight.kind != ActionKind::INFER || !flight.batch->pendings.empty()),
                      "an action names an unknown object");
    });
    pool<Worker>().for_each_used([&](Worker& worker) {
        for (std::uint32_t place = 0; place < worker.held.size(); ++place) {
            std::uint32_t slot = worker.held[place];
            Archive::need(slot < worker.store.size() && pool<Model>().is_used(slot) &&
                              worker.store[slot].state == StoreState::HELD && worker.store[slot].place == place,
                          "a store holds what is none");
        }
        for (const Flight* other_flight = worker.flights.front(); other_flight != nullptr;
             other_flight = worker.flights.next(other_flight)) {
            Archive::need(other_flight->arena->worker == &worker, "an action is another worker's");
        }
    });
    pool<Executor>().for_each_used([](Executor& executor) {
        for (const Flight* sent_flight = executor.lane.front(); sent_flight != nullptr;
             sent_flight = executor.lane.next(sent_flight)) {
            Archive::need(sent_flight->executor == &executor, "an action is another device's");
        }
    });
    pool<Batch>().for_each_used([](Batch& batch) {
        Archive::need(batch.residency->arena == batch.executor->arena, "a batch is on another device than its model");
    });
}

void Requests::archive(Archive& archive) {
    archive(requests_max_, bytes_max_, bytes_, counts_, demand_, levels_, levels_used_);
}

void Dispatcher::archive(Archive& archive) {
    std::uint32_t format = STATE_FORMAT;
    archive(format);
    Archive::need(format == STATE_FORMAT, "it is of another version of this program");
    archive(kinds_, parts_.learning);
    archive(state_, parts_.arenas, parts_.requests, parts_.recovery, parts_.idle, parts_.spread);
    archive(wake_ns_, device_count_, touch_round_);
    policy_->archive(archive);
    archive.finish();
}

bool Dispatcher::save(std::string& state, std::size_t bytes_max) {
    if (!policy_->has_archive()) {
        return false;
    }
    Archive archive(state, bytes_max);
    try {
        this->archive(archive);
    } catch (const StateTooLarge&) {
        state.clear();
        return false;
    }
    return state.size() <= bytes_max;
}

void Dispatcher::restore(std::string_view state) {
    Archive::need(policy_->has_archive(), "its policy is in another language");
    must(state_.now == 0 && state_.arenas.empty() && state_.models.empty(), "a scheduler that was told something");
    Archive archive(state);
    this->archive(archive);
    bool has_kinds = parts_.learning.kind_count() == kinds_.size();
    state_.pool<Arena>().for_each_used([&](Arena& arena) { has_kinds = has_kinds && arena.kind < kinds_.size(); });
    state_.pool<KindSpec>().for_each_used([&](KindSpec& spec) { has_kinds = has_kinds && spec.kind < kinds_.size(); });
    Archive::need(has_kinds, "a device is of no kind");
    try {
        check_invariants();
    } catch (const std::logic_error& error) {
        throw DamagedState(error.what());
    }
}

// ----- policy edf ---------------------------------------------------------------------------------

void Worths::archive(Archive& archive) { archive_table<Model>(archive, state_, asked_); }

void Plans::archive(Archive& archive) {
    archive_table<Executor>(archive, state_, plans_);
    archive(margins_, busy_, worths_);
}

// ----- policies with queues -----------------------------------------------------------------------

void Queue::archive(Archive& archive) {
    archive(is_profiled, ready, rank, timer_ns, timer_order);
    for (std::size_t count = archive.count(size()), place = head_; count > 0; --count, ++place) {
        Pending* pending = archive.is_reading() ? nullptr : items_[place].pending;
        archive(pending);
        if (archive.is_reading()) {
            insert({pending->deadline_ns, pending->key_ns, pending, pending->size, pending->alone});
        }
    }
    Archive::need(!ready || !empty(), "an empty queue wants a device");
}

void Queues::archive(Archive& archive) {
    std::size_t slots = state_.pool<Model>().slot_count();
    states_.resize(slots);
    for (std::uint32_t slot = 0; slot < slots; ++slot) {
        ModelQueues& all = states_[slot];
        archive(all.generation);
        std::uint32_t best = 0;  // slot of the best queue, plus 1
        for (std::size_t count = archive.count(all.queues.size()), place = 0; place < count; ++place) {
            if (archive.is_reading()) {
                all.queues.push_back(std::make_unique<Queue>(&state_.at<Model>(slot), 0, std::uint8_t{0}));
            }
            Queue& queue = *all.queues[place];
            archive(queue.shape, queue.level, queue);
            best = all.best == &queue ? static_cast<std::uint32_t>(place + 1) : best;
        }
        archive(best);
        if (archive.is_reading()) {
            Archive::need(best <= all.queues.size(), "a queue is missing");
            all.best = best > 0 ? all.queues[best - 1].get() : nullptr;
        }
    }
    archive_table<Model>(archive, state_, waiting_);
    archive_table<Model>(archive, state_, ranks_);
    archive_table<Model>(archive, state_, first_due_ns_);
    auto limit = static_cast<std::uint32_t>(slots);
    work_.archive(archive, limit);
    asked_.archive(archive, limit);
    hungry_.archive(archive, state_.pool<Executor>().slot_count());
    work_.for_each([this](std::uint32_t slot) {
        Archive::need(states_[slot].best != nullptr && !states_[slot].best->empty(), "a model without work has some");
        return true;
    });
}

// No device is called between steps, so called_ and summoned_ are empty.
void Queued::archive(Archive& archive) {
    archive(queues_, order_);
    called_.resize(state_.pool<Executor>().slot_count());
    rules_->archive(archive);
    memory_->archive(archive);
}

void Adaptive::archive(Archive& archive) {
    traffic_.archive(archive, parts_.state.pool<Model>().slot_count());
    archive(cost_sum_, square_sum_, weights_, surge_, lull_, last_, full_until_ns_, backlog_ns_, backlog_at_ns_,
            margins_, batch_bytes_max_, batch_copied_max_, share_, share_at_ns_, part_, pace_);
}

void SlotHeap::archive(Archive& archive, std::uint32_t limit) {
    std::size_t count = archive.count(heap_.size());
    for (std::size_t place = 0; place < count; ++place) {
        std::uint32_t slot = archive.is_reading() ? 0 : heap_[place];
        archive(slot);
        if (archive.is_reading()) {
            Archive::need(slot < limit && !holds(slot), "a model asks twice, or is none");
            places_.resize(std::max<std::size_t>(places_.size(), slot + 1), NOWHERE);
            urgencies_.resize(places_.size());
            heap_.emplace_back();
            put(place, slot);
        }
        archive(urgencies_[slot]);
    }
}

void AdaptiveMemory::archive(Archive& archive) {
    archive(placement_);
    asking_.archive(archive, state_.pool<Model>().slot_count());
    archive_table<Model>(archive, state_, demands_);
    archive_table<Arena>(archive, state_, again_ns_);
    archive_table<Arena>(archive, state_, offered_, OFFERED_NOTHING);
    archive(shortfalls_, worths_, ordered_ns_);
    Pool<Model>& models = state_.pool<Model>();
    bool are_models = std::all_of(asking_.slots().begin(), asking_.slots().end(),
                                  [&](std::uint32_t slot) { return models.is_used(slot); }) &&
                      std::all_of(offered_.begin(), offered_.end(), [&](std::uint32_t slot) {
                          return slot == OFFERED_NOTHING || slot < models.slot_count();
                      });
    Archive::need(are_models, "a load names no model");
}

void PaperMemory::archive(Archive& archive) {
    archive(placement_);
    archive_table<Model>(archive, state_, demands_);
    archive_table<Pending>(archive, state_, shares_);
    archive_table<Batch>(archive, state_, batches_);
    archive_table<Residency>(archive, state_, allocated_);
    archive_table<Arena>(archive, state_, loads_, PAPER_DEVICE_LOAD_NS);
    archive(dirty_, number_, flush_ns_);
    std::vector<std::pair<double, std::uint32_t>> needs(needs_.begin(), needs_.end());
    archive(needs);
    std::vector<Expiry> expiries;
    for (auto left = expiries_; !left.empty(); left.pop()) {
        expiries.push_back(left.top());
    }
    archive(expiries);
    if (!archive.is_reading()) {
        return;
    }
    needs_ = {needs.begin(), needs.end()};
    expiries_ = decltype(expiries_)(std::greater<>(), std::move(expiries));
    Archive::need(needs_.size() == needs.size(), "a model has two needs");
    auto is_model = [this](std::uint32_t slot) { return slot < state_.pool<Model>().slot_count(); };
    bool are_models = std::all_of(dirty_.begin(), dirty_.end(), is_model);
    for (const auto& [need, slot] : needs) {
        are_models = are_models && is_model(slot) && state_.pool<Model>().is_used(slot);
    }
    for (auto left = expiries_; !left.empty(); left.pop()) {
        are_models =
            are_models && is_model(left.top().model) && left.top().pending < state_.pool<Pending>().slot_count();
    }
    Archive::need(are_models, "a need is no model's");
}

}  // namespace clockwork
