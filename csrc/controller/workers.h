// The workers that have said hello, each with its connection, its clock, and its sent actions.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "controller/by_text.h"
#include "controller/clock.h"
#include "controller/counts.h"
#include "controller/port.h"
#include "controller/sent_actions.h"
#include "id_table.h"
#include "scheduler/pool.h"

namespace clockwork {

struct WorkerLink {
    std::string identity;
    ConnectionPtr connection;
    WorkerId worker_id = 0;
    ClockBounds clock;
    SentActions actions;
    Ns heard_ns = 0;
    std::array<std::uint64_t, ACTION_KINDS> sent{};
    std::array<std::uint64_t, STATUS_COUNT> results{};
    std::vector<DeviceCounts> devices;
    std::uint64_t fetches = 0, drops = 0;  // successful FETCHes and DROPs of its host store

    std::uint32_t slot = 0;
    std::uint32_t generation = 0;

    void reset() {
        connection.reset();
        clock = ClockBounds();
        actions = SentActions();
        heard_ns = 0;
        sent = {};
        results = {};
        devices.clear();
        fetches = drops = 0;
    }
};

class Workers {
public:
    explicit Workers(Port& port) : port_(port) {}

    // Enters a worker. Returns its slot, or NO_SLOT if the connection of its hello has ended: a hello may be
    // read after the end of its connection. key: the connection's, "" if it has none.
    std::uint32_t joined(std::string_view identity, int fd, std::string_view key, WorkerId worker_id,
                         std::size_t device_count, Ns now);
    void left(std::uint32_t slot, Ns now);

    WorkerLink& at(std::uint32_t slot) { return *links_.at(slot); }
    // Null if there is no such worker.
    WorkerLink* find(WorkerId worker_id) {
        std::uint32_t slot = by_id_.find(static_cast<std::uint32_t>(worker_id));
        return slot == IdTable::NONE ? nullptr : links_.at(slot);
    }
    WorkerLink* find(std::string_view identity) {
        auto found = by_identity_.find(identity);
        return found == by_identity_.end() ? nullptr : links_.at(found->second);
    }

    // Sends a header; `more`: frames follow. False if the worker is unreachable, and then among lost().
    bool send(WorkerLink& worker, std::string_view header, bool more, Ns now);
    void send(Frame& frame, bool more) { port_.send(frame, more); }
    // Unreachable workers; the caller clears it.
    std::vector<WorkerId>& lost() { return lost_; }

private:
    Port& port_;
    Pool<WorkerLink> links_;
    ByText<std::uint32_t> by_identity_;
    IdTable by_id_;
    std::vector<WorkerId> lost_;
};

}  // namespace clockwork
