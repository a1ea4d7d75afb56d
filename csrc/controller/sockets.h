// ROUTER sockets through libzmq itself: messages in batches, frames passed on without a copy.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "controller/connections.h"
#include "zmq_api.h"

namespace clockwork {

// The functions of the libzmq that pyzmq brought; set once, before anything here is made.
inline const clockwork_zmq_api* zmq = nullptr;

// One frame. Small ones live inside; what is larger is counted, and a copy shares it.
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

    // libzmq writes to what it shares from (it notes that it is shared), hence no const.
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
    // Bytes of somebody else, who hears on any thread when they are not needed any more.
    void lend(void* bytes, std::size_t size, void (*let_go)(void*, void*), void* hint) {
        zmq->msg_close(&message_);
        if (zmq->msg_init_data(&message_, bytes, size, let_go, hint) != 0)
            out_of_memory();
    }
    void* data() { return zmq->msg_data(&message_); }
    std::size_t size() const { return zmq->msg_size(&message_); }
    std::string_view view() { return {static_cast<const char*>(data()), size()}; }
    bool more() const { return zmq->msg_more(&message_) != 0; }
    // Of the connection that it came on; -1 if that has none (a peer that speaks the first ZMTP).
    int descriptor() const { return zmq->msg_get(&message_, CLOCKWORK_ZMQ_SRCFD); }
    // The public key that its connection was made with, as Z85; "" without CURVE.
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

// A message of a batch: its identity, its header and its frames are `count` frames of Haul, from `first` on.
struct Arrival {
    std::uint32_t first = 0;
    std::uint32_t count = 0;
    std::uint64_t bytes = 0;  // of all that came, as Connection::taken counts it
};

// What the monitor of a socket tells.
struct ConnectionNews {
    std::uint16_t event = 0;
    int fd = -1;
};

class RouterSocket {
public:
    // As long as this is used, the socket and its monitor must stay open.
    RouterSocket(void* socket, void* monitor) : socket_(socket), monitor_(monitor) {}

    // Receives the next part into `frame`. False if there is none now.
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

    // Whether receive() would find something. To be asked before one waits for descriptors: they are edges.
    bool has_input() const { return is_readable(socket_); }
    // Whether a connection has ended since the monitor was last read.
    bool has_news() const { return is_readable(monitor_); }

    // The next event of the monitor. False if there is none now.
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
        while (frame.more()) {  // the endpoint
            if (zmq->msg_recv(frame.message(), monitor_, CLOCKWORK_ZMQ_DONTWAIT) < 0)
                break;
        }
        return true;
    }

    // Begins a message. False if the peer is gone, or takes nothing any more; else the rest must follow. Its bytes
    // count as unread by `to`.
    bool address(std::string_view identity, const ConnectionPtr& to) {
        while (zmq->send(socket_, identity.data(), identity.size(), CLOCKWORK_ZMQ_DONTWAIT | CLOCKWORK_ZMQ_SNDMORE) <
               0) {
            int error = zmq->last_error();
            if (error == EAGAIN || error == EHOSTUNREACH)
                return false;
            if (error != EINTR)
                fail("send on", error);
        }
        to_ = to;
        to_->unmarked += FRAME_EXTRA_BYTES;
        return true;
    }

    void send(std::string_view header, bool more) {
        to_->unmarked += header.size() + FRAME_EXTRA_BYTES;
        if (!more && to_->unmarked >= MARK_BYTES) {
            Frame frame;
            frame.copy_of(header);
            send_marked(frame);
            return;
        }
        while (zmq->send(socket_, header.data(), header.size(), flags(more)) < 0)
            retry();
    }

