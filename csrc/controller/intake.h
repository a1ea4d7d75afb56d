// The handling of a message of a known peer.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "controller/checks.h"
#include "controller/flaws.h"
#include "controller/models.h"
#include "controller/sockets.h"

namespace clockwork {

enum class IntakeResult : std::uint8_t {
    DONE,
    PYTHON,  // Python handles the message
    WRONG,   // the message is wrong: WrongMessage describes its flaw
};

// The flaw of the current message, and the interface with which it was compared.
struct WrongMessage {
    bool is_request = false;
    std::int64_t id = 0;  // id of the request or action; 0 if unreadable
    HeaderFlaw header;    // other than NONE: the header is malformed. Otherwise the fields below hold:
    Flaw flaw;
    ModelId model_id = 0;                             // 0: no model was found
    std::shared_ptr<const ModelInterface> interface;  // null: the message was compared with no interface
    const std::vector<TensorRef>* tensors = nullptr;  // the tensors that the message describes
    const std::vector<std::int64_t>* dims = nullptr;

    // Begins the record of a wrong message with this id.
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
