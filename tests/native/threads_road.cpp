// A worker's road between a socket, a device of one lane and a thread that stands for Python, for sanitizers:
// every action that is sent is answered once, unless the session ends meanwhile, and every order is freed.
//
// The socket is a queue of this process with a descriptor. The lane's thread ends orders, and is often the
// road's listener; another thread sends, revokes, asks and resets. Usage: threads_road SEED ROUNDS.
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "device/port.h"
#include "threads.h"
#include "wire/messages.h"
#include "worker/road.h"

using namespace clockwork;
using clockwork::device::Action;
using clockwork::device::Hub;

using clockwork::device::Order;

namespace {

constexpr std::int64_t MODEL = 1;
constexpr int ACTIONS = 300, RUN_AHEAD = 2;

// ----- libzmq ------------------------------------------------------------------------------------

struct Body {
    std::atomic<int> uses{1};
    std::string bytes;
    bool more = false;
    void (*let_go)(void*, void*) = nullptr;
    void* data = nullptr;
    void* hint = nullptr;
};

Body*& body_of(const clockwork_zmq_message* message) {
    return *reinterpret_cast<Body**>(const_cast<clockwork_zmq_message*>(message)->bytes);
}

void release(Body*& body) {
    if (body != nullptr && body->uses.fetch_sub(1) == 1) {
        if (body->let_go != nullptr)
            body->let_go(body->data, body->hint);
        delete body;
    }
    body = nullptr;
}

struct Socket {
    std::mutex mutex;
    std::deque<std::vector<std::string>> incoming;
    std::size_t taken = 0;  // frames taken of the first message
    std::vector<std::vector<std::string>> sent;
    bool is_open = false;  // whether more frames of the last message of `sent` follow
    int fd = eventfd(0, EFD_NONBLOCK);

    ~Socket() { close(fd); }

    void arrive(std::vector<std::string> message) {
        std::lock_guard<std::mutex> held(mutex);
        incoming.push_back(std::move(message));
        const std::uint64_t count = 1;
        demand(write(fd, &count, sizeof count) > 0, "the descriptor is full");
    }

    int receive(clockwork_zmq_message* target) {
        std::lock_guard<std::mutex> held(mutex);
        std::uint64_t count = 0;
        // reading the events consumes the edge, as in libzmq
        [[maybe_unused]] const auto edge = read(fd, &count, sizeof count);
        if (incoming.empty()) {
            errno = EAGAIN;
            return -1;
        }
        Body* body = new Body();
        body->bytes = incoming.front()[taken];
        body->more = ++taken < incoming.front().size();
        if (!body->more) {
            incoming.pop_front();
            taken = 0;
        }
        release(body_of(target));
        body_of(target) = body;
        return 0;
    }

    int send(std::string bytes, int flags) {
        std::lock_guard<std::mutex> held(mutex);
        if (!is_open)
            sent.emplace_back();
        sent.back().push_back(std::move(bytes));
        is_open = (flags & CLOCKWORK_ZMQ_SNDMORE) != 0;
        return 0;
    }

