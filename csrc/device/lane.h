/* Lanes: strictly first-in first-out queues of actions, each run by one thread, and the list of what
 * has ended.
 *
 * One hub per device owns the one lock. It guards the lanes, the list of ended actions and whatever
 * the device keeps about residency; it is held for well under a microsecond at a time, and never
 * while waiting for anything but itself. Actions are owned by their maker; a lane links them.
 */
#ifndef CLOCKWORK_LANE_H
#define CLOCKWORK_LANE_H

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { CW_PENDING = -1 };

typedef struct cw_action {
    struct cw_action* next;
    int64_t action_id;
    int64_t earliest_ns; /* bounds on the start, CLOCK_MONOTONIC */
    int64_t latest_ns;
    int32_t status; /* CW_PENDING until it has ended */
} cw_action;

typedef struct cw_hub {
    pthread_mutex_t lock;
    pthread_cond_t idle; /* a lane has ended an action */
    cw_action* done_head;
    cw_action* done_tail;
    int event_fd; /* readable while the list of ended actions is not empty */
} cw_hub;

typedef struct cw_lane {
    cw_hub* hub;
    pthread_cond_t wake;
    cw_action* head;
    cw_action* tail;
    cw_action* running;
    int32_t length; /* queued and running */
    int32_t stop;
} cw_lane;

static inline int64_t cw_clock(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline int64_t cw_now(void) { return cw_clock(CLOCK_MONOTONIC); }

/* CPU time of the calling thread. */
static inline int64_t cw_thread_time(void) { return cw_clock(CLOCK_THREAD_CPUTIME_ID); }

/* 0, or -1 with errno set. */
static inline int cw_hub_init(cw_hub* hub) {
    hub->done_head = hub->done_tail = NULL;
    hub->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (hub->event_fd < 0)
        return -1;
    pthread_mutex_init(&hub->lock, NULL);
    pthread_cond_init(&hub->idle, NULL);
    return 0;
}

static inline void cw_hub_free(cw_hub* hub) {
    close(hub->event_fd);
    pthread_cond_destroy(&hub->idle);
    pthread_mutex_destroy(&hub->lock);
}

static inline void cw_hub_lock(cw_hub* hub) { pthread_mutex_lock(&hub->lock); }

static inline void cw_hub_unlock(cw_hub* hub) { pthread_mutex_unlock(&hub->lock); }

/* Wait for a lane to end or pass on an action, for a tenth of a second at most. The lock must be held. */
static inline void cw_hub_wait(cw_hub* hub) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 100000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_cond_timedwait(&hub->idle, &hub->lock, &until);
}

/* Sleep for so long, which a signal may cut short. */
static inline void cw_nap(int64_t ns) {
    struct timespec time = {ns / 1000000000, ns % 1000000000};
    nanosleep(&time, NULL);
}

/* Append to the list of ended actions. The lock must be held. */
static inline void cw_hub_end(cw_hub* hub, cw_action* action) {
    action->next = NULL;
    if (hub->done_tail) {
        hub->done_tail->next = action;
    } else {
        uint64_t one = 1;
        hub->done_head = action;
        /* Cannot fail: the counter is zero while the list is empty. */
        if (write(hub->event_fd, &one, sizeof one) < 0)
            abort();
    }
    hub->done_tail = action;
}

/* The whole list of ended actions, oldest first, now the caller's. */
static inline cw_action* cw_hub_take(cw_hub* hub) {
    pthread_mutex_lock(&hub->lock);
    cw_action* list = hub->done_head;
    if (list) {
        uint64_t count;
        hub->done_head = hub->done_tail = NULL;
        if (read(hub->event_fd, &count, sizeof count) < 0)
            abort();
    }
    pthread_mutex_unlock(&hub->lock);
    return list;
}

