// Set-up of a simulated world: workers join, models become ready and perhaps resident, clients start.
#include <algorithm>
#include <stdexcept>
#include <utility>
#include <vector>

#include "sim/world.h"

namespace clockwork::sim {

namespace {

constexpr std::uint32_t PRELOADS_AT_ONCE = 16;  // bound for each worker: their windows are a second long
// rounds without an accepted load, in which models are only fetched
constexpr std::size_t PRELOAD_WAITS_MAX = 4;
constexpr Ns SET_UP_LIMIT_NS = 3600 * SECOND;
constexpr Ns UNLOAD_NS = 20'000;

}  // namespace

World::World(std::unique_ptr<Scheduler> scheduler, std::vector<ModelSetup> models, const ClusterSetup& cluster,
             std::size_t opens, std::vector<ClosedSetup> closed, const RunSetup& run)
    : scheduler_(std::move(scheduler)),
      models_(std::move(models)),
      cluster_(cluster),
      closed_(std::move(closed)),
      run_(run),
      opens_(opens),
      random_(run.seed, 1) {
    if (models_.empty())
        throw std::invalid_argument("a world without models");
    if (cluster_.devices < 1 || cluster_.devices_per_worker < 1 || cluster_.executors < 1) {
        throw std::invalid_argument("a world without devices");
    }
    for (const ModelSetup& model : models_) {
        if (model.exec_ns.empty() || model.batch_max < 1 || model.table.size() <= model.batch_max) {
            throw std::invalid_argument("a model without its execution times");
        }
    }
    for (const ClosedSetup& group : closed_) {
        if (group.model >= models_.size())
            throw std::invalid_argument("a client of a model that is none");
        if (run_.until_ns == NEVER_NS && group.until_ns == NEVER_NS) {
            throw std::invalid_argument("closed-loop clients that never stop: until_ns is missing");
        }
        if (group.think_ns + group.round_trip_ns <= 0) {
            throw std::invalid_argument("closed-loop clients that take no time between two requests");
        }
    }
    if (cluster_.host_bytes > 0 && !scheduler_->plans_fetches()) {
        throw std::invalid_argument("this policy cannot plan for a host store with a budget (host_bytes)");
    }
    if (cluster_.host_bytes > 0 && cluster_.store_bytes > 0)
        throw std::invalid_argument("a worker has a host store (host_bytes) or a disk store (store_bytes), not both");
    settings_.page_count = cluster_.page_count;
    settings_.run_ahead = cluster_.run_ahead;
    settings_.unload_ns = UNLOAD_NS;
    if (!(cluster_.slowdown >= 1))
        throw std::invalid_argument("a slowdown by neighbours below 1");
    settings_.slowdown = cluster_.slowdown;
    settings_.exec_noise = cluster_.exec_noise;
    settings_.load_noise = cluster_.load_noise;
    settings_.exec_outlier = settings_.load_outlier = cluster_.outlier;
    settings_.outlier_factor = cluster_.outlier_factor;
    settings_.load_refusals = cluster_.load_failures;
    settings_.exec_failures = cluster_.infer_failures;
    settings_.copy_bandwidth = cluster_.copy_bandwidth;
    settings_.disk_bandwidth = cluster_.store_bytes > 0 ? cluster_.store_bandwidth : cluster_.disk_bandwidth;
    scheduler_->shape_known(0, 1);
    worker_of_.push_back(NONE);  // place 0 is unused, because WorkerIds begin at 1
    if (cluster_.workers.empty()) {
        for (std::uint32_t left = cluster_.devices; left > 0;) {
            const std::uint32_t own = std::min(cluster_.devices_per_worker, left);
            cluster_.workers.push_back({own, cluster_.executors, 0, {}, {}});
            left -= own;
        }
    }
    const auto count = static_cast<std::uint32_t>(cluster_.workers.size());
    std::uint32_t device_count = 0;
    for (const WorkerSetup& own : cluster_.workers) {
        if (own.devices < 1 || own.executors < 1)
            throw std::invalid_argument("a worker without devices");
        if (own.exec_ns.size() != own.tables.size() || (!own.exec_ns.empty() && own.exec_ns.size() != models_.size()))
            throw std::invalid_argument("a worker with times of its own that are not of every model");
        for (std::size_t model = 0; model < own.exec_ns.size(); ++model) {
            if (!own.exec_ns[model].empty() && own.tables[model].size() <= models_[model].batch_max)
                throw std::invalid_argument("a model without its execution times");
        }
        device_count += own.devices;
    }
    devices_.reserve(device_count);
    workers_.resize(count);
    for (std::uint32_t index = 0; index < count; ++index) {
        WorkerState& worker = workers_[index];
        worker.random = Random(run_.seed, 1000 + index);
        const WorkerSetup& own = cluster_.workers[index];
        worker.first_device = static_cast<std::uint32_t>(devices_.size());
        worker.device_count = own.devices;
        worker.kind = own.kind;
        worker.own = own.exec_ns.empty() ? nullptr : &own;
        if (!cluster_.speeds.empty()) {
            worker.kind = index % static_cast<std::uint32_t>(cluster_.speeds.size());
            worker.speed = cluster_.speeds[worker.kind];
            if (!(worker.speed > 0))
                throw std::invalid_argument("a speed must be above 0");
        }
        worker.offset_ns =
            static_cast<Ns>((2 * worker.random.uniform() - 1) * static_cast<double>(cluster_.clock_offset_ns));
        if (cluster_.host_bytes > 0 || cluster_.store_bytes > 0)
            worker.store.emplace(cluster_.host_bytes + cluster_.store_bytes);
        worker.drift = (2 * worker.random.uniform() - 1) * cluster_.clock_drift_ppm * 1e-6;
        for (std::uint32_t number = 0; number < worker.device_count; ++number) {
            const std::uint32_t device = worker.first_device + number;
            emulated::EmulatedHostStore* store = worker.store ? &*worker.store : nullptr;
            const std::uint32_t arena = number - number % own.executors;
            devices_.push_back({index, number, arena, ActionQueue(cluster_.run_ahead, cluster_.actions_queued_max),
                                emulated::EmulatedDevice(settings_, &worker.link, store, device, worker.speed,
                                                         Random(run_.seed, 1'000'000 + device))});
            if (arena != number)
                devices_.back().lanes.execute_from(devices_[worker.first_device + arena].lanes);
        }
    }
    is_aside_.resize(models_.size());
    accounts_.models.resize(models_.size());
    accounts_.classes.resize(CLASSES);
    accounts_.busy_ns.resize(devices_.size());
    accounts_.link_busy_ns.resize(workers_.size());
}

// ----- setting up -------------------------------------------------------------------------------

void World::set_up() {
    now_ = SECOND;  // 0 stands for "never" in some fields
    if (cluster_.store_bytes > 0)
        place_copies();
    for (std::uint32_t index = 0; index < workers_.size(); ++index)
        join(index);
    settle();
    drain_set_up();
    if (run_.resident || !run_.placed.empty())
        preload();
    base_ns_ = (now_ / MS + 1) * MS;
    count_from_ = base_ns_ + run_.warmup_ns;
    count_until_ = run_.until_ns == NEVER_NS ? NEVER_NS : base_ns_ + run_.until_ns;
    scheduler_->judge_predictions(count_from_, count_until_);
    now_ = base_ns_;
    begun_ = true;
    settings_.spells = cluster_.spells;
    for (auto& [from_ns, factor] : settings_.spells)
        from_ns += base_ns_;
    start_disturbances();
    for (std::uint32_t number = 0; number < closed_.size(); ++number) {
        const ClosedSetup& group = closed_[number];
        const Ns spread = group.think_ns + group.round_trip_ns;
        clients_left_ += group.concurrency;
        for (std::uint32_t client = 0; client < group.concurrency; ++client) {
            const Ns at = group.start_ns + static_cast<Ns>(random_.below(static_cast<std::uint64_t>(spread)));
            heap_.push(base_ns_ + at, EventKind::CLIENT, number, 0, 0);
        }
    }
    if (cluster_.crashes_per_hour > 0) {
        for (std::uint32_t index = 0; index < workers_.size(); ++index)
            next_crash(index);
    }
    scheduler_ns_ = 0;
}

void World::next_crash(std::uint32_t index) {
    const double mean = 3600.0 * SECOND / cluster_.crashes_per_hour;
    const double wait = std::min(workers_[index].random.exponential(mean), 1e17);
    const Ns at = now_ + static_cast<Ns>(wait);
    if (at < count_until_)
        heap_.push(at, EventKind::CRASH, index, 0, 0);
}

// Runs all pending events.
void World::drain_set_up() {
    const Ns limit = now_ + SET_UP_LIMIT_NS;
    while (!heap_.empty()) {
        now_ = heap_.top().at_ns;
        demand(now_ < limit, "setting up does not come to an end");
        while (!heap_.empty() && heap_.top().at_ns == now_)
            handle(heap_.pop());
        if (wake_ns_ <= now_) {
            wake_ns_ = NEVER_NS;
            touched_ = true;
        }
        if (touched_)
            settle();
    }
}

// Spreads the models over the workers' disk stores, with as many copies as they should have: one after the
// other, on the next workers with room.
void World::place_copies() {
    for (std::uint32_t index = 0; index < workers_.size(); ++index)
        measure(index);
    std::size_t next = 0;
    for (std::uint32_t model = 0; model < models_.size(); ++model) {
        std::uint32_t left =
            std::min<std::uint32_t>(cluster_.stored_copies, static_cast<std::uint32_t>(workers_.size()));
        const std::size_t first = next;
        for (std::size_t step = 0; step < workers_.size() && left > 0; ++step) {
            const std::size_t index = (first + step) % workers_.size();
            if (workers_[index].store->keep(static_cast<ModelId>(model), bytes_of(workers_[index], model))) {
                --left;
                next = index + 1;
            }
        }
    }
}

// Loads the models of run_.placed, each into the arena of its device. Without it: every model into every
// arena if all fit, else as many copies as fit, spread over the arenas.
void World::preload() {
    struct Room {
        std::uint64_t free;
        std::vector<bool> has;
    };
    const std::uint32_t most_extra = cluster_.extra_pages.empty() ? 0 : std::ranges::max(cluster_.extra_pages);
    std::vector<Room> rooms(devices_.size(), Room{cluster_.page_count, std::vector<bool>(models_.size())});
    std::vector<std::pair<std::uint32_t, std::uint32_t>> wanted;  // pairs of device and model
    for (bool placed = run_.resident; placed;) {
        placed = false;
        for (std::uint32_t model = 0; model < models_.size(); ++model) {
            std::uint64_t pages = 0;
            for (std::uint32_t run : models_[model].runs)
                pages += run;
            pages += most_extra;
            std::size_t best = rooms.size();
            for (std::size_t number = 0; number < rooms.size(); ++number) {
                if (!has_arena(devices_[number]) || rooms[number].has[model] || rooms[number].free < pages)
                    continue;
                if (!serves(workers_[devices_[number].worker], model))
                    continue;
                if (cluster_.store_bytes > 0 &&
                    !workers_[devices_[number].worker].store->holds(static_cast<ModelId>(model)))
                    continue;
                if (best == rooms.size() || rooms[number].free > rooms[best].free)
                    best = number;
            }
            if (best == rooms.size())
                continue;
            rooms[best].has[model] = true;
            rooms[best].free -= pages;
            wanted.emplace_back(static_cast<std::uint32_t>(best), model);
            placed = true;
        }
    }
    for (const auto& [number, model] : run_.placed) {
        const Device& device = devices_[number];
        wanted.emplace_back(workers_[device.worker].first_device + device.arena, model);
    }
    std::size_t accepted = 0;
    std::vector<std::uint32_t> under_way(workers_.size());
    std::size_t waited = 0;
    while (!wanted.empty()) {
        const std::size_t before = accepted;
        std::fill(under_way.begin(), under_way.end(), 0);
        std::vector<std::pair<std::uint32_t, std::uint32_t>> later;
        for (const auto& [number, model] : wanted) {
            const Device& device = devices_[number];
            if (under_way[device.worker] >= PRELOADS_AT_ONCE) {
                later.emplace_back(number, model);
                continue;
            }
            ++under_way[device.worker];
            const bool is_accepted =
                scheduler_->preload(now_, workers_[device.worker].id, static_cast<std::int32_t>(device.index), model);
            accepted += is_accepted;
            if (!is_accepted && workers_[device.worker].store)
                later.emplace_back(number, model);  // the model is fetched first
        }
        waited = accepted > before ? 0 : waited + 1;
        if (accepted == 0 && (!workers_.front().store || waited > PRELOAD_WAITS_MAX))
            throw std::invalid_argument("this policy does not preload models");
        settle();
        drain_set_up();
        if (waited > PRELOAD_WAITS_MAX)
            break;  // the stores have no room for the rest
        wanted.swap(later);
    }
}

}  // namespace clockwork::sim
