// The clients that have said hello: each with its connection, and the requests that it waits for.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "controller/by_text.h"
#include "controller/port.h"
#include "id_table.h"
#include "scheduler/pool.h"

namespace clockwork {

struct HeldRequest;

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

class Clients {
public:
    explicit Clients(Port& port) : port_(port) {}

    // Its slot, or NO_SLOT if the connection that its hello came on has ended: a client that says hello and closes at
    // once may be read after the end of its connection. key: of the connection, "" if it has none.
    std::uint32_t joined(std::string_view identity, int fd, std::string_view key, Ns now);
    // Nothing is sent to it any more; what it waits for is cancelled before the next decision.
    void left(std::uint32_t slot, Ns now);
    // Slots of clients that have left, and whose requests were not cancelled yet.
    std::vector<std::uint32_t>& departed() { return departed_; }
    // Its requests have ended.
    void give_back(ClientLink& client) { links_.give_back(&client); }

    ClientLink& at(std::uint32_t slot) { return *links_.at(slot); }
    // Null where there is none.
    ClientLink* find(std::string_view identity) {
        auto found = by_identity_.find(identity);
        return found == by_identity_.end() ? nullptr : links_.at(found->second);
    }

    // Sends a header, behind which frames follow where there are `more`. False if the client is gone, or cannot be
    // reached: then it is among lost().
    bool send(ClientLink& client, std::string_view header, bool more, Ns now);
    void send(Frame& frame, bool more) { port_.send(frame, more); }
    const Connections& connections() const { return port_.connections(); }
    // Slots of clients that could not be reached; cleared by the caller.
    std::vector<std::uint32_t>& lost() { return lost_; }

private:
    Port& port_;
    Pool<ClientLink> links_;
    ByText<std::uint32_t> by_identity_;
    std::vector<std::uint32_t> departed_;
    std::vector<std::uint32_t> lost_;
};

}  // namespace clockwork