static inline void cw_lane_init(cw_lane* lane, cw_hub* hub) {
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    lane->hub = hub;
    lane->head = lane->tail = lane->running = NULL;
    lane->length = lane->stop = 0;
    pthread_cond_init(&lane->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

static inline void cw_lane_free(cw_lane* lane) { pthread_cond_destroy(&lane->wake); }

/* Called once by the thread that runs the lane: timers as exact as the kernel has them. */
static inline void cw_lane_enter(const char* name) {
    prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0);
    prctl(PR_SET_NAME, name, 0, 0, 0);
}

/* 0, or -1 if the lane holds ``most`` actions already. */
static inline int cw_lane_push(cw_lane* lane, cw_action* action, int32_t most) {
    pthread_mutex_lock(&lane->hub->lock);
    if (lane->length >= most) {
        pthread_mutex_unlock(&lane->hub->lock);
        return -1;
    }
    action->next = NULL;
    if (lane->tail)
        lane->tail->next = action;
    else
        lane->head = action;
    lane->tail = action;
    lane->length++;
    pthread_mutex_unlock(&lane->hub->lock);
    /* Not before: a lane that runs at once, in the caller's place, would wait for the lock, and so for the caller. */
    pthread_cond_signal(&lane->wake);
    return 0;
}

/* Whether the lane holds as many actions as it may. For the one thread that pushes, "no" stays true: others
 * only take actions off. */
static inline int cw_lane_full(cw_lane* lane, int32_t most) {
    pthread_mutex_lock(&lane->hub->lock);
    int full = lane->length >= most;
    pthread_mutex_unlock(&lane->hub->lock);
    return full;
}

/* Wait for the next action and for its window to open: asleep until spin_ns before, then spinning.
 * NULL once the lane has been stopped. The action counts as running until cw_lane_end. */
static inline cw_action* cw_lane_take(cw_lane* lane, int64_t spin_ns) {
    cw_action* action;
    pthread_mutex_lock(&lane->hub->lock);
    while (!lane->stop) {
        action = lane->head;
        if (!action) {
            pthread_cond_wait(&lane->wake, &lane->hub->lock);
            continue;
        }
        int64_t until = action->earliest_ns - spin_ns;
        if (until > cw_now()) {
            struct timespec at = {until / 1000000000, until % 1000000000};
            pthread_cond_timedwait(&lane->wake, &lane->hub->lock, &at);
            continue; /* The head may have been revoked meanwhile. */
        }
        lane->head = action->next;
        if (!lane->head)
            lane->tail = NULL;
        lane->running = action;
        pthread_mutex_unlock(&lane->hub->lock);
        while (cw_now() < action->earliest_ns) {
        }
        return action;
    }
    pthread_mutex_unlock(&lane->hub->lock);
    return NULL;
}

/* The running action has ended. */
static inline void cw_lane_end(cw_lane* lane, cw_action* action) {
    pthread_mutex_lock(&lane->hub->lock);
    lane->running = NULL;
    lane->length--;
    cw_hub_end(lane->hub, action);
    pthread_cond_broadcast(&lane->hub->idle);
    pthread_mutex_unlock(&lane->hub->lock);
}

/* The running action goes on in another lane of the same hub, whatever that holds already. */
static inline void cw_lane_pass(cw_lane* lane, cw_lane* next, cw_action* action) {
    pthread_mutex_lock(&lane->hub->lock);
    lane->running = NULL;
    lane->length--;
    action->next = NULL;
    if (next->tail)
        next->tail->next = action;
    else
        next->head = action;
    next->tail = action;
    next->length++;
    pthread_cond_broadcast(&lane->hub->idle);
    pthread_mutex_unlock(&lane->hub->lock);
    pthread_cond_signal(&next->wake);
}

/* End a queued action with this status, and return it; NULL if it is not (or no longer) queued. */
static inline cw_action* cw_lane_revoke(cw_lane* lane, int64_t action_id, int32_t status) {
    pthread_mutex_lock(&lane->hub->lock);
    cw_action *before = NULL, *action = lane->head;
    while (action && action->action_id != action_id) {
        before = action;
        action = action->next;
    }
    if (action) {
        if (before)
            before->next = action->next;
        else
            lane->head = action->next;
        if (lane->tail == action)
            lane->tail = before;
        lane->length--;
        action->status = status;
        cw_hub_end(lane->hub, action);
        pthread_cond_signal(&lane->wake);
    }
    pthread_mutex_unlock(&lane->hub->lock);
    return action;
}

/* Take away everything queued, and wait until nothing runs. Returns the queue, oldest first. */
static inline cw_action* cw_lane_clear(cw_lane* lane) {
    pthread_mutex_lock(&lane->hub->lock);
    cw_action* list = lane->head;
    lane->head = lane->tail = NULL;
    lane->length = lane->running ? 1 : 0;
    pthread_cond_signal(&lane->wake);
    while (lane->running)
        pthread_cond_wait(&lane->hub->idle, &lane->hub->lock);
    pthread_mutex_unlock(&lane->hub->lock);
    return list;
}

static inline void cw_lane_stop(cw_lane* lane) {
    pthread_mutex_lock(&lane->hub->lock);
    lane->stop = 1;
    pthread_cond_signal(&lane->wake);
    pthread_mutex_unlock(&lane->hub->lock);
}

#endif
