#include "scheduler/worth.h"

#include <algorithm>

#include "scheduler/link_shares.h"

namespace clockwork {

void Worths::arrived(const Model& model, std::uint32_t rows, Ns slo_ns) {
    if (model.slot >= asked_.size()) {
        asked_.resize(model.slot + 1);
    }
    Asked& asked = asked_[model.slot];
    asked.count.add(state_.now, rows, RATE_HALF_LIFE_NS);
    asked.slo_ns = slo_ns;
}

void Worths::model_gone(const Model& model) {
    if (model.slot < asked_.size()) {
        asked_[model.slot] = {};
    }
}

double Worths::rate(const Model& model) const {
    return model.slot < asked_.size() ? asked_[model.slot].count.rate(state_.now, RATE_HALF_LIFE_NS) : 0;
}

// Whether a kind of device is fast enough for the SLO of the model's last request.
bool Worths::is_of_use(const Model& model, const KindSpec& spec) const {
    return model.specs.size() < 2 || model.slot >= asked_.size() || spec.alone_ns(0, 1) <= asked_[model.slot].slo_ns;
}

// The link time that a page of the copy saves: of the model's requests that find all its other copies busy,
// each would cause a load.
double Worths::worth(const Residency& residency, double busy) const {
    const Model& model = *residency.model;
    if (!is_of_use(model, *residency.spec)) {
        return 0;
    }
    double saved = rate(model) * static_cast<double>(residency.spec->load_planned_ns());
    for (const Residency* other : model.residencies) {
        if (other != &residency && is_promised(*other) && is_of_use(model, *other->spec)) {
            for (std::uint32_t count = other->arena->executors.size(); count > 0; --count) {
                saved *= busy;
            }
        }
    }
    return saved / std::max<std::uint32_t>(residency.spec->page_count, 1);
}

std::size_t Worths::order(std::vector<Residency*>& found, std::size_t ordered) {
    if (ordered == 0) {
        densities_.clear();
        double busy = busy_.executing(state_.now, state_.executors.size());
        for (Residency* residency : found) {
            auto place = static_cast<std::uint32_t>(densities_.size());
            densities_.push_back({is_kept(state_, *residency->model), worth(*residency, busy), place, residency});
        }
    }
    std::size_t until = std::min(found.size(), std::max(2 * ordered, EVICTABLE_ORDERED));
    auto at = [&](std::size_t place) { return densities_.begin() + static_cast<std::ptrdiff_t>(place); };
    std::partial_sort(at(ordered), at(until), densities_.end());
    for (std::size_t place = ordered; place < until; ++place) {
        found[place] = densities_[place].residency;
    }
    return until;
}

}  // namespace clockwork
