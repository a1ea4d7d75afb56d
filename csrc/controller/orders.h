// Sends the scheduler's actions as messages to workers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "controller/held_requests.h"
#include "controller/lookups.h"
#include "controller/served_models.h"
#include "controller/workers.h"
#include "msgpack.h"
#include "scheduler/types.h"
#include "wire/messages.h"

namespace clockwork {

class Orders {
public:
    Orders(Workers& workers, HeldRequests& requests, ServedModels& models, Lookups& lookups)
        : workers_(workers), requests_(requests), models_(models), lookups_(lookups) {}

    // Sends a SEND_... order and records it. Does nothing if the worker left in the current turn, of which
    // the scheduler is told. all: the orders of the decision.
    void send(const Command& command, const Commands& all, Ns now);

private:
    void infer(const Command& command, const Commands& all, WorkerLink& worker, Ns now);
    void profile(const Command& command, WorkerLink& worker, Ns now);
    void action(const Command& command, const Commands& all, WorkerLink& worker, ActionKind kind, Ns now);
    void revoke(const Command& command, WorkerLink& worker, Ns now);
    void begin(const Command& command, const WorkerLink& worker, ActionKind kind, Ns now);
    bool send(WorkerLink& worker, bool more, Ns now);
    static ExpectedResult& note(WorkerLink& worker, const Command& command, ActionKind kind, ModelId model_id);

    Workers& workers_;
    HeldRequests& requests_;
    ServedModels& models_;
    Lookups& lookups_;
    wire::ActionMessage message_;
    wire::Revoke revoke_;
    Writer writer_;
    Frame spare_;
    std::vector<HeldRequest*> sending_;  // the parts of a batch
};

}  // namespace clockwork
