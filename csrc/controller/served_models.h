// The models that requests may name, and the gone models that still have requests.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "controller/models.h"

namespace clockwork {

class ServedModels {
public:
    // Adds a model that requests may name from now on, or updates it.
    void serve(ModelId model_id, std::int64_t version, std::string_view label, Ns slo_ns,
               std::shared_ptr<const ModelInterface> interface);
    // Removes a model. Its record is kept until its last request has ended; see release().
    void forget(ModelId model_id);

    // Null if there is no such model.
    ServedModel* find(ModelId model_id);
    // Throws std::out_of_range for an unknown model.
    ServedModel& at(ModelId model_id) { return *models_.at(model_id); }
    // The number of changes of models. A pointer from a look-up before a change may be invalid.
    std::uint64_t changes() const { return changes_; }

    // Count a held request of a model, and its end. is_copy: whether the request is a shadow's copy.
    static void hold(ServedModel& model, bool is_copy);
    void release(ServedModel& model, bool is_copy);

private:
    // Never iterated over: its order is arbitrary
    std::unordered_map<ModelId, std::unique_ptr<ServedModel>> models_;
    std::vector<std::unique_ptr<ServedModel>> forgotten_;  // gone models with held requests
    std::uint64_t changes_ = 0;
};

}  // namespace clockwork
