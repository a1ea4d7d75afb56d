// The results of a turn whose outputs are answers, kept until the answers have been sent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "controller/sockets.h"
#include "id_table.h"
#include "scheduler/types.h"
#include "wire/messages.h"

namespace clockwork {

struct KeptResult {
    wire::Result header;  // header with pointers into the haul
    std::uint32_t first_frame = 0;
    bool is_distinct = false;  // no frame is named twice, so frames can be moved
};

class TurnResults {
public:
    // haul: holds the frames, and must exist until clear().
    explicit TurnResults(Haul& haul) : haul_(haul) {}

    // The result to read into, the same until keep().
    KeptResult& next() {
        if (results_.size() == count_)
            results_.emplace_back();
        return results_[count_];
    }
    // Keeps the result in next(). first_frame: the index in the haul of its first output.
    void keep(ActionId action_id, std::uint32_t first_frame) {
        KeptResult& result = results_[count_];
        std::int64_t last = -1;
        result.is_distinct = true;
        for (const wire::TensorRef& ref : result.header.tensors) {
            result.is_distinct = result.is_distinct && ref.frame > last;
            last = ref.frame;
        }
        result.first_frame = first_frame;
        by_action_.insert(action_id, static_cast<std::uint32_t>(count_));
        ++count_;
    }
    // Returns a kept result. Throws std::logic_error if there is none.
    const KeptResult& of(ActionId action_id) const {
        std::uint32_t place = by_action_.find(action_id);
        if (place == IdTable::NONE)
            throw std::logic_error("an answer without its result");
        return results_[place];
    }
    Frame& frame(const KeptResult& result, const wire::TensorRef& ref) {
        return haul_.frame(result.first_frame + static_cast<std::size_t>(ref.frame));
    }
    void clear() {
        for (std::size_t place = 0; place < count_; ++place)
            by_action_.erase(static_cast<std::uint64_t>(results_[place].header.action_id));
        count_ = 0;
    }

private:
    Haul& haul_;
    std::vector<KeptResult> results_;  // only the first count_ belong to this turn
    std::size_t count_ = 0;
    IdTable by_action_;
};

}  // namespace clockwork
