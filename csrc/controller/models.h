// What a controller must know of a model: what it takes and gives, and what became of its requests.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "controller/counts.h"
#include "scheduler/types.h"

namespace clockwork {

inline constexpr std::int64_t DIMENSION_ANY = -1;
inline constexpr std::int64_t DIMENSION_NONE = -2;  // of a declaration that no dimension fits

// What `bits` of a declaration is where an element has no size of its own.
inline constexpr std::int64_t BITS_OF_STRING = 0;
inline constexpr std::int64_t BITS_UNKNOWN = -1;  // a type that is not ONNX's

// What a limit of InputSpec is where requests of one batch must have one size.
inline constexpr std::int64_t EXACT = -1;

struct InputSpec {
    std::string name;
    std::string declared;  // its shape, as people read it
    std::int64_t dtype = 0;
    std::int64_t bits = 0;  // of one element; or see above
    bool any_rank = false;
    std::vector<std::int64_t> dims;     // or DIMENSION_ANY, DIMENSION_NONE
    std::vector<std::int32_t> symbols;  // beside them: which of ModelInterface's; -1: none
    // Beside them: where requests of different size share batches, the largest that there is, 0 if none is known; or EXACT.
    std::vector<std::int64_t> limits;
    // It has a default, `value` in the form of a frame, a fixed shape and no axis of rows.
    bool optional = false;
    std::string value;
};

// What every answer is held against: dtype, and rank and dimensions as far as registration has seen that they are fixed.
struct OutputSpec {
    std::string declared;
    std::int64_t dtype = 0;
    std::int64_t bits = 0;
    bool any_rank = false;
    std::vector<std::int64_t> dims;
};

// Inputs and outputs as declared; models of one program share it.
struct ModelInterface {
    std::vector<InputSpec> inputs;
    std::vector<std::string> outputs;
    std::vector<OutputSpec> given;     // beside them; none: no answer is held against anything
    std::vector<std::string> symbols;  // dimensions of one symbol have one size, in all inputs of a request
    bool batches = false;

    // Once all inputs are there: find_input() finds one of many quickly.
    void index_inputs();
    // Null where there is none. The only input that is not optional may come without its name.
    const InputSpec* find_input(std::string_view name) const;

    bool has_optional() const { return has_optional_; }

private:
    bool has_optional_ = false;
    const InputSpec* find_required() const;
    std::vector<std::uint32_t> by_name_;  // of more than a few: places of inputs, in the order of their names
};

// Counted since the controller started.
struct Outcomes {
    std::uint64_t answered = 0, refused = 0, missed = 0, cancelled = 0, failed = 0;
    std::uint64_t invalid = 0;  // requests that were wrong, found at arrival or by the device

    void count(Status status) {
        switch (status) {
            case Status::OK: ++answered; break;
            case Status::REFUSED: ++refused; break;
            case Status::DEADLINE_MISSED: ++missed; break;
            case Status::CANCELLED: ++cancelled; break;
            case Status::INVALID_INPUT: ++invalid; break;
            default: ++failed;
        }
    }
};

struct ServedModel {
    ModelId model_id = 0;
    std::int64_t version = 0;
    Ns slo_ns = 0;
    std::string label;
    std::shared_ptr<const ModelInterface> interface;
    Outcomes outcomes;
    std::uint64_t held = 0;               // requests that are held
    std::uint64_t copies = 0;             // of these, that are a shadow's
    std::unique_ptr<ModelCounts> counts;  // null: nothing was asked of it yet

    ModelCounts& need_counts() {
        if (counts == nullptr)
            counts = std::make_unique<ModelCounts>();
        return *counts;
    }
};

}  // namespace clockwork
