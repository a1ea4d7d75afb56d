// A socket and its monitor, through libzmq itself.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "wire/frame.h"

namespace clockwork {

// An event of a socket's monitor.
struct ConnectionNews {
    std::uint16_t event = 0;
    int fd = -1;
};

class MonitoredSocket {
public:
    // The socket and its monitor must stay open as long as this object is used.
    MonitoredSocket(void* socket, void* monitor) : socket_(socket), monitor_(monitor) {}

    // Receives the next frame of a message. False if none has arrived.
    bool receive(Frame& frame) {
        while (zmq->msg_recv(frame.message(), socket_, CLOCKWORK_ZMQ_DONTWAIT) < 0) {
            int error = zmq->last_error();
            if (error == EAGAIN)
                return false;
            if (error != EINTR)
                fail("receive", error);
        }
        return true;
    }

    // Whether receive() would return a frame. Check it before a wait: descriptors signal edges only.
    bool has_input() const { return is_readable(socket_); }
    // Whether a connection has ended since the last read of the monitor.
    bool has_news() const { return is_readable(monitor_); }

    // Reads the next event of the monitor. False if there is none.
    bool receive_news(ConnectionNews& news) {
        Frame frame;
        while (zmq->msg_recv(frame.message(), monitor_, CLOCKWORK_ZMQ_DONTWAIT) < 0) {
            int error = zmq->last_error();
            if (error == EAGAIN)
                return false;
            if (error != EINTR)
                fail("receive from the monitor of", error);
        }
        const char* body = static_cast<const char*>(frame.data());  // an event's number and value, unaligned
        std::uint32_t value = 0;
        if (frame.size() < sizeof(news.event) + sizeof(value))
            fail("read the monitor of", EPROTO);
        std::memcpy(&news.event, body, sizeof(news.event));
        std::memcpy(&value, body + sizeof(news.event), sizeof(value));
        news.fd = static_cast<int>(value);
        while (frame.more()) {  // the second frame is the endpoint, which is skipped
            if (zmq->msg_recv(frame.message(), monitor_, CLOCKWORK_ZMQ_DONTWAIT) < 0)
                break;
        }
        return true;
    }

protected:
    static bool is_readable(void* socket) {
        int events = 0;
        std::size_t size = sizeof(events);
        while (zmq->getsockopt(socket, CLOCKWORK_ZMQ_EVENTS, &events, &size) != 0) {
            int error = zmq->last_error();
            if (error != EINTR)
                fail("look at", error);
        }
        return (events & CLOCKWORK_ZMQ_POLLIN) != 0;
    }

    static int flags(bool more) { return CLOCKWORK_ZMQ_DONTWAIT | (more ? CLOCKWORK_ZMQ_SNDMORE : 0); }

    static void retry() {
        int error = zmq->last_error();
        if (error != EINTR)
            fail("send on", error);
    }

    [[noreturn]] static void fail(const char* what, int error) {
        throw std::runtime_error("libzmq cannot " + std::string(what) + " a socket: error " + std::to_string(error));
    }

    void* socket_;

private:
    void* monitor_;
};

}  // namespace clockwork
