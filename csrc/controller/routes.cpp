// The exchange's part in models: what requests are checked against, and whose they are.
#include <memory>
#include <utility>

#include "controller/exchange.h"

namespace clockwork {

// Of a route it takes a turn.
Exchange::Target Exchange::target_of(std::string_view text) {
    Target found;
    if (auto route = routes_.find(text); route != routes_.end()) {
        found.model = route->second.next();
        if (route->second.is_copied(found.model))
            found.copied_by = &route->second;
        return found;
    }
    auto known = references_.find(text);
    if (known == references_.end()) {
        ModelId model_id = 0;
        ask([&] { return lookups_.model(lookups_.owner, text, &model_id); });
        if (model_id == 0)
            return found;
        if (references_.size() >= REFERENCES_MAX)
            forget_references();
        known = references_.emplace(std::string(text), models_.at(model_id).get()).first;
    }
    found.model = known->second;
    return found;
}

void Exchange::serve(ModelId model_id, std::int64_t version, std::string_view label, Ns slo_ns,
                     std::shared_ptr<const ModelInterface> interface) {
    std::unique_ptr<ServedModel>& model = models_[model_id];
    if (model == nullptr)
        model = std::make_unique<ServedModel>();
    model->model_id = model_id;
    model->version = version;
    model->label = label;
    model->slo_ns = slo_ns;
    model->interface = std::move(interface);
    forget_references();
}

void Exchange::forget(ModelId model_id) {
    auto found = models_.find(model_id);
    if (found == models_.end())
        return;
    forget_references();
    if (found->second->held > 0)
        forgotten_.push_back(std::move(found->second));
    models_.erase(found);
}

ServedModel* Exchange::find_model(ModelId model_id) {
    auto found = models_.find(model_id);
    return found == models_.end() ? nullptr : found->second.get();
}

void Exchange::route(std::string_view text, const std::vector<std::pair<ModelId, std::int64_t>>& shares, ModelId shadow,
                     std::int64_t copies, double tolerance) {
    forget_references();
    Route route;
    for (const auto& [model_id, parts] : shares) {
        route.models.push_back(models_.at(model_id).get());
        route.turns.add(parts);
    }
    if (shadow != 0) {
        route.shadow = models_.at(shadow).get();
        route.copies.add(copies);
        if (copies < SHARE_WHOLE)
            route.copies.add(SHARE_WHOLE - copies);
        auto old = routes_.find(text);
        bool goes_on =
            old != routes_.end() && old->second.shadow == route.shadow && old->second.tally->tolerance == tolerance;
        route.tally = goes_on ? old->second.tally : std::make_shared<ShadowTally>(tolerance);
    }
    routes_.insert_or_assign(std::string(text), std::move(route));
}

void Exchange::unroute(std::string_view text) {
    forget_references();
    auto found = routes_.find(text);
    if (found != routes_.end())
        routes_.erase(found);
}

ShadowTally* Exchange::shadow_tally(std::string_view text) const {
    auto found = routes_.find(text);
    return found != routes_.end() ? found->second.tally.get() : nullptr;
}

std::uint32_t Exchange::shape_number(const std::vector<std::int64_t>& shape) {
    if (has_last_ && shape == last_shape_)
        return last_number_;
    auto found = shapes_.find(shape);
    if (found == shapes_.end()) {
        std::uint32_t number = 0;
        ask([&] { return lookups_.shape_number(lookups_.owner, &shape, &number); });
        found = shapes_.emplace(shape, number).first;
    }
    last_shape_ = shape;
    last_number_ = found->second;
    has_last_ = true;
    return last_number_;
}

void Exchange::forget_shapes() {
    for (const WaitingCopy& copy : copies_waiting_)
        shadows_moot_.push_back(copy.id);  // their numbers may be others' soon
    copies_waiting_.clear();
    shapes_.clear();
    recorder_.forget_shapes();
    has_last_ = false;
}

}  // namespace clockwork
