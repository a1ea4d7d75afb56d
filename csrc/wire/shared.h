// Tensors whose bytes lie in their client's memory: wire/shared.py.
#pragma once

#include <cstdint>

#include "wire/bounds.h"
#include "wire/messages.h"

namespace clockwork::wire {

// Whether a tensor's frame says where its bytes are in the client's memory, instead of holding them.
inline bool is_shared(const TensorRef& ref) { return (ref.dtype & SHARED) != 0; }

// A size, up to the next multiple of a shared tensor's alignment.
inline std::int64_t aligned(std::int64_t size) {
    return (size + SHARED_ALIGNMENT - 1) / SHARED_ALIGNMENT * SHARED_ALIGNMENT;
}

}  // namespace clockwork::wire
