// Lanes: strictly first-in first-out queues of actions, each run by one thread, and the list of what has ended.
//
// One hub per device owns the one lock. It guards the lanes, the list of ended actions and whatever the device keeps
// about residency; it is held for well under a microsecond at a time, and never while waiting for anything but itself.
// Actions are owned by their maker; a lane links them.
#pragma once

#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <mutex>

namespace clockwork::device {

inline constexpr std::int32_t PENDING = -1;  // of an action that has not ended

inline std::int64_t read_clock(clockid_t clock) {
    timespec now;
    clock_gettime(clock, &now);
    return std::int64_t(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

inline std::int64_t now_ns() { return read_clock(CLOCK_MONOTONIC); }

// Processor time of the calling thread.
inline std::int64_t thread_time_ns() { return read_clock(CLOCK_THREAD_CPUTIME_ID); }

// Sleeps for so long, which a signal may cut short.
inline void nap(std::int64_t ns) {
    timespec time = {ns / 1'000'000'000, ns % 1'000'000'000};
    nanosleep(&time, nullptr);
}

// A moment between two looks at memory that another writes.
inline void breathe() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

struct Action {
    Action* next = nullptr;
    std::int64_t action_id = 0;
    std::int64_t earliest_ns = 0;  // bounds on the start, CLOCK_MONOTONIC
    std::int64_t latest_ns = 0;
    std::int32_t status = PENDING;
};

// Who takes ended actions on the thread of the lane that has ended them: it saves the hop to another thread.
struct Listener {
    void* self = nullptr;
    // Whether all ended actions have been taken. Called without the hub's lock.
    bool (*take)(void* self) = nullptr;
};

class Hub {
public:
    Hub() : event_fd(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}
    ~Hub() { close(); }
    Hub(const Hub&) = delete;
    Hub& operator=(const Hub&) = delete;

    // The descriptor; nobody waits for it any more.
    void close() {
        if (event_fd >= 0)
            ::close(event_fd);
        event_fd = -1;
    }

    void lock() { mutex_.lock(); }
    void unlock() { mutex_.unlock(); }

    // Waits for a lane to end or pass on an action, for a tenth of a second at most. The lock must be held.
    void wait() {
        std::unique_lock<std::mutex> held(mutex_, std::adopt_lock);
        idle_.wait_for(held, std::chrono::milliseconds(100));
        held.release();
    }

    // Wakes who wait(). The lock must be held.
    void tell() { idle_.notify_all(); }

    // Appends to the list of ended actions, and makes event_fd readable. The lock must be held.
    void end(Action& action) {
        append(action);
        announce();
    }

    // The whole list of ended actions, oldest first, now the caller's.
    Action* take_ended() {
        std::lock_guard<Hub> held(*this);
        Action* list = ended_;
        ended_ = last_ended_ = nullptr;
        if (is_announced_) {
            std::uint64_t count;
            is_announced_ = false;
            if (read(event_fd, &count, sizeof count) < 0)
                std::abort();
        }
        return list;
    }

    // Has a listener take what lanes end from now on. None: nobody is within the former one afterwards.
    void listen(const Listener& listener) {
        std::unique_lock<std::mutex> held(mutex_);
        listener_ = listener;
        idle_.wait(held, [this] { return listener_.take != nullptr || telling_ == 0; });
    }

    int event_fd;  // readable while ended actions wait that no listener has taken; -1: there is none

private:
    friend class Lane;

    void append(Action& action) {
        action.next = nullptr;
        (last_ended_ != nullptr ? last_ended_->next : ended_) = &action;
        last_ended_ = &action;
    }

    void announce() {
        const std::uint64_t one = 1;
        if (is_announced_ || ended_ == nullptr)
            return;
        is_announced_ = true;
        if (write(event_fd, &one, sizeof one) < 0)  // never: the counter was zero
            std::abort();
    }

    // Has the listener take what a lane has ended, if there is a listener; else announces it. The lock is held, but not
    // meanwhile.
    void tell(std::unique_lock<std::mutex>& held) {
        const Listener listener = listener_;
        if (listener.take == nullptr || is_announced_) {
            announce();
            return;
        }
        ++telling_;
        held.unlock();
        const bool is_taken = listener.take(listener.self);
        held.lock();
        if (!is_taken)
            announce();
        if (--telling_ == 0 && listener_.take == nullptr)
            idle_.notify_all();
    }

    std::mutex mutex_;
    std::condition_variable idle_;  // a lane has ended an action, or nobody is within a listener
    Listener listener_;
    int telling_ = 0;  // lanes within the listener
    Action* ended_ = nullptr;
    Action* last_ended_ = nullptr;
    bool is_announced_ = false;  // event_fd is readable
};

class Lane {
public:
    // name: of its thread, at most 15 bytes.
    Lane(Hub& hub, const char* name) : name(name), hub_(hub) {}
    Lane(const Lane&) = delete;
    Lane& operator=(const Lane&) = delete;

    // Called once by the thread that runs the lane: timers as exact as the kernel has them.
    void enter() const {
        prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0);
        prctl(PR_SET_NAME, name, 0, 0, 0);
    }

    // False if the lane holds `most` actions already.
    bool push(Action& action, std::int32_t most) {
        {
            std::lock_guard<Hub> held(hub_);
            if (length >= most)
                return false;
            append(action);
        }
        // Not before: a lane that runs at once, in the caller's place, would wait for the lock, and so for the caller.
        wake_.notify_one();
        return true;
    }

    // Waits for the next action and for its window to open: asleep until spin_ns before, then spinning. Null once the
    // lane has been stopped. The action counts as running until end() or pass(). What has begun behind the one before it
    // is taken without all that.
    Action* take(std::int64_t spin_ns) {
        std::unique_lock<std::mutex> held(hub_.mutex_);
        if (running != nullptr)
            return running;
        while (!stopped_) {
            Action* action = head;
            if (action == nullptr) {
                wake_.wait(held);
                continue;
            }
            const std::int64_t until_ns = action->earliest_ns - spin_ns;
            if (until_ns > now_ns()) {
                wake_.wait_until(held, std::chrono::steady_clock::time_point(std::chrono::nanoseconds(until_ns)));
                continue;  // the head may have been revoked meanwhile
            }
            head = action->next;
            if (head == nullptr)
                tail_ = nullptr;
            running = action;
            held.unlock();
            while (now_ns() < action->earliest_ns) {
            }
            return action;
        }
        return nullptr;
    }

    // The next action, if it may begin behind the running one, which will end at end_ns: nothing is behind that yet, and
    // the action's window is open now and will be then. Else null. The lock must be held.
    Action* next_behind(std::int64_t now_ns, std::int64_t end_ns) {
        looked_ns_ = now_ns;
        looked_changes_ = changes_;
        const bool may = behind == nullptr && !stopped_ && head != nullptr && now_ns < end_ns;
        return may && head->earliest_ns <= now_ns && end_ns <= head->latest_ns ? head : nullptr;
    }

    // Takes that action: it will run when the running one has ended. The lock must be held.
    void take_behind() {
        behind = head;
        head = head->next;
        if (head == nullptr)
            tail_ = nullptr;
    }

    // For the lane's own thread, while an action runs: sleeps until then, or until next_behind() may have another answer
    // than it had last.
    void sleep(std::int64_t until_ns) {
        std::unique_lock<std::mutex> held(hub_.mutex_);
        if (behind == nullptr && head != nullptr && head->earliest_ns > looked_ns_)
            until_ns = std::min(until_ns, head->earliest_ns);
        const std::chrono::steady_clock::time_point until{std::chrono::nanoseconds(until_ns)};
        wake_.wait_until(held, until, [this] { return changes_ != looked_changes_; });
    }

    // The running action has ended.
    void end(Action& action) {
        std::unique_lock<std::mutex> held(hub_.mutex_);
        go_on();
        hub_.append(action);
        hub_.idle_.notify_all();
        hub_.tell(held);
    }

    // The running action goes on in another lane of the same hub, whatever that holds already.
    void pass(Action& action, Lane& next) {
        {
            std::lock_guard<Hub> held(hub_);
            go_on();
            next.append(action);
            hub_.idle_.notify_all();
        }
        next.wake_.notify_one();
    }

    // Ends a queued action with this status, and returns it; null if it is not (or no longer) queued.
    Action* revoke(std::int64_t action_id, std::int32_t status) {
        std::lock_guard<Hub> held(hub_);
        Action* before = nullptr;
        Action* action = head;
        while (action != nullptr && action->action_id != action_id) {
            before = action;
            action = action->next;
        }
        if (action == nullptr)
            return nullptr;
        (before != nullptr ? before->next : head) = action->next;
        if (tail_ == action)
            tail_ = before;
        length--;
        changes_++;
        action->status = status;
        hub_.end(*action);
        wake_.notify_one();
        return action;
    }

    // Takes away everything queued, and waits until nothing runs. The queue, oldest first.
    Action* clear() {
        std::unique_lock<std::mutex> held(hub_.mutex_);
        Action* list = head;
        head = tail_ = nullptr;
        changes_++;
        length = (running != nullptr ? 1 : 0) + (behind != nullptr ? 1 : 0);
        wake_.notify_one();
        while (running != nullptr)
            hub_.idle_.wait(held);
        return list;
    }

    void stop() {
        std::lock_guard<Hub> held(hub_);
        stopped_ = true;
        changes_++;
        wake_.notify_one();
    }

    const char* const name;
    // To be looked at under the hub's lock:
    Action* head = nullptr;  // of what is queued
    Action* running = nullptr;
    Action* behind = nullptr;  // what has begun as well, and runs when the running one has ended
    std::int32_t length = 0;   // queued, running and behind

private:
    void go_on() {
        running = behind;
        behind = nullptr;
        length--;
    }

    void append(Action& action) {
        action.next = nullptr;
        (tail_ != nullptr ? tail_->next : head) = &action;
        tail_ = &action;
        length++;
        changes_++;
    }

    Hub& hub_;
    std::condition_variable wake_;
    Action* tail_ = nullptr;
    bool stopped_ = false;
    std::uint64_t changes_ = 0;  // of the queue, by others than the lane's own thread
    std::uint64_t looked_changes_ = 0;
    std::int64_t looked_ns_ = 0;  // when next_behind() looked last
};

}  // namespace clockwork::device
