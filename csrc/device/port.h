// How a worker's road drives a device without Python: functions of whatever the device is, which never take the GIL.
#pragma once

#include <cstdint>

#include "device/order.h"

namespace clockwork::device {

// What a device's lanes are at, by action ids; 0: nothing. A load that waits for another device's is not at it.
struct Whereabouts {
    std::int64_t execution = 0;
    std::int64_t load = 0;
    std::int64_t fetch = 0;
};

// A device. One thread makes and begins orders; a begun order is the device's until the outlet returns it.
struct Port {
    void* self = nullptr;
    // An order that has not begun; null: there is no memory.
    Order* (*make)(void* self) = nullptr;
    // Queues the order, or ends it with a status and a text.
    void (*begin)(void* self, Order* order) = nullptr;
    void (*free)(void* self, Order* order) = nullptr;
    // The order ends as ACTION_CANCELLED if it has not started.
    void (*revoke)(void* self, std::int64_t action_id) = nullptr;
    // The execution ends as OVERRUN as soon as may be, if the device can end it. To be repeated while it runs.
    void (*end_run)(void* self, std::int64_t action_id) = nullptr;
    void (*look)(void* self, Whereabouts* found) = nullptr;
    // Whether the device is broken for good.
    bool (*is_broken)(void* self) = nullptr;
};

// Where the ended orders of one or more devices come from.
struct Outlet {
    void* self = nullptr;
    int fd = -1;  // readable while there are any that no listener has taken
    // The list of them, oldest first, now the caller's; null: there are none.
    Action* (*take)(void* self) = nullptr;
    // Has a listener be told on the threads that end orders, or (null) nobody: then nobody is within the former one
    // afterwards. Null: this outlet has no such threads.
    void (*listen)(void* self, const Listener* listener) = nullptr;
};

}  // namespace clockwork::device
