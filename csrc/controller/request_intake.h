// Handles the messages of clients: from a request's bytes to a held request that the scheduler knows.
#pragma once

#include <cstdint>

#include "controller/clients.h"
#include "controller/held_requests.h"
#include "controller/intake.h"
#include "controller/outcome_counts.h"
#include "controller/port.h"
#include "controller/routes.h"
#include "controller/shadow_copies.h"
#include "controller/shape_numbers.h"

namespace clockwork {

class RequestIntake {
public:
    RequestIntake(Port& port, Clients& clients, Routes& routes, HeldRequests& requests, ShapeNumbers& shapes,
                  ShadowCopies& shadows, OutcomeCounts& counts)
        : port_(port),
          clients_(clients),
          routes_(routes),
          requests_(requests),
          shapes_(shapes),
          shadows_(shadows),
          counts_(counts) {
        wrong_.is_request = true;
    }

    // Sets the machine whose memory every worker sees; see check_request().
    std::int64_t shared_machine = 0;

    // Handles a message of the port's current haul.
    IntakeResult take(const Arrival& arrival, Ns now);
    const WrongMessage& wrong() const { return wrong_; }

private:
    IntakeResult infer(ClientLink& client, const Arrival& arrival, Ns now);
    IntakeResult cancel(ClientLink& client, const Arrival& arrival, Ns now);
    HeldRequest& hold(ClientLink& client, ServedModel& model, const Arrival& arrival, std::size_t came);
    IntakeResult refuse(const Flaw& flaw, const Target& target);

    Port& port_;
    Clients& clients_;
    Routes& routes_;
    HeldRequests& requests_;
    ShapeNumbers& shapes_;
    ShadowCopies& shadows_;
    OutcomeCounts& counts_;
    wire::InferRequest request_;
    wire::Cancel cancel_;
    AcceptedRequest accepted_;
    FrameBytes frames_;
    WrongMessage wrong_;
};

}  // namespace clockwork
