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

#include "wire/kinds.h"

namespace clockwork {

using Ns = std::int64_t;
using RequestId = std::uint64_t;
using ActionId = std::uint64_t;
using LoadId = std::uint64_t;
using ModelId = std::int64_t;
using WorkerId = std::int32_t;

inline constexpr Ns NEVER_NS = Ns{1} << 62;  // clockwork.wire.messages.NEVER_NS
inline constexpr Ns MS = 1'000'000;
inline constexpr Ns SECOND = 1'000'000'000;

// Text of an answer; a, b, c and Command::said are its arguments.
enum class Text : std::uint8_t {
    NONE,
    NO_WORKER,          // no worker that can serve the model is connected
    DRAINING,           // the model is being unregistered
    QUEUE_FULL,         // a requests of b bytes are queued
    TOO_LARGE,          // the model is larger than any device's memory
    WORKERS_LEAVING,    // every worker that has the model is leaving
    NEVER_MEASURED,     // never measured with this input shape
    NO_PLACE,           // cannot be placed on any device now
    BOUND_ABOVE_SLO,    // never measured; its bound of a ns is above the SLO of b ns
    SLO_BELOW_IDLE,     // takes a ns on an idle device, of which c ns execution; the SLO is b ns
    COULD_BE_ANSWERED,  // could be answered in a ns, the SLO is b ns
    TOOK_ITS_PLACE,     // a request of higher priority took its place
    DEADLINE_PASSED,
    CANNOT_BE_IN_TIME,  // it could no longer be answered by its deadline
    RESULT_LATE,        // the result came after the deadline
    WAS_CANCELLED,
    WORKER_LOST,
    WORKER_LEAVES,
    DEVICE_LOST,
    NO_WORKER_LEFT,
    BATCH_FAILED,     // the batch that it was in failed
    FAILED_ON_INPUT,  // the model failed on this input
    SET_ASIDE,        // the model is set aside
    ENDED_WORKERS,    // workers ended while they executed it
    LOAD_FAILED,      // the model could not be loaded: text, or the name of status a
    VERBATIM,         // text, as the worker said it, or the name of status a
    NOT_MEASURABLE,   // measuring this input shape failed
};

// Text of an answer, with its arguments.
struct Said {
    Text text = Text::NONE;
    Ns a = 0;
    Ns b = 0;
    Ns c = 0;
    const std::string* words = nullptr;  // the worker's own words; null or empty: none

    Said(Text text) : text(text) {}  // NOLINT: most sentences need nothing else
    Said(Text text, Ns a, Ns b = 0, const std::string* words = nullptr) : text(text), a(a), b(b), words(words) {}
    Said(Text text, Ns a, Ns b, Ns c) : text(text), a(a), b(b), c(c) {}
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
    std::uint8_t priority = 1;  // 1 is the highest
    bool is_spare = false;      // it uses idle time only, and is not counted as demand for devices
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
};

struct ActionResult {
    WorkerId worker = 0;
    ActionId action_id = 0;
    Status status = Status::OK;
    Ns begin_ns = 0;  // controller time
    Ns end_ns = 0;
    Ns duration_ns = 0;  // measured on the device
    // Arrival of the order and its inputs at the worker, in controller time; 0: unknown. In a live system,
    // their copy to the device is still to come then; a simulated worker includes the copy.
    Ns ready_ns = 0;
    // The worker's words; owned by the caller, valid for the duration of the call.
    const std::string* text = nullptr;
};

enum class CommandKind : std::uint8_t {
    SEND_LOAD,
    SEND_UNLOAD,
    SEND_INFER,
    SEND_PROFILE,
    SEND_REVOKE,
    ANSWER_OK,
    ANSWER_FAILED,
    MODEL_GONE,
    WAKE,
    SEND_FETCH,  // between disk and the worker's host store; device is 0, load_id the copy's
    SEND_DROP,
    MODEL_FAULT,
    SEND_RESERVE,  // executor time for its worker itself; see reservations.h
};

// Fault of a model's execution or load; the numbers of clockwork.scheduler.types.Fault.
enum class Fault : std::uint8_t {
    WORKER_LOST,  // its worker ended, or its device broke, without a reason given
    CRASHED,      // it ended its worker, which said so
    OVERRUN,      // it took longer than its bound
    STUCK,        // its load or fetch did not end, and its worker was restarted
    TRIAL_STUCK,  // a RESERVE for its preparation did not end
};

// An order. The kind determines which fields are used; see the records of the same names in
// scheduler/types.py.
struct Command {
    CommandKind kind = CommandKind::WAKE;
    Status status = Status::OK;  // ANSWER_FAILED
    Reason reason = Reason::NONE;
    Text text = Text::NONE;
    WorkerId worker = 0;
    std::int32_t device = 0;  // index within the worker
    std::uint32_t first = 0;  // into Commands::ids (INFER: requests) or Commands::runs (LOAD, RESERVE)
    std::uint32_t count = 0;
    std::uint32_t part = 0;   // ANSWER_OK
    std::uint32_t shape = 0;  // SEND_PROFILE
    std::uint32_t rows = 0;
    std::int32_t said = -1;  // ANSWER_FAILED: index into Commands::texts, or -1
    ActionId action_id = 0;
    ModelId model_id = 0;
    LoadId load_id = 0;
    RequestId request_id = 0;
    Ns earliest_ns = 0;  // WAKE: at_ns
    Ns latest_ns = 0;
    Ns expected_ns = 0;
    Ns a = 0;                // ANSWER_OK: queue_ns; ANSWER_FAILED: first number; MODEL_FAULT: Fault
    Ns b = 0;                // ANSWER_OK: load_ns; ANSWER_FAILED: second; MODEL_FAULT: 1: set aside
    Ns c = 0;                // ANSWER_OK: exec_ns; ANSWER_FAILED: third number
    Ns feasible_slo_ns = 0;  // ANSWER_FAILED, REFUSED: 0 if unknown
    Ns retry_after_ns = 0;
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
