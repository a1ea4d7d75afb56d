// One of the exchange's two ROUTER sockets, with its connections and the taken messages, which are handled in
// order.
//
// When a connection has ended, the peer's messages are handled first, then the end, and then messages of
// unknown peers, whose connections may have reused the descriptor of the ended connection. Messages that
// exceed a turn's time are handled in the next turn before other messages and news are taken from the socket,
// so that the order is kept.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "controller/connections.h"
#include "controller/sockets.h"

namespace clockwork {

// The slot of a peer that was refused.
inline constexpr std::uint32_t NO_SLOT = ~std::uint32_t{0};

// The bounds of a haul, the messages that are taken from a socket at once.
struct HaulBounds {
    std::size_t messages;
    std::size_t frames;          // a haul with this many takes no further message; each costs 64 bytes
    std::size_t message_frames;  // bound on the frames of a message
    // bound on the bytes of all headers; a message for Python counts PYTHON_BYTES more
    std::size_t header_bytes;
};

class Port {
public:
    // Cost of a message that Python handles, in bytes of headers: a turn takes at most 64 such messages.
    static constexpr std::size_t PYTHON_BYTES = 4 << 10;

    // is_native: whether messages with this tag are handled without Python.
    Port(RouterSocket socket, const ConnectionBounds& bounds, bool (*is_native)(std::int64_t tag))
        : socket_(socket), connections_(bounds), is_native_(is_native) {}

    // ----- messages ------------------------------------------------------------------------------

    // Whether the socket or its monitor has untaken input, or a taken message was not handled.
    bool has_input() const { return socket_.has_input() || socket_.has_news() || has_rest(); }
    // Whether a taken message was not handled.
    bool has_rest() const {
        if (pass_ == REST)
            return cursor_ < strangers_.size();
        return pass_ == KNOWN || cursor_ < haul_.size();
    }
    // Takes messages, and then the monitor's news, so that the connection of each message has been accepted.
    // Returns whether there was a message.
    bool take(const HaulBounds& bounds, Ns now);
    // Advances current() to the next message. False if there is none. is_known: tells whether an identity is
    // that of a peer that has said hello.
    template <typename IsKnown>
    bool next(const IsKnown& is_known) {
        while (cursor_ < (pass_ == REST ? strangers_.size() : haul_.size())) {
            current_ = pass_ == REST ? strangers_[cursor_] : cursor_;
            ++cursor_;
            if (pass_ != KNOWN || is_known(haul_.identity(current()).view()))
                return true;
            strangers_.push_back(current_);
        }
        return false;
    }
    // Whether all messages of known peers are handled, so that the ends of connections are due; see ended().
    // True once; messages of other peers follow.
    bool has_ends_due() {
        if (pass_ != KNOWN || cursor_ != haul_.size())
            return false;
        pass_ = REST;
        cursor_ = 0;
        return true;
    }
    // Releases the messages, if all are handled.
    void end_turn() {
        if (!has_rest())
            clear();
    }

    const Arrival& current() const { return haul_.at(current_); }
    Haul& haul() { return haul_; }

    // ----- connections ---------------------------------------------------------------------------

    // Returns the descriptors of peers' connections that have ended since the last call.
    std::vector<int> ended() { return std::exchange(ended_, {}); }
    // Counts the bytes of an unknown peer's message as taken.
    void count_taken(const Arrival& arrival);
    // Records that a peer has said hello; see Connections::greet(). Null if the connection has ended, or was
    // cut.
    ConnectionPtr greet(int fd, std::string_view key, Ns now);
    // Shuts a peer's connection down; see Connections::cut(). False if no connection has this descriptor.
    bool disconnect(int fd);
    // See Connections::seat_for(); SEAT_FREE if no connection has this descriptor.
    int seat_for(int fd, std::string_view key, Ns now) const;
    // Records that the connection was heard of; see Connections::heard().
    void heard(int fd, Ns now);
    Connections& connections() { return connections_; }
    const Connections& connections() const { return connections_; }

    // ----- sending -------------------------------------------------------------------------------

    // Begins a message to a peer; its header and frames follow with send(). False if the peer is gone, or
    // takes no more messages.
    bool address(std::string_view identity, const ConnectionPtr& connection, Ns now) {
        return connections_.may_send(*connection, now) && socket_.address(identity, connection);
    }
    // The same for the peer at this descriptor, which is recorded as heard of.
    bool begin(std::string_view identity, int fd, Ns now);
    void send(std::string_view part, bool more) { socket_.send(part, more); }
    void send(Frame& frame, bool more) { socket_.send(frame, more); }
    // Sends a frame from two pieces.
    void send_joined(std::string_view first, std::string_view rest, bool more) {
        Frame frame;
        frame.copy_of(first, rest);
        socket_.send(frame, more);
    }

private:
    enum Pass { ALL, KNOWN, REST };

    void clear();
    void read_news(Ns now);

    RouterSocket socket_;
    Connections connections_;
    bool (*is_native_)(std::int64_t tag);
    std::vector<int> ended_;
    Haul haul_;  // the frames of results stay until the answers are sent
    Pass pass_ = ALL;
    // The index behind the current message; in REST, an index in strangers_
    std::size_t cursor_ = 0;
    std::size_t current_ = 0;             // the index of the current message
    std::vector<std::size_t> strangers_;  // messages of unknown peers, which KNOWN skips
};

}  // namespace clockwork
