/* The memory in which models compute: one allocator that every session of the process shares.
 *
 * What an execution takes is charged to its account, which has a limit, and all of it together has one, too. Beyond
 * either, ws_alloc() gives nothing; the runtime is told by an exception, which is what it expects (see ws_alloc_for_run).
 *
 * Good fit over segregated free lists (TLSF): allocation and release take constant time, neighbours
 * merge at once, and memory that was touched stays touched, so that a run after the first faults no
 * page. Payloads are multiples of 64 bytes and so aligned. Regions come from the kernel populated,
 * and on huge pages where it has them. Safe to call from any thread.
 */
#ifndef CLOCKWORK_WORKSPACE_H
#define CLOCKWORK_WORKSPACE_H

#include "device/ort_api.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

enum { CW_PAGE = 4096 };
#define CW_HUGE ((size_t)2 << 20)

/* Touch pages, so that nothing faults later. 0, or -1 with errno if there is no memory. */
static inline int cw_populate(char* base, size_t bytes) {
    if (!madvise(base, bytes, MADV_POPULATE_WRITE))
        return 0;
    if (errno != EINVAL) /* EINVAL: a kernel before 5.14 */
        return -1;
    for (size_t at = 0; at < bytes; at += CW_PAGE)
        ((volatile char*)base)[at] = 0;
    return 0;
}

/* Touched zeroed memory, aligned to huge pages; bytes must be a multiple of CW_HUGE. NULL if none is left. */
static inline void* cw_map(size_t bytes) {
    char* base = (char*)mmap(NULL, bytes + CW_HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == (char*)MAP_FAILED)
        return NULL;
    size_t skip = (CW_HUGE - (uintptr_t)base % CW_HUGE) % CW_HUGE;
    if (skip)
        munmap(base, skip);
    munmap(base + skip + bytes, CW_HUGE - skip);
    base += skip;
    madvise(base, bytes, MADV_HUGEPAGE); /* advice: a kernel without huge pages may decline it */
    if (cw_populate(base, bytes)) {
        munmap(base, bytes);
        return NULL;
    }
    return base;
}

static inline size_t cw_round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

enum { WS_UNIT = 64, WS_LEVELS = 48, WS_STEPS = 8 };
#define WS_REGION ((size_t)4 << 20) /* the least that is taken from the kernel at a time */

/* What one execution has taken. It lives as long as the process: a session may keep a block of it for good. */
typedef struct ws_account {
    size_t limit_bytes;
    size_t used_bytes;
    size_t peak_bytes;
    size_t refused_bytes; /* what was asked for when the limit was reached; 0: it was not */
} ws_account;

typedef struct ws_block {
    struct ws_block* before; /* the neighbour at the lower address; NULL for a region's first */
    size_t bytes;            /* of the payload, which follows; 0 marks a region's end */
    size_t is_free;
    struct ws_block* next; /* of its free list */
    struct ws_block* previous;
    ws_account* account; /* that it is charged to, or NULL */
    char padding[WS_UNIT - 6 * sizeof(void*)];
} ws_block;

typedef struct ws_region { /* followed by its first block */
    struct ws_region* next;
    size_t bytes;
    char padding[WS_UNIT - 2 * sizeof(void*)];
} ws_region;

typedef struct workspace {
    OrtAllocator allocator; /* first, so that the runtime's pointer to it is one to this */
    const OrtMemoryInfo* info;
    pthread_mutex_t lock;
    uint64_t levels; /* which levels have a free block, and then which of their steps */
    uint8_t steps[WS_LEVELS];
    ws_block* bins[WS_LEVELS][WS_STEPS];
    ws_region* regions;
    size_t reserved_bytes; /* taken from the kernel */
    size_t used_bytes;     /* given out */
    size_t limit_bytes;    /* of what is given out */
} workspace;

static inline ws_block* ws_after(ws_block* block) { return (ws_block*)((char*)(block + 1) + block->bytes); }

static inline void ws_bin(size_t bytes, int* level, int* step) {
    *level = 63 - __builtin_clzll((unsigned long long)bytes);
    *step = (int)((bytes >> (*level - 3)) & (WS_STEPS - 1));
}

static inline void ws_insert(workspace* ws, ws_block* block) {
    int level, step;
    ws_bin(block->bytes, &level, &step);
    ws_block* first = ws->bins[level][step];
    block->is_free = 1;
    block->previous = NULL;
    block->next = first;
    if (first)
        first->previous = block;
    ws->bins[level][step] = block;
    ws->steps[level] |= (uint8_t)(1 << step);
    ws->levels |= (uint64_t)1 << level;
}

static inline void ws_remove(workspace* ws, ws_block* block) {
    int level, step;
    ws_bin(block->bytes, &level, &step);
    block->is_free = 0;
    if (block->next)
        block->next->previous = block->previous;
    if (block->previous) {
        block->previous->next = block->next;
        return;
    }
    ws->bins[level][step] = block->next;
    if (!block->next) {
        ws->steps[level] &= (uint8_t)~(1 << step);
        if (!ws->steps[level])
            ws->levels &= ~((uint64_t)1 << level);
    }
}

/* A free block of at least this size, or NULL. */
static inline ws_block* ws_find(workspace* ws, size_t bytes) {
    int level, step;
    /* Round up to the next step, so that any block of the bin is large enough. */
    ws_bin(bytes, &level, &step);
    ws_bin(bytes + ((size_t)1 << (level - 3)) - 1, &level, &step);
    unsigned steps = level < WS_LEVELS ? ws->steps[level] & (0xffu << step) : 0;
    if (!steps) {
        uint64_t levels = level + 1 < WS_LEVELS ? ws->levels & (~(uint64_t)0 << (level + 1)) : 0;
        if (!levels)
            return NULL;
        level = __builtin_ctzll(levels);
        steps = ws->steps[level];
    }
    return ws->bins[level][__builtin_ctz(steps)];
}

