// The parts that carry out a policy's decisions, the same for every policy.
#pragma once

#include "scheduler/idle.h"
#include "scheduler/recovery.h"
#include "scheduler/reservations.h"

namespace clockwork {

struct SchedulerParts {
    SchedulerParts(Commands& out, const SchedulerOptions& options)
        : state(out),
          flights(state),
          learning(state, deciders),
          arenas(state, flights, deciders),
          models(state, arenas, learning, deciders),
          requests(state, arenas, models, deciders, options),
          executions(state, flights, deciders),
          recovery(state, arenas, models, requests, deciders),
          idle(state, arenas, executions, deciders),
          reservations(state, arenas, deciders) {}

    Deciders deciders;
    State state;
    Flights flights;
    Learning learning;
    Arenas arenas;
    Models models;
    Requests requests;
    Executions executions;
    Recovery recovery;
    Idle idle;
    Reservations reservations;
};

}  // namespace clockwork
