// The functions by which a worker's road drives a device of any kind without Python. They never take the GIL.
#pragma once

#include <cstdint>

#include "device/order.h"

namespace clockwork::device {

// Ids of the actions that a device's lanes run; 0: none. A LOAD that waits for the link is not counted as
// running. A device that executes from another device's arena runs executions alone.
struct RunningActions {
    std::int64_t execution = 0;
    std::int64_t load = 0;
    std::int64_t fetch = 0;
};

// A device. A single thread makes and begins orders; a begun order is the device's until the outlet returns
// it.
struct DevicePort {
    void* self = nullptr;
    // Makes an order that has not begun; null: there is no memory.
    Order* (*make)(void* self) = nullptr;
    // Queues the order, or ends it with a status and a text.
    void (*begin)(void* self, Order* order) = nullptr;
    void (*free)(void* self, Order* order) = nullptr;
    // Ends the order as ACTION_CANCELLED if it has not started.
    void (*revoke)(void* self, std::int64_t action_id) = nullptr;
    // Ends the execution as OVERRUN as soon as possible, if the device can. To be repeated while it runs.
    void (*end_run)(void* self, std::int64_t action_id) = nullptr;
    void (*look)(void* self, RunningActions* found) = nullptr;
    // Whether the device is broken for good.
    bool (*is_broken)(void* self) = nullptr;
};

// The source of the ended orders of one or more devices.
struct DeviceOutlet {
    void* self = nullptr;
    int fd = -1;  // readable while there are ended orders that no listener has taken
    // Takes the list of ended orders, oldest first, now the caller's; null: there are none.
    Action* (*take)(void* self) = nullptr;
    // Sets the listener that is told on the threads that end orders; with null, no thread is within the
    // former listener after the return. The pointer is null where this outlet has no such threads.
    void (*listen)(void* self, const EndListener* listener) = nullptr;
};

}  // namespace clockwork::device
