#include "scheduler/memory_paper.h"

#include <algorithm>

namespace clockwork {

namespace {

template <typename T>
T& grown(std::vector<T>& list, std::uint32_t index) {
    if (index >= list.size()) {
        list.resize(index + 1);
    }
    return list[index];
}

// a * b / c of durations, without overflow.
Ns scaled(Ns a, Ns b, Ns c) { return static_cast<Ns>(static_cast<__int128>(a) * b / std::max<Ns>(c, 1)); }

}  // namespace

// Under policy `paper`, loads look as far ahead as executions; under another, schedule_ahead_ms is that
// policy's own.
PaperMemory::PaperMemory(SchedulerParts& parts, const Queues& queues, const Rules& rules,
                         const SchedulerOptions& options)
    : state_(parts.state),
      arenas_(parts.arenas),
      queues_(queues),
      placement_(state_, arenas_, queues, rules),
      ahead_ns_(options.policy == "paper" ? option_ms(options, "schedule_ahead_ms", QUEUED_AHEAD_NS)
                                          : QUEUED_AHEAD_NS) {}

PaperMemory::Demand& PaperMemory::demand(const Model& model) { return grown(demands_, model.slot); }

PaperMemory::Share& PaperMemory::share(const Pending& pending) { return grown(shares_, pending.slot); }

void PaperMemory::soil(const Model& model) {
    Demand& record = demand(model);
    if (!record.is_dirty) {
        record.is_dirty = true;
        dirty_.push_back(model.slot);
    }
}

void PaperMemory::waits(Pending& pending) {
    Model& model = *pending.model;
    const KindSpec& spec = *model.specs.front();
    Ns alone_ns = spec.alone_ns(pending.request.shape, pending.size);
    Ns slo = pending.deadline_ns - pending.request.arrived_ns;
    Ns least = ahead_ns_ + PAPER_BUFFER_NS;
    Ns exec_slo = std::max(slo - PAPER_BUFFER_NS, least);
    Ns weights_slo =
        slo - (arenas_.fetch_wait_ns(model) + spec.load_expected_ns() + alone_ns + PAPER_BUFFER_NS + ahead_ns_);
    weights_slo = std::max(std::min(PAPER_WEIGHTS_SLO_NS, weights_slo), least);
    Share& mine = share(pending);
    mine = {scaled(alone_ns, PAPER_CAPACITY_NS, exec_slo), scaled(alone_ns, PAPER_CAPACITY_NS, weights_slo), ++number_};
    Demand& all = demand(model);
    all.exec_ns += mine.exec_ns;
    all.weights_ns += mine.weights_ns;
    expiries_.push({pending.request.arrived_ns + weights_slo, pending.slot, model.slot, mine.number});
    soil(model);
    if (!model.is_within_reach()) {
        flush_ns_ = 0;
        call(model);
    } else if (all.need > 0) {
        call(model);
    }
}

void PaperMemory::leaves(Pending& pending) {
    Share& mine = share(pending);
    Demand& all = demand(*pending.model);
    all.weights_ns -= mine.weights_ns;
    all.exec_ns -= mine.exec_ns;
    mine = Share();
    soil(*pending.model);
}

void PaperMemory::sent(Flight& flight) {
    Ns& sum = grown(batches_, flight.batch->slot);
    sum = 0;
    for (const Pending* pending : flight.batch->pendings) {
        if (pending->deadline_ns < NEVER_NS) {  // requests without a deadline were never counted by waits()
            Share& mine = share(*pending);
            sum += mine.exec_ns;
            demand(*pending->model).weights_ns -= mine.weights_ns;
            mine = Share();
        }
    }
    soil(*flight.residency->model);
}

void PaperMemory::ended(Flight& flight) {
    const Model& model = *flight.residency->model;
    demand(model).exec_ns -= batches_[flight.batch->slot];
    soil(model);
}

// Removes requests from L_m that have waited too long for a load to help them.
void PaperMemory::expire() {
    while (!expiries_.empty() && expiries_.top().at_ns <= now()) {
        Expiry over = expiries_.top();
        expiries_.pop();
        Share& share = shares_[over.pending];
        if (share.number == over.number && share.weights_ns > 0) {
            demands_[over.model].weights_ns -= share.weights_ns;
            share.weights_ns = 0;
            soil(state_.at<Model>(over.model));
        }
    }
}

// Computes shares, device loads and needs.
void PaperMemory::flush() {
    for (std::uint32_t slot : dirty_) {
        Demand& demand = demands_[slot];
        const Model& model = state_.at<Model>(slot);
        demand.is_dirty = false;
        double all = 0, squares = 0;
        weights_.clear();
        for (const Residency* residency : model.residencies) {
            // A device that leaves, or whose load may never end, does not count.
            bool counts = residency->arena->usable() && !residency->is_stuck;
            double here = counts ? weight(*residency->arena) : 0;
            all += here;
            squares += here * here;
            weights_.push_back(here);
        }
        for (std::size_t place = 0; place < weights_.size(); ++place) {
            const Residency& residency = *model.residencies[place];
            Ns& mine = grown(allocated_, residency.slot);
            Ns now_ns = all > 0 ? static_cast<Ns>(static_cast<double>(demand.exec_ns) * (weights_[place] / all)) : 0;
            loads_[residency.arena->slot] += now_ns - mine;
            mine = now_ns;
        }
        double need = static_cast<double>(demand.weights_ns);
        if (all > 0) {
            need *= 1 - squares / all;
        }
        if (demand.is_listed) {
            needs_.erase({-demand.need, slot});
        }
        demand.need = need;
        demand.is_listed = need > 0;
        if (demand.is_listed) {
            needs_.insert({-need, slot});
        }
    }
    dirty_.clear();
}

void PaperMemory::look(Arena& arena) {
    if (!arena.pending.empty() || (dirty_.empty() && needs_.empty())) {
        return;
    }
    Worker& worker = *arena.worker;
    while (worker.link_free_ns < now() + ahead_ns_) {
        if (now() >= flush_ns_) {
            expire();
            flush();
            flush_ns_ = now() + PAPER_FLUSH_NS;
        }
        bool found = false;
        std::size_t seen = 0;
        for (auto place = needs_.begin(); place != needs_.end() && seen < PAPER_SCAN_MAX; ++place, ++seen) {
            Model& model = state_.at<Model>(place->second);
            KindSpec* spec = Placement::loadable(arena, model);
            if (spec != nullptr && waiting(model) > 0 && !is_for_holder(arena, model) &&
                arenas_.load_now(arena, model, *spec, NEVER_NS)) {
                grown(allocated_, model.residencies.back()->slot) = 0;
                soil(model);
                flush_ns_ = 0;  // the model needs another load less than before
                found = true;
                break;
            }
        }
        if (!found) {
            return;
        }
    }
    if (!needs_.empty()) {
        arena.wake_at(worker.link_free_ns - ahead_ns_ + 1);
    }
}

// Whether the model is to be loaded by a worker whose disk has it, instead of being brought to this one.
bool PaperMemory::is_for_holder(const Arena& arena, const Model& model) const {
    return arena.worker->tier == StoreTier::DISK && !arena.worker->is_stored(model) &&
           arenas_.find_holder(model) != nullptr;
}

Score PaperMemory::score(const Arena& arena) const {
    if (arena.worker->link_free_ns >= now() + ahead_ns_) {
        return {-1};
    }
    return {loads_[arena.slot] / static_cast<Ns>(arena.executors.size())};
}

void PaperMemory::call(Model& model) {
    if (Arena *arena = placement_.find_target(
            model, [&](const Arena& other_arena, const KindSpec&,
                       const Score&) { return is_for_holder(other_arena, model) ? Score{-1} : score(other_arena); });
        arena != nullptr) {
        state_.touch_loads(*arena);
    }
}

std::size_t PaperMemory::order_evictable(std::vector<Residency*>& found, std::size_t /*ordered*/) {
    std::stable_partition(found.begin(), found.end(),
                          [](const Residency* residency) { return residency->model->live == 0; });
    return found.size();
}

void PaperMemory::arrived_on(Residency& residency) { soil(*residency.model); }

void PaperMemory::gone_from(Residency& residency) {
    Ns& mine = grown(allocated_, residency.slot);
    loads_[residency.arena->slot] -= mine;
    mine = 0;
    soil(*residency.model);
}

void PaperMemory::renew(Model& model) {
    if (waiting(model) > 0) {
        soil(model);
        // Its devices leave, or their loads may never end.
        if (!model.residencies.empty() && !model.is_within_reach()) {
            flush_ns_ = 0;
        }
        call(model);
    }
}

void PaperMemory::model_gone(Model& model) {
    Demand& record = demand(model);
    if (record.is_listed) {
        needs_.erase({-record.need, model.slot});
    }
    bool is_dirty = record.is_dirty;  // dirty_ still names the slot
    record = Demand();
    record.is_dirty = is_dirty;
}

void PaperMemory::joined(Arena& arena) { grown(loads_, arena.slot) = PAPER_DEVICE_LOAD_NS; }

void PaperMemory::check_invariants() const {
    for (const Demand& record : demands_) {
        must(record.exec_ns >= 0 && record.weights_ns >= 0, "a model's demand is negative");
    }
    for (const Ns load : loads_) {
        must(load > 0, "a device's load is not positive");
    }
}

}  // namespace clockwork
