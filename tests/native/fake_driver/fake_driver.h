/* Controls of the fake driver beyond the driver API, for tests and benches. See fake_driver.cpp and
 * fake_machine.cpp. */
#ifndef CLOCKWORK_FAKE_DRIVER_H
#define CLOCKWORK_FAKE_DRIVER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct cw_fake_counts {
    int64_t contexts; /* retained contexts, over all devices */
    int64_t streams;
    int64_t events;
    int64_t allocations; /* allocations of device memory */
    int64_t device_bytes;
    int64_t host_allocations; /* allocations of pinned memory */
    int64_t host_bytes;
    int64_t modules;
    int64_t graphs;
    int64_t graph_execs;
    int64_t
        /* asynchronous copies, so far, to or from memory that is not pinned: on a card they wait */
        unpinned_copies;
    int64_t copied_in_bytes; /* bytes copied to all devices so far */
} cw_fake_counts;

/* Sets the number of cards (1 to 16; by default CLOCKWORK_FAKE_DEVICES of the environment, or 1), the memory
 * of each, and the driver's version (12040: 12.4). CUDA_VISIBLE_DEVICES chooses which of them this process
 * sees. */
void cw_fake_setup(int device_count, size_t device_bytes, int driver_version);

/* Makes every device a card of this compute capability (86: 8.6), which has a card's bounds and takes modules
 * for one. 0, the default: no card, which runs modules for the host. */
void cw_fake_card(int capability);

/* Puts a card into MIG mode with so many instances; 0: none. A process then sees the first instance that
 * CUDA_VISIBLE_DEVICES allows, and nothing beside it. */
void cw_fake_mig(int card, int instances);

/* The NUMA node that was preferred by the thread that last pinned memory; -1: none. */
int cw_fake_pinned_node(void);

/* Sets the speed of copies (bytes per second; 0: as fast as memcpy), for each direction of each device and
 * for all of them together; the least duration of a kernel; and the time before each item of a stream begins.
 * */
void cw_fake_speed(int64_t copy_rate, int64_t link_rate, int64_t kernel_ns, int64_t latency_ns);

/* Sets the number of copy engines of a device: 2, the default, one for each direction; or 1, which does
 * copies in the order of their issue, except those that wait for other work. Also sets the duration of each
 * call, during which other calls wait. */
void cw_fake_engines(int copy_engines, int64_t call_ns);

/* Sets how long calls stall that a card's driver serialises with other work: allocating and freeing device or
 * pinned memory, loading and unloading modules, the first launch of a lazily loaded kernel
 * (CUDA_MODULE_LOADING, read at cuInit()), and a launch whose threads take more memory than any before it and
 * than cuCtxSetLimit() has set. During such a call every other call about its device waits (about every
 * device where the memory is pinned) until the work queued there is done, and so many nanoseconds more. 0: no
 * call stalls. */
void cw_fake_stall(int64_t stall_ns);

/* Makes the nth call from now (1: the next) of a driver function fail with this error, once; a negative error
 * is a signal that the call raises. "copy" and "kernel" are operations of streams: these fail when they are
 * done, as a card's do. "jit" is the compilation of PTX. If ``sticky`` is not 0, the context stays broken.
 * Returns 0, or -1 if there is no such function. */
int cw_fake_fail(const char* function, int64_t nth, int error, int sticky);

/* Makes calls about this device alone fail, like cw_fake_fail(); its context then stays broken. */
int cw_fake_fail_device(const char* function, int device, int64_t nth, int error);

/* Forgets every failure that was asked for, and mends every context. */
void cw_fake_mend(void);

/* Number of calls of a function so far; "": of all functions except cuEventQuery, whose count depends on
 * durations; -1 if there is no such function. */
int64_t cw_fake_calls(const char* function);

/* Sets whether kernels keep running until this is reset, even after their work is done. */
void cw_fake_keep_kernels(int keep);

enum { CW_FAKE_COPY_IN, CW_FAKE_COPY_OUT, CW_FAKE_KERNEL, CW_FAKE_WRITE };

/* An operation that a stream has done, by CLOCK_MONOTONIC. */
typedef struct cw_fake_step {
    int64_t kind;
    int64_t begin_ns;
    int64_t end_ns;
    int64_t bytes;     /* bytes of a copy */
    int64_t issued_ns; /* time of the call; 0 for a node of a graph */
} cw_fake_step;

/* Takes the last steps of all streams, at most so many, in the order of their ends; returns their number. */
int cw_fake_steps(cw_fake_step* steps, int most);

/* The numbers of objects that exist now. */
void cw_fake_live(cw_fake_counts* counts);

#ifdef __cplusplus
}
#endif

#endif
