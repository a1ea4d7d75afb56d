// The orders of a decision, each handed to the part that carries it out: actions to Orders, answers to Answers, and the
// rare kinds to Python.
#pragma once

#include <cstddef>

#include "controller/answers.h"
#include "controller/orders.h"
#include "controller/recorded_scheduler.h"

namespace clockwork {

class OrderRouter {
public:
    OrderRouter(RecordedScheduler& scheduler, Orders& orders, Answers& answers)
        : scheduler_(scheduler), orders_(orders), answers_(answers) {}

    // The scheduler decides now. It has not asked to be woken later yet, if it was to be woken by now.
    void begin(Ns now) {
        next_ = 0;
        has_stopped_ = false;
        if (now >= wake_ns_)
            wake_ns_ = NEVER_NS;
    }
    // Carries out the orders that are left. False where the next is Python's: place() says which. Called again, it goes on
    // behind that.
    bool carry_out(Ns now);
    std::size_t place() const { return next_ - 1; }
    // Whether Python was given an order of this decision.
    bool has_stopped() const { return has_stopped_; }

    // When the scheduler asked to be woken; NEVER_NS: not.
    Ns wake_ns() const { return wake_ns_; }

private:
    RecordedScheduler& scheduler_;
    Orders& orders_;
    Answers& answers_;
    std::size_t next_ = 0;  // behind the order that is being carried out
    bool has_stopped_ = false;
    Ns wake_ns_ = NEVER_NS;
};

}  // namespace clockwork
