// The clients that have said hello, each with its connection and its pending requests.
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
    bool gone = false;          // no message is sent to the client any more
    bool has_departed = false;  // gone, and all of its requests have been cancelled
    IdTable requests;           // slots of requests, by the client's request id
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

    // Enters a client. Returns its slot, or NO_SLOT if the connection of its hello has ended: a hello may be
    // read after the end of its connection. key: the connection's, "" if it has none.
    std::uint32_t joined(std::string_view identity, int fd, std::string_view key, Ns now);
    // Stops sending to a client. Its requests are cancelled before the next decision.
    void left(std::uint32_t slot, Ns now);
    // Slots of gone clients whose requests were not cancelled yet.
    std::vector<std::uint32_t>& departed() { return departed_; }
    // Frees a client whose requests have ended.
    void give_back(ClientLink& client) { links_.give_back(&client); }

    ClientLink& at(std::uint32_t slot) { return *links_.at(slot); }
    // Null if there is no such client.
    ClientLink* find(std::string_view identity) {
        auto found = by_identity_.find(identity);
        return found == by_identity_.end() ? nullptr : links_.at(found->second);
    }

    // Sends a header; `more`: frames follow. False if the client is gone, or unreachable, and then among
    // lost().
    bool send(ClientLink& client, std::string_view header, bool more, Ns now);
    void send(Frame& frame, bool more) { port_.send(frame, more); }
    const Connections& connections() const { return port_.connections(); }
    // Slots of unreachable clients; the caller clears it.
    std::vector<std::uint32_t>& lost() { return lost_; }

private:
    Port& port_;
    Pool<ClientLink> links_;
    ByText<std::uint32_t> by_identity_;
    std::vector<std::uint32_t> departed_;
    std::vector<std::uint32_t> lost_;
};

}  // namespace clockwork
