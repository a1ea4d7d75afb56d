#include "scheduler/demand.h"

#include <algorithm>
#include <cmath>

#include "scheduler/machines.h"

namespace clockwork {

namespace {

constexpr double LIFE_NS = static_cast<double>(DEMAND_HALF_LIFE_NS) / 0.6931471805599453;

// The factor by which a count shrinks in this time. Unlike decay(), it is the same in many short steps as in
// a long one; no decision depends on its last bits.
double left_after(Ns past_ns) { return std::exp(-static_cast<double>(past_ns) / LIFE_NS); }

// Memory demand of a model: its pages on its devices, or its part of the links' time. Both count for as many
// devices as share an arena.
struct Stay {
    double pages;    // pages, as parts of an arena
    double loading;  // loading time, as parts of a link; infinite: the model has to stay
};

// Requests of a model that does not batch, and the time that they can wait.
struct Wait {
    double requests;
    double room_ns;
};

// The preparation by which a model is counted: the preparation of a device that has the model, otherwise of a
// device that could load it.
const KindSpec* spec_of(const Model& model) {
    if (!model.residencies.empty()) {
        return model.residencies.front()->spec;
    }
    for (const KindSpec* spec : model.specs) {
        if (spec->worker_count > 0) {
            return spec;
        }
    }
    return nullptr;
}

// An arena of the kind that the model was prepared for; null: there is none with pages.
const Arena* arena_of(const KindSpec& spec, const std::vector<Arena*>& arenas) {
    auto found =
        std::find_if(arenas.begin(), arenas.end(), [&](const Arena* arena) { return arena->kind == spec.kind; });
    return found != arenas.end() && (*found)->pages.page_count() > 0 ? *found : nullptr;
}

// The least number of devices that have both the room for the models that stay resident and the link time to
// load the others, over all choices of the models that stay.
double memory_devices(std::vector<Stay>& models) {
    auto saves = [](const Stay& stay) { return stay.pages > 0 ? stay.loading / stay.pages : INFINITY; };
    std::stable_sort(models.begin(), models.end(), [&](const Stay& a, const Stay& b) { return saves(a) > saves(b); });
    double loading = 0, pages = 0;
    std::size_t first = 0;
    for (; first < models.size() && std::isinf(models[first].loading); ++first) {
        pages += models[first].pages;
    }
    for (std::size_t place = first; place < models.size(); ++place) {
        loading += models[place].loading;
    }
    double least = std::max(pages, loading / DEMAND_LOADING);
    for (std::size_t place = first; place < models.size(); ++place) {
        pages += models[place].pages;
        loading -= models[place].loading;
        least = std::min(least, std::max(pages, loading / DEMAND_LOADING));
    }
    return least;
}

// The least number of devices with which at most late_max of the requests wait for too long; at most `most`.
double chance_devices(const std::vector<Wait>& waits, double load, double run_ns, double late_max, double most) {
    double free = 1;  // Erlang's B: the probability that none of `count` devices is free
    for (double count = 1; run_ns > 0 && count < most; ++count) {
        free = load * free / (count + load * free);
        if (count <= load) {
            continue;
        }
        double all_busy = count * free / (count - load * (1 - free)), late = 0;
        for (const Wait& wait : waits) {
            late += wait.requests * all_busy * std::exp(-2 * (count - load) * wait.room_ns / run_ns);
        }
        if (late <= late_max) {
            // Interpolated between count - 1, which does not suffice, and count.
            return count - 1 + late / late_max;
        }
    }
    return run_ns > 0 ? most : 0;
}

}  // namespace

double Demand::span_ns(Ns now) const {
    return LIFE_NS * (1 - left_after(std::max(now - since_ns_, DEMAND_PAST_MIN_NS)));
}

void Demand::add(Ns now, const Pending& pending) {
    if (pending.request.is_spare) {
        return;
    }
    if (since_ns_ < 0) {
        since_ns_ = now;
    }
    ModelDemand& known = pending.model->demand;
    double left = left_after(now - known.counted_ns);
    known.rows = known.rows * left + pending.size;
    known.requests = known.requests * left + 1;
    known.counted_ns = now;
    if (known.arrivals++ % DEMAND_EVERY != 0) {
        return;
    }
    double looks = std::min(known.arrivals / DEMAND_EVERY + 1, DEMAND_EVERY);
    double slack = static_cast<double>(pending.deadline_ns - now);
    known.slack_ns += (slack - known.slack_ns) / looks;
    Cost found = cost(*pending.model, pending.request.shape, slack, known.rows / span_ns(now));
    known.row_ns += (found.row_ns - known.row_ns) / looks;
    known.run_ns += (found.run_ns - known.run_ns) / looks;
    known.alone += (found.is_alone - known.alone) / looks;
}

Demand::Cost Demand::cost(const Model& model, std::uint32_t shape, double slack_ns, double rows_rate) {
    const KindSpec* spec = spec_of(model);
    if (spec == nullptr) {
        return {};
    }
    Curve* curve = spec->program->curve(shape);
    auto takes = [&](std::uint32_t rows) {
        return static_cast<double>(curve != nullptr ? curve->exec_ns(rows) : spec->alone_ns(shape, rows));
    };
    double room = slack_ns * DEMAND_BATCH;
    // Arrivals behind the first of a batch.
    double come = std::min(1 + rows_rate * room, static_cast<double>(spec->batch_max));
    std::uint32_t low = 1, high = std::max(static_cast<std::uint32_t>(come), 1u);
    if (takes(high) <= room) {
        low = high;
    }
    while (high - low > 1) {  // low is in time (or a single row, which has to be), high is not
        std::uint32_t middle = low + (high - low) / 2;
        (takes(middle) <= room ? low : high) = middle;
    }
    double alone = takes(1), run = takes(low), least = run / low;
    for (std::uint32_t rows = 1; rows < low; rows *= 2) {
        if (double takes_ns = takes(rows); takes_ns / rows < least) {
            run = takes_ns;
            least = takes_ns / rows;
        }
    }
    bool is_alone = alone <= least * DEMAND_ALONE;
    return {is_alone ? alone : least, is_alone ? alone : run, is_alone};
}

double Demand::devices_wanted(Ns now, const std::vector<Model*>& models, const std::vector<Arena*>& arenas) const {
    if (since_ns_ < 0) {
        return 0;
    }
    double span = span_ns(now), load = 0, weighted = 0, all = 0;
    std::vector<Stay> stays;
    std::vector<Wait> waits;
    for (const Model* model : models) {
        const ModelDemand& known = model->demand;
        double left = left_after(now - known.counted_ns), requests = known.requests * left;
        const KindSpec* spec = requests > DEMAND_FORGOTTEN ? spec_of(*model) : nullptr;
        if (spec == nullptr) {
            continue;
        }
        double own = known.rows * left / span * known.row_ns;
        load += own;
        weighted += own * known.run_ns;
        all += requests;
        waits.push_back({requests * known.alone, std::max(known.slack_ns - known.run_ns, 0.0)});
        if (const Arena* there = arena_of(*spec, arenas); there != nullptr) {
            double width = there->width(), loads = static_cast<double>(spec->load_expected_ns());
            double copies = std::max(std::ceil(own / DEMAND_BUSY / width), 1.0);
            bool can_wait = loads + known.run_ns <= known.slack_ns;
            stays.push_back({spec->page_count * copies / there->pages.page_count() * width,
                             can_wait ? requests / span * loads * width : INFINITY});
        }
    }
    double devices = 0;
    for (const Arena* arena : arenas) {
        devices += arena->width();
    }
    double most = DEMAND_GROWTH * std::max(devices, 1.0);
    double chance = chance_devices(waits, load, load > 0 ? weighted / load : 0, DEMAND_LATE * all, most);
    return std::min(std::max({load / DEMAND_BUSY, chance, memory_devices(stays)}), most);
}

}  // namespace clockwork
