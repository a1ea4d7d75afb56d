// Routes the orders of a decision: actions to Orders, answers to Answers, and rare kinds to Python.
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

    // Has the scheduler decide at `now`. A wake-up that is due by then is cleared before.
    void begin(Ns now) {
        next_ = 0;
        has_stopped_ = false;
        if (now >= wake_ns_)
            wake_ns_ = NEVER_NS;
    }
    // Carries out the remaining orders. False if Python carries out the next, at place(). Called again, it
    // continues behind that order.
    bool carry_out(Ns now);
    std::size_t place() const { return next_ - 1; }
    // Whether an order of this decision was routed to Python.
    bool has_stopped() const { return has_stopped_; }

    // The time at which the scheduler wants to be woken; NEVER_NS: none.
    Ns wake_ns() const { return wake_ns_; }

private:
    RecordedScheduler& scheduler_;
    Orders& orders_;
    Answers& answers_;
    std::size_t next_ = 0;  // the index behind the current order
    bool has_stopped_ = false;
    Ns wake_ns_ = NEVER_NS;
};

}  // namespace clockwork
