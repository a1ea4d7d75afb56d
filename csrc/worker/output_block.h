// The outputs of an order, owned by frames of libzmq and copies to clients' memory together.
#pragma once

#include <atomic>
#include <cstdlib>
#include <utility>

namespace clockwork::worker {

class OutputBlock {
public:
    OutputBlock() = default;
    // Takes memory of malloc().
    explicit OutputBlock(char* data) : shared_(new Shared{data, 1}) {}
    ~OutputBlock() { let_go(nullptr, shared_); }
    OutputBlock(const OutputBlock& other) : shared_(static_cast<Shared*>(other.hold())) {}
    OutputBlock(OutputBlock&& other) noexcept : shared_(std::exchange(other.shared_, nullptr)) {}
    OutputBlock& operator=(OutputBlock other) noexcept {
        std::swap(shared_, other.shared_);
        return *this;
    }

    // Adds an owner, which calls let_go() with this function's result, as libzmq does. Null: the block is
    // empty.
    void* hold() const {
        if (shared_ != nullptr)
            shared_->owners.fetch_add(1);
        return shared_;
    }

    static void let_go(void*, void* hint) {
        Shared* const shared = static_cast<Shared*>(hint);
        if (shared != nullptr && shared->owners.fetch_sub(1) == 1) {
            std::free(shared->data);
            delete shared;
        }
    }

private:
    struct Shared {
        char* data;
        std::atomic<int> owners;
    };
    Shared* shared_ = nullptr;
};

}  // namespace clockwork::worker
