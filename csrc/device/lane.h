// Lanes, which are strictly first-in first-out queues of actions with a thread each, and the list of ended
// actions.
//
// A hub per device owns the only lock. It guards the lanes, the list of ended actions and the device's
// records of residency. It is held for well under a microsecond at a time, and never while a thread waits for
// something else. Actions are owned by their maker; a lane links them.
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
#include <string>
#include <utility>

namespace clockwork::device {

inline constexpr std::int32_t PENDING = -1;  // status of an action that has not ended

inline std::int64_t read_clock(clockid_t clock) {
    timespec now;
    clock_gettime(clock, &now);
    return std::int64_t(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

inline std::int64_t now_ns() { return read_clock(CLOCK_MONOTONIC); }

// Processor time of the calling thread.
inline std::int64_t thread_time_ns() { return read_clock(CLOCK_THREAD_CPUTIME_ID); }

// Sleeps for so long; a signal may cut the sleep short.
inline void nap(std::int64_t ns) {
    timespec time = {ns / 1'000'000'000, ns % 1'000'000'000};
    nanosleep(&time, nullptr);
}

// A short pause between two reads of memory that another thread writes.
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
    std::int64_t earliest_ns = 0;  // bounds on the start, by CLOCK_MONOTONIC
    std::int64_t latest_ns = 0;
    std::int32_t status = PENDING;
};

// The receiver of ended actions. It runs on the thread of the lane that has ended them, which saves the hop
// to another thread.
struct EndListener {
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

    // Closes the descriptor, on which no thread waits any more.
    void close() {
        if (event_fd >= 0)
            ::close(event_fd);
        event_fd = -1;
    }

    void lock() { mutex_.lock(); }
    void unlock() { mutex_.unlock(); }

    // Waits until a lane ends or passes on an action, for a tenth of a second at most. The lock must be held.
    void wait() {
        std::unique_lock<std::mutex> held(mutex_, std::adopt_lock);
        idle_.wait_for(held, std::chrono::milliseconds(100));
        held.release();
    }

    // Wakes the threads in wait(). The lock must be held.
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

    // Sets the listener that takes what lanes end from now on. On return no thread is within the former
    // listener.
    void listen(const EndListener& listener) {
        std::unique_lock<std::mutex> held(mutex_);
        listener_ = listener;
        idle_.wait(held, [this] { return listener_.take != nullptr || telling_ == 0; });
    }

    int event_fd;  // readable while ended actions wait that no listener has taken; -1: no descriptor

private:
    friend class Lane;

    void append(Action& action) {
        action.next = nullptr;
        (last_ended_ != nullptr ? last_ended_->next : ended_) = &action;
        last_ended_ = &action;
    }

    void announce() {
        const std::uint64_t increment = 1;
        if (is_announced_ || ended_ == nullptr)
            return;
        is_announced_ = true;
        if (write(event_fd, &increment, sizeof increment) < 0)  // cannot happen: the counter was zero
            std::abort();
    }

    // Has the listener take the action that a lane has ended; without a listener the action is announced. The
    // lock is held on entry and on return, but not while the listener runs.
    void tell(std::unique_lock<std::mutex>& held) {
        const EndListener listener = listener_;
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
    // signalled when a lane has ended an action, or no thread is within a listener
    std::condition_variable idle_;
    EndListener listener_;
    int telling_ = 0;  // number of lanes within the listener
    Action* ended_ = nullptr;
    Action* last_ended_ = nullptr;
    bool is_announced_ = false;  // whether event_fd is readable
};

class Lane {
public:
    // name: name of the lane's thread, at most 15 bytes.
    Lane(Hub& hub, std::string name) : name(std::move(name)), hub_(hub) {}
    Lane(const Lane&) = delete;
    Lane& operator=(const Lane&) = delete;

    // Called once by the thread that runs the lane: sets its timers to the smallest slack that the kernel
    // has.
    void enter() const {
        prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0);
        prctl(PR_SET_NAME, name.c_str(), 0, 0, 0);
    }

    // Appends an action; false if the lane holds `most` actions already.
    bool push(Action& action, std::int32_t most) {
        {
            std::lock_guard<Hub> held(hub_);
            if (length >= most)
                return false;
            append(action);
        }
        // Notified after the lock is released: a lane's thread that runs at once, in the caller's place,
        // would wait for the lock, and so for the caller.
        wake_.notify_one();
        return true;
    }

    // Waits for the next action and for its window to open: asleep until spin_ns before, then spinning. Null
    // once the lane has been stopped. The action counts as running until end() or pass(). An action that has
    // begun behind the last is returned without a wait.
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

    // The next action, if it may begin behind the running action, which will end at end_ns: no action has
    // begun behind that yet, and the next action's window is open now and will be then. Null otherwise. The
    // lock must be held.
    Action* next_behind(std::int64_t now_ns, std::int64_t end_ns) {
        looked_ns_ = now_ns;
        looked_changes_ = changes_;
        const bool may = behind == nullptr && !stopped_ && head != nullptr && now_ns < end_ns;
        return may && head->earliest_ns <= now_ns && end_ns <= head->latest_ns ? head : nullptr;
    }

    // Takes the next action: it will run when the running action has ended. The lock must be held.
    void take_behind() {
        behind = head;
        head = head->next;
        if (head == nullptr)
            tail_ = nullptr;
    }

    // Sleeps while an action runs, until the given time or until next_behind() may give another answer than
    // before. Only the lane's own thread calls it.
    void sleep(std::int64_t until_ns) {
        std::unique_lock<std::mutex> held(hub_.mutex_);
        if (behind == nullptr && head != nullptr && head->earliest_ns > looked_ns_)
            until_ns = std::min(until_ns, head->earliest_ns);
        const std::chrono::steady_clock::time_point until{std::chrono::nanoseconds(until_ns)};
        wake_.wait_until(held, until, [this] { return changes_ != looked_changes_; });
    }

    // Ends the running action.
    void end(Action& action) {
        std::unique_lock<std::mutex> held(hub_.mutex_);
        go_on();
        hub_.append(action);
        hub_.idle_.notify_all();
        hub_.tell(held);
    }

    // Passes the running action to another lane of the same hub, regardless of that lane's length.
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

    // Removes everything queued, and waits until nothing runs. Returns the queue, oldest first.
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

    const std::string name;
    // The fields below are read under the hub's lock.
    Action* head = nullptr;  // the first queued action
    Action* running = nullptr;
    Action* behind = nullptr;  // action that has begun behind the running action and runs when that has ended
    std::int32_t length = 0;   // number of actions that are queued, running or begun behind

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
    std::uint64_t changes_ = 0;  // number of changes of the queue by threads other than the lane's own
    std::uint64_t looked_changes_ = 0;
    std::int64_t looked_ns_ = 0;  // time of the last call of next_behind()
};

}  // namespace clockwork::device
