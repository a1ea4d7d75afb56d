/* The way from the host's memory to its devices: one LOAD uses it at a time, in the order of their asking.
 *
 * Two at once would each take longer by what the other happens to copy, which nobody can predict. The controller
 * counts on one after the other, too.
 */
#ifndef CLOCKWORK_LINK_H
#define CLOCKWORK_LINK_H

#include <pthread.h>
#include <stdint.h>

typedef struct cw_link {
    pthread_mutex_t lock;
    pthread_cond_t turn;
    uint64_t asked; /* how many have asked for it, and how many had it */
    uint64_t left;
} cw_link;

static inline void cw_link_init(cw_link* link) {
    pthread_mutex_init(&link->lock, NULL);
    pthread_cond_init(&link->turn, NULL);
    link->asked = link->left = 0;
}

/* Nobody uses it, nor waits for it. */
static inline void cw_link_free(cw_link* link) {
    pthread_cond_destroy(&link->turn);
    pthread_mutex_destroy(&link->lock);
}

/* Wait until it is the caller's. */
static inline void cw_link_take(cw_link* link) {
    pthread_mutex_lock(&link->lock);
    uint64_t place = link->asked++;
    while (link->left != place)
        pthread_cond_wait(&link->turn, &link->lock);
    pthread_mutex_unlock(&link->lock);
}

static inline void cw_link_leave(cw_link* link) {
    pthread_mutex_lock(&link->lock);
    link->left++;
    pthread_cond_broadcast(&link->turn);
    pthread_mutex_unlock(&link->lock);
}

#endif
