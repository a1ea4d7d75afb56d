#include "controller/connections.h"

#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <stdexcept>

namespace clockwork {

namespace {

ino_t inode_of(int fd) {
    struct stat found;
    return fstat(fd, &found) == 0 && S_ISSOCK(found.st_mode) ? found.st_ino : 0;
}

// Returns the address shared by a peer's connections: an IPv4 address, an IPv6 network (/64), "" of a unix
// socket.
std::string address_of(int fd) {
    sockaddr_storage found{};
    socklen_t size = sizeof(found);
    if (getpeername(fd, reinterpret_cast<sockaddr*>(&found), &size) != 0)
        return {};
    if (found.ss_family == AF_INET) {
        const in_addr& address = reinterpret_cast<const sockaddr_in&>(found).sin_addr;
        return {reinterpret_cast<const char*>(&address), sizeof(address)};
    }
    if (found.ss_family != AF_INET6)
        return {};
    const in6_addr& address = reinterpret_cast<const sockaddr_in6&>(found).sin6_addr;
    const char* bytes = reinterpret_cast<const char*>(&address);
    return IN6_IS_ADDR_V4MAPPED(&address) ? std::string(bytes + 12, 4) : std::string(bytes, 8);
}

// Byte counts of a TCP connection since its begin. 0 for unix sockets, which the kernel does not count.
struct KernelCounts {
    std::uint64_t received = 0;
    std::uint64_t acknowledged = 0;  // bytes that the peer has acknowledged
};

KernelCounts kernel_counts(int fd) {
    tcp_info info{};
    socklen_t size = sizeof(info);
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0)
        return {};
    return {info.tcpi_bytes_received, info.tcpi_bytes_acked};
}

// Returns the memory of this process in bytes; 0 if unknown.
std::uint64_t resident_bytes() {
    int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    char text[128];
    ssize_t size = read(fd, text, sizeof(text));
    close(fd);
    if (size <= 0)
        return 0;
    // The file has the number of all mapped pages, then of pages in memory. (Not sscanf(), which would bind
    // the library to the newest glibc.)
    std::uint64_t total = 0, resident = 0;
    const char* end = text + size;
    auto [space, error] = std::from_chars(text, end, total);
    if (error != std::errc{} || space == end || std::from_chars(space + 1, end, resident).ec != std::errc{})
        return 0;
    return resident * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
}

std::uint64_t behind_of(const Connection& connection) { return connection.behind; }
std::uint64_t ungreeted_behind_of(const Connection& connection) {
    return connection.is_greeted ? 0 : connection.behind;
}
std::uint64_t unread_of(const Connection& connection) { return connection.unread(); }
std::uint64_t stalled_unread_of(const Connection& connection) {
    return connection.judged_ns > connection.moved_ns ? connection.unread() : 0;
}

}  // namespace

// ----- seats --------------------------------------------------------------------------------------

void Seats::add(Connection& connection, std::string_view holder) {
    connection.holder = holder;
    auto [found, is_new] = by_holder_.try_emplace(connection.holder);
    std::list<Connection*>& connections = found->second;
    by_count_.erase({connections.size(), found->first});
    connection.place = connections.insert(connections.end(), &connection);
    connection.seats = this;
    connection.peers = &connections;
    by_count_.insert({connections.size(), found->first});
    ++size_;
}

void Seats::remove(Connection& connection) {
    auto found = by_holder_.find(connection.holder);
    std::list<Connection*>& connections = found->second;
    by_count_.erase({connections.size(), found->first});
    connections.erase(connection.place);
    connection.seats = nullptr;
    --size_;
    if (connections.empty())
        by_holder_.erase(found);
    else
        by_count_.insert({connections.size(), found->first});
}

void Seats::touch(Connection& connection) {
    connection.peers->splice(connection.peers->end(), *connection.peers, connection.place);
}

std::size_t Seats::count(std::string_view holder) const {
    auto found = by_holder_.find(holder);
    return found == by_holder_.end() ? 0 : found->second.size();
}

Connections::Connections(ConnectionBounds bounds)
    : bounds_(bounds), all_(std::make_shared<std::atomic<std::uint64_t>>(0)) {
    nothing_fd_ = open("/dev/null", O_RDONLY | O_CLOEXEC);
    held_fd_ = nothing_fd_ < 0 ? -1 : fcntl(nothing_fd_, F_DUPFD_CLOEXEC, 0);
    if (held_fd_ < 0) {
        if (nothing_fd_ >= 0)
            close(nothing_fd_);
        throw std::runtime_error("cannot open /dev/null");
    }
}

Connections::~Connections() {
    close(held_fd_);
    close(nothing_fd_);
}

void Connections::accepted(int fd, Ns now) {
    ended(fd);
    ConnectionPtr connection = std::make_shared<Connection>();
    connection->fd = fd;
    connection->inode = inode_of(fd);
    connection->address = address_of(fd);
    connection->looked_ns = connection->judged_ns = connection->moved_ns = now;
    connection->all = all_;
    by_fd_[fd] = connection;
    keep_ungreeted(connection, now);
    look_ns_ = std::min(look_ns_, now + LOOK_NS);
}

