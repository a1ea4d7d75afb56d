// The last words of a process that crashes in a lane: which action its thread was at, and by which signal it ends.
//
// A thread that executes names its action. Should it run into a fatal signal, the handler notes both, wakes the loop
// and waits a moment: the loop, on a thread of its own, says so to the controller. Then the signal takes its course,
// with core dump and exit status as ever. Everybody else's crash, and one that nobody tells in time, ends at once.
#pragma once

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

namespace clockwork::device {

inline constexpr std::size_t CRASH_STACK_BYTES = 64 << 10;
inline constexpr int CRASH_WAIT_MS = 1000;

struct Crash {
    int wake_fd = -1;
    std::atomic<int> signal{0};  // by which it ends; 0: it does not. -1: its action is being noted
    std::atomic<std::int64_t> action_id{0};
    std::atomic<bool> told{false};
};

// Static: the one module that includes this has the one state, and a handler gets at it without a call.
static Crash crash;
static thread_local std::int64_t crash_action = 0;
static thread_local void* crash_stack = nullptr;

static void handle_crash(int number, siginfo_t* info, void*) {
    if (crash_action != 0) {
        int none = 0;
        if (crash.signal.compare_exchange_strong(none, -1)) {
            crash.action_id = crash_action;
            crash.signal = number;
            if (write(crash.wake_fd, "", 1) < 0) {
                // It is full of wake-ups already.
            }
        }
        for (int ms = 0; ms < CRASH_WAIT_MS && !crash.told; ms++) {
            timespec pause = {0, 1'000'000};
            nanosleep(&pause, nullptr);
        }
    }
    signal(number, SIG_DFL);
    if (info->si_code <= 0)  // somebody sent it: it does not happen again by itself
        raise(number);
}

// wake_fd: of a pipe that the loop waits on, not blocking. False: see errno.
static inline bool install_crash_handler(int wake_fd) {
    struct sigaction action = {};
    action.sa_sigaction = handle_crash;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    crash.wake_fd = wake_fd;
    for (int number : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) {
        if (sigaction(number, &action, nullptr) != 0)
            return false;
    }
    return true;
}

// Called by a lane's thread when it begins, and when it ends: a stack for the handler where its own has run out.
static inline void enter_crash_guard() {
    stack_t stack = {};
    crash_stack = stack.ss_sp = std::malloc(CRASH_STACK_BYTES);
    stack.ss_size = CRASH_STACK_BYTES;
    if (stack.ss_sp != nullptr)
        sigaltstack(&stack, nullptr);
}

static inline void leave_crash_guard() {
    stack_t stack = {};
    stack.ss_flags = SS_DISABLE;
    sigaltstack(&stack, nullptr);
    std::free(crash_stack);
    crash_stack = nullptr;
}

// What this thread is at from now on; 0: nothing.
static inline void name_crash_action(std::int64_t action_id) { crash_action = action_id; }

}  // namespace clockwork::device
