// Python's buffers as the inputs of an order. Filled and freed by threads that hold the interpreter's lock.
#pragma once

#include <Python.h>

#include <deque>

#include "device/order.h"

namespace clockwork::device {

struct Pinned : BufferOwner {
    std::deque<Py_buffer> buffers;  // a deque, because a Py_buffer must not move

    ~Pinned() override {
        for (Py_buffer& buffer : buffers)
            PyBuffer_Release(&buffer);
    }
};

}  // namespace clockwork::device