void Connections::keep_ungreeted(const ConnectionPtr& connection, Ns now) {
    connection->is_greeted = false;
    connection->number = next_number_++;
    connection->heard_ns = now;
    ungreeted_[connection->number] = connection;
    waiting_.add(*connection, connection->address);
    while (waiting_.size() > bounds_.ungreeted) {
        auto [count, address] = waiting_.largest();
        cut(count > 1 ? waiting_.idlest(address) : *ungreeted_.begin()->second, CutReason::CROWD);
    }
}

ConnectionPtr Connections::ended(int fd) {
    auto found = by_fd_.find(fd);
    if (found == by_fd_.end())
        return nullptr;
    ConnectionPtr connection = std::move(found->second);
    by_fd_.erase(found);
    ungreeted_.erase(connection->number);
    if (connection->seats != nullptr)
        connection->seats->remove(*connection);
    connection->has_ended = true;
    behind_ -= connection->behind;
    connection->behind = 0;
    return connection;
}

ConnectionPtr Connections::find(int fd) const {
    auto found = by_fd_.find(fd);
    return found == by_fd_.end() ? nullptr : found->second;
}

int Connections::seat_for(const Connection& connection, std::string_view key, Ns now) const {
    if (greeted_.size() < bounds_.greeted)
        return SEAT_FREE;
    std::string_view holder = key.empty() ? std::string_view(connection.address) : key;
    std::size_t own = greeted_.count(holder);
    if (auto [count, largest] = greeted_.largest(); count > own + 1)
        return greeted_.idlest(largest).fd;
    if (own == 0)
        return SEAT_NONE;
    const Connection& idlest = greeted_.idlest(holder);
    return idlest.asked == 0 && now - idlest.heard_ns >= bounds_.idle_ns ? idlest.fd : SEAT_NONE;
}

void Connections::greet(Connection& connection, std::string_view key, Ns now) {
    connection.is_greeted = true;
    connection.heard_ns = now;
    ungreeted_.erase(connection.number);
    if (connection.seats != nullptr)
        connection.seats->remove(connection);
    greeted_.add(connection, key.empty() ? std::string_view(connection.address) : key);
}

void Connections::forget(Connection& connection, Ns now) {
    if (connection.has_ended || connection.is_cut)
        return;
    connection.seats->remove(connection);
    keep_ungreeted(by_fd_.at(connection.fd), now);
}

// ----- bounds -------------------------------------------------------------------------------------

bool Connections::may_send(Connection& connection, Ns now) {
    if (connection.is_cut || connection.has_ended)
        return false;
    std::uint64_t most = credit(connection);
    if (connection.unread() > most + most / 4) {
        cut(connection, CutReason::UNREAD);
        return false;
    }
    // The bytes queued for a cut connection are freed soon. Until then they are not added up for each message
    // of other connections.
    std::uint64_t all = bounds_.unread_bytes_all;
    if (unread_bytes() > all && now >= crowded_ns_) {
        crowded_ns_ = now + LOOK_NS;
        cut_largest(stalled_unread_of, unread_of, all, CutReason::UNREAD_ALL);
        cut_largest(unread_of, all + all / 4, CutReason::UNREAD_ALL);
        return !connection.is_cut;
    }
    return true;
}

std::uint64_t Connections::credit(const Connection& connection) const {
    return std::min(std::max(bounds_.unread_bytes, bounds_.unread_bytes_all / 2),
                    bounds_.unread_bytes + connection.read);
}

bool Connections::has_room(const Connection& connection, std::uint64_t bytes) const {
    if (bytes <= ANSWER_SMALL_BYTES)
        return true;
    std::uint64_t unread = connection.unread();
    if (unread > 0 && unread + bytes > credit(connection))
        return false;
    return unread_bytes() + bytes <= bounds_.unread_bytes_all;
}

Ns Connections::look(Ns now) {
    if (by_fd_.empty())
        return look_ns_ = NEVER_NS;
    if (now < look_ns_)
        return look_ns_;
    std::vector<ConnectionPtr> now_due;
    for (const auto& [number, connection] : ungreeted_)
        now_due.push_back(connection);
    auto place = by_fd_.lower_bound(cursor_);
    for (std::size_t count = std::min(LOOK_COUNT, by_fd_.size()); count > 0; --count) {
        if (place == by_fd_.end())
            place = by_fd_.begin();
        now_due.push_back(place->second);
        ++place;
    }
    cursor_ = place == by_fd_.end() ? 0 : place->first;
    for (const ConnectionPtr& connection : now_due) {
        look_at(*connection, now);
        if (!connection->is_greeted && now - connection->heard_ns >= bounds_.hello_ns)
            cut(*connection, CutReason::SILENT);
    }
    std::uint64_t ungreeted_bytes = 0;
    for (const auto& [number, connection] : ungreeted_)
        ungreeted_bytes += connection->behind;
    if (ungreeted_bytes > bounds_.hello_bytes_all) {
        cut_largest(ungreeted_behind_of, bounds_.hello_bytes_all, CutReason::RECEIVED_ALL);
    }
    if (behind_ > bounds_.received_bytes_all) {
        cut_largest(behind_of, bounds_.received_bytes_all, CutReason::RECEIVED_ALL);
    }
    if (behind_ > 0 && resident_bytes() > bounds_.memory_bytes)
        relieve_memory();
    Ns rounds = static_cast<Ns>((by_fd_.size() + LOOK_COUNT - 1) / LOOK_COUNT);
    look_ns_ = now + (ungreeted_.empty() ? std::max(LOOK_GREETED_NS / rounds, LOOK_NS) : LOOK_NS);
    return look_ns_;
}

