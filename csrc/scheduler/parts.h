// The parts that carry out a policy's decisions, the same for every policy.
#pragma once

#include "scheduler/idle.h"
#include "scheduler/recovery.h"
#include "scheduler/reservations.h"
#include "scheduler/spread.h"

namespace clockwork {

struct SchedulerParts {
    SchedulerParts(Commands& out, const SchedulerOptions& options)
        : state(out),
          flights(state),
          learning(state, deciders),
          keepers(state, options),
          arenas(state, flights, keepers, deciders),
          models(state, arenas, keepers, learning, deciders),
          requests(state, arenas, models, deciders, options),
          executions(state, flights, deciders),
          recovery(state, arenas, models, requests, deciders),
          idle(state, arenas, executions, deciders),
          reservations(state, arenas, deciders),
          spread(state, keepers, arenas, deciders) {}

    Deciders deciders;
    State state;
    Flights flights;
    Learning learning;
    Keepers keepers;
    Arenas arenas;
    Models models;
    Requests requests;
    Executions executions;
    Recovery recovery;
    Idle idle;
    Reservations reservations;
    Spread spread;
};

}  // namespace clockwork
