// Handles the messages of workers: compares results with their actions, and tells the scheduler of them.
#pragma once

#include <cstdint>
#include <string_view>

#include "controller/intake.h"
#include "controller/port.h"
#include "controller/recorded_scheduler.h"
#include "controller/served_models.h"
#include "controller/turn_results.h"
#include "controller/workers.h"

namespace clockwork {

class ResultIntake {
public:
    ResultIntake(Port& port, Workers& workers, ServedModels& models, TurnResults& results, RecordedScheduler& scheduler)
        : port_(port), workers_(workers), models_(models), results_(results), scheduler_(scheduler) {}

    // Handles a message of the port's current haul.
    IntakeResult take(const Arrival& arrival, Ns now);
    const WrongMessage& wrong() const { return wrong_; }

    // Ends an action, or all pending actions of a worker, as a failure of the device, because a result was
    // wrong or the worker is let go. False if there is no such action.
    bool fail_action(std::uint32_t worker, ActionId action_id, std::string_view text, Ns now);
    void fail_actions(std::uint32_t worker, std::string_view text, Ns now);

private:
    IntakeResult result(WorkerLink& worker, const Arrival& arrival, Ns now);
    void count(WorkerLink& worker, const ExpectedResult& sent, const wire::Result& result);
    void end_action(WorkerLink& worker, const ActionResult& ended, std::string_view text, Ns now);

    Port& port_;
    Workers& workers_;
    ServedModels& models_;
    TurnResults& results_;
    RecordedScheduler& scheduler_;
    FrameBytes frames_;
    WrongMessage wrong_;
};

}  // namespace clockwork
