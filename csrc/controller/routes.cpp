// The exchange's part in models: what requests are checked against, and whose they are.
#include <memory>
#include <utility>

#include "controller/exchange.h"

namespace clockwork {

// Finds whose the current message is, unless it was found before: a turn is taken once.
bool Exchange::find_chosen(std::string_view text) {
    if (chosen_.model != nullptr)
        return true;
    if (auto found = routes_.find(text); found != routes_.end()) {
        chosen_.model = found->second.next();
        if (found->second.is_copied(chosen_.model))
            chosen_.copied_by = &found->second;
    } else if (auto other = references_.find(text); other != references_.end()) {
        chosen_.model = other->second;
    }
    return chosen_.model != nullptr;
}

std::pair<ModelId, ModelId> Exchange::choose(std::string_view text) {
    if (!find_chosen(text))
        return {0, 0};
    return {chosen_.model->model_id, chosen_.copied_by != nullptr ? chosen_.copied_by->shadow->model_id : 0};
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
    chosen_ = {};
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
    chosen_ = {};
    auto found = routes_.find(text);
    if (found != routes_.end())
        routes_.erase(found);
}

ShadowTally* Exchange::shadow_tally(std::string_view text) const {
    auto found = routes_.find(text);
    return found != routes_.end() ? found->second.tally.get() : nullptr;
}

void Exchange::refer(std::string_view text, ModelId model_id) {
    if (references_.size() >= REFERENCES_MAX)
        forget_references();
    references_.insert_or_assign(std::string(text), models_.at(model_id).get());
}

bool Exchange::shape_number(const std::vector<std::int64_t>& shape, std::uint32_t& number) {
    if (!has_last_ || shape != last_shape_) {
        auto found = shapes_.find(shape);
        if (found == shapes_.end())
            return false;
        last_shape_ = shape;
        last_number_ = found->second;
        has_last_ = true;
    }
    number = last_number_;
    return true;
}

void Exchange::shape_numbered(const std::vector<std::int64_t>& shape, std::uint32_t number) {
    shapes_.insert_or_assign(shape, number);
    has_last_ = false;
}

void Exchange::forget_shapes() {
    for (const WaitingCopy& one : copies_waiting_)
        shadows_moot_.push_back(one.id);  // their numbers may be others' soon
    copies_waiting_.clear();
    shapes_.clear();
    has_last_ = false;
}

}  // namespace clockwork
