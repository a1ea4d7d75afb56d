#include "controller/exchange.h"

#include <algorithm>

namespace clockwork {

namespace {

// Bounds of a haul, see HaulBounds.
constexpr std::size_t HAUL_FRAMES_MAX = 65'536;

}  // namespace

Exchange::Exchange(Scheduler& scheduler, RouterSocket workers, RouterSocket clients, Sentences sentences,
                   const LookupFunctions& lookups, const ExchangeBounds& bounds, std::shared_ptr<Ring> ring)
    : parts_(scheduler, workers, clients, std::move(sentences), lookups, bounds, std::move(ring)),
      haul_bounds_{bounds.drain_messages, HAUL_FRAMES_MAX, bounds.message_frames, bounds.turn_bytes},
      turn_python_ns_(bounds.turn_python_ns) {}

Exchange::Need Exchange::run(Ns until) {
    times_.lap(STAGES);
    parts_.python.settle();
    for (;;) {
        Stage stage = stage_;
        Need need = step(until);
        times_.lap(stage);
        if (WORKER_MESSAGE <= need && need <= WRONG_REQUEST)
            parts_.python.begin();
        if (need != NOTHING)
            return need;
    }
}

Exchange::Need Exchange::step(Ns until) {
    switch (stage_) {
        case WAIT:
            wait(until);
            side_ = WORKERS;
            stage_ = TAKE;
            return NOTHING;
        case TAKE:
            parts_.python.reset();
            if (port(side_).has_rest() || port(side_).take(haul_bounds_, now_))
                times_.note_work();
            stage_ = HANDLE;
            return NOTHING;
        case HANDLE:
            cancel_departed();
            if (Need need = handle(); need != NOTHING)
                return need;
            if (port(side_).has_ends_due())
                return side_ == WORKERS ? WORKERS_LEFT : CLIENTS_LEFT;
            stage_ = side_ == WORKERS ? TAKE : LOOK;
            side_ = CLIENTS;
            return NOTHING;
        case LOOK: stage_ = SETTLE; return waiting_.has_other() || now_ >= until ? OTHER : NOTHING;
        case SETTLE:
            cancel_departed();
            if (!parts_.scheduler.has_news() && now_ < parts_.router.wake_ns()) {
                stage_ = END;
                return NOTHING;
            }
            times_.note_work();
            parts_.router.begin(now_);
            parts_.scheduler.settle(now_);
            stage_ = EXECUTE;
            return NOTHING;
        case EXECUTE: return execute();
        case DONE:
            cancel_departed();
            // The decision is repeated if a peer could not be reached or a model has gone, but not because
            // time has passed.
            stage_ = parts_.scheduler.has_news() ? SETTLE : END;
            return NOTHING;
        case END:
            end_turn();
            stage_ = WAIT;
            if (pause_by_ns_ >= NEVER_NS || (now_ < pause_by_ns_ && has_input()))
                return NOTHING;
            pause_by_ns_ = NEVER_NS;
            return PAUSED;
    }
    return NOTHING;
}

// Waits until a socket may be readable, or `due` is reached.
void Exchange::wait(Ns until) {
    bool is_late = has_input();
    Ns due = std::min({until, parts_.router.wake_ns(), look_ns_, parts_.shadows.next_ns()});
    waiting_.wait(is_late ? 0 : due);
    // Messages that are there already have arrived since the turn before took all messages.
    Ns late_ns = is_late ? now_ : NEVER_NS;
    now_ = clock_ns();
    times_.begin_turn(std::min({late_ns, parts_.router.wake_ns(), now_}));
}

Exchange::Need Exchange::handle() {
    Port& port = this->port(side_);
    auto is_known = [this](std::string_view identity) {
        return side_ == CLIENTS ? parts_.clients.find(identity) != nullptr : parts_.workers.find(identity) != nullptr;
    };
    while (parts_.python.spent_ns() < turn_python_ns_ && port.next(is_known)) {
        IntakeResult taken = side_ == CLIENTS ? parts_.request_intake.take(port.current(), now_)
                                              : parts_.result_intake.take(port.current(), now_);
        if (taken == IntakeResult::PYTHON)
            return side_ == CLIENTS ? CLIENT_MESSAGE : WORKER_MESSAGE;
        if (taken == IntakeResult::WRONG)
            return side_ == CLIENTS ? WRONG_REQUEST : WRONG_RESULT;
    }
    return NOTHING;
}

Exchange::Need Exchange::execute() {
    if (!parts_.router.carry_out(now_))
        return ORDER;
    parts_.scheduler.end();
    stage_ = DONE;
    if (parts_.router.has_stopped() || !parts_.clients.lost().empty() || !parts_.workers.lost().empty())
        return ORDERS_DONE;
    parts_.scheduler.clear();
    return NOTHING;
}

void Exchange::end_turn() {
    parts_.results.clear();
    for (Port& port : parts_.ports)
        port.end_turn();
    look_ns_ = std::min(port(WORKERS).connections().look(now_), port(CLIENTS).connections().look(now_));
    times_.end_turn();
}

void Exchange::cancel_departed() {
    parts_.requests.cancel_departed(now_);
    parts_.shadows.cancel_due(now_);
}

}  // namespace clockwork
