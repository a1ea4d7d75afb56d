// The report of a process that crashes in a lane: the action that its thread executed, and the fatal signal.
//
// A thread that executes an action notes the action's id. At a fatal signal the handler notes id and signal,
// wakes the loop and waits for a moment, in which the loop, on a thread of its own, reports both to the
// controller. Then the signal takes its usual course, with core dump and exit status. A crash outside of the
// lanes ends the process at once, and so does a crash that the loop does not report in time.
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
    // signal that ends the process; 0: none; -1: the handler is noting the action
    std::atomic<int> signal{0};
    std::atomic<std::int64_t> action_id{0};
    std::atomic<bool> told{false};
};

// Static, because exactly one module includes this header: it holds the state, and a handler reads it without
// a call.
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
                // The pipe is full, so the loop is awake already.
            }
        }
        for (int ms = 0; ms < CRASH_WAIT_MS && !crash.told; ms++) {
            timespec pause = {0, 1'000'000};
            nanosleep(&pause, nullptr);
        }
    }
    signal(number, SIG_DFL);
    if (info->si_code <= 0)  // sent by a process: executing the instruction again does not raise it again
        raise(number);
}

// wake_fd: the non-blocking write end of a pipe that the loop waits on. Returns false on failure; see errno.
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

// Called by a lane's thread when it begins and when it ends: the handler needs a stack of its own for the
// case that the thread's stack has overflowed.
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

// Notes the action that this thread executes from now on; 0: none.
static inline void name_crash_action(std::int64_t action_id) { crash_action = action_id; }

}  // namespace clockwork::device
