// The connections of one ROUTER socket and the bytes that each of them makes this process hold.
//
// libzmq bounds queues by messages and frames by bytes. It bounds neither the bytes of a queue nor a message of many
// frames, and it has no call that disconnects one peer of a ROUTER. Connections counts bytes and shuts the TCP (or
// unix) socket of a peer that exceeds its bound down; libzmq then notices the end as it notices any other.
//
// A frame of two bytes on the wire takes 64 in memory, so that a bound on received bytes is none on memory by a factor
// of 32. Where the whole process comes near the memory that it may have, the peers with the most received and not taken
// are ended, however little that is.
//
// What a peer has sent and this process has not taken from libzmq: the kernel's count of received bytes, less the
// bytes of the messages that were taken. What a peer has not read: the bytes that were queued for it, less those up
// to the last marked frame that libzmq has let go of. One frame in every MARK_BYTES is marked; a connection's frames
// are written in their order.
//
// Seats: a connection may be open for `hello_ns` without a hello, and the seats of either kind of connection are shared
// fairly. Where too many wait without a hello, the address with the most of them loses its oldest; where each has one,
// the oldest of all goes. Where too many have said hello, the holder (the key, else the address) with the most seats
// loses the connection that was silent longest.
//
// Not thread safe, except that libzmq lets go of marked frames on its own thread.
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

namespace clockwork {

// Bytes of memory that a frame costs beside its content, roughly: libzmq's 64 bytes. Also more than what framing and
// encryption add to a frame on the wire.
inline constexpr std::uint64_t FRAME_EXTRA_BYTES = 64;

// Queued bytes after which a frame is marked. A mark costs 0.1 us; as much as this may be queued and not be counted.
inline constexpr std::uint64_t MARK_BYTES = 16 << 10;

// Heartbeats of the peer that arrive on an idle connection; libzmq takes them itself.
inline constexpr std::uint64_t HEARTBEAT_BYTES_PER_S = 1 << 10;

// How often connections without a hello are looked at, and the others. Loopback carries 50 MB in the shorter time.
inline constexpr Ns LOOK_NS = 20 * MS;
inline constexpr Ns LOOK_GREETED_NS = 250 * MS;

// Unread bytes up to which a connection counts as read.
inline constexpr std::uint64_t UNREAD_SMALL_BYTES = 1 << 20;

// Bytes that a connection with more than that unread reads in READ_NS: else it stands still.
inline constexpr std::uint64_t READ_BYTES_LEAST = 256 << 10;
inline constexpr Ns READ_NS = SECOND;

// Answers up to this size need no credit: they find room beside larger ones of the same connection.
inline constexpr std::uint64_t ANSWER_SMALL_BYTES = 64 << 10;

// Connections that are looked at together.
inline constexpr std::size_t LOOK_COUNT = 1'024;

// What seat_for() says beside descriptors.
inline constexpr int SEAT_FREE = -1;
inline constexpr int SEAT_NONE = -2;

struct ConnectionBounds {
    std::size_t ungreeted = 4'096;                   // config.UNGREETED_MAX
    std::size_t greeted = 16'384;                    // config.CLIENTS_MAX
    Ns hello_ns = 10 * SECOND;                       // config.HELLO_NS
    Ns idle_ns = 5 * SECOND;                         // config.SEAT_IDLE_NS
    std::uint64_t hello_bytes = 1 << 20;             // config.HELLO_BYTES_MAX
    std::uint64_t hello_bytes_all = 64 << 20;        // config.HELLO_BYTES_ALL_MAX
    std::uint64_t received_bytes = 1'280ull << 20;   // config.RECEIVED_BYTES_MAX, of a peer that has said hello
    std::uint64_t received_bytes_all = 4ull << 30;   // config.RECEIVED_BYTES_ALL_MAX
    std::uint64_t unread_bytes = 256ull << 20;       // config.CLIENT_UNREAD_BYTES_MAX
    std::uint64_t unread_bytes_all = 2ull << 30;     // config.UNREAD_BYTES_ALL_MAX
    Ns unread_ns = 10 * SECOND;                      // config.UNREAD_NS
    std::uint64_t memory_bytes = ~std::uint64_t{0};  // limits.memory_bytes(): of this process, in all
};

// Why a connection was shut down.
enum class CutReason : std::uint8_t { ASKED, CROWD, SILENT, RECEIVED, RECEIVED_ALL, UNREAD, UNREAD_ALL, MEMORY };
inline constexpr std::size_t CUT_REASONS = 8;

struct Connection;

// Connections by holder; each holder's in the order in which they were last heard of.
class Seats {
public:
    void add(Connection& connection, std::string_view holder);
    void remove(Connection& connection);
    // It was heard of just now.
    static void touch(Connection& connection);

