/* MANUAL Lets a CUDA C file be compiled by a host's C++ compiler, into a module for the fake driver:      g++
 * -std=c++20 -O2 -shared -fPIC -x c++ -include host_kernels.h kernels.cu -o kernels.so  The file stays CUDA
 * C, and names each of its kernels once more:      extern "C" __global__ void add(const float *a, const float
 * *b, float *y, int n) { ... }     #ifdef CW_HOST_KERNEL     CW_HOST_KERNEL(add)     #endif
 * CW_HOST_KERNEL_WITH(add, registers, shared_bytes, threads) also declares the resources that the kernel
 * takes of a card: registers of a thread, static shared memory, the largest number of threads in a block,
 * and, as an optional fifth number, local memory of each thread. With -DCW_HOST_TARGET='"sm_80"' the module
 * is for that architecture, and the fake driver refuses it on any other ("compute_80": PTX, which newer
 * architectures take).  Blocks run in sequence, and the threads of a block take turns: a thread runs until it
 * waits, for its block in __syncthreads() or for its warp in mma.sync, or ends. A kernel that waits wrongly
 * (a barrier that not all threads of the block reach, a matrix product without all 32 threads of the warp)
 * ends the process with a sentence on stderr. Shuffles, atomics and dynamic shared memory are not supported.
 * Built with -fsanitize=address,alignment, a kernel also ends the process if it reads outside a buffer, a
 * shared or a local array, or reads a vector at a misaligned address: types have the alignment that they have
 * on a card. cuda_fp16.h and cuda_bf16.h need -I tests/native/host_kernels; the operands of mma.sync, whose
 * registers are read as other types, need -fno-strict-aliasing. */
#ifndef CLOCKWORK_HOST_KERNELS_H
#define CLOCKWORK_HOST_KERNELS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <mutex>
#include <utility>

#include "host_kernels/tensor_cores.h"
#include "host_kernels/threads.h"
#include "host_kernels/vectors.h"
#include "host_needs.h"

#define __global__
#define __device__ static __attribute__((unused))
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __syncthreads() cw::wait_for_block(__LINE__)

/* The blocks of a kernel share the array: a block that reads elements it has not written finds those of the
 * block before. */
#define __shared__ static

/* Inline assembly: only mma.sync is supported. The operands are checked against the arrays by these names. */
#define asm(...)                                                          \
    do {                                                                  \
        static const cw::Product* product = cw::product_of(#__VA_ARGS__); \
        cw::multiply(product, __LINE__, c_pk, a_pk, b_pk);                \
    } while (0)

static inline float __int_as_float(int bits) { return __builtin_bit_cast(float, bits); }

namespace cw {

/* a single lock, because shared memory and the threads' places belong to the module */
static std::mutex one_at_a_time;

template <typename... Parameters, size_t... Index>
static void call(void* kernel, void** arguments, std::index_sequence<Index...>) {
    reinterpret_cast<void (*)(Parameters...)>(kernel)(*static_cast<Parameters*>(arguments[Index])...);
}

template <typename... Parameters>
static void call(void* kernel, void** arguments) {
    call<Parameters...>(kernel, arguments, std::index_sequence_for<Parameters...>());
}

template <typename... Parameters>
static void launch(const char* name, void (*kernel)(Parameters...), void** arguments, const unsigned* grid,
                   const unsigned* block) {
    std::lock_guard<std::mutex> guard(one_at_a_time);
    run_blocks({name, reinterpret_cast<void*>(kernel), call<Parameters...>, arguments}, grid, block);
}

}  // namespace cw

/* Static for each module: a library with a symbol that is unique in a process is never unloaded. */
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
constexpr cw_host_needs cw_needs_of(void (*)(Parameters...), int registers, int shared_bytes, int threads,
                                    int local_bytes = 0) {
    using Known = cw_parameters<Parameters...>;
    return {registers, shared_bytes, threads, local_bytes, int(sizeof...(Parameters)), Known::sizes, Known::widths};
}

}  // namespace

#ifdef CW_HOST_TARGET
extern "C" __attribute__((visibility("default"))) const char cw_host_target[] = CW_HOST_TARGET;
#endif

/* The entry that the fake driver looks for: arguments[i] points at the i-th argument's value. */
#define CW_HOST_KERNEL(name) CW_HOST_KERNEL_WITH(name, 32, 0, 1024)
#define CW_HOST_KERNEL_WITH(name, ...)                                                                              \
    extern "C" __attribute__((visibility("default"))) const cw_host_needs cw_needs_##name;                          \
    const cw_host_needs cw_needs_##name = cw_needs_of(name, __VA_ARGS__);                                           \
    extern "C" __attribute__((visibility("default"))) void cw_host_##name(void** arguments, const unsigned grid[3], \
                                                                          const unsigned block[3]) {                \
        cw::launch(#name, name, arguments, grid, block);                                                            \
    }

#endif