    std::vector<std::vector<std::string>> take_sent() {
        std::lock_guard<std::mutex> held(mutex);
        return std::exchange(sent, {});
    }
};

const clockwork_zmq_api& api() {
    static const clockwork_zmq_api table = [] {
        clockwork_zmq_api made{};
        made.msg_init = [](clockwork_zmq_message* message) {
            body_of(message) = nullptr;
            return 0;
        };
        made.msg_init_size = [](clockwork_zmq_message* message, std::size_t size) {
            body_of(message) = new Body();
            body_of(message)->bytes.resize(size);
            return 0;
        };
        made.msg_init_data = [](clockwork_zmq_message* message, void* data, std::size_t size,
                                void (*let_go)(void*, void*), void* hint) {
            Body* body = body_of(message) = new Body();
            body->bytes.assign(static_cast<const char*>(data), size);
            body->let_go = let_go;
            body->data = data;
            body->hint = hint;
            return 0;
        };
        made.msg_recv = [](clockwork_zmq_message* message, void* socket, int) {
            return static_cast<Socket*>(socket)->receive(message);
        };
        made.msg_send = [](clockwork_zmq_message* message, void* socket, int flags) {
            Body*& body = body_of(message);
            static_cast<Socket*>(socket)->send(body != nullptr ? body->bytes : std::string(), flags);
            release(body);
            return 0;
        };
        made.msg_move = [](clockwork_zmq_message* target, clockwork_zmq_message* source) {
            if (target != source) {
                release(body_of(target));
                body_of(target) = std::exchange(body_of(source), nullptr);
            }
            return 0;
        };
        made.msg_close = [](clockwork_zmq_message* message) {
            release(body_of(message));
            return 0;
        };
        made.msg_data = [](clockwork_zmq_message* message) -> void* {
            static char nothing = 0;
            return body_of(message) != nullptr ? body_of(message)->bytes.data() : &nothing;
        };
        made.msg_size = [](const clockwork_zmq_message* message) {
            return body_of(message) != nullptr ? body_of(message)->bytes.size() : 0;
        };
        made.msg_more = [](const clockwork_zmq_message* message) {
            return body_of(message) != nullptr && body_of(message)->more ? 1 : 0;
        };
        made.send = [](void* socket, const void* data, std::size_t size, int flags) {
            return static_cast<Socket*>(socket)->send(std::string(static_cast<const char*>(data), size), flags);
        };
        made.getsockopt = [](void* socket, int, void* value, std::size_t*) {
            Socket& one = *static_cast<Socket*>(socket);
            std::lock_guard<std::mutex> held(one.mutex);
            std::uint64_t count = 0;
            [[maybe_unused]] const auto edge = read(one.fd, &count, sizeof count);
            const int events = one.incoming.empty() ? 0 : CLOCKWORK_ZMQ_POLLIN;
            std::memcpy(value, &events, sizeof events);
            return 0;
        };
        made.last_error = [] { return errno; };
        return made;
    }();
    return table;
}

// ----- a device ----------------------------------------------------------------------------------

struct LaneDevice {
    Hub hub;
    device::Lane lane{hub, "lane"};
    std::atomic<int> living{0};  // number of orders that were made and not freed
    std::thread thread{[this] { run(); }};

    static LaneDevice& of(void* self) { return *static_cast<LaneDevice*>(self); }

    void run() {
        while (Action* action = lane.take(0)) {
            action->status = static_cast<std::int32_t>(now_ns_is_odd() ? Status::EXECUTION_FAILED : Status::OK);
            lane.end(*action);
        }
    }

    static bool now_ns_is_odd() { return device::now_ns() % 7 == 0; }

    void free(Order* order) {
        --living;
        delete order;
    }

    device::DevicePort port() {
        device::DevicePort made;
        made.self = this;
        made.make = [](void* self) -> Order* {
            ++of(self).living;
            return new Order();
        };
        made.begin = [](void* self, Order* order) {
            LaneDevice& one = of(self);
            if (!one.lane.push(*order, RUN_AHEAD)) {
                order->status = static_cast<std::int32_t>(Status::DEVICE_ERROR);
                std::lock_guard<Hub> held(one.hub);
                one.hub.end(*order);
            }
        };
        made.free = [](void* self, Order* order) { of(self).free(order); };
        made.revoke = [](void* self, std::int64_t id) {
            of(self).lane.revoke(id, static_cast<std::int32_t>(Status::ACTION_CANCELLED));
        };
        made.end_run = [](void*, std::int64_t) {};
        made.look = [](void*, device::RunningActions* found) { *found = {}; };
        made.is_broken = [](void*) { return false; };
        return made;
    }

