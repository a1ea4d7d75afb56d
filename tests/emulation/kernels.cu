/* Kernels that wait, and kernels that are wrong, to test tests/native/host_kernels.h. */

#include <cuda_bf16.h>
#include <cuda_fp16.h>

/* The blocks of x, each reversed twice through shared memory. */
extern "C" __global__ void __launch_bounds__(48) turn(float* data0_96, float* data1_96) {
    __shared__ __align__(16) float kept[48];
    int at = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    int count = blockDim.x * blockDim.y * blockDim.z;
    float value = data1_96[blockIdx.x * count + at];
    for (int round = 0; round < 3; round++) {
        kept[at] = value;
        __syncthreads();
        value = kept[count - 1 - at] + 100 * (round == 2);
        __syncthreads();
    }
    data0_96[blockIdx.x * count + at] = value;
}

/* ----- what waits wrongly ----- */

extern "C" __global__ void some_wait(float* data0_64) {
    if (threadIdx.x < 5)
        __syncthreads();
    data0_64[threadIdx.x] = 1;
}

extern "C" __global__ void one_is_late(float* data0_64) {
    if (threadIdx.x > 5)
        __syncthreads();
    data0_64[threadIdx.x] = 1;
}

extern "C" __global__ void two_barriers(float* data0_64) {
    if (threadIdx.x % 2)
        __syncthreads();
    else
        __syncthreads();
    data0_64[threadIdx.x] = 1;
}

extern "C" __global__ void __launch_bounds__(2000) too_many(float* data0_64) { data0_64[0] = threadIdx.x; }

/* ----- what AddressSanitizer and the checks of alignment are for ----- */

extern "C" __global__ void misaligned(float* data0_64) {
    *((float4*)((data0_64 + 1))) = make_float4(1.0f, 2.0f, 3.0f, 4.0f);
}

struct __align__(16) half8 {
    half x, y, z, w, a, b, c, d;
};

extern "C" __global__ void misaligned_halves(float* data0_64) {
    half8 value = *((half8*)(((half*)data0_64) + 4));
    data0_64[0] = value.x;
}

extern "C" __global__ void beyond_its_buffer(float* data0_64) { data0_64[64 + threadIdx.x] = 1; }

extern "C" __global__ void before_its_buffer(float* data0_64) { data0_64[0] = data0_64[-1 - int(threadIdx.x)]; }

extern "C" __global__ void beyond_shared_memory(float* data0_64) {
    __shared__ __align__(16) float kept[64];
    kept[threadIdx.x + 1] = 1;
    __syncthreads();
    data0_64[threadIdx.x] = kept[threadIdx.x];
}

extern "C" __global__ void beyond_shared_memory_by_pointer(float* data0_64) {
    __shared__ __align__(16) float kept[64];
    *(kept + (threadIdx.x + 1)) = 1;
    __syncthreads();
    data0_64[threadIdx.x] = *(kept + threadIdx.x);
}

extern "C" __global__ void beyond_a_local_array(float* data0_64) {
    float kept[4];
    for (int index = 0; index < 4; index++)
        *(kept + index) = data0_64[index];
    __syncthreads();
    data0_64[threadIdx.x] = *(kept + (threadIdx.x & 7));
}

/* ----- 16-bit numbers ----- */

extern "C" __global__ void halves(half* data0_64, float* data1_64) {
    half x = (half)(data1_64[threadIdx.x]);
    half y = ((x * x) + ((half)(1.0f)));
    data0_64[threadIdx.x] = (x < ((half)(0.0f))) ? hexp2(x) : (hsqrt(x) + hrcp(y)) / y;
}

extern "C" __global__ void brain_floats(nv_bfloat16* data0_64, float* data1_64) {
    nv_bfloat16 x = (nv_bfloat16)(data1_64[threadIdx.x]);
    data0_64[threadIdx.x] = -x * x - ((nv_bfloat16)(3.0f));
}

#ifdef CW_HOST_KERNEL
CW_HOST_KERNEL(turn)
CW_HOST_KERNEL(some_wait)
CW_HOST_KERNEL(one_is_late)
CW_HOST_KERNEL(two_barriers)
CW_HOST_KERNEL(too_many)
CW_HOST_KERNEL(misaligned)
CW_HOST_KERNEL(misaligned_halves)
CW_HOST_KERNEL(beyond_its_buffer)
CW_HOST_KERNEL(before_its_buffer)
CW_HOST_KERNEL(beyond_shared_memory)
CW_HOST_KERNEL(beyond_shared_memory_by_pointer)
CW_HOST_KERNEL(beyond_a_local_array)
CW_HOST_KERNEL(halves)
CW_HOST_KERNEL(brain_floats)
#endif
