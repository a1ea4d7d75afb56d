// The two ends of a controller's load without Python: a client that keeps requests under way, and a worker
// whose devices take the time of their profile. bench/pump.py compiles this file, sends the hellos, and
// calls it.
//
// In Python these ends would cost more than the controller between them and, on one machine, spoil
// measurements.
#include <poll.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "controller/sockets.h"
#include "scheduler/types.h"
#include "wire/fields.h"

namespace {

using namespace clockwork;

Ns now_ns() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return Ns{time.tv_sec} * SECOND + time.tv_nsec;
}

// A DEALER socket whose opening, hello and end are the caller's.
class Dealer {
public:
    explicit Dealer(void* socket) : socket_(socket) {
        std::size_t size = sizeof(fd_);
        zmq->getsockopt(socket, CLOCKWORK_ZMQ_FD, &fd_, &size);
    }

    // Read the header and frames of the next message. Returns false if none is there.
    bool receive(std::vector<Frame>& frames, std::size_t& count) {
        count = 0;
        for (bool more = true; more; ++count) {
            if (count == frames.size())
                frames.emplace_back();
            if (zmq->msg_recv(frames[count].message(), socket_, CLOCKWORK_ZMQ_DONTWAIT) < 0)
                return false;
            more = frames[count].more();
        }
        return true;
    }

    bool send(std::string_view header, bool more) {
        return zmq->send(socket_, header.data(), header.size(), flags(more)) >= 0;
    }
    bool send(Frame& frame, bool more) { return zmq->msg_send(frame.message(), socket_, flags(more)) >= 0; }

    void wait(Ns timeout_ns) {
        int events = 0;
        std::size_t size = sizeof(events);
        zmq->getsockopt(socket_, CLOCKWORK_ZMQ_EVENTS, &events, &size);
        if ((events & CLOCKWORK_ZMQ_POLLIN) != 0 || timeout_ns <= 0)
            return;
        pollfd polled{fd_, POLLIN, 0};
        timespec timeout{static_cast<time_t>(timeout_ns / SECOND), static_cast<long>(timeout_ns % SECOND)};
        ppoll(&polled, 1, &timeout, nullptr);
    }

private:
    static int flags(bool more) { return CLOCKWORK_ZMQ_DONTWAIT | (more ? CLOCKWORK_ZMQ_SNDMORE : 0); }

    void* socket_;
    int fd_ = -1;
};

void fill(Frame& frame, std::size_t size) {
    zmq->msg_close(frame.message());
    zmq->msg_init_size(frame.message(), size);
    std::fill_n(static_cast<char*>(frame.data()), size, '\0');
}

// Orders of one device, in the order of their arrival.
struct DeviceLane {
    struct Order {
        std::int64_t action_id;
        std::uint32_t rows;
        Ns received_ns;
        Ns begin_ns;
        Ns end_ns;
    };
    std::deque<Order> orders;
    Ns free_ns = 0;
};

void write_result(Writer& writer, const DeviceLane::Order& order, std::size_t output_bytes) {
    writer.clear();
    writer.array(9);
    for (std::int64_t field : {std::int64_t{TAG_RESULT}, order.action_id, std::int64_t{0}})
        writer.integer(field);
    writer.text("");
    writer.integer(order.received_ns);
    for (int phase = 0; phase < 3; ++phase) {
        bool is_execute = phase == 1;
        writer.array(3);
        writer.integer(is_execute ? order.begin_ns : 0);
        writer.integer(is_execute ? order.end_ns : 0);
        writer.integer(is_execute ? order.end_ns - order.begin_ns : 0);
    }
    writer.array(order.rows);
    for (std::uint32_t part = 0; part < order.rows; ++part) {
        writer.array(1);
        writer.array(3);
        writer.integer(2);
        writer.array(2);
        writer.integer(1);
        writer.integer(static_cast<std::int64_t>(output_bytes));
        writer.integer(part);
    }
}

}  // namespace

extern "C" {

// A client's counts: requests sent, answered with success, and ended otherwise.
struct PumpCounts {
    std::uint64_t sent, answered, failed;
};

// Times at which requests of an open loop are due: in bursts, with exponentially distributed times between
// bursts. mean_ns 0: a closed loop, in which a request is due whenever fewer than in_flight are under way.
struct PumpArrivals {
    std::int64_t mean_ns;  // mean time between two bursts
    std::uint64_t burst;
    std::uint64_t random;  // state of the generator
    std::int64_t next_ns;  // time of the next burst; 0: now
    std::uint64_t due;     // number of requests so far
};
}

