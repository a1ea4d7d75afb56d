#include "controller/clients.h"

#include <utility>

namespace clockwork {

std::uint32_t Clients::joined(std::string_view identity, int fd, std::string_view key, Ns now) {
    ConnectionPtr connection = port_.greet(fd, key, now);
    if (connection == nullptr)
        return NO_SLOT;
    ClientLink* client = links_.make();
    client->identity = identity;
    client->connection = std::move(connection);
    by_identity_.emplace(client->identity, client->slot);
    return client->slot;
}

void Clients::left(std::uint32_t slot, Ns now) {
    ClientLink& client = *links_.at(slot);
    by_identity_.erase(client.identity);
    port_.connections().forget(*client.connection, now);
    client.gone = true;
    departed_.push_back(slot);
}

bool Clients::send(ClientLink& client, std::string_view header, bool more, Ns now) {
    if (client.gone)
        return false;
    if (!port_.address(client.identity, client.connection, now)) {
        lost_.push_back(client.slot);
        return false;
    }
    port_.send(header, more);
    return true;
}

}  // namespace clockwork
