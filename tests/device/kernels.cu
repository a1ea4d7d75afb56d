/* The kernels of the conformance suite's models: CUDA C, which a host's compiler takes too (host_kernels.h).
 * */

__device__ void do_matmul(const float* x, const float* w, float* y, int rows, int inner, int columns) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= rows * columns)
        return;
    float sum = 0;
    for (int k = 0; k < inner; k++)
        sum += x[at / columns * inner + k] * w[k * columns + at % columns];
    y[at] = sum;
}

/* b is repeated as often as needed. */
__device__ void do_add(const float* a, const float* b, float* y, int count, int width) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < count)
        y[at] = a[at] + b[at % width];
}

extern "C" __global__ void copy(const char* from, char* to, long long bytes) {
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at < bytes)
        to[at] = from[at];
}

extern "C" __global__ void to_double(const long long* from, double* to, int count) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < count)
        to[at] = (double)from[at];
}

/* A single thread: y = w times itself, n times. */
__device__ void do_power(const long long* n, const float* w, float* y, float* scratch, int width) {
    for (int at = 0; at < width * width; at++)
        y[at] = w[at];
    for (long long round = 0; round < *n; round++) {
        for (int row = 0; row < width; row++) {
            for (int column = 0; column < width; column++)
                scratch[column] = 0;
            for (int k = 0; k < width; k++)
                for (int column = 0; column < width; column++)
                    scratch[column] += y[row * width + k] * w[k * width + column];
            for (int column = 0; column < width; column++)
                y[row * width + column] = scratch[column];
        }
    }
}

/* A block for each row of x (2, length, 2): the first ``size`` positions doubled, and their sum. */
__device__ void do_within(const float* x, float* twice, float* sum, int length, int size) {
    int row = blockIdx.x;
    sum[row] = 0;
    for (int outer = 0; outer < 2; outer++)
        for (int at = 0; at < size * 2; at++) {
            int place = (row * 2 + outer) * length * 2 + at;
            twice[place] = 2 * x[place];
            sum[row] += x[place];
        }
}

extern "C" __global__ void matmul(const float* x, const float* w, float* y, int rows, int inner, int columns) {
    do_matmul(x, w, y, rows, inner, columns);
}

extern "C" __global__ void add(const float* a, const float* b, float* y, int count, int width) {
    do_add(a, b, y, count, width);
}

extern "C" __global__ void power(const long long* n, const float* w, float* y, float* scratch, int width) {
    do_power(n, w, y, scratch, width);
}

extern "C" __global__ void within(const float* x, float* twice, float* sum, int length, int size) {
    do_within(x, twice, sum, length, size);
}

/* The same with a weight whose address is an entry of the table; the number is the parameter's index. */

extern "C" __global__ void matmul_table_1(const float* x, const unsigned long long* w, float* y, int rows, int inner,
                                          int columns) {
    do_matmul(x, (const float*)*w, y, rows, inner, columns);
}

extern "C" __global__ void add_table_0(const unsigned long long* a, const float* b, float* y, int count, int width) {
    do_add((const float*)*a, b, y, count, width);
}

extern "C" __global__ void add_table_1(const float* a, const unsigned long long* b, float* y, int count, int width) {
    do_add(a, (const float*)*b, y, count, width);
}

extern "C" __global__ void power_table_1(const long long* n, const unsigned long long* w, float* y, float* scratch,
                                         int width) {
    do_power(n, (const float*)*w, y, scratch, width);
}

/* `size` is an entry of the table, too. */
extern "C" __global__ void within_table_4(const float* x, float* twice, float* sum, int length,
                                          const unsigned long long* size) {
    do_within(x, twice, sum, length, (int)*size);
}

#ifdef CW_HOST_KERNEL
CW_HOST_KERNEL(matmul_table_1)
CW_HOST_KERNEL(add_table_0)
CW_HOST_KERNEL(add_table_1)
CW_HOST_KERNEL(power_table_1)
CW_HOST_KERNEL(within_table_4)
CW_HOST_KERNEL(within)
CW_HOST_KERNEL(matmul)
CW_HOST_KERNEL(add)
CW_HOST_KERNEL(copy)
CW_HOST_KERNEL(to_double)
CW_HOST_KERNEL(power)
#endif