static inline ws_block* ws_grow(workspace* ws, size_t bytes) {
    /* An eighth more, for the rounding of ws_find. */
    size_t total = cw_round_up(bytes + bytes / 8 + sizeof(ws_region) + 2 * sizeof(ws_block), CW_HUGE);
    if (total < WS_REGION)
        total = WS_REGION;
    ws_region* region = (ws_region*)cw_map(total);
    if (!region)
        return NULL;
    region->next = ws->regions;
    region->bytes = total;
    ws->regions = region;
    ws->reserved_bytes += total;
    ws_block* block = (ws_block*)(region + 1);
    block->before = NULL;
    block->bytes = total - sizeof(ws_region) - 2 * sizeof(ws_block);
    ws_block* end = ws_after(block);
    end->before = block;
    end->bytes = 0;
    end->is_free = 0;
    ws_insert(ws, block);
    return block;
}

/* Memory charged to an account (NULL: to none), or NULL: there is none, or a limit is reached. */
static inline void* ws_alloc(workspace* ws, ws_account* account, size_t bytes) {
    size_t asked = bytes;
    ws_block* block = NULL;
    if (bytes > (size_t)1 << 46) /* as much as there are addresses: rounding must not overflow */
        bytes = (size_t)1 << 46;
    bytes = cw_round_up(bytes, WS_UNIT);
    pthread_mutex_lock(&ws->lock);
    if (ws->used_bytes + bytes <= ws->limit_bytes &&
        (!account || account->used_bytes + bytes <= account->limit_bytes)) {
        block = ws_find(ws, bytes);
        if (!block)
            block = ws_grow(ws, bytes);
    }
    if (block) {
        ws_remove(ws, block);
        if (block->bytes >= bytes + sizeof(ws_block) + WS_UNIT) {
            ws_block* rest = (ws_block*)((char*)(block + 1) + bytes);
            rest->before = block;
            rest->bytes = block->bytes - bytes - sizeof(ws_block);
            block->bytes = bytes;
            ws_after(rest)->before = rest;
            ws_insert(ws, rest);
        }
        ws->used_bytes += block->bytes;
        block->account = account;
        if (account) {
            account->used_bytes += block->bytes;
            if (account->used_bytes > account->peak_bytes)
                account->peak_bytes = account->used_bytes;
        }
    } else if (account) {
        account->refused_bytes = asked;
    }
    pthread_mutex_unlock(&ws->lock);
    return block ? block + 1 : NULL;
}

static inline void ws_free(OrtAllocator* self, void* pointer) {
    workspace* ws = (workspace*)self;
    if (!pointer)
        return;
    ws_block* block = (ws_block*)pointer - 1;
    pthread_mutex_lock(&ws->lock);
    ws->used_bytes -= block->bytes;
    if (block->account)
        block->account->used_bytes -= block->bytes;
    ws_block *after = ws_after(block), *before = block->before;
    if (after->is_free) {
        ws_remove(ws, after);
        block->bytes += sizeof(ws_block) + after->bytes;
    }
    if (before && before->is_free) {
        ws_remove(ws, before);
        before->bytes += sizeof(ws_block) + block->bytes;
        block = before;
    }
    ws_after(block)->before = block;
    ws_insert(ws, block);
    pthread_mutex_unlock(&ws->lock);
}

static inline const OrtMemoryInfo* ws_info(const OrtAllocator* self) { return ((const workspace*)self)->info; }

/* Give back to the kernel every region in which nothing is given out. */
static inline void ws_trim(workspace* ws) {
    pthread_mutex_lock(&ws->lock);
    for (ws_region** link = &ws->regions; *link;) {
        ws_region* region = *link;
        ws_block* first = (ws_block*)(region + 1);
        if (!first->is_free || ws_after(first)->bytes) {
            link = &region->next;
            continue;
        }
        ws_remove(ws, first);
        *link = region->next;
        ws->reserved_bytes -= region->bytes;
        munmap(region, region->bytes);
    }
    pthread_mutex_unlock(&ws->lock);
}

/* What the runtime calls: ws_alloc() for the account that ws_charge() named. The runtime's own allocators throw
 * std::bad_alloc where there is no memory, and its kernels write to whatever they get: NULL would be a crash, and an
 * exception becomes the status of the run (csrc/device/allocation.cpp). NULL for 0 bytes, which is as it expects. */
void* ws_alloc_for_run(OrtAllocator* self, size_t bytes);

/* What this thread allocates from now on is charged to the account; NULL: to none. */
void ws_charge(ws_account* account);

/* info describes CPU memory to the runtime and must outlive the workspace. limit_bytes: of all that is given out. */
static inline void ws_init(workspace* ws, const OrtMemoryInfo* info, size_t limit_bytes) {
    memset(ws, 0, sizeof *ws);
    /* Version 15 of the structure: it ends with Info. */
    ws->allocator.version = ORT_API_VERSION;
    ws->allocator.Alloc = ws_alloc_for_run;
    ws->allocator.Free = ws_free;
    ws->allocator.Info = ws_info;
    ws->info = info;
    ws->limit_bytes = limit_bytes;
    pthread_mutex_init(&ws->lock, NULL);
}

#ifdef __cplusplus
}
#endif

#endif
