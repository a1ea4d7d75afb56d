// What becomes of a message of a peer that has said hello.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "controller/checks.h"
#include "controller/flaws.h"
#include "controller/models.h"
#include "controller/sockets.h"

namespace clockwork {

enum class Taken : std::uint8_t {
    DONE,
    PYTHON,  // it is Python's
    WRONG,   // it is wrong: Wrong says in what
};

// What is wrong with the current message, and with what it was held against.
struct Wrong {
    bool is_request = false;
    std::int64_t id = 0;  // of the request or action; 0 where it cannot be read
    HeaderFlaw header;    // it is malformed, if this is not NONE; else:
    Flaw flaw;
    ModelId model_id = 0;                             // 0: none was found
    std::shared_ptr<const ModelInterface> interface;  // null: it was not held against one
    const std::vector<TensorRef>* tensors = nullptr;  // that the message describes
    const std::vector<std::int64_t>* dims = nullptr;

    // The message of this number is wrong; nothing else is known of it.
    void begin(std::int64_t number) {
        id = number;
        model_id = 0;
        interface.reset();
        tensors = nullptr;
        dims = nullptr;
    }
};

// The bytes of a message's frames, behind its header.
inline void read_frames(Haul& haul, const Arrival& arrival, FrameBytes& frames) {
    frames.clear();
    for (std::uint32_t place = arrival.first + 2; place < arrival.first + arrival.count; ++place)
        frames.push_back(haul.frame(place).view());
}

}  // namespace clockwork
