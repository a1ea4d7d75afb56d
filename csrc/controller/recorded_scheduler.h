// The scheduler with the flight recorder, which records each event and each order of the scheduler.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>

#include "controller/lookups.h"
#include "recording/recorder.h"
#include "scheduler/scheduler.h"

namespace clockwork {

class RecordedScheduler {
public:
    RecordedScheduler(Scheduler& scheduler, std::shared_ptr<Ring> ring, Lookups& lookups)
        : scheduler_(scheduler), recorder_(std::move(ring)), lookups_(lookups) {}

    // ----- events --------------------------------------------------------------------------------

    void arrived(Ns now, const Request& request);
    void cancelled(Ns now, RequestId request_id);
    // done.text: the worker's text, or null.
    void action_done(Ns now, const ActionResult& done);
    // Records that Python has told the scheduler of an event, which it has encoded for recorder().
    void noted(std::string_view event);
    // Whether an event has come since the last decision.
    bool has_news() const { return has_news_; }

    // ----- decisions -----------------------------------------------------------------------------

    // Decides on all recorded events. The orders stay valid until clear().
    void settle(Ns now);
    const Commands& orders() const { return scheduler_.out; }
    // Records an order that is carried out next. failure: the text of an ANSWER_FAILED, else empty.
    template <typename Failure>
    void ordering(const Command& command, const Failure& failure) {
        if (recorder_.is_on())
            record(command, command.kind == CommandKind::ANSWER_FAILED ? failure() : std::string_view());
    }
    // Drops the orders, all of which have been carried out.
    void end();
    void clear() { scheduler_.out.clear(); }

    Recorder& recorder() { return recorder_; }

private:
    void record(const Command& command, std::string_view text);
    std::string_view recorded_shape(std::uint32_t number);

    Scheduler& scheduler_;
    Recorder recorder_;
    Lookups& lookups_;
    bool has_news_ = false;
};

}  // namespace clockwork