    // Takes what the frame holds.
    void send(Frame& frame, bool more) {
        to_->unmarked += frame.size() + FRAME_EXTRA_BYTES;
        if (!more && to_->unmarked >= MARK_BYTES) {
            send_marked(frame);
            return;
        }
        while (zmq->msg_send(frame.message(), socket_, flags(more)) < 0)
            retry();
    }

private:
    // A message's last frame, with which everything that was queued before has been written, too.
    struct Mark {
        ConnectionPtr to;
        std::uint64_t bytes;
        Frame frame;
    };

    static void let_go(void*, void* hint) {
        std::unique_ptr<Mark> mark(static_cast<Mark*>(hint));
        mark->to->marked.fetch_sub(mark->bytes, std::memory_order_relaxed);
        mark->to->all->fetch_sub(mark->bytes, std::memory_order_relaxed);
    }

    void send_marked(Frame& frame) {
        auto mark = std::make_unique<Mark>(Mark{to_, to_->unmarked, std::move(frame)});
        Frame marked;
        marked.lend(mark->frame.data(), mark->frame.size(), let_go, mark.get());
        to_->marked.fetch_add(mark->bytes, std::memory_order_relaxed);
        to_->all->fetch_add(mark->bytes, std::memory_order_relaxed);
        to_->queued += mark->bytes;
        to_->unmarked = 0;
        mark.release();  // let_go() has it, whatever becomes of the frame
        while (zmq->msg_send(marked.message(), socket_, flags(false)) < 0)
            retry();
    }

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
    void* monitor_;
    ConnectionPtr to_;  // of the message that has begun
};

// What was taken from a socket at once. Frames keep their memory (64 bytes each) from one batch to the next.
class Haul {
public:
    // At most so many messages, and no further one once it holds `frames_max` frames, or messages whose headers cost
    // `cost_max` together. Of a message of more than message_frames_max frames, and of one without a header, only the
    // identity (and header) is kept: count says 1.
    template <typename Cost>
    void receive(RouterSocket& socket, std::size_t messages_max, std::size_t frames_max, std::size_t message_frames_max,
                 std::size_t cost_max, const Cost& cost) {
        std::size_t spent = 0;
        while (messages_.size() < messages_max && used_ < frames_max && spent < cost_max) {
            std::size_t first = used_;
            if (!socket.receive(next()))
                return;
            ++used_;
            std::uint64_t bytes = FRAME_EXTRA_BYTES;
            bool more = frames_[first].more();
            bool too_many = false;
            while (more) {
                Frame& frame = next();
                if (!socket.receive(frame))
                    break;  // never: a message arrives whole
                more = frame.more();
                bytes += frame.size() + FRAME_EXTRA_BYTES;
                if (used_ - first < message_frames_max + 1) {
                    ++used_;
                } else {
                    too_many = true;
                    frame.clear();
                }
            }
            std::size_t count = used_ - first;
            if (too_many) {
                while (used_ > first + 2)
                    frames_[--used_].clear();
                count = 1;
            }
            messages_.push_back({static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(count), bytes});
            spent += cost(count > 1 ? header(messages_.back()).view() : std::string_view());
        }
    }

    std::size_t size() const { return messages_.size(); }
    const Arrival& at(std::size_t place) const { return messages_[place]; }
    Frame& frame(std::size_t place) { return frames_[place]; }
    Frame& identity(const Arrival& arrival) { return frames_[arrival.first]; }
    Frame& header(const Arrival& arrival) { return frames_[arrival.first + 1]; }

    void clear() {
        messages_.clear();
        if (frames_.size() > KEPT_FRAMES) {
            frames_.clear();
            frames_.shrink_to_fit();
        } else {
            for (std::size_t place = 0; place < used_; ++place)
                frames_[place].clear();
        }
        used_ = 0;
    }

private:
    static constexpr std::size_t KEPT_FRAMES = 16'384;

    Frame& next() {
        if (used_ == frames_.size())
            frames_.emplace_back();
        return frames_[used_];
    }

    std::vector<Arrival> messages_;
    std::vector<Frame> frames_;
    std::size_t used_ = 0;
};

}  // namespace clockwork
