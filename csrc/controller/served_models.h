// The models that requests may be for, and those that are gone and still have requests.
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
    // A model that requests may be for from now on, or what is new about it.
    void serve(ModelId model_id, std::int64_t version, std::string_view label, Ns slo_ns,
               std::shared_ptr<const ModelInterface> interface);
    // It is gone. Its record is there until its last request has ended: see release().
    void forget(ModelId model_id);

    // Null where there is none.
    ServedModel* find(ModelId model_id);
    // Throws std::out_of_range.
    ServedModel& at(ModelId model_id) { return *models_.at(model_id); }
    // How often a model came, changed or went: a pointer that was looked up before may be none any more.
    std::uint64_t changes() const { return changes_; }

    // A request for it is held, or is not any more; it is a shadow's copy or not.
    static void hold(ServedModel& model, bool is_copy);
    void release(ServedModel& model, bool is_copy);

private:
    std::unordered_map<ModelId, std::unique_ptr<ServedModel>> models_;  // never iterated over
    std::vector<std::unique_ptr<ServedModel>> forgotten_;               // with requests that are still held
    std::uint64_t changes_ = 0;
};

}  // namespace clockwork
