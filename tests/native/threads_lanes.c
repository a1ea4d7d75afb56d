/* Lanes, claims and the link under many threads, for ThreadSanitizer: every action that is pushed ends once, in the
 * order of its lane unless it was revoked, and nobody is in the link with another.
 *
 * One pusher, as a device has one; two lanes, of which the first passes what it runs on to the second; a thread that
 * revokes; one that takes what has ended; and, at the end of each round, a clear and a stop in the midst of it all.
 * Usage: threads_lanes SEED ROUNDS. */
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "device/claims.h"
#include "device/lane.h"
#include "device/link.h"

enum { ACTIONS = 400, QUEUED_MAX = 32, PAGES = 16, REVOKED = 1, DONE = 0 };

typedef struct work {
    cw_action action;
    cw_claim claim;
    int64_t run_pages[2];
    int64_t run_starts[2];
    int ended;
} work;

typedef struct machine {
    cw_hub hub;
    cw_lane first, second;
    cw_link link;
    cw_claim* owners[PAGES];
    work works[ACTIONS];
    int pushed;   /* by the pusher alone, until it is joined */
    int stop_all; /* under the hub's lock */
    int inside;   /* the link's holder alone writes it */
    uint64_t seed;
} machine;

static void demand(int holds, const char* what) {
    if (holds)
        return;
    fprintf(stderr, "broken: %s\n", what);
    abort();
}

