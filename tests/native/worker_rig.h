// A worker's road between a socket of this process and a device of a single lane.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "device/port.h"
#include "fake_zmq.h"
#include "threads.h"
#include "wire/messages.h"
#include "worker/road.h"

namespace clockwork {

using device::Action;
using device::Hub;
using device::Order;

constexpr std::int64_t MODEL = 1;
constexpr int ACTIONS = 300, RUN_AHEAD = 2;

// A DEALER with a descriptor, for several threads.
struct Socket : fake::AnySocket {
    std::mutex mutex;
    std::deque<std::vector<std::string>> incoming;
    std::size_t taken = 0;  // frames taken of the first message
    std::vector<std::vector<std::string>> sent;
    bool is_open = false;  // whether more frames of the last message of `sent` follow
    int fd = eventfd(0, EFD_NONBLOCK);

    ~Socket() override { close(fd); }

    void arrive(std::vector<std::string> message) {
        std::lock_guard<std::mutex> held(mutex);
        incoming.push_back(std::move(message));
        const std::uint64_t count = 1;
        demand(write(fd, &count, sizeof count) > 0, "the descriptor is full");
    }

    // Looking takes the edge, as libzmq does.
    void take_edge() const {
        std::uint64_t count = 0;
        [[maybe_unused]] const auto edge = read(fd, &count, sizeof count);
    }

    int receive(clockwork_zmq_message* target) override {
        const Uncounted uncounted;
        std::lock_guard<std::mutex> held(mutex);
        take_edge();
        if (incoming.empty())
            return fake::failed(EAGAIN);
        fake::Body* body = new fake::Body();
        body->bytes = incoming.front()[taken];
        body->more = ++taken < incoming.front().size();
        if (!body->more) {
            incoming.pop_front();
            taken = 0;
        }
        fake::release(fake::body_of(target));
        fake::body_of(target) = body;
        return 0;
    }

    int send(fake::Body* body, int flags) override {
        const Uncounted uncounted;
        std::lock_guard<std::mutex> held(mutex);
        if (!is_open)
            sent.emplace_back();
        sent.back().push_back(body->bytes);
        is_open = (flags & CLOCKWORK_ZMQ_SNDMORE) != 0;
        fake::release(body);
        return 0;
    }

    bool has_input() override {
        std::lock_guard<std::mutex> held(mutex);
        take_edge();
        return !incoming.empty();
    }

    std::vector<std::vector<std::string>> take_sent() {
        std::lock_guard<std::mutex> held(mutex);
        std::vector<std::vector<std::string>> whole = std::exchange(sent, {});
        if (is_open) {
            sent.push_back(std::move(whole.back()));
            whole.pop_back();
        }
        return whole;
    }
};

// ----- a device ----------------------------------------------------------------------------------

struct LaneDevice {
    Hub hub;
    device::Lane lane{hub, "lane"};
    bool fails = true;           // now and then
    std::atomic<int> living{0};  // number of orders that were made and not freed
    std::thread thread{[this] { run(); }};

    static LaneDevice& of(void* self) { return *static_cast<LaneDevice*>(self); }

    void run() {
        while (Action* action = lane.take(0)) {
            const Uncounted uncounted;
            action->status =
                static_cast<std::int32_t>(fails && now_ns_is_odd() ? Status::EXECUTION_FAILED : Status::OK);
            make_output(static_cast<Order*>(action)->parts);
            end(*action);
        }
    }

    static bool now_ns_is_odd() { return device::now_ns() % 7 == 0; }

    // The road's own allocations are counted again within it.
    void end(Action& action) {
        --Uncounted::depth;
        lane.end(action);
        ++Uncounted::depth;
    }

    static void make_output(device::BatchParts& parts) {
        parts.part_count = 1;
        demand(parts.make_outputs(1), "no memory");
        parts.outputs[0] = {.dtype = 2, .rank = 1, .dims = {8}, .begin = 0, .bytes = 8};
        demand(parts.make_block(), "no memory");
        std::memcpy(parts.block, "outputs!", 8);
        parts.divide(0);
    }

    void free(Order* order) {
        --living;
        delete order;
    }

    device::DevicePort port() {
        device::DevicePort made;
        made.self = this;
        made.make = [](void* self) -> Order* {
            const Uncounted uncounted;
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

// shared: where its input lies; "": in the message.
inline std::vector<std::string> infer(std::int64_t action_id, const std::string& shared) {
    wire::ActionMessage message;
    message.kind = ActionKind::INFER;
    message.action_id = action_id;
    message.model_id = MODEL;
    message.load_id = 1;
    message.earliest_ns = -NEVER_NS;
    message.latest_ns = NEVER_NS;
    message.parts.push_back({0, 1});
    message.tensors.emplace_back();
    message.tensors[0].dtype = shared.empty() ? 2 : 2 | SHARED;
    message.tensors[0].shape = {0, 1};
    message.dims.push_back(8);
    Writer writer;
    demand(message.write(writer), "an INFER is too large");
    return {std::string(writer.view()), shared.empty() ? std::string(8, 'x') : shared};
}

inline std::vector<std::string> revocation(std::int64_t action_id) {
    wire::Revoke message;
    message.action_id = action_id;
    Writer writer;
    demand(message.write(writer), "a Revoke is too large");
    return {std::string(writer.view())};
}

inline worker::RoadBounds road_bounds() {
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
    bounds.lending.snapshots = {.bytes = 1 << 20, .owner_bytes = 1 << 20, .idle_ns = 1};
    bounds.lending.copies = {
        .threads = 3, .copies = ACTIONS, .owner_copies = ACTIONS, .piece_bytes = 3, .close_ns = SECOND};
    bounds.lending.room_wait_ns = SECOND;
    return bounds;
}

}  // namespace clockwork
