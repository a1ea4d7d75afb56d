// The road of requests and results through the controller: from the sockets to the scheduler, and from its
// orders back to the sockets.
//
// run() is the controller's loop: wait; take the sockets' messages and handle them in turn; have the
// scheduler decide; carry out its orders. Requests, cancellations and results are read, checked and admitted
// here. wrong() describes the flaw of a wrong message, and Python makes the sentence. run() returns where it
// needs Python: for flaws, and for rare kinds of messages and orders. Called again, it continues from there.
// Not thread safe; needs no GIL.
//
// The parts that do the work are in exchange_parts.h, each a class with a header of its own:
//
//   Port             a socket, its connections, and the messages that were taken from it
//   Clients, Workers the peers that have said hello, and sending to them
//   RequestIntake    requests and cancellations of clients   ResultIntake  results of workers
//   ServedModels     models that requests may name           Routes        the model of a request
//   HeldRequests     from arrival to answer                  ShadowCopies  copies for versions that are tried
//   RecordedScheduler  the scheduler, whose events and orders are recorded
//   OrderRouter      hands on its orders: to Orders (actions of workers), Answers (of clients), or Python
#pragma once

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "controller/descriptor_wait.h"
#include "controller/exchange_parts.h"
#include "controller/loop_times.h"

namespace clockwork {

class Exchange {
public:
    enum Side { WORKERS, CLIENTS };

    // The stage of a turn at which run() is.
    enum Stage { WAIT, TAKE, HANDLE, LOOK, SETTLE, EXECUTE, DONE, END };
    static constexpr int STAGES = END + 1;

    // The reason for which run() returns to Python.
    enum Need {
        NOTHING,       // no need; run() never returns it
        OTHER,         // check signals, other descriptors and timers
        WORKERS_LEFT,  // connections of peers have ended: see Port::ended()
        CLIENTS_LEFT,
        WORKER_MESSAGE,  // Python handles current()
        CLIENT_MESSAGE,
        WRONG_RESULT,  // current() is wrong: wrong() describes the flaw
        WRONG_REQUEST,
        ORDER,        // Python carries out the order at OrderRouter::place()
        ORDERS_DONE,  // a decision with orders for Python has ended: Python clears the scheduler's `out`
        PAUSED,       // between two decisions, as pause() requested
    };

    Exchange(Scheduler& scheduler, RouterSocket workers, RouterSocket clients, Sentences sentences,
             const LookupFunctions& lookups, const ExchangeBounds& bounds, std::shared_ptr<Ring> ring);
    // descriptors: of the sockets and their monitors. others: run() returns when one of these is readable.
    void wait_on(const std::vector<int>& descriptors, const std::vector<int>& others) {
        waiting_.wait_on(descriptors, others);
    }

    // Serves until Python is needed, or until the time `until` (then it returns OTHER).
    Need run(Ns until);
    // Has run() return PAUSED once: as soon as no message is left, or at the end of the turn at this time.
    void pause(Ns by) { pause_by_ns_ = by; }
    // The begin of the current turn, which is the time of all its events.
    Ns now() const { return now_; }

    // The message that is being handled, and its port.
    const Arrival& current() { return port(side_).current(); }
    Haul& haul() { return port(side_).haul(); }
    const WrongMessage& wrong() const {
        return side_ == CLIENTS ? parts_.request_intake.wrong() : parts_.result_intake.wrong();
    }

    Port& port(Side side) { return parts_.ports[side]; }
    ExchangeParts& parts() { return parts_; }
    // The loop's lateness, and its processor time by stage.
    LoopTimes<STAGES>& times() { return times_; }

private:
    Need step(Ns until);
    void wait(Ns until);
    Need handle();
    Need execute();
    void end_turn();
    // Cancels the requests of gone clients, and copies that are due. Only between the orders of two
    // decisions.
    void cancel_departed();
    bool has_input() const { return parts_.ports[WORKERS].has_input() || parts_.ports[CLIENTS].has_input(); }

    ExchangeParts parts_;
    HaulBounds haul_bounds_;
    Ns turn_python_ns_;  // bound on Python's time in a turn, for each port
    DescriptorWait waiting_;
    LoopTimes<STAGES> times_;
    Stage stage_ = WAIT;
    Side side_ = WORKERS;
    Ns now_ = 0;
    Ns look_ns_ = 0;             // the time of the next look at connections
    Ns pause_by_ns_ = NEVER_NS;  // time of pause()
};

}  // namespace clockwork
