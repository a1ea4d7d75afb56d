/* CUDA's bfloat16, for kernels on a host: see host_kernels.h. */
#ifndef CLOCKWORK_HOST_KERNELS_CUDA_BF16_H
#define CLOCKWORK_HOST_KERNELS_CUDA_BF16_H

#include "sixteen.h"

static inline unsigned short cw_bfloat16_bits(float value) {
    const unsigned bits = __builtin_bit_cast(unsigned, value);
    return value != value ? 0x7fff : (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float cw_bfloat16_value(unsigned short bits) { return __builtin_bit_cast(float, unsigned(bits) << 16); }

CW_SIXTEEN(nv_bfloat16, cw_bfloat16_bits, cw_bfloat16_value, nv_bfloat162)

static inline nv_bfloat162 make_bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return {x, y}; }

#endif
