#include "scheduler/adaptive.h"

#include <algorithm>
#include <cmath>

#include "scheduler/queue_memory.h"

namespace clockwork {

namespace {

// A model's ideal cost is computed once for this many arrivals: its estimates and SLOs drift slowly.
constexpr std::uint32_t IDEAL_EVERY = 16;

// The largest batch, of at most rows_max rows, that takes no longer than time_ns; 0 if not even one row does.
template <typename Takes>
std::uint32_t most_rows(const Takes& takes, Ns time_ns, std::uint32_t rows_max) {
    if (takes(rows_max) <= time_ns) {
        return rows_max;
    }
    std::uint32_t low = 0, high = rows_max;  // low is in time, high is not
    while (high - low > 1) {
        std::uint32_t middle = low + (high - low) / 2;
        (takes(middle) <= time_ns ? low : high) = middle;
    }
    return low;
}

// Hungry executors, at most `most`, that could take the model's requests and execute nothing. The executor
// that chooses a batch is none of them.
std::uint32_t idle_others(const RuleParts& parts, const Model& model, std::uint32_t most) {
    std::uint32_t count = 0;
    Bits::for_each_in_both(parts.queues.hungry(), model.homes, [&](std::uint32_t slot) {
        const Executor& executor = parts.state.at<Executor>(slot);
        const Residency* residency = executor.arena->find(&model);
        count += executor.lane.empty() && executor.usable() && is_usable(residency) &&
                 !parts.queues.is_too_slow(model, *residency->spec);
        return count < most;
    });
    return count;
}

}  // namespace

Adaptive::Adaptive(const RuleParts& parts, const SchedulerOptions& options)
    : Rules({.ahead_ns = option_ms(options, "schedule_ahead_ms", 0),
             .promises_nothing = true,
             .spreads = option(options, "save_devices", 0) == 0}),
      parts_(parts),
      holds_(option(options, "off_hold", 0) == 0),
      sacrifices_(option(options, "off_sacrifice", 0) == 0),
      saves_devices_(option(options, "save_devices", 0) != 0),
      hold_need_(option(options, "hold_need", HOLD_NEED)),
      refuse_wait_(option(options, "refuse_wait", 0)),
      refuses_(option(options, "off_refuse", 0) == 0),
      believes_surges_(option(options, "off_surge", 0) == 0),
      sacrifice_need_(option(options, "sacrifice_need", SACRIFICE_NEED)),
      in_order_(parts.state, parts.queues) {}

bool Adaptive::has_other_device(const Model& model) const {
    const Executor* fastest = parts_.queues.find_hungry(model);
    return fastest != nullptr && !parts_.queues.is_too_slow(model, *fastest->arena->find(&model)->spec);
}

// ----- what arrives, and what it needs ------------------------------------------------------------

void Adaptive::keep_time() {
    if (weights_.is_at(parts_.state.now)) {
        return;
    }
    auto shrink = [](double& value, int doublings) { value = std::ldexp(value, -doublings); };
    if (int doublings = weights_.advance(parts_.state.now); doublings > 0) {
        traffic_.for_each([&](Traffic& traffic) {
            shrink(traffic.cost, doublings);
            shrink(traffic.rows, doublings);
        });
        shrink(cost_sum_, doublings);
        shrink(square_sum_, 2 * doublings);
    }
    surge_.advance(parts_.state.now);
    lull_.advance(parts_.state.now);
}

double Adaptive::need() const {
    double arrives = rate(cost_sum_);
    if (believes_surges_) {
        arrives = std::max(arrives, surge_.rate(-RECENT_SIGMAS));
    }
    double least = parts_.state.now < full_until_ns_ ? FULL_NEED : 0;
    return std::max(need_of(arrives, parts_.state.now), least);
}

double Adaptive::need_at_most() const { return std::min(need(), need_of(lull_.rate(LULL_SIGMAS), parts_.state.now)); }

double Adaptive::last_need_at_most() const {
    return need_of(last_.rate_at_most(parts_.state.now, LAST_SIGMAS), parts_.state.now);
}

double Adaptive::need_of(double arrives, Ns now) const {
    return parts_.state.executors.empty() ? 0 : arrives * pace_.at(now) / devices();
}

PolicyStatus Adaptive::status(Ns now) const {
    Weights weights = weights_;  // a copy: a status query changes nothing
    double cost = std::ldexp(cost_sum_, -weights.advance(now));
    ArrivalRate lull = lull_;
    lull.advance(now);
    double need = need_of(cost / weights.span_ns(), now);
    return {true, pace_.at(now), need, std::min(need, need_of(lull.rate(LULL_SIGMAS), now)), share_};
}

double Adaptive::devices() const { return part_ * static_cast<double>(parts_.state.executors.size()); }

// The preparation by which a model is counted: the fastest of devices that have the model, otherwise of
// devices that could load it.
KindSpec* Adaptive::spec_of(const Model& model, std::uint32_t shape) {
    if (model.specs.size() == 1) [[likely]] {
        return model.specs.front();
    }
    auto is_there = [&](const KindSpec* spec) {
        return model.residencies.empty()
                   ? spec->worker_count > 0
                   : std::any_of(model.residencies.begin(), model.residencies.end(),
                                 [spec](const Residency* residency) { return residency->spec == spec; });
    };
    KindSpec* best = nullptr;
    Ns least = NEVER_NS;
    for (KindSpec* spec : model.specs) {
        Ns alone = is_there(spec) ? spec->alone_ns(shape, 1) : NEVER_NS;
        if (alone > 0 && alone < least) {
            best = spec;
            least = alone;
        }
    }
    return best != nullptr ? best : model.residencies.empty() ? model.specs.front() : model.residencies.front()->spec;
}

double Adaptive::slower(const Model& model, const KindSpec& spec, std::uint32_t shape) {
    if (model.specs.size() == 1) [[likely]] {
        return 1;
    }
    Ns least = spec_of(model, shape)->alone_ns(shape, 1);
    return least > 0 ? static_cast<double>(spec.alone_ns(shape, 1)) / static_cast<double>(least) : 1;
}

Ns Adaptive::link_ns(const Model& model) {
    if (model.residencies.empty()) {
        return 0;
    }
    const Worker& worker = *model.residencies.front()->arena->worker;
    return worker.there_ns + worker.back_ns;
}

// The least time from an order to its result, at best, on the fastest kind of device. A request with less
// time left is too late on every device.
Ns Adaptive::soonest_ns(const Model& model, std::uint32_t shape, std::uint32_t rows) const {
    Ns least = NEVER_NS;
    for (const KindSpec* spec : model.specs) {
        auto first = std::find_if(model.residencies.begin(), model.residencies.end(),
                                  [spec](const Residency* residency) { return residency->spec == spec; });
        // Otherwise the model could be loaded onto such a device.
        bool is_there = first != model.residencies.end();
        if (!is_there && spec->worker_count == 0) {
            continue;
        }
        Ns link = is_there ? (*first)->arena->worker->there_ns + (*first)->arena->worker->back_ns : 0;
        least = std::min(least, link + hoped_ns(*spec, shape, rows));
    }
    return least < NEVER_NS ? least : 0;
}

void Adaptive::depart(Flight& flight) {
    send_inputs(flight, parts_.state.now);
    if (parts_.queues.waiting(*flight.residency->model) == 0) {
        see_who_came(*flight.batch);
    }
}

// Learns from a batch that left no request behind: the arrivals expected while it waited, and the actual
// ones.
void Adaptive::see_who_came(const Batch& batch) {
    Traffic& known = traffic_.of(*batch.residency->model);
    double per_ns = rate(known.rows);
    std::uint32_t rows = 0;
    double expected = 0, came = 0;
    for (std::size_t place = 0; place < batch.pendings.size(); ++place) {
        const Pending& pending = *batch.pendings[place];
        const Pending* next = place + 1 < batch.pendings.size() ? batch.pendings[place + 1] : nullptr;
        Ns until = next != nullptr ? next->request.arrived_ns : parts_.state.now;
        rows += pending.size;
        expected += per_ns * static_cast<double>(std::max<Ns>(until - pending.request.arrived_ns, 0));
        came += next != nullptr ? next->size : 0;
        if (next == nullptr || company(rows + next->size) != company(rows)) {
            known.company[company(rows)].add(parts_.state.now, expected, came);
            expected = came = 0;
        }
    }
}

void Adaptive::delivered(const Flight& flight, Ns ready_ns, bool is_ok) {
    learn_inputs(flight, parts_.state.now, ready_ns, is_ok);
}

void Adaptive::executed(const Flight& flight, Ns took_ns) {
    if (!is_timed(flight)) {
        return;
    }
    margins_.executed(parts_.state.now, flight.residency->spec->kind, flight.expected_ns,
                      as_predicted_ns(flight, took_ns));
    double pace = pace_.at(parts_.state.now),
           took = static_cast<double>(took_ns) / static_cast<double>(flight.duration_ns);
    pace_.set(parts_.state.now, std::clamp(pace + PACE_PART * (took - pace), PACE_MIN, 1.0));
}

std::uint32_t Adaptive::Durations::rows_within(Ns time_ns, std::uint32_t rows_max) const {
    return most_rows(*this, time_ns, rows_max);
}

double Adaptive::ideal_ns(const KindSpec& spec, std::uint32_t shape, Ns time_ns) const {
    Durations batch_ns = durations(spec, shape);
    std::uint32_t most = batch_ns.rows_within(time_ns, spec.batch_max);
    if (most == 0) {
        return 0;
    }
    double ideal = static_cast<double>(batch_ns(most)) / most;
    for (std::uint32_t rows = 1; rows < most; rows *= 2) {
        ideal = std::min(ideal, static_cast<double>(batch_ns(rows)) / rows);
    }
    return ideal;
}

double Adaptive::part_of_devices(const Model& model, std::uint32_t shape, const Traffic& known) const {
    if (model.specs.size() == 1 || parts_.state.executors.empty()) [[likely]] {
        return 1;
    }
    double sum = 0;
    for (const KindSpec* spec : model.specs) {
        if (double ideal = ideal_ns(*spec, shape, static_cast<Ns>(known.slack_ns)); ideal > 0) {
            auto count = std::count_if(parts_.state.executors.begin(), parts_.state.executors.end(),
                                       [&](const Executor* executor) { return model.spec(*executor->arena) == spec; });
            sum += std::min(known.ideal_ns / ideal, 1.0) * static_cast<double>(count);
        }
    }
    // No model is counted as if there were no device.
    return std::max(sum, 1.0) / static_cast<double>(parts_.state.executors.size());
}

// Computes the ideal cost of a model's requests for their SLO.
void Adaptive::look_up(Traffic& known, const Model& model, std::uint32_t shape) const {
    const KindSpec& spec = *spec_of(model, shape);
    Durations batch_ns = durations(spec, shape);
    Ns slack = static_cast<Ns>(known.slack_ns);
    double ideal = ideal_ns(spec, shape, slack);
    known.ideal_ns = ideal > 0 ? ideal : static_cast<double>(batch_ns(1));
    known.part = part_of_devices(model, shape, known);
    std::uint32_t most = std::max(batch_ns.rows_within(slack, spec.batch_max), 1u);
    const Curve* curve = batch_ns.curve();
    double saving = curve != nullptr ? curve->saving(most) : 1;
    known.saves = saving > SAVING_MIN;
    // Tight SLOs are refused at arrival, whatever the saving.
    bool is_prompt = known.slack_ns <= static_cast<double>(PROMPT_NS);
    known.is_told = refuse_wait_ > 0 || !known.saves || (saving <= TOLD_SAVING_MAX && !is_prompt);
}

bool Adaptive::admit(Pending& pending) {
    keep_time();
    Model& model = *pending.model;
    const Request& request = pending.request;
    KindSpec& spec = *spec_of(model, request.shape);
    Traffic& there = traffic_.of(model);
    double slack = static_cast<double>(pending.deadline_ns - parts_.state.now);
    there.slack_ns += (slack - there.slack_ns) / (there.arrivals < IDEAL_EVERY ? there.arrivals + 1 : IDEAL_EVERY);
    if (there.arrivals++ % IDEAL_EVERY == 0) {
        look_up(there, model, request.shape);
    }
    Ns slo = pending.deadline_ns - request.arrived_ns;
    Ns soonest = soonest_ns(model, request.shape, pending.size);
    if (soonest > slo) {
        parts_.idle.doubt(pending);
        parts_.requests.refuse_below_idle(pending, soonest, slo);
        return false;
    }
    Ns late = soonest - (pending.deadline_ns - parts_.state.now);
    if (late > 0) {  // the request was feasible at its arrival, and has waited for the controller since
        parts_.requests.refuse(pending, Reason::DEADLINE,
                               AnswerSentence(AnswerText::COULD_BE_ANSWERED, slo + late, slo), slo + late, late);
        return false;
    }
    if (Residency* asked = model.next_asked()) {
        ask_for(*asked, parts_.state.now, asked_for(pending, parts_.state.now));
    }
    double recent = there.ideal_ns * pending.size;
    last_.add(parts_.state.now, recent);
    if (refuses_) {
        if (parts_.state.now >= share_at_ns_) {
            share_at_ns_ = parts_.state.now + SHARE_EVERY_NS;
            share_out();
        }
        if (there.is_told ? refuse_late(pending) : refuse_beyond_share(pending, spec, there)) {
            return false;
        }
    }
    for (const KindSpec* spec : model.specs) {
        batch_bytes_max_ = std::max(batch_bytes_max_, request.bytes * spec->batch_max);
        batch_copied_max_ = std::max(batch_copied_max_, request.copied_bytes * spec->batch_max);
    }
    // Only admitted requests count: a client that retries at once must not look like a flood.
    surge_.add(recent);
    lull_.add(recent);
    double cost = recent * weights_.weight();
    cost_sum_ += cost;
    square_sum_ += (2 * there.cost + cost) * cost;
    there.cost += cost;
    there.rows += pending.size * weights_.weight();
    return true;
}

double Adaptive::crowd() const {
    if (square_sum_ <= 0 || parts_.state.executors.empty()) {
        return 0;
    }
    return cost_sum_ * cost_sum_ / square_sum_ / devices();
}

void Adaptive::share_out() {
    wanted_.clear();
    double cost = 0, part = 0;
    traffic_.for_each([&](const Traffic& traffic) {
        if (double wanted = rate(traffic.rows) * traffic.ideal_ns; wanted > 0) {
            wanted_.push_back(wanted);
            cost += wanted;
            part += wanted * traffic.part;
        }
    });
    part_ = cost > 0 ? std::min(part / cost, 1.0) : 1;
    share_ = level_of(wanted_, devices(), REFUSE_NEED);
}

void Adaptive::turn_away(Pending& pending, Ns after_ns) {
    Ns slo = pending.deadline_ns - pending.request.arrived_ns, after = std::max<Ns>(after_ns, 1);
    parts_.requests.refuse(pending, Reason::DEADLINE, AnswerSentence(AnswerText::COULD_BE_ANSWERED, slo + after, slo),
                           slo + after, after);
    contest_devices(*pending.model, parts_.state.now);
}

// The device time of all waiting requests at their ideal cost, divided evenly among the devices.
double Adaptive::backlog_ns() {
    if (parts_.state.now >= backlog_at_ns_) {
        backlog_at_ns_ = parts_.state.now + BACKLOG_EVERY_NS;
        double sum = 0;
        parts_.queues.for_each_waiting([&](std::uint32_t slot, std::uint32_t rows) {
            sum += rows * traffic_.of(parts_.state.at<Model>(slot)).ideal_ns;
        });
        backlog_ns_ = sum / std::max(devices(), 1.0);
    }
    return backlog_ns_;
}

// Refuses a request that would wait too long behind its own model's requests, within the model's share, and
// behind those of all models. True: refused.
bool Adaptive::refuse_beyond_share(Pending& pending, const KindSpec& spec, const Traffic& known) {
    bool is_crowded = share_ > 0 && last_need_at_most() > REFUSE_NEED;
    if (is_crowded && rate(known.rows) * known.ideal_ns <= share_) {
        return false;
    }
    std::uint32_t waiting = 0;  // rows that would go before the request
    for (const auto& queue : parts_.queues.of(*pending.model)) {
        waiting += queue->level <= pending.request.priority ? queue->rows() : 0;
    }
    Durations batch_ns = durations(spec, pending.request.shape);
    Ns slack = pending.deadline_ns - parts_.state.now - link_ns(*pending.model);
    if (waiting < batch_ns.rows_within(slack, spec.batch_max)) {
        return false;  // the request would only make the next batch cheaper
    }
    double level = is_crowded ? share_ : std::max(devices(), 1.0);
    double wait = waiting * known.ideal_ns / level;
    double room = (is_crowded ? SHARE_WAIT : 1) * static_cast<double>(slack - batch_ns(1));
    double enough = std::max(room, static_cast<double>(batch_ns(pending.size)));
    // A queue empties by whole batches, so a model's own queue may be at its bound although the devices are
    // about to have time.
    if (wait <= enough || (is_crowded && backlog_ns() <= enough)) {
        return false;
    }
    const std::vector<Residency*>& there = pending.model->residencies;
    if (!there.empty() &&
        is_asked_for(*there[pending.model->asked_cursor % there.size()]->arena, parts_.state.now, FULL_ASKED)) {
        full_until_ns_ = parts_.state.now + FULL_NS;
    }
    turn_away(pending, static_cast<Ns>(wait - room));
    return true;
}

// The time that the requests before this one would keep a device, beyond the actions that it was sent.
// Results above enough_ns are lower bounds.
Ns Adaptive::before_ns(const Arena& arena, const Pending& pending, Ns enough_ns) {
    double sum = 0, enough = static_cast<double>(enough_ns);
    auto is_wanted = [&](const Model& model, std::uint64_t) {
        // A model that saves much by batches may give requests up, so its queue does not count.
        return sum <= enough && traffic_.of(model).is_told;
    };
    parts_.queues.for_each_ready(arena, is_wanted, [&](Queue& queue, Residency& residency) {
        bool goes_before = queue.level <= pending.request.priority && queue.front().deadline_ns <= pending.deadline_ns;
        goes_before |= queue.level < pending.request.priority && queue.model == pending.model;
        if (!goes_before) {
            return;
        }
        const KindSpec& spec = *residency.spec;
        std::uint32_t rows = queue.rows(), most = std::min(rows, spec.batch_max);
        double takes = static_cast<double>(takes_ns(spec, queue.shape, most)) / most * rows;
        sum += takes / queue.model->servers;
    });
    return static_cast<Ns>(sum * pace_.at(parts_.state.now));
}

// Refuses a request that would be too late behind all waiting requests. True: refused.
bool Adaptive::refuse_late(Pending& pending) {
    const Model& model = *pending.model;
    if (model.residencies.empty() || has_other_device(model)) {
        return false;
    }
    Residency* soonest = nullptr;
    Ns begins = NEVER_NS;
    for (std::size_t place = 0; place < std::min(model.residencies.size(), OUTLOOK_MAX); ++place) {
        Residency& residency = *model.residencies[(model.asked_cursor + place) % model.residencies.size()];
        if (Ns free = residency.arena->free_ns(parts_.state.now); free < begins) {
            begins = free;
            soonest = &residency;
        }
    }
    if (model.residencies.size() > OUTLOOK_MAX) {
        // One of many other devices may be free earlier.
        begins = parts_.state.now + soonest->arena->worker->there_ns;
    }
    bool has_overload =
        is_asked_for(*soonest->arena, parts_.state.now, OVERLOAD_ASKED) && last_need_at_most() > REFUSE_NEED;
    double part = refuse_wait_ > 0 ? refuse_wait_ : has_overload ? wait_part(soonest->spec->kind) : 1;
    Ns takes = takes_ns(*soonest->spec, pending.request.shape, pending.size);
    Ns late = soonest->arena->executors.front()->late.ns(parts_.state.now);
    Ns rest = pending.deadline_ns - begins - takes - soonest->arena->worker->back_ns - late;
    Ns room = std::max({static_cast<Ns>(part * static_cast<double>(rest)), takes, std::min(rest, PROMPT_NS)});
    Ns wait = before_ns(*soonest->arena, pending, room);
    bool is_burst = refuse_wait_ == 0 && !has_overload;
    if (wait <= room || (is_burst && in_order_.serves(pending)) || parts_.memory->could_copy(pending)) {
        return false;
    }
    contest_devices(*pending.model, parts_.state.now);
    if (is_divided(*soonest->arena, parts_.state.now) && soonest->share.is_modest) {
        return false;
    }
    turn_away(pending, wait - room);
    return true;
}

double Adaptive::hold_share(const Model& model) const {
    if (saves_devices_) {
        return 1;
    }
    if (crowd() <= 0) {
        return 0;
    }
    double there = static_cast<double>(model.residencies.size()) / static_cast<double>(parts_.state.arenas.size());
    return HOLD_SHARE * std::max(0.0, 1 - crowd()) * there;
}

// ----- when a queue wants a device ----------------------------------------------------------------

Ns Adaptive::rank_ns(const Queue& queue) { return queue.front().deadline_ns; }

Ns Adaptive::hopeless_ns(const Queue& queue, const Waiting& waiting) {
    Ns latest = waiting.deadline_ns - soonest_ns(*queue.model, queue.shape, 1);
    return parts_.arenas.last_begin_ns(*queue.model, latest) + 1;
}

Ns Adaptive::outgrown_ns(const Queue& queue, const Waiting& waiting) {
    const Model& model = *queue.model;
    if (model.specs.size() == 1) [[likely]] {
        return NEVER_NS;
    }
    Ns fastest = NEVER_NS, here = NEVER_NS;
    for (const KindSpec* spec : model.specs) {
        fastest = spec->worker_count > 0 ? std::min(fastest, spec->alone_ns(queue.shape, waiting.size)) : fastest;
    }
    for (const Residency* residency : model.residencies) {
        if (is_promised(*residency)) {
            here = std::min(here, residency->spec->alone_ns(queue.shape, waiting.size));
        }
        if (here <= fastest) {
            return NEVER_NS;
        }
    }
    return here < NEVER_NS ? waiting.deadline_ns - link_ns(model) - here + 1 : NEVER_NS;
}

Ns Adaptive::ready_ns(Queue& queue) {
    keep_time();
    const Waiting& front = queue.front();
    const Model& model = *queue.model;
    if (!holds_ || front.alone || model.residencies.empty()) {
        return 0;
    }
    const KindSpec& spec = *spec_of(model, queue.shape);
    std::uint32_t rows = parts_.queues.rows(model, queue.shape);  // all levels of a model share batches
    if (rows >= spec.batch_max) {
        return 0;
    }
    const Traffic& known = traffic_.of(model);
    Durations batch_ns = durations(spec, queue.shape);
    double cost = static_cast<double>(batch_ns(rows)) / rows;
    double share = hold_share(model);
    if (share <= 0 || (!saves_devices_ && cost * hold_need_ * need_at_most() <= known.ideal_ns)) {
        return 0;
    }
    Ns link = link_ns(model);
    Ns arrived = front.pending->request.arrived_ns;
    Ns hold = static_cast<Ns>(share * static_cast<double>(front.deadline_ns - arrived - link - batch_ns(front.size)));
    if (!saves_devices_) {
        hold = std::min(hold, HOLD_MAX_NS);
    }
    double expected =
        rate(known.rows) * static_cast<double>(hold) * known.company[company(rows)].part(parts_.state.now);
    if (expected < HOLD_GAIN_MIN) {
        return 0;
    }
    Ns last = front.deadline_ns - link - batch_ns(rows + 1);
    return std::min(arrived + hold, last);
}

// ----- what a device runs next --------------------------------------------------------------------

// Fills a batch up with requests of lower levels of its model, the highest first, into filling_. All stay in
// time.
template <typename Takes>
Adaptive::Filled Adaptive::fill_up(const Queue& queue, Filled batch, const Takes& takes, Ns until_ns,
                                   std::uint32_t rows_max) {
    std::uint8_t level = queue.level;
    while (batch.rows < rows_max && filling_.size() < FILLING_MAX) {
        Queue* next = parts_.queues.below(*queue.model, queue.shape, level);
        if (next == nullptr) {
            break;
        }
        level = next->level;
        Ns least = until_ns + takes(batch.rows + 1);
        // Binary search for the first whose deadline allows a batch of one row more.
        std::uint32_t first = 0, last = next->size();
        while (first < last) {
            std::uint32_t middle = first + (last - first) / 2;
            if ((*next)[middle].deadline_ns < least) {
                first = middle + 1;
            } else {
                last = middle;
            }
        }
        if (first == next->size() || (*next)[first].alone) {
            continue;
        }
        Ns room = std::min(batch.room_ns, (*next)[first].deadline_ns - until_ns);
        std::uint32_t most = most_rows(takes, room, rows_max);
        if (most < batch.rows + (*next)[first].size) {
            continue;
        }
        std::uint32_t count = next->count_up_to(first, most - batch.rows);
        for (std::uint32_t place = first; place < first + count; ++place) {
            batch.rows += (*next)[place].size;
        }
        batch.room_ns = room;
        filling_.push_back({next, first, count});
    }
    return batch;
}

// Finds the best batch of a queue for a device that is free from free_ns on. False: no request would be in
// time there.
bool Adaptive::consider(Queue& queue, Residency& residency, Ns free_ns, Candidate& found) {
    const KindSpec& spec = *residency.spec;
    const Worker& worker = *residency.arena->worker;
    Ns until = free_ns + worker.back_ns;  // a batch of deadline d may take d - until
    // Inputs travel while the device is busy: only the time beyond that delays the batch.
    const Request& front = queue.front().pending->request;
    double row_ns = 0;
    if (front.bytes > 0 || front.copied_bytes > 0) {
        row_ns = (worker.inputs.byte_ns(parts_.state.now) * static_cast<double>(front.bytes) +
                  worker.copies.byte_ns(parts_.state.now) * static_cast<double>(front.copied_bytes)) /
                 queue.front().size;
    }
    Ns covered = free_ns - worker.inputs.late_message_ns(parts_.state.now, worker.there_ns);
    Durations batch_ns = durations(spec, queue.shape);
    auto takes = [&](std::uint32_t rows) {
        Ns delay = row_ns > 0 ? std::max<Ns>(static_cast<Ns>(row_ns * rows) - covered, 0) : 0;
        return batch_ns(rows) + delay;
    };
    bool is_shared = is_divided(*residency.arena, parts_.state.now), is_modest = is_shared && residency.share.is_modest;
    Ns longest = is_shared && residency.share.is_greedy ? residency.arena->shares.batch_max_ns : NEVER_NS;
    std::uint32_t size = queue.size(), first = 0;
    while (first < size && queue[first].deadline_ns - until < takes(queue[first].size)) {
        ++first;
    }
    if (first == size) {
        return false;
    }
    auto rows_from = [&](std::uint32_t place) {
        std::uint32_t most = spec.batch_max;
        if (queue.is_plain()) {
            most = std::min(most, size - place);
        }
        return std::max(most_rows(takes, std::min(queue[place].deadline_ns - until, longest), most), 1u);
    };
    std::uint32_t rows = rows_from(first), given_up = 0;
    const Traffic& known = traffic_.of(*queue.model);
    auto ideal_here = [&] { return known.ideal_ns * slower(*queue.model, spec, queue.shape); };
    // Only the lowest level may be given up.
    bool may_sacrifice =
        sacrifices_ && known.saves && !is_modest && queue.is_plain() && queue.level >= parts_.requests.lowest_level();
    if (may_sacrifice && rows < std::min(size - first, spec.batch_max)) {
        double limit = ideal_here() / std::max(sacrifice_need_ * need(), 1e-9);
        double cost = static_cast<double>(batch_ns(rows)) / rows;
        if (cost > limit && !has_other_device(*queue.model)) {
            std::uint32_t last = std::min(size - first, SACRIFICE_MAX);
            double before = cost;
            for (std::uint32_t skip = 1; skip < last && cost > limit; ++skip) {
                std::uint32_t more = rows_from(first + skip);
                double cheaper = static_cast<double>(batch_ns(more)) / more;
                if (cheaper < cost && SACRIFICE_GAINS * more * (before - cheaper) >= skip * before) {
                    cost = cheaper;
                    rows = more;
                    given_up = skip;
                }
                if (more == std::min(size - first - skip, spec.batch_max)) {
                    break;
                }
            }
        }
    }
    double alone = static_cast<double>(batch_ns(queue[first + given_up].size));
    if (queue.is_plain() && alone * rows <= BATCH_WORTH * static_cast<double>(batch_ns(rows))) {
        rows = 1;
    }
    // Several devices that have nothing else to do divide a queue, where device time is not dear. Otherwise
    // clients that were answered together would be answered one batch after the other for ever.
    bool is_part = false;
    if (!saves_devices_ && queue.is_plain() && rows > 1 && given_up == 0 && rows == size - first) {
        std::uint32_t others = idle_others(parts_, *queue.model, rows - 1);
        std::uint32_t part = (rows + others) / (others + 1);
        double cost = static_cast<double>(batch_ns(part)) / part;
        if (part < rows && cost * hold_need_ * need_at_most() <= ideal_here()) {
            rows = part;
            is_part = true;
        }
    }
    found.queue = &queue;
    found.residency = &residency;
    found.first = first;
    found.given_up = given_up;
    found.count = queue.count_up_to(first + given_up, rows);
    std::uint32_t batch_rows = rows;
    if (!queue.is_plain()) {
        batch_rows = 0;
        for (std::uint32_t place = 0; place < found.count; ++place) {
            batch_rows += queue[first + place].size;
        }
    }
    Ns deadline = queue[first + given_up].deadline_ns;
    found.duration_ns = batch_ns(batch_rows);
    found.start_ns = found.own_start_ns = deadline - worker.back_ns - takes(batch_rows);
    found.filled = 0;
    if (!is_part && parts_.queues.of(*queue.model).size() > 1 && !queue[first + given_up].alone) {
        filling_.clear();
        Filled full = fill_up(queue, {batch_rows, std::min(deadline - until, longest)}, takes, until, spec.batch_max);
        Ns duration = batch_ns(full.rows);
        if (alone * full.rows > BATCH_WORTH * static_cast<double>(duration)) {
            for (const QueueRange& more : filling_) {
                deadline = std::min(deadline, (*more.queue)[more.first].deadline_ns);
                found.filled += more.count;
            }
            found.duration_ns = duration;
            found.start_ns = deadline - worker.back_ns - takes(full.rows);
        }
    }
    return true;
}

// Finds the batch of the model's highest level that replaces a candidate. False: the candidate is of that
// level.
bool Adaptive::find_lead(const Candidate& behind, Ns free_ns, Candidate& lead) {
    bool found = false;
    for (const auto& queue : parts_.queues.of(*behind.queue->model)) {
        std::uint8_t level = found ? lead.queue->level : behind.queue->level;
        bool is_wanted = !queue->empty() && (queue->ready || queue->shape == behind.queue->shape);
        if (Candidate candidate{};
            is_wanted && queue->level < level && consider(*queue, *behind.residency, free_ns, candidate)) {
            lead = candidate;
            found = true;
        }
    }
    return found;
}

Choice Adaptive::choose(Executor& executor, Ns free_ns) {
    free_ns += executor.late.ns(parts_.state.now);  // every look at a queue is for this time
    Candidate chosen{};
    // Every round but the last gives up at least one request, so the number of rounds is bounded by the
    // number of waiting requests.
    while (pick(executor, free_ns, chosen)) {
        if (chosen.given_up > 0) {
            give_up_first(chosen);
            // Other hopeless requests may have been dropped with the chosen ones.
            if (chosen.queue->empty() || !consider(*chosen.queue, *chosen.residency, free_ns, chosen) ||
                chosen.given_up > 0) {
                continue;
            }
        }
        if (chosen.filled == 0) {
            return {chosen.queue, chosen.residency, chosen.first, chosen.count};
        }
        // Restores filling_: others were considered since.
        consider(*chosen.queue, *chosen.residency, free_ns, chosen);
        must(chosen.filled > 0, "a batch was filled up at a first look alone");
        return {chosen.queue, chosen.residency, chosen.first, chosen.count, 0, filling_};
    }
    return {};
}

// Chooses the first request that may be in time at best, in a batch of its own. The device would be idle
// otherwise, and the result corrects the estimates.
Choice Adaptive::attempt(Executor& executor, Ns free_ns) {
    Choice found{};
    if (yields_) {
        return found;
    }
    const Worker& worker = *executor.worker;
    Ns covered = free_ns - worker.inputs.late_message_ns(parts_.state.now, worker.there_ns);
    auto is_wanted = [](const Model&, std::uint64_t) { return true; };
    parts_.queues.for_each_ready(*executor.arena, is_wanted, [&](Queue& queue, Residency& residency) {
        auto end_ns = [&](const Waiting& waiting) {
            const Request& request = waiting.pending->request;
            Ns inputs = worker.inputs.takes_ns(parts_.state.now, request.bytes) +
                        worker.copies.takes_ns(parts_.state.now, request.copied_bytes);
            Ns hoped = hoped_ns(*residency.spec, queue.shape, waiting.size);
            return free_ns + std::max<Ns>(inputs - covered, 0) + hoped + worker.back_ns;
        };
        // binary search for the first request whose deadline allows the batch
        std::uint32_t first = 0, last = queue.size();
        while (first < last) {
            std::uint32_t middle = first + (last - first) / 2;
            if (queue[middle].deadline_ns < end_ns(queue[middle])) {
                first = middle + 1;
            } else {
                last = middle;
            }
        }
        if (first == queue.size()) {
            return;
        }
        const Waiting& row = queue[first];
        if (found.queue == nullptr || row.deadline_ns < (*found.queue)[found.first].deadline_ns) {
            found = {&queue, &residency, first, 1, hoped_ns(*residency.spec, queue.shape, row.size)};
        }
    });
    return found;
}

// Gives up the first requests of the queue, before the batch.
void Adaptive::give_up_first(const Candidate& chosen) {
    victims_.clear();
    for (std::uint32_t place = 0; place < chosen.given_up; ++place) {
        victims_.push_back((*chosen.queue)[chosen.first + place]);
    }
    for (const Waiting& victim : victims_) {
        if (!victim.pending->answered) {
            parts_.dropper.drop(*chosen.queue, victim);
        }
    }
}

// The first requests of a model that the arena loads: the tightest of them, if its other executors are not
// free in time for as many models. Nothing waits for an overdue load.
Adaptive::Coming Adaptive::first_coming(const Executor& executor) const {
    const Arena& arena = *executor.arena;
    Coming found;
    std::uint32_t comes = 0;
    for_each_coming(arena, [&](const Residency& residency) {
        if (residency.ready_ns <= parts_.state.now) {
            return;
        }
        auto is_elsewhere = [&] {
            const std::vector<Residency*>& there = residency.model->residencies;
            return std::any_of(there.begin(), there.end(), [&](const Residency* other) {
                return other != &residency && !parts_.queues.is_too_slow(*residency.model, *other->spec);
            });
        };
        for (const auto& queue : parts_.queues.of(*residency.model)) {
            if (queue->empty()) {
                continue;
            }
            const Waiting& front = queue->front();
            std::uint32_t rows = std::max(std::min(queue->rows(), residency.spec->batch_max), front.size);
            Ns latest = front.deadline_ns - arena.worker->back_ns - takes_ns(*residency.spec, queue->shape, front.size);
            comes += residency.ready_ns <= latest;
            if (residency.ready_ns <= latest && latest < found.latest_ns) {
                Ns takes = takes_ns(*residency.spec, queue->shape, rows);
                found = {residency.ready_ns, latest, takes, is_elsewhere() ? residency.model : nullptr};
            }
        }
    });
    for (const Executor* other = arena.executors.front(); other != nullptr && comes > 0; other = other->after) {
        comes -= other != &executor && other->free_ns(parts_.state.now) <= found.latest_ns;
    }
    return comes > 0 ? found : Coming();
}

// Leaves a batch that would make requests late whose model is about to be loaded, if it can wait for them or
// another device can serve it. True: it is left.
bool Adaptive::make_way(const Executor& executor, const Candidate& candidate, const Coming& coming, Ns free_ns) {
    if (free_ns + candidate.duration_ns <= coming.latest_ns || coming.ready_ns - free_ns > candidate.duration_ns) {
        return false;
    }
    if (coming.elsewhere != nullptr && !parts_.memory->is_needed(*coming.elsewhere, executor)) {
        return false;
    }
    if (candidate.own_start_ns >= std::max(coming.ready_ns, free_ns) + coming.takes_ns) {
        return true;
    }
    bool is_due_later = candidate.own_start_ns > coming.latest_ns;
    if (!is_due_later && !parts_.memory->is_served_elsewhere(first_of(candidate), executor)) {
        return false;
    }
    parts_.memory->press(*candidate.queue);
    return true;
}

// Instead of a batch that another device can serve, takes one of the model that the device loaded last, if no
// other device has that and it could not wait.
void Adaptive::prefer_only_copy(const Executor& executor, Ns free_ns, Candidate& chosen) {
    Residency* last = executor.arena->resident.back();
    if (chosen.queue->model->residencies.size() < 2 || last == chosen.residency || !is_usable(last) ||
        last->model->residencies.size() > 1) {
        return;
    }
    for (const auto& queue : parts_.queues.of(*last->model)) {
        Candidate only{};
        if (queue->ready && !queue->empty() && queue->level <= chosen.queue->level &&
            consider(*queue, *last, free_ns, only) && only.own_start_ns < free_ns + chosen.duration_ns) {
            if (parts_.memory->is_served_elsewhere(first_of(chosen), executor)) {
                parts_.memory->press(*chosen.queue);
                chosen = only;
            }
            return;
        }
    }
}

// Chooses the device's next batch, and the requests that it gives up. False: there is none.
bool Adaptive::pick(Executor& executor, Ns free_ns, Candidate& chosen) {
    keep_time();
    // On a divided device, models that are not modest are ranked as if due later, by the least SLO of models
    // within their shares; by less where several devices become free within that time. Devices that wait for
    // the same link do not.
    bool is_shared = is_divided(*executor.arena, parts_.state.now);
    auto is_behind = [&](const Residency& residency) { return is_shared && !residency.share.is_modest; };
    Ns behind = is_shared ? executor.arena->shares.slack_min_ns : 0;
    if (is_shared && executor.worker->inputs_asked.rate(parts_.state.now) <= 1) {
        behind /= static_cast<Ns>(parts_.state.executors.size());
    }
    candidates_.clear();
    yields_ = false;
    Coming coming = first_coming(executor);
    // Models on every device leave the rest of their queue to the others, and are ranked among each other by
    // the last start: a long queue is worth beginning early. The best of them, and of the others, is found.
    Candidate everywhere{}, best{};
    // Lower bounds of the rank prune most queues: the queue's rank is its deadline; the last start is earlier
    // by the way back and by late inputs; for models on every device also by a full batch. Queues of the
    // lowest level cannot go before others.
    const InputsWay& way = executor.worker->inputs;
    Ns covered = free_ns - way.late_message_ns(parts_.state.now, executor.worker->there_ns);
    Ns latest = way.takes_ns(parts_.state.now, batch_bytes_max_) +
                executor.worker->copies.takes_ns(parts_.state.now, batch_copied_max_);
    Ns nearer = executor.worker->back_ns + (latest > 0 ? std::max<Ns>(latest + 1 - covered, 0) : 0);
    std::uint32_t lowest = parts_.requests.lowest_level();
    bool is_level = parts_.requests.is_one_level();
    // Queues with a packed rank at or above it are not better than the best.
    std::uint64_t bound = UINT64_MAX;
    std::size_t arenas = parts_.state.executors.size() > 1 ? parts_.state.arenas.size() : SIZE_MAX;
    auto is_everywhere = [arenas](const Model& model) { return model.residencies.size() >= arenas; };
    double share = margin(executor.arena->kind);
    auto is_wanted = [&](const Model& model, std::uint64_t rank) { return rank < bound || is_everywhere(model); };
    parts_.queues.for_each_ready(*executor.arena, is_wanted, [&](Queue& queue, Residency& residency) {
        bool leaves_rest = is_everywhere(*queue.model);
        Candidate& first = leaves_rest ? everywhere : best;
        if (first.queue != nullptr && queue.level >= lowest) {
            const KindSpec& spec = *residency.spec;
            Ns earliest = queue.front().deadline_ns;  // lower bound of the batch's last start
            earliest -= nearer - (is_behind(residency) ? behind : 0);
            if (leaves_rest) {
                earliest -= Durations(spec, queue.shape, share)(std::min(queue.rows(), spec.batch_max));
            }
            if (earliest >= first.rank_ns) {
                return;
            }
        }
        Candidate considered{};
        if (consider(queue, residency, free_ns, considered)) {
            if (make_way(executor, considered, coming, free_ns)) {
                if (considered.own_start_ns > parts_.state.now) {
                    executor.wake_at(considered.own_start_ns);
                }  // otherwise the end of the load wakes the device
                yields_ = true;
                return;
            }
            auto rank = [&](Candidate& candidate) {
                Ns later = is_behind(residency) ? behind : 0;
                candidate.due_ns = candidate.start_ns + candidate.duration_ns + later;
                candidate.rank_ns = leaves_rest ? candidate.own_start_ns + later : candidate.due_ns;
                candidate.level = candidate.queue->level;
            };
            rank(considered);
            if (Candidate lead{}; !is_level && find_lead(considered, free_ns, lead)) {
                rank(lead);
                if (considered.rank_ns < lead.rank_ns) {
                    lead.rank_ns = considered.rank_ns;
                    lead.due_ns = considered.due_ns;
                    lead.level = considered.level;
                }
                considered = lead;
            }
            candidates_.push_back(considered);
            if (first.queue == nullptr || considered.rank_ns < first.rank_ns) {
                first = considered;
                if (is_level && !leaves_rest) {
                    bound = packed_rank(queue.level, best.rank_ns + nearer);
                }
            }
        }
    });
    if (everywhere.queue != nullptr && (best.queue == nullptr || everywhere.due_ns <= best.due_ns)) {
        best = everywhere;
    }
    if (best.queue == nullptr) {
        return false;
    }
    // A higher level goes first if it could not wait for the end of the best batch, or if that batch is still
    // in time behind it.
    Candidate urgent{};
    // Whether a candidate may begin this much later: its first request must not wait so long that the rest of
    // the queue is late.
    auto can_wait = [&](const Candidate& candidate, Ns time_ns) {
        Ns each = candidate.duration_ns / (candidate.count + candidate.filled);
        Ns rest = candidate.queue->size() > candidate.count ? each * (candidate.queue->size() - candidate.count) : 0;
        return candidate.own_start_ns - rest >= free_ns + time_ns;
    };
    for (const Candidate& candidate : candidates_) {
        bool may_pass =
            candidate.level < best.level && (!is_behind(*candidate.residency) || is_behind(*best.residency));
        bool goes_first = may_pass &&
                          (!can_wait(candidate, best.duration_ns) || can_wait(best, candidate.duration_ns)) &&
                          !has_other_device(*candidate.queue->model);
        if (goes_first &&
            (urgent.queue == nullptr || candidate.queue->level < urgent.queue->level ||
             (candidate.queue->level == urgent.queue->level && candidate.own_start_ns < urgent.own_start_ns))) {
            urgent = candidate;
        }
    }
    chosen = urgent.queue != nullptr ? urgent : best;
    if (urgent.queue == nullptr && !is_shared) {
        prefer_only_copy(executor, free_ns, chosen);
    }
    return true;
}

void Adaptive::model_gone(Model& model) {
    Traffic& known = traffic_.of(model);
    cost_sum_ -= known.cost;
    square_sum_ -= known.cost * known.cost;
    known = Traffic();
}

}  // namespace clockwork
