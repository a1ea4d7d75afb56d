// Requests, which are held from their arrival to their answer.
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

// An input as it is sent on to the worker. HeldRequest::dims has its dimensions, the frame beside it its
// bytes.
struct HeldTensor {
    std::int64_t dtype = 0;
    std::uint32_t first = 0;
    std::uint32_t rank = 0;
};

// A request between its arrival and its answer: its client and its tensors.
struct HeldRequest {
    RequestId id = 0;              // 0: the record is free
    std::int64_t request_id = 0;   // the client's number of the request
    ClientLink* client = nullptr;  // null: a shadow's copy, whose answer is sent to no client
    ServedModel* model = nullptr;
    std::uint32_t rows = 1;
    bool has_room = false;  // whether the outputs may be in the client's memory
    Ns arrived_ns = 0;
    ShadowPair* pair = nullptr;      // null unless the answer is to be compared
    std::uint64_t copied_bytes = 0;  // the bytes that a copy counts for
    bool has_arrived = false;        // whether the scheduler knows a copy
    std::vector<HeldTensor> tensors;
    std::vector<std::int64_t> dims;
    std::vector<Frame> frames;
    HeldRequest* before = nullptr;  // neighbours in the client's list, by arrival
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

// The scheduler's data of a request beside its number and model.
struct ArrivalTerms {
    std::uint32_t rows = 1;
    std::uint32_t shape = 0;
    std::uint64_t bytes = 0;
    std::uint64_t copied_bytes = 0;
    Ns deadline_ns = NEVER_NS;
    std::int64_t priority = 0;  // 0: the default priority
};

class HeldRequests {
public:
    HeldRequests(RecordedScheduler& scheduler, ServedModels& models, Clients& clients, std::int64_t priority_default)
        : scheduler_(scheduler), models_(models), clients_(clients), priority_default_(priority_default) {}

    // Makes a request without content. client: null for a shadow's copy.
    HeldRequest& hold(ClientLink* client, std::int64_t request_id, ServedModel& model);
    // Tells the scheduler of the request's arrival.
    void arrive(HeldRequest& held, const ArrivalTerms& terms, Ns now);
    // Cancels the request: the scheduler answers it soon.
    void cancel(const HeldRequest& held, Ns now) { scheduler_.cancelled(now, held.id); }
    // Cancels the requests of gone clients. Only between the orders of two decisions, which a recording
    // separates.
    void cancel_departed(Ns now);
    // Removes a request from every table, and frees its memory. Its client and model may be freed with it.
    void release(HeldRequest& held);

    // Null if there is no such request.
    HeldRequest* find(RequestId request_id) {
        std::uint32_t slot = by_id_.find(request_id);
        return slot == IdTable::NONE ? nullptr : pool_.at(slot);
    }
    // By the client's request id.
    HeldRequest* find(const ClientLink& client, std::int64_t request_id) {
        std::uint32_t slot = client.requests.find(static_cast<std::uint64_t>(request_id));
        return slot == IdTable::NONE ? nullptr : pool_.at(slot);
    }
    // Throws std::logic_error if an order of the scheduler names no held request.
    HeldRequest& at(RequestId request_id);
    std::size_t size() const { return by_id_.size(); }
    // Calls function(held) for each request, by slot; the function may release it.
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
    IdTable by_id_;  // slots by request id
    RequestId next_ = 1;
};

}  // namespace clockwork
