// The scheduler's world: what happens (calls on Scheduler), and what it orders (Command records).
//
// Times are controller time in nanoseconds. Nothing here reads a clock, opens a socket or sees the bytes of a
// tensor: a request is its row count, its shape and its deadline. Names of models, texts for people and Python
// objects stay on the other side of the binding; shapes, programs and device kinds are numbers that it gave out.
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

// Which sentence the binding makes of an answer; a, b, c and Command::said fill it in.
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

// What an answer says: a sentence, and what fills it in.
struct Said {
    Text text = Text::NONE;
    Ns a = 0;
    Ns b = 0;
    Ns c = 0;
    const std::string* words = nullptr;  // the worker's own; null or empty: it said none

    Said(Text text) : text(text) {}  // NOLINT: most sentences need nothing else
    Said(Text text, Ns a, Ns b = 0, const std::string* words = nullptr) : text(text), a(a), b(b), words(words) {}
    Said(Text text, Ns a, Ns b, Ns c) : text(text), a(a), b(b), c(c) {}
};

struct Request {
    RequestId id = 0;
    ModelId model_id = 0;
    std::uint32_t rows = 1;
    std::uint32_t shape = 0;  // a number for the shapes of its inputs (see Scheduler::shape_known); 0: it has none
    std::uint64_t bytes = 0;  // of all its inputs, for the bound on what is queued
    std::uint64_t copied_bytes = 0;  // of inputs in the client's memory, which its worker copies from there
    Ns arrived_ns = 0;
    Ns deadline_ns = NEVER_NS;
    std::uint8_t priority = 1;  // 1 is the highest
    bool is_spare = false;      // it is to have what is idle anyway: nobody needs a device more for its sake
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
    // When the order and its inputs had reached the worker, by controller time; 0: unknown. Live, their copy to the
    // device is still to come then; a simulated worker adds what the copy takes.
    Ns ready_ns = 0;
    const std::string* text = nullptr;  // what the worker said; the caller's, for the duration of the call
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
    SEND_FETCH,  // disk to the worker's host store, and out of it; device is 0, load_id the copy's
    SEND_DROP,
    MODEL_FAULT,
    SEND_RESERVE,  // an executor's time for its worker itself; see reservations.h
};

// What a model's execution or load did; the numbers of clockwork.scheduler.types.Fault.
enum class Fault : std::uint8_t {
    WORKER_LOST,  // its worker ended, or its device broke, and nobody said why
    CRASHED,      // it ended its worker, which said so
    OVERRUN,      // it took longer than it may
    STUCK,        // its load, or its fetch, did not end, and its worker began anew
    TRIAL_STUCK,  // a RESERVE in which it was made ready did not
};

// One order. Which fields count depends on kind; see the records of the same names in scheduler/types.py.
struct Command {
    CommandKind kind = CommandKind::WAKE;
    Status status = Status::OK;  // ANSWER_FAILED
    Reason reason = Reason::NONE;
    Text text = Text::NONE;
    WorkerId worker = 0;
    std::int32_t device = 0;  // index within the worker
    std::uint32_t first = 0;  // into Commands::ids (INFER: requests) or Commands::runs (LOAD, RESERVE: first pages)
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
    Ns a = 0;                // ANSWER_OK: queue_ns; ANSWER_FAILED: the text's first number; MODEL_FAULT: Fault
    Ns b = 0;                // ANSWER_OK: load_ns; ANSWER_FAILED: the second; MODEL_FAULT: 1 if it is set aside
    Ns c = 0;                // ANSWER_OK: exec_ns; ANSWER_FAILED: the third
    Ns feasible_slo_ns = 0;  // ANSWER_FAILED, REFUSED: 0 if unknown
    Ns retry_after_ns = 0;
};

// Orders in the order in which they were given. The caller clears it between steps; its memory is kept.
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