    device::DeviceOutlet outlet() {
        return {this, hub.event_fd, [](void* self) { return of(self).hub.take_ended(); },
                [](void* self, const device::EndListener* listener) {
                    of(self).hub.listen(listener != nullptr ? *listener : device::EndListener{});
                }};
    }
};

// ----- a round -----------------------------------------------------------------------------------

std::vector<std::string> infer(std::int64_t action_id) {
    wire::ActionMessage message;
    message.kind = ActionKind::INFER;
    message.action_id = action_id;
    message.model_id = MODEL;
    message.load_id = 1;
    message.earliest_ns = -NEVER_NS;
    message.latest_ns = NEVER_NS;
    message.parts.push_back({0, 1});
    message.tensors.emplace_back();
    message.tensors[0].dtype = 2;
    message.tensors[0].shape = {0, 1};
    message.dims.push_back(8);
    Writer writer;
    demand(message.write(writer), "an INFER is too large");
    return {std::string(writer.view()), std::string(8, 'x')};
}

std::vector<std::string> revocation(std::int64_t action_id) {
    wire::Revoke message;
    message.action_id = action_id;
    Writer writer;
    demand(message.write(writer), "a Revoke is too large");
    return {std::string(writer.view())};
}

void play(std::uint64_t seed, bool resets) {
    Socket socket, monitor;
    LaneDevice device;
    worker::RoadBounds bounds;
    bounds.limits = {.execution_ns = 3600 * SECOND,
                     .execution_factor = 10,
                     .grace_ns = SECOND,
                     .load_ns = SECOND,
                     .load_factor = 10,
                     .reservation_ns = SECOND,
                     .check_ns = SECOND,
                     .gap_ns = SECOND,
                     .interval_ns = MS};
    bounds.frames_per_message = 1024;
    bounds.queued_actions = ACTIONS;
    bounds.notice_bytes = 1 << 20;
    bounds.copied_frame_bytes = 1 << 18;
    bounds.jitter_window = 16;
    {
        worker::Road road(DealerSocket(&socket, &monitor), {socket.fd, monitor.fd}, {}, bounds);
        road.add_device(device.port(), RUN_AHEAD);
        road.add_outlet(device.outlet());
        road.model_ready(MODEL, nullptr);
        road.model_whole(MODEL);
        road.serve(true);
        road.start();
        std::uint64_t state = seed;
        std::vector<int> answers(ACTIONS + 1);
        int count = 0;
        const auto collect = [&] {
            for (const std::vector<std::string>& message : socket.take_sent()) {
                HeaderFlaw flaw;
                wire::Result result;
                if (!result.read(message[0], flaw))
                    continue;  // handled by the other thread
                demand(++answers[static_cast<std::size_t>(result.action_id)] == 1, "an action is answered twice");
                ++count;
            }
        };
        for (int action = 1; action <= ACTIONS; ++action) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            socket.arrive(infer(action));
            switch (state >> 60) {
                case 0: socket.arrive(revocation(action)); break;
                case 1: road.holds(action); break;
                case 2: road.send("other", {}); break;
                case 3: road.take_notices(); break;
                case 4: road.jitter_p99_ns(); break;
                case 5: collect(); break;
                case 6:
                    if (resets)
                        road.reset();
                    break;
                default: break;
            }
        }
        while (!resets && count < ACTIONS) {
            collect();
            device::nap(50'000);
        }
        demand(resets || road.count() == 0, "an action is held although it was answered");
        road.stop();
        collect();
    }
    device.lane.stop();
    device.thread.join();
    // orders that ended after the road had stopped
    for (Action* action = device.hub.take_ended(); action != nullptr;) {
        Action* next = action->next;
        device.free(static_cast<Order*>(action));
        action = next;
    }
    for (Action* action = device.lane.head; action != nullptr;) {
        Action* next = action->next;
        device.free(static_cast<Order*>(action));
        action = next;
    }
    demand(device.living == 0, "an order is not freed");
}

}  // namespace

int main(int argc, char** argv) {
    demand(argc == 3, "usage: threads_road SEED ROUNDS");
    zmq = &api();
    const std::uint64_t seed = std::strtoull(argv[1], nullptr, 10);
    const int rounds = std::atoi(argv[2]);
    for (int round = 0; round < rounds; ++round)
        play(seed + static_cast<std::uint64_t>(round), round % 2 == 1);
    std::printf("%d rounds\n", rounds);
    return 0;
}
