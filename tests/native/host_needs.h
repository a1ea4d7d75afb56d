/* What a kernel for the host needs of a card, for the fake driver to refuse what a card's driver would.
 * host_kernels.h exports one beside each kernel, as cw_needs_NAME. */
#ifndef CLOCKWORK_HOST_NEEDS_H
#define CLOCKWORK_HOST_NEEDS_H

struct cw_host_needs {
    int registers;    /* of each thread */
    int shared_bytes; /* static, of each block */
    int threads;      /* the most that a block may have, as __launch_bounds__ says */
    int local_bytes;  /* of each thread */
    int parameters;
    const int* sizes;  /* of each parameter, in bytes */
    const int* widths; /* what the address has to be a multiple of, where a parameter is one; else 1 */
};

#endif
