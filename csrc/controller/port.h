// One of the exchange's two ROUTER sockets: its connections, and the messages that were taken from it and are handled one
// after the other.
//
// Where a connection has ended, the messages that its peer had sent are handled first, then the end, and then the messages
// of peers that are not known yet: such a peer's connection may have got the descriptor of the one that has ended.
// Messages that a turn has no time left for are handled in the next one, before anything else is taken from the socket,
// its news included: order is kept.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "controller/connections.h"
#include "controller/sockets.h"

namespace clockwork {

// The slot of a peer that was not let in.
inline constexpr std::uint32_t NO_SLOT = ~std::uint32_t{0};

// What is taken from a socket at once.
struct HaulBounds {
    std::size_t messages;
    std::size_t frames;          // no further message is taken once it holds so many; each costs 64 bytes
    std::size_t message_frames;  // of one message
    std::size_t header_bytes;    // of all headers; a message that Python handles counts for PYTHON_BYTES more
};

class Port {
public:
    // Cost of a message that Python handles, in bytes of headers: a turn takes at most 64 such messages.
    static constexpr std::size_t PYTHON_BYTES = 4 << 10;

    // is_native: whether messages with this tag are handled without Python.
    Port(RouterSocket socket, const ConnectionBounds& bounds, bool (*is_native)(std::int64_t tag))
        : socket_(socket), connections_(bounds), is_native_(is_native) {}

    // ----- messages ------------------------------------------------------------------------------

    // Whether the socket or its monitor has something that was not taken yet, or a message was taken and not handled.
    bool has_input() const { return socket_.has_input() || socket_.has_news() || has_rest(); }
    // Whether a message was taken and not handled.
    bool has_rest() const {
        if (pass_ == REST)
            return cursor_ < strangers_.size();
        return pass_ == KNOWN || cursor_ < haul_.size();
    }
    // Takes messages, and then the monitor's news, so that the connection of each message has been accepted. Whether
    // there was a message.
    bool take(const HaulBounds& bounds, Ns now);
    // Goes on to the next message, which is current() then. False where there is none. is_known: whether an identity is that
    // of a peer that has said hello.
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
    // Whether the messages of known peers are all handled, so that now is the time for the ends of connections: see
    // ended(). True once; messages of others follow.
    bool has_ends_due() {
        if (pass_ != KNOWN || cursor_ != haul_.size())
            return false;
        pass_ = REST;
        cursor_ = 0;
        return true;
    }
    // Lets go of the messages, if all are handled.
    void end_turn() {
        if (!has_rest())
            clear();
    }

    const Arrival& current() const { return haul_.at(current_); }
    Haul& haul() { return haul_; }

    // ----- connections ---------------------------------------------------------------------------

    // Descriptors of the connections of peers that have ended since the last call.
    std::vector<int> ended() { return std::exchange(ended_, {}); }
    // Counts the bytes of a message of a peer that is not known.
    void count_taken(const Arrival& arrival);
    // Notes that a peer has said hello; see Connections::greet(). Null if the connection has ended, or was cut.
    ConnectionPtr greet(int fd, std::string_view key, Ns now);
    // Shuts a peer's connection down; see Connections::cut(). False if there is none with this descriptor.
    bool disconnect(int fd);
    // See Connections::seat_for(); SEAT_FREE where there is no connection with this descriptor.
    int seat_for(int fd, std::string_view key, Ns now) const;
    // See Connections::heard().
    void heard(int fd, Ns now);
    Connections& connections() { return connections_; }
    const Connections& connections() const { return connections_; }

    // ----- sending -------------------------------------------------------------------------------

    // Begins a message to a peer; its header and frames follow with send(). False if the peer is gone, or takes nothing
    // any more.
    bool address(std::string_view identity, const ConnectionPtr& connection, Ns now) {
        return connections_.may_send(*connection, now) && socket_.address(identity, connection);
    }
    // The same for the peer at this descriptor, which counts as heard of.
    bool begin(std::string_view identity, int fd, Ns now);
    void send(std::string_view part, bool more) { socket_.send(part, more); }
    void send(Frame& frame, bool more) { socket_.send(frame, more); }
    // A part that lies in two pieces.
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
    std::size_t cursor_ = 0;              // behind the message that is being handled; in REST, in strangers_
    std::size_t current_ = 0;             // that message
    std::vector<std::size_t> strangers_;  // left over by KNOWN
};

}  // namespace clockwork
