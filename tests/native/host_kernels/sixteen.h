/* Arithmetic of 16-bit numbers: every operation is computed in 32 bits and rounded, which for + - * / and the
 * square root equals a single rounding. Part of host_kernels.h. */
#ifndef CLOCKWORK_HOST_KERNELS_SIXTEEN_H
#define CLOCKWORK_HOST_KERNELS_SIXTEEN_H

#include <math.h>

#include <type_traits>

#define CW_OPERATOR(type, sign) \
    static inline type operator sign(type left, type right) { return type(float(left) sign float(right)); }
#define CW_COMPARISON(type, sign) \
    static inline bool operator sign(type left, type right) { return float(left) sign float(right); }
#define CW_FUNCTION(type, name, value)     \
    static inline type name(type number) { \
        const float x = float(number);     \
        return type(value);                \
    }

/* Casts to types other than float go through float; a cast from an integer of many bits rounds twice here. */
#define CW_SIXTEEN(type, from_float, to_float, vector)     \
    struct type {                                          \
        unsigned short bits;                               \
        type() = default;                                  \
        template <typename T>                              \
            requires std::is_arithmetic_v<T>               \
        type(T value) : bits(from_float(float(value))) {}  \
        operator float() const { return to_float(bits); }  \
        template <typename T>                              \
            requires std::is_arithmetic_v<T>               \
        explicit operator T() const {                      \
            return T(to_float(bits));                      \
        }                                                  \
        type operator-() const {                           \
            type result;                                   \
            result.bits = (unsigned short)(bits ^ 0x8000); \
            return result;                                 \
        }                                                  \
    };                                                     \
    struct alignas(4) vector {                             \
        type x, y;                                         \
    };                                                     \
    CW_OPERATOR(type, +)                                   \
    CW_OPERATOR(type, -)                                   \
    CW_OPERATOR(type, *)                                   \
    CW_OPERATOR(type, /)                                   \
    CW_COMPARISON(type, ==)                                \
    CW_COMPARISON(type, !=)                                \
    CW_COMPARISON(type, <)                                 \
    CW_COMPARISON(type, <=)                                \
    CW_COMPARISON(type, >)                                 \
    CW_COMPARISON(type, >=)                                \
    CW_FUNCTION(type, htrunc, truncf(x))                   \
    CW_FUNCTION(type, hsin, sinf(x))                       \
    CW_FUNCTION(type, hlog2, log2f(x))                     \
    CW_FUNCTION(type, hexp2, exp2f(x))                     \
    CW_FUNCTION(type, hsqrt, sqrtf(x))                     \
    CW_FUNCTION(type, hrcp, 1 / x)

#endif
