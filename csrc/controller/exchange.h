// The road of requests and results through the controller: from the sockets to the scheduler, and its orders and answers
// back.
//
// run() is the controller's loop: wait; take what the sockets hold and handle it message by message; when all has been
// noted, have the scheduler decide; carry out its orders. Requests, cancellations and results are read, checked and
// admitted here, whatever they are; of a wrong message wrong() says what is wrong, and Python makes a sentence of that.
// run() returns where it needs Python: for that, and for every kind of message and order that is rare. Called again, it
// goes on from there. Not thread safe; needs no GIL.
//
// The parts that do the work are in exchange_parts.h, each a class with a header of its own:
//
//   Port             a socket, its connections, and the messages that were taken from it
//   Clients, Workers the peers that have said hello, and sending to them
//   RequestIntake    requests and cancellations of clients   ResultIntake  results of workers
//   ServedModels     what requests are checked against       Routes        whom a request is for
//   HeldRequests     from arrival to answer                  ShadowCopies  copies for versions that are tried
//   RecordedScheduler  what the scheduler is told and decides, recorded
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

    // Where in a turn run() is.
    enum Stage { WAIT, TAKE, HANDLE, LOOK, SETTLE, EXECUTE, DONE, END };
    static constexpr int STAGES = END + 1;

    // What run() needs of Python.
    enum Need {
        NOTHING,       // run() never says so
        OTHER,         // look at signals, other descriptors and timers
        WORKERS_LEFT,  // connections of peers have ended: see Port::ended()
        CLIENTS_LEFT,
        WORKER_MESSAGE,  // current() is Python's
        CLIENT_MESSAGE,
        WRONG_RESULT,  // current() is wrong: wrong() says in what
        WRONG_REQUEST,
        ORDER,        // the order at OrderRouter::place() is Python's
        ORDERS_DONE,  // of a decision of which Python wants to know: it clears the scheduler's `out`
        PAUSED,       // between two decisions, as pause() asked for
    };

    Exchange(Scheduler& scheduler, RouterSocket workers, RouterSocket clients, Sentences sentences,
             const LookupFunctions& lookups, const ExchangeBounds& bounds, std::shared_ptr<Ring> ring);
    // descriptors: of the sockets and their monitors; others: for which run() returns, as they become readable.
    void wait_on(const std::vector<int>& descriptors, const std::vector<int>& others) {
        waiting_.wait_on(descriptors, others);
    }

    // Serves until Python is needed, or the time is `until` (then it needs OTHER).
    Need run(Ns until);
    // Have run() need PAUSED once: as soon as nothing more has come, or at the end of the turn of this time.
    void pause(Ns by) { pause_by_ns_ = by; }
    // When the turn began that run() is in: what all events of it say.
    Ns now() const { return now_; }

    // The message that is being handled, and the side that it came from.
    const Arrival& current() { return port(side_).current(); }
    Haul& haul() { return port(side_).haul(); }
    const Wrong& wrong() const {
        return side_ == CLIENTS ? parts_.request_intake.wrong() : parts_.result_intake.wrong();
    }

    Port& port(Side side) { return parts_.ports[side]; }
    ExchangeParts& parts() { return parts_; }
    // How late the loop is, and what its time goes to.
    LoopTimes<STAGES>& times() { return times_; }

private:
    Need step(Ns until);
    void wait(Ns until);
    Need handle();
    Need execute();
    void end_turn();
    // What clients wait for that have left, and copies whose time has come. Only between the orders of two decisions.
    void cancel_departed();
    bool has_input() const { return parts_.ports[WORKERS].has_input() || parts_.ports[CLIENTS].has_input(); }

    ExchangeParts parts_;
    HaulBounds haul_bounds_;
    Ns turn_python_ns_;  // of each port
    DescriptorWait waiting_;
    LoopTimes<STAGES> times_;
    Stage stage_ = WAIT;
    Side side_ = WORKERS;
    Ns now_ = 0;
    Ns look_ns_ = 0;             // when connections are next looked at
    Ns pause_by_ns_ = NEVER_NS;  // see pause()
};

}  // namespace clockwork
