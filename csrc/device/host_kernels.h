/* Lets a CUDA C file be compiled by a host's C++ compiler, into a module for the fake driver:
 *
 *     g++ -std=c++20 -O2 -shared -fPIC -x c++ -include host_kernels.h kernels.cu -o kernels.so
 *
 * The file stays CUDA C; what it needs besides is its kernels' names, once each:
 *
 *     extern "C" __global__ void add(const float *a, const float *b, float *y, int n) { ... }
 *     #ifdef CW_HOST_KERNEL
 *     CW_HOST_KERNEL(add)
 *     #endif
 *
 * CW_HOST_KERNEL_WITH(add, registers, shared_bytes, threads) says as well what the kernel needs of a card: registers of
 * a thread, static shared memory, and the most threads of a block. With -DCW_HOST_TARGET='"sm_80"' the module is one
 * for that architecture, which the fake driver refuses on any other ("compute_80": PTX, which newer ones take, too).
 *
 * The threads of a launch run one after another, so that a kernel can neither wait for others of its
 * block (__syncthreads) nor hand anything to them (__shared__, shuffles).
 */
#ifndef CLOCKWORK_HOST_KERNELS_H
#define CLOCKWORK_HOST_KERNELS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include <utility>

#include "host_needs.h"

#define __global__
#define __device__ static inline
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)

struct cw_dim3 {
    unsigned x, y, z;
};

/* Of the thread that runs: where it is in its launch. */
static thread_local cw_dim3 gridDim, blockDim, blockIdx, threadIdx;

template <typename... Parameters, size_t... Index>
static void cw_run_threads(void (*kernel)(Parameters...), void** arguments, std::index_sequence<Index...>) {
    for (threadIdx.z = 0; threadIdx.z < blockDim.z; threadIdx.z++)
        for (threadIdx.y = 0; threadIdx.y < blockDim.y; threadIdx.y++)
            for (threadIdx.x = 0; threadIdx.x < blockDim.x; threadIdx.x++)
                kernel(*static_cast<Parameters*>(arguments[Index])...);
}

template <typename... Parameters>
static void cw_run_blocks(void (*kernel)(Parameters...), void** arguments, const unsigned* grid,
                          const unsigned* block) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++)
                cw_run_threads(kernel, arguments, std::index_sequence_for<Parameters...>());
}

/* Each module has its own: a library with a symbol that is one in a process is never unloaded. */
namespace {

template <typename Type>
struct cw_parameter {
    static constexpr int size = sizeof(Type), width = 1;
};
template <typename Type>
struct cw_parameter<Type*> {
    static constexpr int size = sizeof(Type*), width = alignof(Type);
};
template <typename... Parameters>
struct cw_parameters {
    static constexpr int sizes[] = {cw_parameter<Parameters>::size..., 0};
    static constexpr int widths[] = {cw_parameter<Parameters>::width..., 0};
};
template <typename... Parameters>
constexpr cw_host_needs cw_needs_of(void (*)(Parameters...), int registers, int shared_bytes, int threads) {
    using Known = cw_parameters<Parameters...>;
    return {registers, shared_bytes, threads, int(sizeof...(Parameters)), Known::sizes, Known::widths};
}

}  // namespace

#ifdef CW_HOST_TARGET
extern "C" __attribute__((visibility("default"))) const char cw_host_target[] = CW_HOST_TARGET;
#endif

/* The entry that the fake driver looks for: arguments[i] points at the i-th argument's value. */
#define CW_HOST_KERNEL(name) CW_HOST_KERNEL_WITH(name, 32, 0, 1024)
#define CW_HOST_KERNEL_WITH(name, registers, shared_bytes, threads)                                                 \
    extern "C" __attribute__((visibility("default"))) const cw_host_needs cw_needs_##name;                          \
    const cw_host_needs cw_needs_##name = cw_needs_of(name, registers, shared_bytes, threads);                      \
    extern "C" __attribute__((visibility("default"))) void cw_host_##name(void** arguments, const unsigned grid[3], \
                                                                          const unsigned block[3]) {                \
        cw_run_blocks(name, arguments, grid, block);                                                                \
    }

#endif
