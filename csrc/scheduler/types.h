// Types of the scheduler: events (arguments of Scheduler's calls) and orders (Command records).
//
// Times are controller time in nanoseconds. Nothing here reads a clock, opens a socket or sees the bytes of a
// tensor: a request is its row count, its shape and its deadline. Names of models, texts for people and
// Python objects stay on the other side of the binding; shapes, programs and device kinds are numbers that
// the binding gave out.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "scheduler/commands.h"
#include "scheduler/ids.h"
#include "wire/bounds.h"
#include "wire/kinds.h"

namespace clockwork {

// Text of an answer, with its arguments.
struct AnswerSentence {
    AnswerText text = AnswerText::NONE;
    Ns a = 0;
    Ns b = 0;
    Ns c = 0;
    const std::string* words = nullptr;  // the worker's own words; null or empty: none

    AnswerSentence(AnswerText text) : text(text) {}  // NOLINT: most sentences need nothing else
    AnswerSentence(AnswerText text, Ns a, Ns b = 0, const std::string* words = nullptr)
        : text(text), a(a), b(b), words(words) {}
    AnswerSentence(AnswerText text, Ns a, Ns b, Ns c) : text(text), a(a), b(b), c(c) {}
};

struct Request {
    RequestId id = 0;
    ModelId model_id = 0;
    std::uint32_t rows = 1;
    // Number of the shape of its inputs (see Scheduler::shape_known); 0: it has no inputs.
    std::uint32_t shape = 0;
    std::uint64_t bytes = 0;  // size of all its inputs, for the bound on queued bytes
    // Size of the inputs in the client's memory, which its worker copies from there.
    std::uint64_t copied_bytes = 0;
    Ns arrived_ns = 0;
    Ns deadline_ns = NEVER_NS;
    std::uint8_t priority = 1;  // level of the request; 1 is the highest
    bool is_spare = false;      // the request uses idle time only, and does not count as demand for devices
};

struct ProfilePoint {
    std::uint32_t shape = 0;
    std::uint32_t batch = 1;
    Ns exec_ns = 0;
};

struct ModelSpec {
    ModelId model_id = 0;
    std::uint32_t program = 0;  // models of one program share estimates
    bool batches = false;
    std::uint32_t batch_max = 1;
    Ns slo_ns = 0;
    std::vector<std::uint32_t> runs;  // page counts of the layout's runs
    Ns load_ns = 0;
    std::vector<ProfilePoint> profile;
};

struct DeviceSpec {
    std::uint32_t kind = 0;  // devices of one kind share estimates
    std::uint64_t page_bytes = 0;
    std::uint32_t page_count = 0;
    std::uint32_t run_ahead = 1;
    // number of the worker's device whose arena this device executes from, a smaller one; -1: it has its own
    std::int32_t arena = -1;
    // time of an execution beside executions on all others of its arena, in thousandths of its time by itself
    std::uint32_t slowdown_thousandths = 1000;
};

struct ActionResult {
    WorkerId worker = 0;
    ActionId action_id = 0;
    Status status = Status::OK;
    Ns begin_ns = 0;  // times by the controller's clock
    Ns end_ns = 0;
    Ns duration_ns = 0;  // duration measured on the device
    // Arrival of the order and its inputs at the worker, in controller time; 0: unknown. In a live system,
    // their copy to the device is still to come then; a simulated worker includes the copy.
    Ns ready_ns = 0;
    // The worker's words; owned by the caller, valid for the duration of the call.
    const std::string* text = nullptr;
};

// Orders in sequence. The caller clears it between steps; its memory is kept.
struct Commands {
    std::vector<Command> list;
    std::vector<RequestId> ids;
    std::vector<std::uint32_t> runs;
    std::vector<std::string> texts;

    void clear() {
        list.clear();
        ids.clear();
        runs.clear();
        texts.clear();
    }
};

}  // namespace clockwork
