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
        } else if (ConnectionPtr one = connections_.ended(news.fd); one != nullptr && one->is_greeted) {
            ended_.push_back(news.fd);
        }
    }
}

void Port::count_taken(const Arrival& arrival) {
    if (arrival.count < 2)
        return;
    if (ConnectionPtr one = connections_.find(haul_.header(arrival).descriptor()); one != nullptr)
        one->taken += arrival.bytes;
}

ConnectionPtr Port::greet(int fd, std::string_view key, Ns now) {
    ConnectionPtr one = connections_.find(fd);
    if (one == nullptr || one->is_cut)
        return nullptr;
    connections_.greet(*one, key, now);
    return one;
}

bool Port::disconnect(int fd) {
    ConnectionPtr one = connections_.find(fd);
    return one != nullptr && connections_.cut(*one, CutReason::ASKED);
}

int Port::seat_for(int fd, std::string_view key, Ns now) const {
    ConnectionPtr one = connections_.find(fd);
    return one == nullptr ? SEAT_FREE : connections_.seat_for(*one, key, now);
}

void Port::heard(int fd, Ns now) {
    if (ConnectionPtr one = connections_.find(fd); one != nullptr)
        connections_.heard(*one, now);
}

bool Port::begin(std::string_view identity, int fd, Ns now) {
    ConnectionPtr one = connections_.find(fd);
    if (one == nullptr || !address(identity, one, now))
        return false;
    connections_.heard(*one, now);
    return true;
}

}  // namespace clockwork
