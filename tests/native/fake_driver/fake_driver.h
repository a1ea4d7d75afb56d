/* What the fake driver can be told and asked beyond the driver API; for tests and benches. See fake_driver.cpp and fake_machine.cpp. */
#ifndef CLOCKWORK_FAKE_DRIVER_H
#define CLOCKWORK_FAKE_DRIVER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct cw_fake_counts {
    int64_t contexts; /* that are retained, over all devices */
    int64_t streams;
    int64_t events;
    int64_t allocations; /* of device memory */
    int64_t device_bytes;
    int64_t host_allocations; /* of pinned memory */
    int64_t host_bytes;
    int64_t modules;
    int64_t graphs;
    int64_t graph_execs;
    int64_t
        unpinned_copies; /* asynchronous copies, so far, to or from memory that is not pinned: on a card they wait */
    int64_t copied_in_bytes; /* so far, to all devices */
} cw_fake_counts;

/* How many cards there are (1 to 16; before that, as the environment's CLOCKWORK_FAKE_DEVICES says, or 1), the memory of
 * each, and the driver's version (12040: 12.4). Which of them this process sees, CUDA_VISIBLE_DEVICES says. */
void cw_fake_setup(int device_count, size_t device_bytes, int driver_version);

/* What every device is: a card of this compute capability (86: 8.6), with the bounds of one and the modules that run on
 * one; or 0, which is so before it is said: no card, which runs modules for the host. */
void cw_fake_card(int capability);

/* Have a card be in MIG mode, with so many instances; 0: none. A process then sees the first instance that
 * CUDA_VISIBLE_DEVICES lets it see, and nothing beside it. */
void cw_fake_mig(int card, int instances);

/* The NUMA node whose memory the thread preferred that last pinned some; -1: none. */
int cw_fake_pinned_node(void);

/* How fast copies go (bytes per second; 0: as fast as memcpy): each direction of each device by itself, and all
 * of them together; how long each kernel takes at least; and the time before each item of a stream begins. */
void cw_fake_speed(int64_t copy_rate, int64_t link_rate, int64_t kernel_ns, int64_t latency_ns);

/* How many copy engines a device has: 2, one for each direction, which is so before it is said; or 1, which does copies
 * in the order in which they were issued, but for those that wait for something else. And how long each call takes,
 * during which every other call waits. */
void cw_fake_engines(int copy_engines, int64_t call_ns);

/* How long calls stall that a card's driver does not do beside others: to take and give back device memory or pinned
 * memory, to load and unload modules, the first launch of a kernel that is loaded lazily (CUDA_MODULE_LOADING,
 * as the driver reads it at cuInit()), and one whose threads take more memory each than any before it and than
 * cuCtxSetLimit() has said. Such a call has every other call about its device wait (about every device
 * where the memory is pinned) until what is queued there is done, and so many nanoseconds more. 0: none does. */
void cw_fake_stall(int64_t stall_ns);

/* Have the nth call from now (1: the next) of a driver function fail with this error, once; a negative one is a signal
 * that the call raises. "copy" and "kernel"
 * are what streams do: these fail when they are done, as a card's do. "jit" is the compilation of PTX. Where ``sticky`` is
 * not 0, the context stays broken. 0, or -1 if there is no such function. */
int cw_fake_fail(const char* function, int64_t nth, int error, int sticky);

/* Likewise of the calls that are about this device alone, whose context then stays broken. */
int cw_fake_fail_device(const char* function, int device, int64_t nth, int error);

/* Forget every failure that was asked for, and mend every context. */
void cw_fake_mend(void);

/* How often a function was called so far; "": all of the driver's together but cuEventQuery, whose calls depend on how
 * long something takes; -1 if there is no such function. */
int64_t cw_fake_calls(const char* function);

/* Whether kernels go on until this is said otherwise, whatever they have done. */
void cw_fake_keep_kernels(int keep);

enum { CW_FAKE_COPY_IN, CW_FAKE_COPY_OUT, CW_FAKE_KERNEL, CW_FAKE_WRITE };

/* What a stream has done, by CLOCK_MONOTONIC. */
typedef struct cw_fake_step {
    int64_t kind;
    int64_t begin_ns;
    int64_t end_ns;
    int64_t bytes; /* of a copy */
} cw_fake_step;

/* The last steps of all streams, at most so many, in the order of their ends; how many. It forgets them. */
int cw_fake_steps(cw_fake_step* steps, int most);

/* What exists now. */
void cw_fake_live(cw_fake_counts* counts);

#ifdef __cplusplus
}
#endif

#endif
