/* CUDA's half, for kernels on a host: see host_kernels.h. */
#ifndef CLOCKWORK_HOST_KERNELS_CUDA_FP16_H
#define CLOCKWORK_HOST_KERNELS_CUDA_FP16_H

#include "sixteen.h"

static inline unsigned short cw_half_bits(float value) { return __builtin_bit_cast(unsigned short, _Float16(value)); }

static inline float cw_half_value(unsigned short bits) { return float(__builtin_bit_cast(_Float16, bits)); }

CW_SIXTEEN(half, cw_half_bits, cw_half_value, half2)

static inline half2 make_half2(half x, half y) { return {x, y}; }

#endif