    std::size_t size() const { return size_; }
    std::size_t count(std::string_view holder) const;
    // The holder with the most connections, and how many these are; not to be asked where there are none.
    std::pair<std::size_t, std::string_view> largest() const { return *by_count_.rbegin(); }
    // The connection of a holder that was silent longest.
    Connection& idlest(std::string_view holder) const { return *by_holder_.find(holder)->second.front(); }

private:
    std::map<std::string, std::list<Connection*>, std::less<>> by_holder_;
    std::set<std::pair<std::size_t, std::string_view>> by_count_;  // the names are by_holder_'s
    std::size_t size_ = 0;
};

// One accepted connection. Shared with the frames that are on their way, which may outlast it.
struct Connection {
    int fd = -1;
    ino_t inode = 0;  // of the socket: a descriptor's number is used again, this is not
    std::uint64_t number = 0;
    bool is_greeted = false;
    bool is_cut = false;
    bool has_ended = false;

    std::string address;      // of the peer: an IPv4 address, or the network of an IPv6 one; "" of a unix socket
    std::string holder;       // its key, else its address: whose seat it has
    Ns heard_ns = 0;          // when it was accepted, noted no more, or last heard of
    std::uint32_t asked = 0;  // requests of it that are held
    Seats* seats = nullptr;   // that it has one of
    std::list<Connection*>* peers = nullptr;  // its holder's, and its place among them
    std::list<Connection*>::iterator place;

    std::uint64_t taken = 0;   // bytes of the messages that were taken, and what heartbeats may have been
    std::uint64_t behind = 0;  // bytes received and not taken, when it was last looked at
    Ns looked_ns = 0;

    std::uint64_t read = 0;         // bytes that the peer had read at the last look
    std::uint64_t read_before = 0;  // and when it was last found to move, or to stand still:
    Ns judged_ns = 0;               // then
    Ns moved_ns = 0;                // when it was last found to move
    std::uint64_t queued = 0;       // bytes up to the last mark, since it was accepted

    std::uint64_t unmarked = 0;                       // bytes queued since the last mark
    std::atomic<std::uint64_t> marked{0};             // bytes queued up to the last mark, that libzmq still holds
    std::shared_ptr<std::atomic<std::uint64_t>> all;  // the sum of `marked` over this socket's connections

    std::uint64_t unread() const { return marked.load(std::memory_order_relaxed) + unmarked; }
};

using ConnectionPtr = std::shared_ptr<Connection>;

class Connections {
public:
    explicit Connections(ConnectionBounds bounds);
    ~Connections();
    Connections(const Connections&) = delete;

    // ----- what libzmq's monitor tells -----------------------------------------------------------

    void accepted(int fd, Ns now);
    // Null if it was none that is known.
    ConnectionPtr ended(int fd);

    // Null if the descriptor belongs to no connection that is open.
    ConnectionPtr find(int fd) const;
    // The descriptor of the connection that must leave (see forget()) for one with this key ("": none) to have a seat;
    // SEAT_FREE, or SEAT_NONE: no holder has more seats than this one would have, and of its own connections each was heard
    // of within `idle_ns`, or waits for an answer.
    int seat_for(const Connection& connection, std::string_view key, Ns now) const;
    // A peer with this key is noted on it, or is not any more.
    void greet(Connection& connection, std::string_view key, Ns now);
    void forget(Connection& connection, Ns now);
    // A message was taken from it, or is sent to it. Without a hello that counts for nothing.
    void heard(Connection& connection, Ns now) {
        if (connection.seats != &greeted_)
            return;
        connection.heard_ns = now;
        Seats::touch(connection);
    }

    // ----- bounds --------------------------------------------------------------------------------

    // Whether a further message may be queued; a connection beyond its bound is cut. One message is always allowed,
    // however large, to a peer that has read enough of those before.
    bool may_send(Connection& connection, Ns now);
    // Whether an answer of so many bytes may be queued: not behind more unread ones than the connection has credit for,
    // nor where those of all connections fill their memory. An answer that may not be is replaced by a refusal, for which
    // may_send() leaves room.
    bool has_room(const Connection& connection, std::uint64_t bytes) const;
    // Bytes of answers that may wait for a peer: at first `unread_bytes`, and as much more as it has read.
    std::uint64_t credit(const Connection& connection) const;
    // Looks at what was received, as often as it is time for that. Returns when to call again.
    Ns look(Ns now);

    // Shuts a connection down; its end is reported as any other. False if it has ended already, or was cut.
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
    std::map<std::uint64_t, ConnectionPtr> ungreeted_;  // by number: the oldest first
    Seats waiting_;                                     // of these that are not cut, by address
    Seats greeted_;                                     // by key, or address
    std::shared_ptr<std::atomic<std::uint64_t>> all_;
    std::uint64_t behind_ = 0;  // the sum over all connections that are not cut
    std::uint64_t next_number_ = 1;
    std::uint64_t cut_counts_[CUT_REASONS] = {};
    int cursor_ = 0;       // the descriptor at which the next look begins
    Ns look_ns_ = 0;       // when that is due
    Ns crowded_ns_ = 0;    // when all unread bytes were last added up
    int held_fd_ = -1;     // always open: a copy of a connection's descriptor while it is shut down, else of /dev/null
    int nothing_fd_ = -1;  // /dev/null
};

}  // namespace clockwork
