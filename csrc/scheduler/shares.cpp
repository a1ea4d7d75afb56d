#include "scheduler/shares.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "scheduler/machines.h"

namespace clockwork {

namespace {

// The cost of a row in the cheapest batch that runs for no longer than half of the SLO.
double batched_ns(Curve& curve, std::uint32_t batch_max, Ns slack_ns) {
    double least = static_cast<double>(curve.planned_ns(1));
    for (std::uint32_t rows = 2; rows <= batch_max; rows *= 2) {
        Ns takes = curve.planned_ns(rows);
        if (takes > slack_ns / 2) {
            break;
        }
        least = std::min(least, static_cast<double>(takes) / rows);
    }
    return least;
}

// The device time per nanosecond that a model asks for in an arena, of which `asked` was counted: at least
// its part of what surely arrives now.
double asked_now(const Residency& residency, double asked, Ns now) {
    const Model& model = *residency.model;
    ArrivalRate recent = model.asked;
    recent.advance(now);
    return std::max(asked, recent.rate(-ASKED_SIGMAS) / model.servers * residency.arena->width());
}

// Whether the last requests ask for no more than the device's time. The sums over the window still contain a
// surge that has ended, and a division by them would refuse requests that nothing competes with. Where
// executions take longer than expected, the expected times of requests do not say so.
bool is_surge_over(const Arena& arena, Ns now) {
    if (arena.asked.rate_at_most(now, ASKED_SIGMAS) > SHARE_ASKED * arena.width() || has_overdue(arena, now)) {
        return false;
    }
    const Residency* residency = arena.resident.front();
    while (residency != nullptr && !residency->share.is_mistaken(now)) {
        residency = arena.resident.next(residency);
    }
    return residency == nullptr;
}

void divide(Arena& arena, Ns now) {
    DeviceShares& shares = arena.shares;
    shares = {shares.contested_until_ns, now};
    bool is_late = has_overdue(arena, now);
    std::vector<double> wanted;
    for (Residency* residency = arena.resident.front(); residency != nullptr;
         residency = arena.resident.next(residency)) {
        residency->share.is_greedy = residency->share.is_beyond = false;
        if (double rate = use_of(*residency, residency->share, now, is_late).asked; rate > 0) {
            wanted.push_back(rate);
        }
    }
    shares.asked = std::accumulate(wanted.begin(), wanted.end(), 0.0);
    if (level_of(wanted, arena.width(), SHARE_ASKED) == 0 || is_surge_over(arena, now)) {
        return;
    }
    wanted.clear();
    for (Residency* resident = arena.resident.front(); resident != nullptr; resident = arena.resident.next(resident)) {
        double rate = use_of(*resident, resident->share, now, is_late).asked;
        wanted.push_back(asked_now(*resident, rate, now));
    }
    std::vector<double> asked = wanted;  // in the order of the device's models
    double level = level_of(wanted, arena.width(), SHARE_ASKED), had_sum = 0;
    shares.level = level;
    std::size_t greedy_count = 0, place = 0;
    for (Residency* resident = arena.resident.front(); resident != nullptr; resident = arena.resident.next(resident)) {
        if (asked[place++] > level) {
            had_sum += use_of(*resident, resident->share, now, is_late).had;
            ++greedy_count;
        }
    }
    place = 0;
    double had_mean = had_sum / static_cast<double>(std::max<std::size_t>(greedy_count, 1));
    bool some_within = false;
    for (Residency* other_residency = arena.resident.front(); other_residency != nullptr;
         other_residency = arena.resident.next(other_residency)) {
        ModelShare& share = other_residency->share;
        ShareUse use = use_of(*other_residency, other_residency->share, now, is_late);
        double wants = asked[place++];
        share.is_modest = wants <= SHARE_MODEST * level;
        share.is_greedy = wants > level;
        share.is_beyond = share.is_greedy && use.had >= had_mean;
        share.sigmas = std::clamp(wants / level, SHARE_SIGMAS_MIN, SHARE_SIGMAS_MAX);
        if (share.is_beyond || share.arrivals == 0 || now - share.asked_ns > ACTIVE_NS) {
            continue;
        }
        double requests = share.requests.rate(now), alone = static_cast<double>(share.alone_ns);
        // At fewer than one request within an SLO, requests do not meet in a batch.
        bool is_rare = requests * static_cast<double>(share.slack_ns) < 1;
        double each = is_rare ? alone : share.batched_ns;
        double takes = std::min(requests * each, level);
        shares.busy += takes / arena.width();
        shares.spread_ns += takes * each / arena.width();
        shares.alone_max_ns = std::max(shares.alone_max_ns, share.alone_ns);
        // With several devices that hold the model, the next is free that much sooner.
        Ns copies = static_cast<Ns>(other_residency->model->servers);
        shares.slack_min_ns = std::min(shares.slack_min_ns, share.slack_ns);
        shares.batch_max_ns = std::min(shares.batch_max_ns, share.slack_ns * copies / SHARE_BATCH_PART);
        some_within = true;
    }
    shares.is_divided = some_within;
    shares.busy = std::min(shares.busy, SHARE_BUSY_MAX);
}

}  // namespace

double level_of(std::vector<double>& wanted, double there, double enough) {
    if (std::accumulate(wanted.begin(), wanted.end(), 0.0) <= there * enough) {
        return 0;
    }
    double left = there;
    std::sort(wanted.begin(), wanted.end());
    for (std::size_t place = 0; place < wanted.size(); ++place) {
        double level = left / static_cast<double>(wanted.size() - place);
        if (wanted[place] >= level) {
            return level;
        }
        left -= wanted[place];
    }
    return 0;
}

void ask_for(Residency& residency, Ns now, const AskedFor& request) {
    ModelShare& share = residency.share;
    const KindSpec& spec = *residency.spec;
    Arena& arena = *residency.arena;
    auto [shape, rows, bytes, slack_ns] = request;
    if (Ns takes = arena.worker->inputs.takes_ns(now, bytes); takes > 0) {
        arena.inputs_asked.add(now, static_cast<double>(takes));
        arena.worker->inputs_asked.add(now, static_cast<double>(takes));
    }
    if (share.arrivals++ % SHARE_COST_EVERY == 0) {
        Curve* curve = spec.program->curve(shape);
        Ns takes = inputs_ns(arena, now, bytes);
        share.alone_ns = std::max(spec.alone_ns(shape, rows), takes);
        double each = curve != nullptr ? batched_ns(*curve, spec.batch_max, slack_ns)
                                       : static_cast<double>(share.alone_ns) / rows;
        each = std::max(each, static_cast<double>(takes) / rows);
        bool is_first = share.arrivals == 1;
        share.batched_ns += (each - share.batched_ns) * (is_first ? 1 : SHARE_COST_PART);
        share.slack_ns = slack_ns;
    }
    share.slack_ns = std::min(share.slack_ns, slack_ns);
    share.asked_ns = now;
    share.asked.add(now, share.batched_ns * rows);
    arena.asked.add(now, share.batched_ns * rows);
    if (arena.shares.is_divided && is_surge_over(arena, now)) {
        arena.shares.is_divided = false;
    }
    residency.model->asked.advance(now);
    residency.model->asked.add(share.batched_ns * rows);
    share.requests.add(now, 1);
}

Ns inputs_due_ns(Arena& arena, Ns now, Ns ahead) {
    Ns due = arena.worker->inputs.free_ns() - ahead;
    return due > now && is_divided(arena, now) ? due : now;
}

void charge(Residency& residency, Ns now, Ns charged_ns) {
    residency.share.had.add(now, static_cast<double>(charged_ns));
}

Ns inputs_ns(Arena& arena, Ns now, std::uint64_t bytes) {
    Ns takes = arena.worker->inputs.takes_ns(now, bytes);
    if (takes == 0) {
        return 0;
    }
    double all = arena.worker->inputs_asked.rate(now), here = arena.inputs_asked.rate(now);
    return all > 1 && here > 0 ? static_cast<Ns>(static_cast<double>(takes) * std::max(all / here, 1.0)) : takes;
}

void charge_overdue(Residency& residency, Ns now, Ns excess_ns) {
    ModelShare& share = residency.share;
    share.excess.add(now, static_cast<double>(excess_ns));
    share.overdue = now - share.overdue_ns < OVERDUE_AGE_NS ? std::min(share.overdue + 1, OVERDUE_COUNT) : 1;
    share.overdue_ns = now;
    share.mistaken_until_ns =
        now + (share.overdue < OVERDUE_COUNT ? std::min(excess_ns, OVERDUE_AGE_NS) : OVERDUE_AGE_NS);
    share.is_excused = false;
    residency.arena->shares.contested_until_ns = now + OVERDUE_AGE_NS;
    residency.arena->shares.divided_ns = -NEVER_NS;  // so that the next decision includes it
}

void excuse_overdue(Residency& residency) {
    ModelShare& share = residency.share;
    if (share.is_excused || share.overdue == 0 || share.overdue >= OVERDUE_COUNT) {
        return;
    }
    share.is_excused = true;
    share.excess = {};
    residency.arena->shares.divided_ns = -NEVER_NS;
}

bool has_overdue(const Arena& arena, Ns now) {
    const Executor* executor = arena.executors.front();
    while (executor != nullptr && !executor->is_overdue(now)) {
        executor = executor->after;
    }
    return executor != nullptr;
}

ShareUse use_of(const Residency& residency, ModelShare& share, Ns now, bool has_overdue) {
    ShareUse use{share.asked.rate(now), share.had.rate(now)};
    double excess = share.excess.rate(now);
    bool is_overdue = share.is_mistaken(now);
    if (!is_overdue && !has_overdue) [[likely]] {
        return use;
    }
    for (const Executor* executor = residency.arena->executors.front(); executor != nullptr;
         executor = executor->after) {
        if (executor->is_overdue(now) && executor->lane.front()->residency == &residency) {
            excess += static_cast<double>(now - executor->head_end_ns) / static_cast<double>(SHARE_WINDOW_NS);
            is_overdue = true;
        }
    }
    if (!is_overdue) {
        return use;
    }
    // Batches that were taken back were charged, perhaps in the window before: the charge may be negative.
    double charged = std::max(use.had, 0.0), had = charged + excess, width = residency.arena->width();
    double unknown = SHARE_UNKNOWN * width;
    bool is_unknown = share.overdue >= OVERDUE_COUNT && had > SHARE_OVERDUE * width;
    double asked = use.asked * had < unknown * charged ? use.asked * had / charged : unknown;
    use.asked = std::max({use.asked, had, is_unknown ? unknown : use.asked > 0 ? asked : 0});
    use.had = had;
    return use;
}

void contest_devices(Model& model, Ns now) {
    std::size_t count = model.residencies.size(), first = count > CONTEST_MAX ? model.asked_cursor % count : 0;
    for (std::size_t place = 0; place < std::min(count, CONTEST_MAX); ++place) {
        Ns& until = model.residencies[(first + place) % count]->arena->shares.contested_until_ns;
        until = std::max(until, now + CONTEST_NS);
    }
}

bool is_divided(Arena& arena, Ns now) {
    if (now >= arena.shares.contested_until_ns) {
        return false;
    }
    if (now >= arena.shares.divided_ns + DIVIDE_EVERY_NS) {
        divide(arena, now);
    }
    return arena.shares.is_divided;
}

bool is_asked_for(Arena& arena, Ns now, double part) {
    is_divided(arena, now);
    return now < arena.shares.contested_until_ns && arena.shares.asked >= part * arena.width();
}

bool is_beyond_share(Residency& residency, Ns now) {
    return is_divided(*residency.arena, now) && residency.share.is_beyond;
}

Ns passing_ns(const Residency& residency, Ns wait_ns) {
    const DeviceShares& shares = residency.arena->shares;
    double until = static_cast<double>(std::max<Ns>(wait_ns, 0) + shares.alone_max_ns) / (1 - shares.busy);
    until += residency.share.sigmas * std::sqrt(shares.spread_ns * until);
    return static_cast<Ns>(until) - wait_ns;
}

}  // namespace clockwork