namespace {

// SplitMix64: the next number, in (0, 1].
double uniform(std::uint64_t& state) {
    std::uint64_t mixed = state += 0x9e3779b97f4a7c15;
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111eb;
    return static_cast<double>(((mixed ^ (mixed >> 31)) >> 11) + 1) * 0x1p-53;
}

// Write the header of a request with one input, uint8[1, input_bytes].
void write_request(Writer& writer, std::uint64_t number, const char* name, Ns slo_ns, std::size_t input_bytes) {
    writer.clear();
    writer.array(6);
    writer.integer(TAG_INFER_REQUEST);
    writer.natural(number);
    writer.text(name);
    writer.integer(slo_ns);
    writer.integer(0);
    writer.array(1);
    writer.array(4);
    writer.text("input");
    writer.integer(2);
    writer.array(2);
    writer.integer(1);
    writer.natural(input_bytes);
    writer.integer(0);
}

// Count the requests that are due by now.
void advance(PumpArrivals& arrivals, Ns now) {
    if (arrivals.next_ns == 0)
        arrivals.next_ns = now;
    for (; arrivals.next_ns <= now; arrivals.due += arrivals.burst)
        arrivals.next_ns -=
            static_cast<Ns>(static_cast<double>(arrivals.mean_ns) * std::log(uniform(arrivals.random))) - 1;
}

}  // namespace

