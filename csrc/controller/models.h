// What a controller must know of a model to take a request for it, or to leave it to Python.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "controller/counts.h"
#include "controller/messages.h"
#include "scheduler/types.h"

namespace clockwork {

inline constexpr std::int64_t MESSAGE_BYTES_MAX = 1 << 30;             // clockwork.config.MESSAGE_BYTES_MAX
inline constexpr std::int64_t STRINGS_MAX = 1 << 16;                   // clockwork.config.STRINGS_MAX
inline constexpr std::int64_t DIMENSIONS_MAX = std::int64_t{1} << 62;  // clockwork.wire.tensors._DIMENSIONS_MAX

// Of a model with more inputs, every request is left to Python.
inline constexpr std::size_t INPUTS_MAX = 16;

// More rows than these are as good as these to any estimate; of more, Python makes these.
inline constexpr std::int64_t ROWS_MAX = 1 << 30;

inline constexpr std::int64_t DIMENSION_ANY = -1;

struct InputSpec {
    std::string name;
    std::int64_t dtype = 0;
    std::int64_t bits = 0;  // of one element; 0: not for this road (strings, types that are not ONNX's)
    bool any_rank = false;
    std::vector<std::int64_t> dims;  // or DIMENSION_ANY
    std::vector<std::int32_t>
        symbols;  // beside them: dimensions of one symbol (a small number) have one size; -1: none
};

// What every answer is held against: dtype, and rank and dimensions as far as registration has seen that they are fixed.
struct OutputSpec {
    std::int64_t dtype = 0;
    std::int64_t bits = 0;  // of one element; 0: strings; -1: a type that is not ONNX's, of whatever size
    bool any_rank = false;
    std::vector<std::int64_t> dims;  // or DIMENSION_ANY
};

// Inputs and outputs as declared; models of one program share it.
struct ModelInterface {
    std::vector<InputSpec> inputs;
    std::vector<std::string> outputs;
    std::vector<OutputSpec> given;  // beside them; none: no answer is held against anything
    std::uint32_t symbol_count = 0;
    bool batches = false;
};

// Where an input of a request was found: in the model's order.
struct Accepted {
    std::uint32_t rows = 1;
    std::uint64_t bytes = 0;
    std::vector<const TensorRef*> tensors;
    std::vector<std::int64_t> shape;  // the rank and dimensions of each input, without the axis of rows

    std::vector<std::int64_t> sizes;  // of symbols, while checking
};

// Whether every tensor is named, typed, shaped and sized right; check_request() in clockwork/controller/intake.py is
// the longer form of it, with sentences. What is right in a rarer way (strings, many inputs) is not for this one.
// frame_bytes: of each frame of the message.
bool accept(const ModelInterface& model, const InferRequestHeader& request, const std::vector<std::size_t>& frame_bytes,
            Accepted& accepted);

// Whether a tensor that a worker sent is what the model gives for so many rows; check_result() in
// clockwork/controller/links.py is the longer form of it, with sentences.
bool gives(const ModelInterface& model, std::size_t output, std::uint32_t rows, const TensorRef& ref,
           const std::int64_t* dims, std::string_view data);

// Counted since the controller started.
struct Outcomes {
    std::uint64_t answered = 0, refused = 0, missed = 0, cancelled = 0, failed = 0;

    void count(Status status) {
        switch (status) {
            case Status::OK: ++answered; break;
            case Status::REFUSED: ++refused; break;
            case Status::DEADLINE_MISSED: ++missed; break;
            case Status::CANCELLED: ++cancelled; break;
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
};

}  // namespace clockwork
