// Requests that are held from their arrival to their answer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "controller/clients.h"
#include "controller/recorded_scheduler.h"
#include "controller/served_models.h"
#include "controller/sockets.h"
#include "id_table.h"
#include "scheduler/pool.h"

namespace clockwork {

struct ShadowPair;

// An input as it is repeated to the worker; its dimensions are in HeldRequest::dims, its bytes in the frame beside it.
struct HeldTensor {
    std::int64_t dtype = 0;
    std::uint32_t first = 0;
    std::uint32_t rank = 0;
};

// A request between its arrival and its answer: who asked, and the tensors on their way.
struct HeldRequest {
    RequestId id = 0;              // 0: this one is free
    std::int64_t request_id = 0;   // the client's
    ClientLink* client = nullptr;  // null: it is a shadow's, and nobody is sent its answer
    ServedModel* model = nullptr;
    std::uint32_t rows = 1;
    bool has_room = false;  // its outputs may be in the client's memory
    Ns arrived_ns = 0;
    ShadowPair* pair = nullptr;      // if its answer is to be compared
    std::uint64_t copied_bytes = 0;  // of a copy: what it counts for
    bool has_arrived = false;        // of a copy: the scheduler knows it
    std::vector<HeldTensor> tensors;
    std::vector<std::int64_t> dims;
    std::vector<Frame> frames;
    HeldRequest* before = nullptr;  // of this client, in the order of arrival
    HeldRequest* after = nullptr;

    std::uint32_t slot = 0;
    std::uint32_t generation = 0;

    void reset() {
        id = 0;
        client = nullptr;
        pair = nullptr;
        copied_bytes = 0;
        has_arrived = false;
        has_room = false;
        tensors.clear();
        dims.clear();
        frames.clear();
        before = after = nullptr;
    }
};

// What the scheduler is told of a request beside its number and model.
struct ArrivalTerms {
    std::uint32_t rows = 1;
    std::uint32_t shape = 0;
    std::uint64_t bytes = 0;
    std::uint64_t copied_bytes = 0;
    Ns deadline_ns = NEVER_NS;
    std::int64_t priority = 0;  // 0: the default
};

class HeldRequests {
public:
    HeldRequests(RecordedScheduler& scheduler, ServedModels& models, Clients& clients, std::int64_t priority_default)
        : scheduler_(scheduler), models_(models), clients_(clients), priority_default_(priority_default) {}

    // A request, empty but for whose it is. client: null for a copy, which nobody waits for.
    HeldRequest& hold(ClientLink* client, std::int64_t request_id, ServedModel& model);
    // Has it arrive at the scheduler.
    void arrive(HeldRequest& held, const ArrivalTerms& terms, Ns now);
    // The scheduler answers it soon.
    void cancel(const HeldRequest& held, Ns now) { scheduler_.cancelled(now, held.id); }
    // Cancels whatever clients wait for that have left. Only between the orders of two decisions: a recording has them
    // apart.
    void cancel_departed(Ns now);
    // Takes a request out of every table, and gives its memory back. Its client and model may go with it.
    void release(HeldRequest& held);

    // Null where there is none.
    HeldRequest* find(RequestId request_id) {
        std::uint32_t slot = by_id_.find(request_id);
        return slot == IdTable::NONE ? nullptr : pool_.at(slot);
    }
    // By the client's number.
    HeldRequest* find(const ClientLink& client, std::int64_t request_id) {
        std::uint32_t slot = client.requests.find(static_cast<std::uint64_t>(request_id));
        return slot == IdTable::NONE ? nullptr : pool_.at(slot);
    }
    // Throws std::logic_error: the scheduler has an order for a request that is not there.
    HeldRequest& at(RequestId request_id);
    std::size_t size() const { return by_id_.size(); }
    // function(held) for each, by slot; it may release the request.
    template <typename Function>
    void for_each(const Function& function) {
        for (std::uint32_t slot = 0; slot < pool_.slot_count(); ++slot) {
            if (HeldRequest& held = *pool_.at(slot); held.id != 0)
                function(held);
        }
    }

private:
    RecordedScheduler& scheduler_;
    ServedModels& models_;
    Clients& clients_;
    std::int64_t priority_default_;
    Pool<HeldRequest> pool_;
    IdTable by_id_;  // slot
    RequestId next_ = 1;
};

}  // namespace clockwork
