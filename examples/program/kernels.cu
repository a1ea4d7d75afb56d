// The kernels of a small program, written by hand: y = relu(x W + b), a row of x at a time.
//
// x: (rows, inputs), W: (inputs, outputs), b: (outputs). make.py makes a package of them.

extern "C" __global__ void product(float* to, const float* x, const float* weight, int rows, int inputs, int outputs) {
    int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
    if (row >= rows || column >= outputs)
        return;
    float sum = 0;
    for (int index = 0; index < inputs; index++)
        sum += x[row * inputs + index] * weight[index * outputs + column];
    to[row * outputs + column] = sum;
}

extern "C" __global__ void add_and_clip(float* y, const float* from, const float* bias, int rows, int outputs,
                                        float least) {
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
