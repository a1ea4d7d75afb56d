/* CUDA's vectors, with the alignment that their loads and stores need on a card: part of host_kernels.h. */
#ifndef CLOCKWORK_HOST_KERNELS_VECTORS_H
#define CLOCKWORK_HOST_KERNELS_VECTORS_H

#define CW_VECTORS(name, type, align2, align4)                                         \
    struct alignas(align2) name##2 { type x, y; };                                     \
    struct name##3 { type x, y, z; };                                                  \
    struct alignas(align4) name##4 { type x, y, z, w; };                               \
    static inline name##2 make_##name##2(type x, type y) { return {x, y}; }            \
    static inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; } \
    static inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

CW_VECTORS(char, signed char, 2, 4)
CW_VECTORS(uchar, unsigned char, 2, 4)
CW_VECTORS(short, short, 4, 8)
CW_VECTORS(ushort, unsigned short, 4, 8)
CW_VECTORS(int, int, 8, 16)
CW_VECTORS(uint, unsigned, 8, 16)
CW_VECTORS(long, long, 16, 16)
CW_VECTORS(ulong, unsigned long, 16, 16)
CW_VECTORS(longlong, long long, 16, 16)
CW_VECTORS(ulonglong, unsigned long long, 16, 16)
CW_VECTORS(float, float, 8, 16)
CW_VECTORS(double, double, 16, 16)
#undef CW_VECTORS

#endif
