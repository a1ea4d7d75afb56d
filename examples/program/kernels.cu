// The kernels of a small program, written by hand: y = relu(x W + b), a row of x at a time.
//
// x: (rows, inputs), W: (inputs, outputs), b: (outputs). make.py makes a package of them.
//
// The address of a weight changes with each load, and with each model of the program. So a kernel gets a
// pointer to an entry of the program's table, from which it reads the address. Its parameters then never
// change, and a device records all launches once, as a CUDA graph.

extern "C" __global__ void product(float* to, const float* x, const unsigned long long* weight_entry, int rows,
                                   int inputs, int outputs) {
    const float* weight = (const float*)*weight_entry;
    int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
    if (row >= rows || column >= outputs)
        return;
    float sum = 0;
    for (int index = 0; index < inputs; index++)
        sum += x[row * inputs + index] * weight[index * outputs + column];
    to[row * outputs + column] = sum;
}

extern "C" __global__ void add_and_clip(float* y, const float* from, const unsigned long long* bias_entry, int rows,
                                        int outputs, float least) {
    const float* bias = (const float*)*bias_entry;
    int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
    if (row >= rows || column >= outputs)
        return;
    float sum = from[row * outputs + column] + bias[column];
    y[row * outputs + column] = sum > least ? sum : least;
}

#ifdef CW_HOST_KERNEL
CW_HOST_KERNEL(product)
CW_HOST_KERNEL(add_and_clip)
#endif
