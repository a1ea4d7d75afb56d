// Actions that were sent to a worker and not answered yet.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "controller/models.h"
#include "id_table.h"
#include "scheduler/types.h"

namespace clockwork {

// A sent action, and the expected form of its result.
struct ExpectedResult {
    ActionId action_id = 0;  // 0: the record is free
    ActionKind kind = ActionKind::PROFILE;
    std::int32_t device = 0;
    std::uint32_t rows = 0;  // rows of the batch
    ModelId model_id = 0;
    std::shared_ptr<const ModelInterface> interface;  // the interface of an INFER's model
    std::vector<std::uint32_t> part_rows;             // rows of each part of the batch
    // Whether a part's outputs may be in the client's memory
    std::vector<bool> part_rooms;

    std::size_t tensors() const { return interface != nullptr ? interface->outputs.size() : 0; }
};

// The actions of a worker that were sent and not answered.
class SentActions {
public:
    // Adds an action with only its id set. The reference is valid until the next add().
    ExpectedResult& add(ActionId action_id) {
        if (free_.empty()) {
            free_.push_back(static_cast<std::uint32_t>(all_.size()));
            all_.emplace_back();
        }
        std::uint32_t place = free_.back();
        free_.pop_back();
        by_id_.insert(action_id, place);
        all_[place].action_id = action_id;
        return all_[place];
    }

    const ExpectedResult* find(ActionId action_id) const {
        std::uint32_t place = by_id_.find(action_id);
        return place == IdTable::NONE ? nullptr : &all_[place];
    }

    bool erase(ActionId action_id) {
        std::uint32_t place = by_id_.find(action_id);
        if (place == IdTable::NONE)
            return false;
        by_id_.erase(action_id);
        ExpectedResult& action = all_[place];
        action.action_id = 0;
        action.rows = 0;
        action.model_id = 0;
        action.interface.reset();
        action.part_rows.clear();
        action.part_rooms.clear();
        free_.push_back(place);
        return true;
    }

    // Ids in ascending order.
    std::vector<ActionId> ids() const {
        std::vector<ActionId> found;
        for (const ExpectedResult& expected : all_) {
            if (expected.action_id != 0)
                found.push_back(expected.action_id);
        }
        std::sort(found.begin(), found.end());
        return found;
    }

    std::size_t size() const { return by_id_.size(); }

private:
    IdTable by_id_;
    std::vector<ExpectedResult> all_;
    std::vector<std::uint32_t> free_;
};

}  // namespace clockwork
