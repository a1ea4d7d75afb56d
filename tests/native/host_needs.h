/* The resources of a card that a kernel for the host needs, so that the fake driver refuses what a card's
 * driver would. host_kernels.h exports a record beside each kernel, as cw_needs_NAME. */
#ifndef CLOCKWORK_HOST_NEEDS_H
#define CLOCKWORK_HOST_NEEDS_H

struct cw_host_needs {
    int registers;    /* registers of each thread */
    int shared_bytes; /* static shared memory of each block */
    int threads;      /* bound on the threads of a block, as in __launch_bounds__ */
    int local_bytes;  /* local memory of each thread */
    int parameters;
    const int* sizes;  /* bytes of each parameter */
    const int* widths; /* required alignment of the address in a pointer parameter; 1 for other parameters */
};

#endif
