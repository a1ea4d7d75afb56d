/* A host store with a budget: pinned pages of one size that models are read into from disk, and given back.
 *
 * Devices share one. Its lock guards which pages are free and how every copy stands; it is held for well under a
 * microsecond, and never while a file is read. A copy that is FETCHING is its reader's; ABANDONED, it will be absent at the end.
 */
#ifndef CLOCKWORK_HOST_PAGES_H
#define CLOCKWORK_HOST_PAGES_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* O_DIRECT */
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum cw_host_state { CW_HOST_ABSENT, CW_HOST_FETCHING, CW_HOST_ABANDONED, CW_HOST_HELD };

/* How a fetch or drop went. */
enum cw_host_result { CW_HOST_OK, CW_HOST_FULL, CW_HOST_FAILED, CW_HOST_IN_USE, CW_HOST_NOT_HELD };

/* What a read past the page cache wants address, place and length to be a multiple of. */
enum { CW_HOST_SECTOR = 4096 };

typedef struct cw_host {
    pthread_mutex_t lock;
    char* base;
    int64_t page_bytes; /* a multiple of CW_HOST_SECTOR */
    int64_t page_count;
    int64_t free_count;
    int64_t* free_pages; /* the first free_count of them are nobody's */
} cw_host;

/* A model's weights: page by page as in its file, each with the bytes that are of use. */
typedef struct cw_host_copy {
    enum cw_host_state state;
    int loads; /* that are queued or under way: it must stay */
    const char* path;
    int64_t page_count;
    char** pages; /* their addresses; of what is not absent */
    int64_t* page_bytes;
} cw_host_copy;

/* 0, or -1 if there is no memory for it. */
static inline int cw_host_init(cw_host* host, char* base, int64_t page_bytes, int64_t page_count) {
    host->base = base;
    host->page_bytes = page_bytes;
    host->page_count = host->free_count = page_count;
    host->free_pages = (int64_t*)calloc((size_t)page_count + 1, sizeof(int64_t));
    if (!host->free_pages)
        return -1;
    for (int64_t page = 0; page < page_count; page++)
        host->free_pages[page] = page_count - 1 - page; /* the lowest is taken first */
    pthread_mutex_init(&host->lock, NULL);
    return 0;
}

static inline void cw_host_free(cw_host* host) {
    pthread_mutex_destroy(&host->lock);
    free(host->free_pages);
}

static inline void cw_host_lock(cw_host* host) { pthread_mutex_lock(&host->lock); }

static inline void cw_host_unlock(cw_host* host) { pthread_mutex_unlock(&host->lock); }

/* Give the pages of a copy back, which is absent then. The lock must be held. */
static inline void cw_host_give_back(cw_host* host, cw_host_copy* copy) {
    for (int64_t page = copy->page_count - 1; copy->state != CW_HOST_ABSENT && page >= 0; page--)
        host->free_pages[host->free_count++] = (copy->pages[page] - host->base) / host->page_bytes;
    copy->state = CW_HOST_ABSENT;
}

/* Forget a copy, whoever waits for it. The lock must be held. */
static inline void cw_host_abandon(cw_host* host, cw_host_copy* copy) {
    if (copy->state == CW_HOST_HELD)
        cw_host_give_back(host, copy);
    else if (copy->state == CW_HOST_FETCHING)
        copy->state = CW_HOST_ABANDONED;
}

/* Take pages for a copy that is absent. 0 (it is FETCHING then), or -1 if there are too few. The lock must be held. */
static inline int cw_host_take(cw_host* host, cw_host_copy* copy) {
    if (copy->page_count > host->free_count)
        return -1;
    for (int64_t page = 0; page < copy->page_count; page++)
        copy->pages[page] = host->base + host->free_pages[--host->free_count] * host->page_bytes;
    copy->state = CW_HOST_FETCHING;
    return 0;
}

/* Fill the pages of a copy from its file. 0; or -1 and a sentence.
 *
 * The page cache is passed by, where the file system can: a fetch takes as long the second time, and nothing is in
 * memory twice. Where it cannot, what it read is not kept in the cache either. */
static inline int cw_host_read(const cw_host* host, const cw_host_copy* copy, char* text, size_t text_bytes) {
    if (!copy->page_count)
        return 0;
    int file = open(copy->path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    int direct = file >= 0 || errno != EINVAL;
    if (!direct)
        file = open(copy->path, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        snprintf(text, text_bytes, "cannot open %s: %s", copy->path, strerror(errno));
        return -1;
    }
    int failed = 0;
    for (int64_t page = 0; page < copy->page_count && !failed; page++) {
        int64_t done = 0, start = page * host->page_bytes;
        int64_t wanted = (copy->page_bytes[page] + CW_HOST_SECTOR - 1) / CW_HOST_SECTOR * CW_HOST_SECTOR;
        while (done < copy->page_bytes[page]) {
            ssize_t count = pread(file, copy->pages[page] + done, (size_t)(wanted - done), start + done);
            if (count < 0 && errno == EINTR)
                continue;
            if (count <= 0) {
                snprintf(text, text_bytes, "cannot read %s at byte %lld: %s", copy->path, (long long)(start + done),
                         count < 0 ? strerror(errno) : "it ends there");
                failed = -1;
                break;
            }
            done += count;
        }
    }
    if (!direct)
        posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    close(file);
    return failed;
}

/* Bring a copy from disk; what did not go well leaves it as it was, and a sentence. */
static inline enum cw_host_result cw_host_fetch(cw_host* host, cw_host_copy* copy, char* text, size_t text_bytes) {
    enum cw_host_result result = CW_HOST_OK;
    cw_host_lock(host);
    if (copy->state != CW_HOST_ABSENT) {
        snprintf(text, text_bytes, "the model is in the host store already");
        result = CW_HOST_FAILED;
    } else if (cw_host_take(host, copy)) {
        snprintf(text, text_bytes, "%lld pages for a host store with %lld pages left", (long long)copy->page_count,
                 (long long)host->free_count);
        result = CW_HOST_FULL;
    }
    cw_host_unlock(host);
    if (result != CW_HOST_OK)
        return result;
    if (cw_host_read(host, copy, text, text_bytes))
        result = CW_HOST_FAILED;
    cw_host_lock(host);
    if (result == CW_HOST_OK && copy->state == CW_HOST_ABANDONED) {
        snprintf(text, text_bytes, "the host store was emptied meanwhile");
        result = CW_HOST_FAILED;
    }
    if (result == CW_HOST_OK)
        copy->state = CW_HOST_HELD;
    else
        cw_host_give_back(host, copy);
    cw_host_unlock(host);
    return result;
}

static inline enum cw_host_result cw_host_drop(cw_host* host, cw_host_copy* copy) {
    enum cw_host_result result = CW_HOST_OK;
    cw_host_lock(host);
    if (copy->state != CW_HOST_HELD)
        result = CW_HOST_NOT_HELD;
    else if (copy->loads)
        result = CW_HOST_IN_USE;
    else
        cw_host_give_back(host, copy);
    cw_host_unlock(host);
    return result;
}

/* A LOAD of it is queued (1), or has ended (-1). */
static inline void cw_host_pin(cw_host* host, cw_host_copy* copy, int loads) {
    cw_host_lock(host);
    copy->loads += loads;
    cw_host_unlock(host);
}

static inline enum cw_host_state cw_host_look(cw_host* host, const cw_host_copy* copy) {
    cw_host_lock(host);
    enum cw_host_state state = copy->state;
    cw_host_unlock(host);
    return state;
}

#endif
