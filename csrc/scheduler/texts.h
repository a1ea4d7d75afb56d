// Sentences of answers, by number: clockwork/scheduler/_core.pyx has their words.
#pragma once

#include <cstdint>

namespace clockwork {

// Text of an answer; a, b, c and Command::said are its arguments.
enum class AnswerText : std::uint8_t {
    NONE,
    NO_WORKER,          // no worker that can serve the model is connected
    DRAINING,           // the model is being unregistered
    QUEUE_FULL,         // a requests of b bytes are queued
    TOO_LARGE,          // the model is larger than any device's memory
    WORKERS_LEAVING,    // every worker that has the model is leaving
    NEVER_MEASURED,     // the model was never measured with this input shape
    NO_PLACE,           // cannot be placed on any device now
    BOUND_ABOVE_SLO,    // the shape was never measured, and its bound of a ns is above the SLO of b ns
    SLO_BELOW_IDLE,     // takes a ns on an idle device, of which c ns execution; the SLO is b ns
    COULD_BE_ANSWERED,  // could be answered in a ns, the SLO is b ns
    TOOK_ITS_PLACE,     // a request of higher priority displaced the request
    DEADLINE_PASSED,
    CANNOT_BE_IN_TIME,  // the request could no longer be answered by its deadline
    RESULT_LATE,        // the result came after the deadline
    WAS_CANCELLED,
    WORKER_LOST,
    WORKER_LEAVES,
    DEVICE_LOST,
    NO_WORKER_LEFT,
    BATCH_FAILED,     // the batch with the request failed
    FAILED_ON_INPUT,  // the model failed on this input
    SET_ASIDE,        // the model is set aside
    ENDED_WORKERS,    // workers ended while they executed the request
    LOAD_FAILED,      // the model could not be loaded: text, or the name of status a
    VERBATIM,         // the worker's text, or the name of status a
    NOT_MEASURABLE,   // measuring this input shape failed
};

}  // namespace clockwork
