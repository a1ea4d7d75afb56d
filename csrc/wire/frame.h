// Frames of messages through libzmq itself, without a copy.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "zmq_api.h"

namespace clockwork {

// The functions of pyzmq's libzmq; set once, before any frame is made.
inline const clockwork_zmq_api* zmq = nullptr;

// A frame. A small frame holds its bytes; the bytes of a larger frame are reference-counted and shared by
// copies.
class Frame {
public:
    Frame() { zmq->msg_init(&message_); }
    ~Frame() { zmq->msg_close(&message_); }
    Frame(Frame&& other) noexcept : Frame() { zmq->msg_move(&message_, &other.message_); }
    Frame& operator=(Frame&& other) noexcept {
        zmq->msg_move(&message_, &other.message_);
        return *this;
    }
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;

    // No const: libzmq marks the source of a shared copy.
    void share(Frame& other) { zmq->msg_copy(&message_, &other.message_); }
    void clear() {
        zmq->msg_close(&message_);
        zmq->msg_init(&message_);
    }
    void copy_of(std::string_view bytes, std::string_view rest = {}) {
        zmq->msg_close(&message_);
        if (zmq->msg_init_size(&message_, bytes.size() + rest.size()) != 0)
            out_of_memory();
        char* target = static_cast<char*>(data());
        std::copy_n(rest.data(), rest.size(), std::copy_n(bytes.data(), bytes.size(), target));
    }
    // Makes a frame of bytes that it does not own. let_go() tells the owner, on any thread, that they are
    // unused.
    void lend(void* bytes, std::size_t size, void (*let_go)(void*, void*), void* hint) {
        zmq->msg_close(&message_);
        if (zmq->msg_init_data(&message_, bytes, size, let_go, hint) != 0)
            out_of_memory();
    }
    void* data() { return zmq->msg_data(&message_); }
    std::size_t size() const { return zmq->msg_size(&message_); }
    std::string_view view() { return {static_cast<const char*>(data()), size()}; }
    bool more() const { return zmq->msg_more(&message_) != 0; }
    // The descriptor of the frame's connection; -1 if unknown (a peer with the first version of ZMTP).
    int descriptor() const { return zmq->msg_get(&message_, CLOCKWORK_ZMQ_SRCFD); }
    // The public key of the frame's connection, as Z85; "" without CURVE.
    std::string_view key() const {
        const char* found = zmq->msg_gets(&message_, "User-Id");
        return found != nullptr ? found : "";
    }
    clockwork_zmq_message* message() { return &message_; }

private:
    [[noreturn]] void out_of_memory() {
        zmq->msg_init(&message_);
        throw std::bad_alloc();
    }

    clockwork_zmq_message message_;
};

// Returns the frame behind the header that a tensor is in; null, with a sentence, if there is none.
inline Frame* frame_of_tensor(std::vector<Frame>& message, std::int64_t number, std::string& flaw) {
    const std::size_t place = static_cast<std::size_t>(number);
    if (place + 1 < message.size())
        return &message[place + 1];
    flaw = "a tensor in frame " + std::to_string(place) + " of a message with " + std::to_string(message.size() - 1);
    return nullptr;
}

}  // namespace clockwork
