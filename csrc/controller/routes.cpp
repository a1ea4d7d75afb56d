#include "controller/routes.h"

namespace clockwork {

Target Routes::target_of(std::string_view text) {
    Target found;
    if (auto route = routes_.find(text); route != routes_.end()) {
        found.model = route->second.next();
        if (route->second.take_copy_turn(found.model))
            found.copied_by = &route->second;
        return found;
    }
    if (std::uint64_t changes = models_.changes(); changes_ != changes) {
        forget_references();
        changes_ = changes;
    }
    auto known = references_.find(text);
    if (known == references_.end()) {
        ModelId model_id = lookups_.model(text);
        if (model_id == 0)
            return found;
        if (references_.size() >= REFERENCES_MAX)
            forget_references();
        known = references_.emplace(std::string(text), &models_.at(model_id)).first;
    }
    found.model = known->second;
    return found;
}

void Routes::route(std::string_view text, const std::vector<std::pair<ModelId, std::int64_t>>& shares, ModelId shadow,
                   std::int64_t copies, double tolerance) {
    forget_references();
    ServedRoute route;
    for (const auto& [model_id, parts] : shares) {
        route.models.push_back(&models_.at(model_id));
        route.turns.add(parts);
    }
    if (shadow != 0) {
        route.shadow = &models_.at(shadow);
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

void Routes::unroute(std::string_view text) {
    forget_references();
    auto found = routes_.find(text);
    if (found != routes_.end())
        routes_.erase(found);
}

ShadowTally* Routes::shadow_tally(std::string_view text) const {
    auto found = routes_.find(text);
    return found != routes_.end() ? found->second.tally.get() : nullptr;
}

}  // namespace clockwork
