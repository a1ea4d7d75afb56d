#include "controller/served_models.h"

#include <utility>

namespace clockwork {

void ServedModels::serve(ModelId model_id, std::int64_t version, std::string_view label, Ns slo_ns,
                         std::shared_ptr<const ModelInterface> interface) {
    std::unique_ptr<ServedModel>& model = models_[model_id];
    if (model == nullptr)
        model = std::make_unique<ServedModel>();
    model->model_id = model_id;
    model->version = version;
    model->label = label;
    model->slo_ns = slo_ns;
    model->interface = std::move(interface);
    ++changes_;
}

void ServedModels::forget(ModelId model_id) {
    auto found = models_.find(model_id);
    if (found == models_.end())
        return;
    ++changes_;
    if (found->second->held > 0)
        forgotten_.push_back(std::move(found->second));
    models_.erase(found);
}

ServedModel* ServedModels::find(ModelId model_id) {
    auto found = models_.find(model_id);
    return found == models_.end() ? nullptr : found->second.get();
}

void ServedModels::hold(ServedModel& model, bool is_copy) {
    model.need_counts();
    ++model.held;
    model.copies += is_copy;
}

void ServedModels::release(ServedModel& model, bool is_copy) {
    model.copies -= is_copy;
    if (--model.held == 0 && !forgotten_.empty())
        std::erase_if(forgotten_, [&](const auto& forgotten) { return forgotten.get() == &model; });
}

}  // namespace clockwork
