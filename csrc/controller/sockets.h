// ROUTER sockets through libzmq itself: messages in batches, frames passed on without a copy.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "controller/connections.h"
#include "wire/socket.h"

namespace clockwork {

// A message of a batch: its identity, its header and its frames are `count` frames of Haul, from `first` on.
struct Arrival {
    std::uint32_t first = 0;
    std::uint32_t count = 0;
    std::uint64_t bytes = 0;  // bytes of all received frames, as Connection::taken counts them
};

class RouterSocket : public MonitoredSocket {
public:
    using MonitoredSocket::MonitoredSocket;

    // Begins a message. False if the peer is gone, or takes no more messages; otherwise the rest must follow.
    // Its bytes count as unread by `to`.
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

    // Sends a frame, whose content moves to libzmq.
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
    // The last frame of a message. Once it is written, all earlier frames have been written, too.
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
        mark.release();  // let_go() frees the mark, also if sending fails
        while (zmq->msg_send(marked.message(), socket_, flags(false)) < 0)
            retry();
    }

    ConnectionPtr to_;  // the receiver of the current message
};

// The messages that are taken from a socket at once. Frames keep their memory (64 bytes each) between
// batches.
class Haul {
public:
    // Takes at most a number of messages, and no further message once `frames_max` frames, or headers that
    // cost `cost_max` together, are taken. A message with more than message_frames_max frames, or without a
    // header, keeps only its identity (and header): its count is 1.
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
                    break;  // cannot happen: a message arrives whole
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
