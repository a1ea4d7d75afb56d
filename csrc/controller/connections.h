// The connections of one ROUTER socket and the bytes that each of them makes this process hold.
//
// libzmq bounds queues by messages and frames by bytes. It bounds neither the bytes of a queue nor the frames
// of a message, and it has no call that disconnects one peer of a ROUTER. Connections counts bytes and shuts
// the TCP (or unix) socket of a peer that exceeds its bound down; libzmq then reports the end like any other.
//
// A frame of two bytes on the wire takes 64 bytes of memory, so memory may exceed a bound on received bytes
// 32 times. When the process comes near its memory limit, the connections with the most received and untaken
// bytes are cut, however few these are.
//
// Untaken bytes of a peer are the kernel's count of received bytes, less the bytes of the messages that were
// taken from libzmq. Unread bytes of a peer are the bytes that were queued for it, less those up to the last
// marked frame that libzmq has released. A frame in every MARK_BYTES is marked; a connection's frames are
// written in their order.
//
// Seats: a connection may be open for `hello_ns` without a hello, and the seats of either kind of connection
// are shared fairly. Where too many wait without a hello, the address with the most of them loses its oldest;
// if each has a single connection, the oldest of all is cut. Where too many have said hello, the holder (the
// key, else the address) with the most seats loses the connection that was silent longest.
//
// Not thread safe, except that libzmq releases marked frames on its own thread.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "scheduler/types.h"
#include "wire/bounds.h"

namespace clockwork {

// Queued bytes after which a frame is marked. A mark costs 0.1 us; up to this many queued bytes are not
// counted.
inline constexpr std::uint64_t MARK_BYTES = 16 << 10;

// The intervals of looks at connections without a hello, and at the others. Loopback carries 50 MB in the
// shorter time.
inline constexpr Ns LOOK_NS = 20 * MS;
inline constexpr Ns LOOK_GREETED_NS = 250 * MS;

// Unread bytes up to which a connection counts as read.
inline constexpr std::uint64_t UNREAD_SMALL_BYTES = 1 << 20;

// The least bytes that a connection with more unread bytes must read in READ_NS; otherwise it stands still.
inline constexpr std::uint64_t READ_BYTES_LEAST = 256 << 10;
inline constexpr Ns READ_NS = SECOND;

// Answers up to this size need no credit: they find room beside larger ones of the same connection.
inline constexpr std::uint64_t ANSWER_SMALL_BYTES = 64 << 10;

// Bound on the connections that one call of look() checks.
inline constexpr std::size_t LOOK_COUNT = 1'024;

// Results of seat_for() beside descriptors.
inline constexpr int SEAT_FREE = -1;
inline constexpr int SEAT_NONE = -2;

struct ConnectionBounds {
    std::size_t ungreeted = UNGREETED_MAX;
    std::size_t greeted = CLIENTS_MAX;
    Ns hello_ns = HELLO_NS;
    Ns idle_ns = SEAT_IDLE_NS;
    std::uint64_t hello_bytes = HELLO_BYTES_MAX;
    std::uint64_t hello_bytes_all = HELLO_BYTES_ALL_MAX;
    std::uint64_t received_bytes = RECEIVED_BYTES_MAX;  // of a peer that has said hello
    std::uint64_t received_bytes_all = RECEIVED_BYTES_ALL_MAX;
    std::uint64_t unread_bytes = CLIENT_UNREAD_BYTES_MAX;
    std::uint64_t unread_bytes_all = UNREAD_BYTES_ALL_MAX;
    Ns unread_ns = UNREAD_NS;
    std::uint64_t memory_bytes = ~std::uint64_t{0};  // limits.memory_bytes(): of the whole process
};

// The reason for which a connection was shut down.
enum class CutReason : std::uint8_t { ASKED, CROWD, SILENT, RECEIVED, RECEIVED_ALL, UNREAD, UNREAD_ALL, MEMORY };
inline constexpr std::size_t CUT_REASONS = 8;

struct Connection;

// Connections by holder; each holder's in the order in which they were last heard of.
class Seats {
public:
    void add(Connection& connection, std::string_view holder);
    void remove(Connection& connection);
    // Records that the connection was heard of just now.
    static void touch(Connection& connection);

    std::size_t size() const { return size_; }
    std::size_t count(std::string_view holder) const;
    // The holder with the most connections, and their number. There must be a connection.
    std::pair<std::size_t, std::string_view> largest() const { return *by_count_.rbegin(); }
    // The connection of a holder that was silent longest.
    Connection& idlest(std::string_view holder) const { return *by_holder_.find(holder)->second.front(); }

private:
    std::map<std::string, std::list<Connection*>, std::less<>> by_holder_;
    std::set<std::pair<std::size_t, std::string_view>> by_count_;  // views of by_holder_'s keys
    std::size_t size_ = 0;
};

// An accepted connection. Shared with its queued frames, which may outlast it.
struct Connection {
    int fd = -1;
    ino_t inode = 0;  // inode of the socket; unlike a descriptor's number it is not reused
    std::uint64_t number = 0;
    bool is_greeted = false;
    bool is_cut = false;
    bool has_ended = false;

    std::string address;  // the peer's IPv4 address or IPv6 network; "" of a unix socket
    std::string holder;   // holder of the seat: the key, else the address
    // time at which it was accepted, lost its hello, or last sent a message
    Ns heard_ns = 0;
    std::uint32_t asked = 0;  // number of its held requests
    Seats* seats = nullptr;   // the table of seats with its own seat
    // the holder's connections, and the place of this one among them
    std::list<Connection*>* peers = nullptr;
    std::list<Connection*>::iterator place;

