// The workspace as ONNX Runtime sees it: what cannot be given is an exception.
//
// IAllocator of the runtime has no error but std::bad_alloc: what wraps a C allocator hands its NULL on, and tensors are
// made of it unseen. The exception passes through frames of the runtime alone, which are C++; it catches it around every
// kernel and at its C API, and makes a status of it.
#include "device/workspace.h"

#include <cstdio>
#include <new>

namespace {

thread_local ws_account* charged = nullptr;

// std::bad_alloc with a sentence, made without memory.
class OutOfBudget : public std::bad_alloc {
public:
    OutOfBudget(std::size_t asked, std::size_t used, std::size_t limit) {
        std::snprintf(text_, sizeof text_, "%zu bytes are asked for, %zu are taken, and at most %zu may be", asked,
                      used, limit);
    }
    const char* what() const noexcept override { return text_; }

private:
    char text_[160];
};

}  // namespace

extern "C" void ws_charge(ws_account* account) { charged = account; }

extern "C" void* ws_alloc_for_run(OrtAllocator* self, std::size_t bytes) {
    workspace* ws = reinterpret_cast<workspace*>(self);
    if (bytes == 0)
        return nullptr;
    void* found = ws_alloc(ws, charged, bytes);
    if (found == nullptr) {
        if (charged != nullptr)
            throw OutOfBudget(bytes, charged->used_bytes, charged->limit_bytes);
        throw OutOfBudget(bytes, ws->used_bytes, ws->limit_bytes);
    }
    return found;
}
