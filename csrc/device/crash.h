/* The last words of a process that crashes in a lane: which action its thread was at, and by which signal it ends.
 *
 * A thread that executes names its action. Should it run into a fatal signal, the handler notes both, wakes the loop
 * and waits a moment: the loop, on a thread of its own, says so to the controller. Then the signal takes its course,
 * with core dump and exit status as ever. Everybody else's crash, and one that nobody tells in time, ends at once.
 */
#ifndef CLOCKWORK_CRASH_H
#define CLOCKWORK_CRASH_H

#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { CRASH_STACK_BYTES = 64 << 10, CRASH_WAIT_MS = 1000 };

static struct {
    int wake_fd;
    int signal;        /* by which it ends; 0: it does not. Atomic, like the next two */
    int64_t action_id; /* what the thread was at */
    int told;
} cw_crash;

static _Thread_local int64_t cw_crash_action;
static _Thread_local void* cw_crash_stack;

static inline void cw_crash_handle(int number, siginfo_t* info, void* context) {
    (void)context;
    int none = 0;
    if (cw_crash_action) {
        if (__atomic_compare_exchange_n(&cw_crash.signal, &none, -1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
            __atomic_store_n(&cw_crash.action_id, cw_crash_action, __ATOMIC_SEQ_CST);
            __atomic_store_n(&cw_crash.signal, number, __ATOMIC_SEQ_CST);
            if (write(cw_crash.wake_fd, "", 1) < 0) {
                /* It is full of wake-ups already. */
            }
        }
        for (int ms = 0; ms < CRASH_WAIT_MS && !__atomic_load_n(&cw_crash.told, __ATOMIC_SEQ_CST); ms++) {
            struct timespec nap = {0, 1000000};
            nanosleep(&nap, NULL);
        }
    }
    signal(number, SIG_DFL);
    if (info->si_code <= 0) /* somebody sent it: it does not happen again by itself */
        raise(number);
}

/* wake_fd: of a pipe that the loop waits on, not blocking. 0, or -1 with errno. */
static inline int cw_crash_install(int wake_fd) {
    static const int numbers[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = cw_crash_handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    cw_crash.wake_fd = wake_fd;
    for (size_t place = 0; place < sizeof numbers / sizeof *numbers; place++)
        if (sigaction(numbers[place], &action, NULL))
            return -1;
    return 0;
}

/* Called by a lane's thread when it begins, and when it ends: a stack for the handler where its own has run out. */
static inline void cw_crash_enter(void) {
    stack_t stack;
    memset(&stack, 0, sizeof stack);
    cw_crash_stack = stack.ss_sp = malloc(CRASH_STACK_BYTES);
    stack.ss_size = CRASH_STACK_BYTES;
    if (stack.ss_sp)
        sigaltstack(&stack, NULL);
}

static inline void cw_crash_leave(void) {
    stack_t stack;
    memset(&stack, 0, sizeof stack);
    stack.ss_flags = SS_DISABLE;
    sigaltstack(&stack, NULL);
    free(cw_crash_stack);
    cw_crash_stack = NULL;
}

#endif
