// The DEALER socket of a worker's connection to the controller.
#pragma once

#include <cerrno>
#include <string_view>

#include "wire/socket.h"

namespace clockwork {

class DealerSocket : public MonitoredSocket {
public:
    using MonitoredSocket::MonitoredSocket;

    // Begins a message. False if the queue is full; otherwise the remaining frames must follow.
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

    // Sends a frame, whose content moves to libzmq.
    void send(Frame& frame, bool more) {
        while (zmq->msg_send(frame.message(), socket_, flags(more)) < 0)
            retry();
    }
};

}  // namespace clockwork
