// A libzmq for a single process without sockets: sent messages go into a queue, and received ones come from
// another.
//
// Messages count their references atomically, as libzmq's do, and a message that is never closed is a leak
// that AddressSanitizer finds. A Socket is a ROUTER: sending to an unknown identity fails with EHOSTUNREACH.
#pragma once

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <deque>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "threads.h"
#include "zmq_api.h"

namespace clockwork::fake {

using Message = std::vector<std::string>;  // the peer's identity, then the frames

struct Body {
    std::atomic<int> references{1};
    std::string bytes;
    bool more = false;
    int descriptor = -1;
    void (*let_go)(void* data, void* hint) = nullptr;  // frees bytes that are the caller's
    void* data = nullptr;
    void* hint = nullptr;

    ~Body() {
        if (let_go != nullptr)
            let_go(data, hint);
    }
};

inline thread_local int last_error = 0;

// The base of every socket: the `void*` that the table takes points to one.
struct AnySocket {
    virtual ~AnySocket() = default;
    virtual int receive(clockwork_zmq_message* target) = 0;
    // Takes the body of the message unless sending fails.
    virtual int send(Body* body, int flags) = 0;
    virtual bool has_input() = 0;
};

struct Socket : AnySocket {
    std::deque<std::pair<Message, int>> incoming;  // a message, and the descriptor from which it came
    std::size_t taken = 0;                         // frames taken of the first message
    std::vector<Message> sent;
    std::map<std::string, bool, std::less<>> peers;  // whether each peer's queue is full, by identity
    void arrive(Message message, int descriptor = -1) { incoming.emplace_back(std::move(message), descriptor); }

    int receive(clockwork_zmq_message* target) override;
    int send(Body* body, int flags) override;
    bool has_input() override { return !incoming.empty(); }

private:
    bool is_open_ = false;  // whether more frames of the last message of `sent` follow
};

inline Body*& body_of(clockwork_zmq_message* message) { return *reinterpret_cast<Body**>(message->bytes); }

inline void release(Body*& body) {
    if (body != nullptr && body->references.fetch_sub(1) == 1)
        delete body;
    body = nullptr;
}

inline int failed(int error) {
    last_error = error;
    return -1;
}

inline int Socket::receive(clockwork_zmq_message* target) {
    if (incoming.empty())
        return failed(EAGAIN);
    auto& [message, descriptor] = incoming.front();
    Body* body = new Body();
    body->bytes = std::move(message[taken]);
    body->descriptor = descriptor;
    body->more = ++taken < message.size();
    if (!body->more) {
        incoming.pop_front();
        taken = 0;
    }
    release(body_of(target));
    body_of(target) = body;
    return static_cast<int>(body->bytes.size());
}

inline int Socket::send(Body* body, int flags) {
    if (!is_open_) {
        auto peer = peers.find(body->bytes);
        if (peer == peers.end())
            return failed(EHOSTUNREACH);
        if (peer->second)
            return failed(EAGAIN);
        sent.emplace_back();
    }
    sent.back().push_back(body->bytes);
    is_open_ = (flags & CLOCKWORK_ZMQ_SNDMORE) != 0;
    release(body);
    return 0;
}

inline const clockwork_zmq_api& api() {
    static const clockwork_zmq_api table = [] {
        clockwork_zmq_api made{};
        made.msg_init = [](clockwork_zmq_message* message) {
            body_of(message) = nullptr;
            return 0;
        };
        made.msg_init_size = [](clockwork_zmq_message* message, std::size_t size) {
            const Uncounted uncounted;
            body_of(message) = new Body();
            body_of(message)->bytes.resize(size);
            return 0;
        };
        made.msg_init_data = [](clockwork_zmq_message* message, void* data, std::size_t size,
                                void (*let_go)(void*, void*), void* hint) {
            const Uncounted uncounted;
            Body* body = new Body();
            body->bytes.assign(static_cast<const char*>(data), size);
            body->let_go = let_go;
            body->data = data;
            body->hint = hint;
            body_of(message) = body;
            return 0;
        };
        made.msg_gets = [](const clockwork_zmq_message*, const char*) -> const char* { return nullptr; };
        made.msg_recv = [](clockwork_zmq_message* message, void* socket, int) {
            return static_cast<AnySocket*>(socket)->receive(message);
        };
        made.msg_send = [](clockwork_zmq_message* message, void* socket, int flags) {
            Body*& body = body_of(message);
            if (body == nullptr)
                body = new Body();
            if (static_cast<AnySocket*>(socket)->send(body, flags) < 0)
                return -1;
            body = nullptr;
            return 0;
        };
        made.msg_copy = [](clockwork_zmq_message* target, clockwork_zmq_message* source) {
            Body* body = body_of(source);
            if (body != nullptr)
                body->references.fetch_add(1);
            release(body_of(target));
            body_of(target) = body;
            return 0;
        };
        made.msg_move = [](clockwork_zmq_message* target, clockwork_zmq_message* source) {
            if (target == source)
                return 0;
            release(body_of(target));
            body_of(target) = std::exchange(body_of(source), nullptr);
            return 0;
        };
        made.msg_close = [](clockwork_zmq_message* message) {
            release(body_of(message));
            return 0;
        };
        made.msg_data = [](clockwork_zmq_message* message) -> void* {
            static char nothing = 0;
            Body* body = body_of(message);
            return body != nullptr ? body->bytes.data() : &nothing;
        };
        made.msg_size = [](const clockwork_zmq_message* message) {
            const Body* body = body_of(const_cast<clockwork_zmq_message*>(message));
            return body != nullptr ? body->bytes.size() : 0;
        };
        made.msg_more = [](const clockwork_zmq_message* message) {
            const Body* body = body_of(const_cast<clockwork_zmq_message*>(message));
            return body != nullptr && body->more ? 1 : 0;
        };
        made.msg_get = [](const clockwork_zmq_message* message, int) {
            const Body* body = body_of(const_cast<clockwork_zmq_message*>(message));
            return body != nullptr ? body->descriptor : -1;
        };
        made.send = [](void* socket, const void* data, std::size_t size, int flags) {
            const Uncounted uncounted;
            Body* body = new Body();
            body->bytes.assign(static_cast<const char*>(data), size);
            int status = static_cast<AnySocket*>(socket)->send(body, flags);
            if (status < 0)
                release(body);
            return status;
        };
        made.getsockopt = [](void* socket, int, void* value, std::size_t*) {
            int events = static_cast<AnySocket*>(socket)->has_input() ? CLOCKWORK_ZMQ_POLLIN : 0;
            std::memcpy(value, &events, sizeof events);
            return 0;
        };
        made.last_error = [] { return last_error; };
        return made;
    }();
    return table;
}

}  // namespace clockwork::fake
