// A DEALER socket: the one connection of a worker.
#pragma once

#include <cerrno>
#include <string_view>

#include "wire/socket.h"

namespace clockwork {

class DealerSocket : public MonitoredSocket {
public:
    using MonitoredSocket::MonitoredSocket;

    // Begins a message. False if nobody takes it; else the rest must follow.
    bool begin(std::string_view header, bool more) {
        while (zmq->send(socket_, header.data(), header.size(), flags(more)) < 0) {
            int error = zmq->last_error();
            if (error == EAGAIN)
                return false;
            if (error != EINTR)
                fail("send on", error);
        }
        return true;
    }

    void send(std::string_view bytes, bool more) {
        while (zmq->send(socket_, bytes.data(), bytes.size(), flags(more)) < 0)
            retry();
    }

    // Takes what the frame holds.
    void send(Frame& frame, bool more) {
        while (zmq->msg_send(frame.message(), socket_, flags(more)) < 0)
            retry();
    }
};

}  // namespace clockwork