void Connections::look_at(Connection& connection, Ns now) {
    if (connection.is_cut || connection.has_ended)
        return;
    std::uint64_t waited_ns = static_cast<std::uint64_t>(std::max<Ns>(now - connection.looked_ns, 0));
    connection.taken += waited_ns * HEARTBEAT_BYTES_PER_S / static_cast<std::uint64_t>(SECOND);
    if (waited_ns * HEARTBEAT_BYTES_PER_S >= static_cast<std::uint64_t>(SECOND))
        connection.looked_ns = now;
    auto [received, acknowledged] = kernel_counts(connection.fd);
    look_at_unread(connection, acknowledged, now);
    if (connection.is_cut)
        return;
    // Frames count for more than their bytes on the wire. The surplus gives no credit.
    connection.taken = std::min(connection.taken, received);
    behind_ -= connection.behind;
    connection.behind = received - connection.taken;
    behind_ += connection.behind;
    std::uint64_t bound = connection.is_greeted ? bounds_.received_bytes : bounds_.hello_bytes;
    if (connection.behind <= bound)
        return;
    // The descriptor's number may mean another connection by now; the copy of the descriptor cannot.
    bool is_over = hold(connection) && kernel_counts(held_fd_).received - connection.taken > bound;
    let_go();
    if (is_over)
        cut(connection, CutReason::RECEIVED);
}

// Whether the peer reads the messages that are sent to it.
void Connections::look_at_unread(Connection& connection, std::uint64_t acknowledged, Ns now) {
    std::uint64_t written = connection.queued - std::min(connection.queued, connection.marked.load());
    connection.read = acknowledged > 0 ? acknowledged : written;
    if (now - connection.judged_ns < READ_NS && connection.unread() > UNREAD_SMALL_BYTES)
        return;
    if (connection.unread() <= UNREAD_SMALL_BYTES || connection.read - connection.read_before >= READ_BYTES_LEAST)
        connection.moved_ns = now;
    connection.judged_ns = now;
    connection.read_before = connection.read;
    if (now - connection.moved_ns >= bounds_.unread_ns)
        cut(connection, CutReason::UNREAD);
}

// Cuts connections, largest size_of first, until the others' sum of counted_of is at most `bound`. Cut
// connections do not count: their memory is freed soon.
void Connections::cut_largest(SizeOf size_of, SizeOf counted_of, std::uint64_t bound, CutReason reason) {
    std::vector<Connection*> open;
    std::uint64_t sum = 0;
    for (const auto& [fd, connection] : by_fd_) {
        if (connection->is_cut)
            continue;
        open.push_back(connection.get());
        sum += counted_of(*connection);
    }
    std::stable_sort(open.begin(), open.end(),
                     [&](Connection* first, Connection* other) { return size_of(*first) > size_of(*other); });
    for (Connection* connection : open) {
        if (sum <= bound || size_of(*connection) == 0)
            return;
        sum -= std::min(sum, counted_of(*connection));
        cut(*connection, reason);
    }
}

// Frees half of the received bytes. If memory stays short, the next look frees half of the rest.
void Connections::relieve_memory() { cut_largest(behind_of, behind_ / 2, CutReason::MEMORY); }

bool Connections::cut(Connection& connection, CutReason reason) {
    if (connection.is_cut || connection.has_ended)
        return false;
    connection.is_cut = true;
    ungreeted_.erase(connection.number);
    if (connection.seats != nullptr)
        connection.seats->remove(connection);
    ++cut_counts_[static_cast<std::size_t>(reason)];
    behind_ -= connection.behind;
    connection.behind = 0;
    if (hold(connection)) {
        if (reason != CutReason::ASKED) {
            // The kernel frees its buffers at once. Otherwise a peer that does not read keeps them for
            // minutes, and a peer that sends waits as long for a window.
            linger at_once{1, 0};
            setsockopt(held_fd_, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
        }
        shutdown(held_fd_, SHUT_RDWR);
    }
    let_go();
    return true;
}

// Makes held_fd_ a copy of the connection's descriptor. libzmq may close the descriptor on its thread at any
// time, and its number may be reused; the copy stays the same socket. False if the copy is of another
// connection.
bool Connections::hold(const Connection& connection) {
    if (connection.inode == 0 || dup3(connection.fd, held_fd_, O_CLOEXEC) < 0)
        return false;
    return inode_of(held_fd_) == connection.inode;
}

void Connections::let_go() { dup3(nothing_fd_, held_fd_, O_CLOEXEC); }

}  // namespace clockwork
