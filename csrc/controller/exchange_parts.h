// The parts of the exchange. Each part refers to the parts that it uses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "controller/answers.h"
#include "controller/clients.h"
#include "controller/held_requests.h"
#include "controller/lookups.h"
#include "controller/order_router.h"
#include "controller/orders.h"
#include "controller/outcome_counts.h"
#include "controller/port.h"
#include "controller/python_time.h"
#include "controller/recorded_scheduler.h"
#include "controller/request_intake.h"
#include "controller/result_intake.h"
#include "controller/routes.h"
#include "controller/served_models.h"
#include "controller/shadow_copies.h"
#include "controller/shape_numbers.h"
#include "controller/turn_results.h"
#include "controller/workers.h"
#include "wire/bounds.h"

namespace clockwork {

struct ExchangeBounds {
    std::size_t drain_messages = DRAIN_BATCH_EVENTS;
    std::size_t message_frames = FRAMES_MAX;
    std::size_t turn_bytes = TURN_HEADER_BYTES;
    Ns turn_python_ns = TURN_PYTHON_NS;
    std::int64_t priority_default = PRIORITY_DEFAULT;
    std::size_t queued_requests = QUEUED_REQUESTS_MAX;
    ConnectionBounds connections[2];  // bounds of the workers' socket and of the clients' socket
};

struct ExchangeParts {
    ExchangeParts(Scheduler& decides, RouterSocket to_workers, RouterSocket to_clients, Sentences sentences,
                  const LookupFunctions& functions, const ExchangeBounds& bounds, std::shared_ptr<Ring> ring)
        : lookups(functions, python),
          scheduler(decides, std::move(ring), lookups),
          shapes(lookups),
          routes(models, lookups),
          ports{Port(to_workers, bounds.connections[0], [](std::int64_t tag) { return tag == TAG_RESULT; }),
                Port(to_clients, bounds.connections[1],
                     [](std::int64_t tag) { return tag == TAG_INFER_REQUEST || tag == TAG_CANCEL; })},
          workers(ports[0]),
          clients(ports[1]),
          requests(scheduler, models, clients, bounds.priority_default),
          results(ports[0].haul()),
          shadows(requests, shapes, bounds.queued_requests),
          request_intake(ports[1], clients, routes, requests, shapes, shadows, counts),
          result_intake(ports[0], workers, models, results, scheduler),
          orders(workers, requests, models, lookups),
          answers(clients, requests, results, shadows, counts, std::move(sentences),
                  bounds.connections[1].unread_bytes_all),
          router(scheduler, orders, answers) {}

    // Forgets the numbers of shapes that the scheduler has dropped and may assign again.
    void forget_shapes() {
        shadows.forget_shapes();
        shapes.forget();
        scheduler.recorder().forget_shapes();
    }

    PythonTime python;
    Lookups lookups;
    RecordedScheduler scheduler;
    ShapeNumbers shapes;
    ServedModels models;
    Routes routes;
    Port ports[2];  // the workers' and the clients' ports
    Workers workers;
    Clients clients;
    HeldRequests requests;
    TurnResults results;
    ShadowCopies shadows;
    OutcomeCounts counts;
    RequestIntake request_intake;
    ResultIntake result_intake;
    Orders orders;
    Answers answers;
    OrderRouter router;
};

}  // namespace clockwork
