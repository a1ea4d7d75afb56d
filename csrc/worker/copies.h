// Copies from and to memory of other processes, on threads of their own.
//
// The owner of the memory decides how long a copy takes: its pages may be swapped out, and a write waits for
// a lock of the file. So copies are done in pieces, in turns of the owners, by at most one thread per owner.
// A copy that blocks delays only its owner's other copies, as long as another thread is free.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace clockwork::worker {

struct CopyBounds {
    std::size_t threads = 0;
    std::size_t copies = 0;  // that have not ended, in all
    std::size_t owner_copies = 0;
    std::size_t piece_bytes = 0;
    std::int64_t close_ns = 0;  // the time that close() waits for threads that block
};

// A copy from or to an owner's memory.
class Copy {
public:
    explicit Copy(std::int64_t owner) : owner(owner) {}
    virtual ~Copy() = default;

    // Copies a piece. Returns whether there is more; sets `flaw` if the copy has failed.
    virtual bool step() = 0;
    // Closes what the copy has opened. The thread that copies calls it, also for a dropped copy.
    virtual void close() = 0;

    const std::int64_t owner;
    std::string flaw;        // a sentence about the memory: the copy has failed
    bool is_defect = false;  // the copy has failed by no fault of the memory's owner
    std::atomic<bool> is_dropped{false};
};

// Copies that wait or have ended. A single thread at a time calls methods.
class CopyQueue {
public:
    virtual ~CopyQueue() = default;
    // Starts a copy. Returns a sentence if it is refused, else "".
    virtual std::string submit(std::shared_ptr<Copy> copy) = 0;
    // Cancels a copy. A copy that has begun ends at its next step.
    virtual void drop(Copy& copy) = 0;
    // Returns the copies that have ended since the last call, dropped ones included.
    virtual std::vector<std::shared_ptr<Copy>> take_ended() = 0;
    // Ends the threads. A thread that blocks ends with the process.
    virtual void close() = 0;
};

class Copies : public CopyQueue {
public:
    // wake: called on any thread, with a lock held, when a copy has ended.
    Copies(const CopyBounds& bounds, std::function<void()> wake);
    ~Copies() override { close(); }

    std::string submit(std::shared_ptr<Copy> copy) override;
    void drop(Copy& copy) override;
    std::vector<std::shared_ptr<Copy>> take_ended() override;
    // Calls `wake` no more afterwards.
    void close() final;

private:
    struct State;
    static void work(const std::shared_ptr<State>& state);
    std::string start();

    std::shared_ptr<State> state_;
};

}  // namespace clockwork::worker