static uint64_t draw(uint64_t* state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

static work* work_of(cw_action* action) { return (work*)((char*)action - offsetof(work, action)); }

/* Loads: claim pages, hold the link for a moment, and pass the action on; or end it where there is no room. */
static void* run_first(void* given) {
    machine* m = given;
    char text[100];
    cw_lane_enter("first");
    cw_action* action;
    while ((action = cw_lane_take(&m->first, 1000))) {
        work* one = work_of(action);
        cw_link_take(&m->link);
        demand(m->inside == 0, "two are in the link");
        m->inside = 1;
        m->inside = 0;
        cw_link_leave(&m->link);
        int64_t starts[2] = {action->action_id % PAGES, (action->action_id * 7) % PAGES};
        cw_hub_lock(&m->hub);
        int status = cw_claim_pages(m->owners, PAGES, &one->claim, starts, text, sizeof text);
        cw_hub_unlock(&m->hub);
        if (status == 0) {
            cw_lane_pass(&m->first, &m->second, action);
        } else {
            action->status = DONE;
            cw_lane_end(&m->first, action);
        }
    }
    return NULL;
}

static void* run_second(void* given) {
    machine* m = given;
    cw_lane_enter("second");
    cw_action* action;
    while ((action = cw_lane_take(&m->second, 0))) {
        work* one = work_of(action);
        cw_hub_lock(&m->hub);
        for (int run = 0; run < one->claim.run_count; run++)
            demand(m->owners[one->claim.run_starts[run]] == &one->claim, "a page is another's");
        cw_claim_free(m->owners, &one->claim);
        cw_hub_unlock(&m->hub);
        action->status = DONE;
        cw_lane_end(&m->second, action);
    }
    return NULL;
}

/* Another user of the link: another device of this machine. */
static void* use_link(void* given) {
    machine* m = given;
    for (int turn = 0; turn < ACTIONS / 4; turn++) {
        cw_link_take(&m->link);
        demand(m->inside == 0, "two are in the link");
        m->inside = 1;
        m->inside = 0;
        cw_link_leave(&m->link);
    }
    return NULL;
}

static int is_over(machine* m) {
    cw_hub_lock(&m->hub);
    int over = m->stop_all;
    cw_hub_unlock(&m->hub);
    return over;
}

static void* revoke_some(void* given) {
    machine* m = given;
    uint64_t state = m->seed ^ 0x9e3779b97f4a7c15u;
    while (!is_over(m)) {
        int64_t action_id = (int64_t)(draw(&state) % ACTIONS);
        cw_lane_revoke(&m->first, action_id, REVOKED);
    }
    return NULL;
}

static int take_ended(machine* m) {
    int count = 0;
    for (cw_action* action = cw_hub_take(&m->hub); action; count++) {
        cw_action* next = action->next; /* before anybody else may have it */
        demand(action->status != CW_PENDING, "an action ended without a status");
        demand(work_of(action)->ended++ == 0, "an action ended twice");
        action = next;
    }
    return count;
}

static void* take(void* given) {
    machine* m = given;
    intptr_t count = 0;
    while (!is_over(m))
        count += take_ended(m);
    return (void*)count;
}

static void* push(void* given) {
    machine* m = given;
    uint64_t state = m->seed;
    for (int place = 0; place < ACTIONS; place++) {
        cw_action* action = &m->works[place].action;
        action->earliest_ns = cw_now() + (int64_t)(draw(&state) % 20) * 1000;
        while (cw_lane_full(&m->first, QUEUED_MAX))
            cw_nap(1000);
        demand(cw_lane_push(&m->first, action, QUEUED_MAX) == 0, "a lane with room is full");
        m->pushed++;
    }
    return NULL;
}

static void run_round(uint64_t seed) {
    static machine m;
    memset(&m, 0, sizeof m);
    m.seed = seed;
    demand(cw_hub_init(&m.hub) == 0, "no hub");
    cw_lane_init(&m.first, &m.hub);
    cw_lane_init(&m.second, &m.hub);
    cw_link_init(&m.link);
    for (int place = 0; place < ACTIONS; place++) {
        work* one = &m.works[place];
        one->action.action_id = place;
        one->action.status = CW_PENDING;
        one->run_pages[0] = one->run_pages[1] = 1;
        one->run_starts[0] = one->run_starts[1] = -1;
        one->claim = (cw_claim){place % 2 + 1, one->run_pages, one->run_starts};
    }
    pthread_t threads[6];
    void* (*const roles[6])(void*) = {run_first, run_second, use_link, revoke_some, take, push};
    for (int place = 0; place < 6; place++)
        demand(pthread_create(&threads[place], NULL, roles[place], &m) == 0, "no thread");
    pthread_join(threads[5], NULL);
    pthread_join(threads[2], NULL);
    /* Half of the rounds are cleared while something runs; the others run empty. */
    int cleared = 0;
    for (cw_lane* lane = &m.first;; lane = &m.second) {
        if (seed % 2) {
            for (cw_action* action = cw_lane_clear(lane); action; action = action->next)
                cleared++;
        }
        cw_hub_lock(&m.hub);
        while (lane->length > 0)
            cw_hub_wait(&m.hub);
        cw_hub_unlock(&m.hub);
        if (lane == &m.second)
            break;
    }
    cw_lane_stop(&m.first);
    cw_lane_stop(&m.second);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    cw_hub_lock(&m.hub);
    m.stop_all = 1;
    cw_hub_unlock(&m.hub);
    void* taken = NULL;
    pthread_join(threads[3], NULL);
    pthread_join(threads[4], &taken);
    int ended = (int)(intptr_t)taken + take_ended(&m);
    demand(m.pushed == ACTIONS, "not everything was pushed");
    demand(ended + cleared == ACTIONS, "an action is lost");
    cw_link_free(&m.link);
    cw_lane_free(&m.first);
    cw_lane_free(&m.second);
    cw_hub_free(&m.hub);
}

int main(int count, char** arguments) {
    uint64_t seed = count > 1 ? strtoull(arguments[1], NULL, 10) : 0;
    long rounds = count > 2 ? atol(arguments[2]) : 10;
    for (long round = 0; round < rounds; round++)
        run_round(seed + (uint64_t)round);
    printf("%ld rounds of %d actions\n", rounds, ACTIONS);
    return 0;
}
