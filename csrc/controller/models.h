// The controller's record of a model: its inputs and outputs, and the counts of its requests.
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
inline constexpr std::int64_t DIMENSION_NONE = -2;  // a declared dimension that matches no size

// Values of `bits` of a declaration whose elements have no fixed size.
inline constexpr std::int64_t BITS_OF_STRING = 0;
inline constexpr std::int64_t BITS_UNKNOWN = -1;  // a type that is not ONNX's

// The limit of an InputSpec whose size must be equal in all requests of a batch.
inline constexpr std::int64_t EXACT = -1;

struct InputSpec {
    std::string name;
    std::string declared;  // its shape as readable text
    std::int64_t dtype = 0;
    std::int64_t bits = 0;  // bits of an element, or one of the values above
    bool any_rank = false;
    std::vector<std::int64_t> dims;     // sizes, or DIMENSION_ANY, DIMENSION_NONE
    std::vector<std::int32_t> symbols;  // by dimension: the index of its symbol in ModelInterface; -1: none
    // By dimension: the largest size where requests of different size share batches, 0 if unknown; else
    // EXACT.
    std::vector<std::int64_t> limits;
    // An optional input has a default, `value` in the form of a frame, a fixed shape and no axis of rows.
    bool optional = false;
    std::string value;
};

// The expected form of an output: dtype, and the rank and dimensions that were fixed at registration.
struct OutputSpec {
    std::string declared;
    std::int64_t dtype = 0;
    std::int64_t bits = 0;
    bool any_rank = false;
    std::vector<std::int64_t> dims;
};

// Declared inputs and outputs, shared by the models of a program.
struct ModelInterface {
    std::vector<InputSpec> inputs;
    std::vector<std::string> outputs;
    std::vector<OutputSpec> given;     // form of each output; empty: answers are not compared
    std::vector<std::string> symbols;  // dimensions of a symbol have the same size in all inputs of a request
    bool batches = false;

    // Builds the index of find_input(), once all inputs are set.
    void index_inputs();
    // Null if there is no such input. An empty name means the only required input.
    const InputSpec* find_input(std::string_view name) const;

    bool has_optional() const { return has_optional_; }

private:
    bool has_optional_ = false;
    const InputSpec* find_required() const;
    // Indices of inputs in the order of their names; empty for few inputs
    std::vector<std::uint32_t> by_name_;
};

// Counts since the controller's start.
struct Outcomes {
    std::uint64_t answered = 0, refused = 0, missed = 0, cancelled = 0, failed = 0;
    std::uint64_t invalid = 0;  // wrong requests, found at arrival or by the device

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
    std::uint64_t held = 0;               // held requests
    std::uint64_t copies = 0;             // held requests that are a shadow's copies
    std::unique_ptr<ModelCounts> counts;  // null until the first request

    ModelCounts& need_counts() {
        if (counts == nullptr)
            counts = std::make_unique<ModelCounts>();
        return *counts;
    }
};

}  // namespace clockwork
