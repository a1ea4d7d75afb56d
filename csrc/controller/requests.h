// Requests that are held from their arrival to their answer, and the clients that wait for them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "controller/connections.h"
#include "controller/models.h"
#include "controller/shadows.h"
#include "controller/sockets.h"
#include "id_table.h"
#include "scheduler/types.h"

namespace clockwork {

struct ClientLink;
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

// A request and its copy, until both have ended.
struct ShadowPair {
    HeldRequest* first = nullptr;  // null: it has ended
    HeldRequest* copy = nullptr;
    std::shared_ptr<ShadowTally> tally;
    AnswerKept answer;      // whichever came first
    std::size_t bytes = 0;  // of it

    std::uint32_t slot = 0;
    std::uint32_t generation = 0;

    void reset() {
        first = copy = nullptr;
        tally.reset();
        answer = AnswerKept();
        bytes = 0;
    }
};

struct ClientLink {
    std::string identity;
    ConnectionPtr connection;
    bool gone = false;          // nothing is sent to it any more
    bool has_departed = false;  // and what it waits for has been cancelled
    IdTable requests;           // the client's request id: slot of the request
    HeldRequest* first = nullptr;
    HeldRequest* last = nullptr;

    std::uint32_t slot = 0;
    std::uint32_t generation = 0;

    void reset() {
        connection.reset();
        gone = has_departed = false;
        requests = IdTable();
        first = last = nullptr;
    }
};

}  // namespace clockwork
