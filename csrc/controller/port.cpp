#include "controller/port.h"

#include "wire/fields.h"

namespace clockwork {

bool Port::take(const HaulBounds& bounds, Ns now) {
    clear();
    auto cost = [this](std::string_view header) {
        return header.size() + (is_native_(wire::tag_of(header)) ? 0 : PYTHON_BYTES);
    };
    haul_.receive(socket_, bounds.messages, bounds.frames, bounds.message_frames, bounds.header_bytes, cost);
    read_news(now);
    pass_ = ended_.empty() ? ALL : KNOWN;
    return haul_.size() != 0;
}

void Port::clear() {
    haul_.clear();
    pass_ = ALL;
    cursor_ = current_ = 0;
    strangers_.clear();
}

void Port::read_news(Ns now) {
    ConnectionNews news;
    while (socket_.receive_news(news)) {
        if (news.event == CLOCKWORK_ZMQ_EVENT_ACCEPTED) {
            connections_.accepted(news.fd, now);
        } else if (ConnectionPtr connection = connections_.ended(news.fd);
                   connection != nullptr && connection->is_greeted) {
            ended_.push_back(news.fd);
        }
    }
}

void Port::count_taken(const Arrival& arrival) {
    if (arrival.count < 2)
        return;
    if (ConnectionPtr connection = connections_.find(haul_.header(arrival).descriptor()); connection != nullptr)
        connection->taken += arrival.bytes;
}

ConnectionPtr Port::greet(int fd, std::string_view key, Ns now) {
    ConnectionPtr connection = connections_.find(fd);
    if (connection == nullptr || connection->is_cut)
        return nullptr;
    connections_.greet(*connection, key, now);
    return connection;
}

bool Port::disconnect(int fd) {
    ConnectionPtr connection = connections_.find(fd);
    return connection != nullptr && connections_.cut(*connection, CutReason::ASKED);
}

int Port::seat_for(int fd, std::string_view key, Ns now) const {
    ConnectionPtr connection = connections_.find(fd);
    return connection == nullptr ? SEAT_FREE : connections_.seat_for(*connection, key, now);
}

void Port::heard(int fd, Ns now) {
    if (ConnectionPtr connection = connections_.find(fd); connection != nullptr)
        connections_.heard(*connection, now);
}

bool Port::begin(std::string_view identity, int fd, Ns now) {
    ConnectionPtr connection = connections_.find(fd);
    if (connection == nullptr || !address(identity, connection, now))
        return false;
    connections_.heard(*connection, now);
    return true;
}

}  // namespace clockwork
