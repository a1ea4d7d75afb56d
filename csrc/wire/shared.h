// Tensors whose bytes lie in their client's memory: wire/shared.py.
#pragma once

#include "wire/bounds.h"
#include "wire/messages.h"

namespace clockwork::wire {

// Whether a tensor's frame says where its bytes are in the client's memory, instead of holding them.
inline bool is_shared(const TensorRef& ref) { return (ref.dtype & SHARED) != 0; }

}  // namespace clockwork::wire