    std::uint64_t taken = 0;   // bytes of taken messages, and of possible heartbeats
    std::uint64_t behind = 0;  // received and untaken bytes at the last look
    Ns looked_ns = 0;

    std::uint64_t read = 0;         // bytes that the peer had read at the last look
    std::uint64_t read_before = 0;  // bytes that the peer had read at judged_ns
    Ns judged_ns = 0;               // time at which it was last found to move or to stand still
    Ns moved_ns = 0;                // time at which it was last found to move
    std::uint64_t queued = 0;       // bytes queued up to the last mark, since it was accepted

    std::uint64_t unmarked = 0;  // bytes queued since the last mark
    // Bytes queued up to the last mark that libzmq still holds
    std::atomic<std::uint64_t> marked{0};
    std::shared_ptr<std::atomic<std::uint64_t>> all;  // the sum of `marked` over this socket's connections

    std::uint64_t unread() const { return marked.load(std::memory_order_relaxed) + unmarked; }
};

using ConnectionPtr = std::shared_ptr<Connection>;

class Connections {
public:
    explicit Connections(ConnectionBounds bounds);
    ~Connections();
    Connections(const Connections&) = delete;

    // ----- events of libzmq's monitor ------------------------------------------------------------

    void accepted(int fd, Ns now);
    // Null if the connection is unknown.
    ConnectionPtr ended(int fd);

    // Null if the descriptor belongs to no connection that is open.
    ConnectionPtr find(int fd) const;
    // Returns the descriptor of the connection that must leave (see forget()) to give a connection with this
    // key ("": none) a seat, or SEAT_FREE. SEAT_NONE: no holder has more seats than this holder would have,
    // and each of its connections was heard of within `idle_ns`, or waits for an answer.
    int seat_for(const Connection& connection, std::string_view key, Ns now) const;
    // Records that a peer with this key has said hello on the connection, or has left it.
    void greet(Connection& connection, std::string_view key, Ns now);
    void forget(Connection& connection, Ns now);
    // Records that a message was taken from it, or is sent to it. Ignored for a connection without a hello.
    void heard(Connection& connection, Ns now) {
        if (connection.seats != &greeted_)
            return;
        connection.heard_ns = now;
        Seats::touch(connection);
    }

    // ----- bounds --------------------------------------------------------------------------------

    // Whether a further message may be queued; cuts a connection that exceeds its bound. A message of any
    // size is allowed to a peer that has read enough of the messages before.
    bool may_send(Connection& connection, Ns now);
    // Whether an answer of `bytes` bytes may be queued: neither the connection's credit nor the memory for
    // unread bytes of all connections may be exhausted. Otherwise a refusal, for which may_send() leaves
    // room, replaces the answer.
    bool has_room(const Connection& connection, std::uint64_t bytes) const;
    // The most bytes of answers that may wait for a peer: `unread_bytes` plus the bytes that it has read.
    std::uint64_t credit(const Connection& connection) const;
    // Checks the bounds of received bytes when that is due. Returns the time of the next call.
    Ns look(Ns now);

    // Shuts a connection down; its end is reported like any other. False if it has ended or was cut before.
    bool cut(Connection& connection, CutReason reason);

    std::size_t size() const { return by_fd_.size(); }
    std::size_t ungreeted() const { return ungreeted_.size(); }
    std::size_t greeted() const { return greeted_.size(); }
    std::uint64_t unread_bytes() const { return all_->load(std::memory_order_relaxed); }
    std::uint64_t behind_bytes() const { return behind_; }
    const std::uint64_t* cut_counts() const { return cut_counts_; }

private:
    void keep_ungreeted(const ConnectionPtr& connection, Ns now);
    void look_at(Connection& connection, Ns now);
    void look_at_unread(Connection& connection, std::uint64_t acknowledged, Ns now);
    using SizeOf = std::uint64_t (*)(const Connection&);
    void cut_largest(SizeOf size_of, std::uint64_t bound, CutReason reason) {
        cut_largest(size_of, size_of, bound, reason);
    }
    void cut_largest(SizeOf size_of, SizeOf counted_of, std::uint64_t bound, CutReason reason);
    void relieve_memory();
    bool hold(const Connection& connection);
    void let_go();

    ConnectionBounds bounds_;
    std::map<int, ConnectionPtr> by_fd_;
    // connections without a hello, by number, the oldest first
    std::map<std::uint64_t, ConnectionPtr> ungreeted_;
    Seats waiting_;  // the uncut connections of ungreeted_, by address
    Seats greeted_;  // connections with a hello, by key or address
    std::shared_ptr<std::atomic<std::uint64_t>> all_;
    std::uint64_t behind_ = 0;  // the sum over all uncut connections
    std::uint64_t next_number_ = 1;
    std::uint64_t cut_counts_[CUT_REASONS] = {};
    int cursor_ = 0;     // the descriptor at which the next look begins
    Ns look_ns_ = 0;     // time of the next look()
    Ns crowded_ns_ = 0;  // time at which all unread bytes were last added up
    // Always open: a copy of a connection's descriptor during its shutdown, else of /dev/null
    int held_fd_ = -1;
    int nothing_fd_ = -1;  // an open descriptor of /dev/null
};

}  // namespace clockwork