extern "C" {

void pump_functions(const clockwork_zmq_api* functions) { clockwork::zmq = functions; }

// Send requests for all models in turn until the time is up, at most in_flight at once. Requests that are
// then under way are left to the next call, which gets the same counts. A request has one input, uint8[1,
// input_bytes].
void pump_client(void* socket, const char* const* names, int name_count, std::size_t input_bytes, int in_flight,
                 std::int64_t slo_ns, std::int64_t until_ns, PumpCounts* counts, PumpArrivals* arrivals) {
    Dealer dealer(socket);
    Writer writer;
    Frame input;
    Frame shared;
    fill(input, input_bytes);
    std::vector<Frame> frames;
    std::size_t count = 0;
    for (Ns now = now_ns(); now < until_ns; now = now_ns()) {
        bool is_open = arrivals->mean_ns != 0;
        if (is_open)
            advance(*arrivals, now);
        while (counts->sent - counts->answered - counts->failed < static_cast<std::uint64_t>(in_flight) &&
               (!is_open || counts->sent < arrivals->due)) {
            std::uint64_t number = counts->sent + 1;
            write_request(writer, number, names[number % static_cast<std::uint64_t>(name_count)], slo_ns, input_bytes);
            if (!dealer.send(writer.view(), true))
                break;
            shared.share(input);
            dealer.send(shared, false);
            ++counts->sent;
        }
        bool found = false;
        while (dealer.receive(frames, count)) {
            found = true;
            std::int64_t tag = wire::tag_of(frames[0].view());
            counts->answered += tag == TAG_ANSWER;
            counts->failed += tag == TAG_FAILURE;
        }
        if (!found) {
            Ns until = is_open ? std::min(until_ns, arrivals->next_ns) : until_ns;
            dealer.wait(std::min<Ns>(until - now_ns(), 10 * MS));
        }
    }
}

// Requests at given times, and how each ended. Arrays have an entry for each request, in the order of due_ns.
struct PumpSchedule {
    const std::int64_t* due_ns;  // times on the monotonic clock
    const std::int32_t* model;   // index into the names
    std::int64_t* sent_ns;       // 0: not yet
    std::int64_t* ended_ns;      // 0: not yet
    std::uint64_t count, sent, ended;
    char* kept;  // failures, and answers later than the SLO: size of a header as four bytes, then the header
    std::uint64_t kept_bytes, kept_max;
};

// Send each request when it is due, with what is left of slo_ns since then, and note when its answer comes.
// Returns at until_ns, when every request has ended, or when `kept` has no room for another header of
// KEPT_BYTES. A request's id is its index plus 1.
void pump_schedule(void* socket, const char* const* names, std::int64_t slo_ns, std::int64_t until_ns,
                   PumpSchedule* schedule) {
    constexpr std::uint64_t KEPT_BYTES = 4096;
    Dealer dealer(socket);
    Writer writer;
    Frame input;
    Frame shared;
    fill(input, 0);
    std::vector<Frame> frames;
    std::size_t count = 0;
    for (Ns now = now_ns(); now < until_ns && schedule->ended < schedule->count; now = now_ns()) {
        while (schedule->sent < schedule->count && schedule->due_ns[schedule->sent] <= now) {
            const std::uint64_t place = schedule->sent;
            Ns left_ns = std::max<Ns>(slo_ns - (now - schedule->due_ns[place]), 1);
            write_request(writer, place + 1, names[schedule->model[place]], left_ns, 0);
            if (!dealer.send(writer.view(), true))
                break;
            shared.share(input);
            dealer.send(shared, false);
            schedule->sent_ns[place] = now;
            ++schedule->sent;
            now = now_ns();
        }
        bool found = false;
        while (dealer.receive(frames, count)) {
            found = true;
            std::string_view header = frames[0].view();
            Reader reader(header.data(), header.size());
            std::uint32_t fields = 0;
            std::int64_t tag = 0;
            std::int64_t id = 0;
            reader.array(fields);
            reader.integer(tag);
            reader.integer(id);
            if ((tag != TAG_ANSWER && tag != TAG_FAILURE) || id < 1 || static_cast<std::uint64_t>(id) > schedule->sent)
                continue;
            now = now_ns();
            const std::uint64_t place = static_cast<std::uint64_t>(id) - 1;
            schedule->ended_ns[place] = now;
            ++schedule->ended;
            if (tag == TAG_ANSWER && now - schedule->due_ns[place] <= slo_ns)
                continue;
            const std::uint32_t size = static_cast<std::uint32_t>(std::min<std::uint64_t>(header.size(), KEPT_BYTES));
            std::copy_n(reinterpret_cast<const char*>(&size), sizeof(size), schedule->kept + schedule->kept_bytes);
            std::copy_n(header.data(), size, schedule->kept + schedule->kept_bytes + sizeof(size));
            schedule->kept_bytes += sizeof(size) + size;
            if (schedule->kept_bytes + sizeof(size) + KEPT_BYTES > schedule->kept_max)
                return;
        }
        if (!found) {
            const Ns due = schedule->sent < schedule->count ? schedule->due_ns[schedule->sent] : until_ns;
            dealer.wait(std::min({due, until_ns, now_ns() + 10 * MS}) - now_ns());
        }
    }
}

// A worker's orders, kept from one call of pump_worker() to the next.
void* pump_lanes(int devices) { return new std::vector<DeviceLane>(static_cast<std::size_t>(devices)); }

void pump_end_lanes(void* lanes) { delete static_cast<std::vector<DeviceLane>*>(lanes); }

// Answer orders until the time is up or a message arrives that is not INFER, LOAD or UNLOAD. Then that
// message's header is copied to `header` and its size is returned; otherwise 0. An INFER of n rows takes
// base_ns + n * row_ns on its device.
std::size_t pump_worker(void* socket, void* worker_lanes, std::int64_t base_ns, std::int64_t row_ns,
                        std::size_t output_bytes, std::int64_t until_ns, char* header, std::size_t header_max) {
    auto& lanes = *static_cast<std::vector<DeviceLane>*>(worker_lanes);
    Dealer dealer(socket);
    Writer writer;
    Frame output;
    Frame shared;
    fill(output, output_bytes);
    std::vector<Frame> frames;
    std::size_t count = 0;
    for (;;) {
        Ns now = now_ns();
        if (now >= until_ns)
            return 0;
        Ns next = std::min(until_ns, now + 10 * MS);
        for (DeviceLane& lane : lanes) {
            while (!lane.orders.empty() && lane.orders.front().end_ns <= now) {
                const DeviceLane::Order& order = lane.orders.front();
                write_result(writer, order, output_bytes);
                dealer.send(writer.view(), order.rows > 0);
                for (std::uint32_t part = 0; part < order.rows; ++part) {
                    shared.share(output);
                    dealer.send(shared, part + 1 < order.rows);
                }
                lane.orders.pop_front();
            }
            if (!lane.orders.empty())
                next = std::min(next, lane.orders.front().end_ns);
        }
        bool found = false;
        while (dealer.receive(frames, count)) {
            found = true;
            std::string_view text = frames[0].view();
            std::int64_t tag = wire::tag_of(text);
            if (tag != TAG_INFER && tag != TAG_LOAD && tag != TAG_UNLOAD) {
                if (tag == TAG_REVOKE)
                    continue;
                std::size_t size = std::min(text.size(), header_max);
                std::copy_n(text.data(), size, header);
                return size;
            }
            Reader reader(text.data(), text.size());
            std::uint32_t fields = 0;
            std::int64_t action_id = 0;
            std::int64_t device = 0;
            reader.array(fields);
            reader.integer(tag);
            reader.integer(action_id);
            reader.integer(device);
            now = now_ns();
            if (tag == TAG_INFER) {
                DeviceLane& lane = lanes.at(static_cast<std::size_t>(device));
                auto rows = static_cast<std::uint32_t>(count - 1);
                Ns begin = std::max(now, lane.free_ns);
                lane.free_ns = begin + base_ns + row_ns * rows;
                lane.orders.push_back({action_id, rows, now, begin, lane.free_ns});
            } else {
                write_result(writer, {action_id, 0, now, now, now + 1}, 0);
                dealer.send(writer.view(), false);
            }
        }
        if (!found)
            dealer.wait(next - now_ns());
    }
}
}
