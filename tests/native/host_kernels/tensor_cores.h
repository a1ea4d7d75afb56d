/* MANUAL mma.sync for the 32 threads of a warp: part of host_kernels.h.  The layout of a matrix in the
 * registers of a warp follows "Matrix Fragments for mma" in NVIDIA's PTX ISA. A single rule covers all shapes
 * with 16 rows and 8 columns. With E elements in a register of 32 bits, register r of lane l has, of A, the E
 * elements of row l/4 + 8(r%2) from (r/2)4E + (l%4)E on, and, of B, the E elements of column l/4 from 4Er +
 * (l%4)E on. Element i of C and D in lane l has row l/4 + 8(i/2) and column 2(l%4) + i%2.  Sums are computed
 * in 32 bits and in the order of the elements. A card's order is not known, and it rounds differently. */
#ifndef CLOCKWORK_HOST_KERNELS_TENSOR_CORES_H
#define CLOCKWORK_HOST_KERNELS_TENSOR_CORES_H

#include <stdint.h>
#include <string.h>

#include "threads.h"

namespace cw {

constexpr int ROWS = 16, COLUMNS = 8, DEPTH_MAX = 16;
constexpr int REGISTERS_MAX = 4; /* bound on the registers of an operand, in a lane */

enum Type { F16, BF16, TF32, F32 };

struct Product {
    int depth;
    Type factors, sums;
    int a, b, c;      /* registers of each operand in a lane */
    const char* text; /* text of the statement */
};

/* Operands of statements, as tinygrad's renderer writes them, by the numbers of registers of A, B and C. */
#define CW_OPERANDS_424                                                       \
    "\"{%0, %1, %2, %3}, {%4, %5, %6, %7},\" \"{%8, %9}, {%0, %1, %2, %3};\"" \
    " : \"+r\"(c_pk[0]), \"+r\"(c_pk[1]), \"+r\"(c_pk[2]), \"+r\"(c_pk[3])"   \
    " : \"r\"(a_pk[0]), \"r\"(a_pk[1]), \"r\"(a_pk[2]), \"r\"(a_pk[3]), \"r\"(b_pk[0]), \"r\"(b_pk[1])"
#define CW_OPERANDS_422                                       \
    "\"{%0, %1}, {%2, %3, %4, %5},\" \"{%6, %7}, {%0, %1};\"" \
    " : \"+r\"(c_pk[0]), \"+r\"(c_pk[1])"                     \
    " : \"r\"(a_pk[0]), \"r\"(a_pk[1]), \"r\"(a_pk[2]), \"r\"(a_pk[3]), \"r\"(b_pk[0]), \"r\"(b_pk[1])"
#define CW_OPERANDS_214                                                     \
    "\"{%0, %1, %2, %3}, {%4, %5},\" \"{%6}, {%0, %1, %2, %3};\""           \
    " : \"+r\"(c_pk[0]), \"+r\"(c_pk[1]), \"+r\"(c_pk[2]), \"+r\"(c_pk[3])" \
    " : \"r\"(a_pk[0]), \"r\"(a_pk[1]), \"r\"(b_pk[0])"
#define CW_OPERANDS_212                           \
    "\"{%0, %1}, {%2, %3},\" \"{%4}, {%0, %1};\"" \
    " : \"+r\"(c_pk[0]), \"+r\"(c_pk[1]) : \"r\"(a_pk[0]), \"r\"(a_pk[1]), \"r\"(b_pk[0])"
#define CW_MMA(depth_and_types) "\"mma.sync.aligned.m16n8" depth_and_types "\" "

static const Product PRODUCTS[] = {
    {16, F16, F32, 4, 2, 4, CW_MMA("k16.row.col.f32.f16.f16.f32") CW_OPERANDS_424},
    {16, BF16, F32, 4, 2, 4, CW_MMA("k16.row.col.f32.bf16.bf16.f32") CW_OPERANDS_424},
    {16, F16, F16, 4, 2, 2, CW_MMA("k16.row.col.f16.f16.f16.f16") CW_OPERANDS_422},
    {8, F16, F32, 2, 1, 4, CW_MMA("k8.row.col.f32.f16.f16.f32") CW_OPERANDS_214},
    {8, F16, F16, 2, 1, 2, CW_MMA("k8.row.col.f16.f16.f16.f16") CW_OPERANDS_212},
    {8, TF32, F32, 4, 2, 4, CW_MMA("k8.row.col.f32.tf32.tf32.f32") CW_OPERANDS_424},
};

/* The product that a statement of inline assembly computes; text and operands must match exactly. */
static inline const Product* product_of(const char* statement) {
    for (const Product& product : PRODUCTS)
        if (!strcmp(product.text, statement))
            return &product;
    die("inline assembly that is not known: %s", statement);
}

CW_UNCHECKED static inline int bits_of(Type type) { return type == F16 || type == BF16 ? 16 : 32; }

/* Element ``index`` of a lane's registers. */
CW_UNCHECKED static inline float element(Type type, const uint32_t* registers, int index) {
    if (bits_of(type) == 16) {
        uint16_t bits = uint16_t(registers[index / 2] >> 16 * (index % 2));
        return type == F16 ? float(__builtin_bit_cast(_Float16, bits))
                           : __builtin_bit_cast(float, uint32_t(bits) << 16);
    }
    /* The last 13 bits of the factors are ignored. */
    return __builtin_bit_cast(float, type == TF32 ? registers[index] & 0xffffe000u : registers[index]);
}

CW_UNCHECKED static inline void set_element(Type type, uint32_t* registers, int index, float value) {
    if (type == F32) {
        registers[index] = __builtin_bit_cast(uint32_t, value);
    } else {
        uint32_t bits = __builtin_bit_cast(uint16_t, _Float16(value));
        int shift = 16 * (index % 2);
        registers[index / 2] = (registers[index / 2] & ~(0xffffu << shift)) | bits << shift;
    }
}

/* The registers of a warp's lanes for a product: D takes C's place. */
struct Fragments {
    uint32_t a[WARP][REGISTERS_MAX], b[WARP][REGISTERS_MAX], c[WARP][REGISTERS_MAX];
};

CW_UNCHECKED static void multiply_matrices(const Product& product, Fragments& fragments) {
    float a[ROWS][DEPTH_MAX], b[DEPTH_MAX][COLUMNS], c[ROWS][COLUMNS];
    const int packed = 32 / bits_of(product.factors);
    for (int lane = 0; lane < int(WARP); lane++) {
        const int row = lane / 4, place = lane % 4;
        for (int index = 0; index < product.a * packed; index++) {
            const int part = index / packed;
            a[row + 8 * (part % 2)][(part / 2 * 4 + place) * packed + index % packed] =
                element(product.factors, fragments.a[lane], index);
        }
        for (int index = 0; index < product.b * packed; index++)
            b[(index / packed * 4 + place) * packed + index % packed][row] =
                element(product.factors, fragments.b[lane], index);
        for (int index = 0; index < 4; index++)
            c[row + 8 * (index / 2)][2 * place + index % 2] = element(product.sums, fragments.c[lane], index);
    }
    for (int row = 0; row < ROWS; row++)
        for (int k = 0; k < product.depth; k++)
            for (int column = 0; column < COLUMNS; column++)
                c[row][column] += a[row][k] * b[k][column];
    for (int lane = 0; lane < int(WARP); lane++)
        for (int index = 0; index < 4; index++)
            set_element(product.sums, fragments.c[lane], index,
                        c[lane / 4 + 8 * (index / 2)][2 * (lane % 4) + index % 2]);
}

template <typename To, typename From>
CW_UNCHECKED static inline void copy_registers(To* target, const From* source, int count) {
    for (int index = 0; index < count; index++)
        target[index] = To(source[index]);
}

/* Executes the statement for a thread, with its registers of each operand. Every thread of its warp must come
 * here. */
CW_UNCHECKED static inline void multiply(const Product* product, int line, int* c, const int* a, const int* b) {
    static std::vector<Fragments> warps(BLOCK_MAX / WARP);
    Fragments& fragments = warps[block.running->number / WARP];
    const unsigned lane = block.running->number % WARP;
    copy_registers(fragments.a[lane], a, product->a);
    copy_registers(fragments.b[lane], b, product->b);
    copy_registers(fragments.c[lane], c, product->c);
    wait_for_warp(product, line, [&]() CW_UNCHECKED { multiply_matrices(*product, fragments); });
    copy_registers(c, fragments.c[lane], product->c);
}

}  // namespace cw

#endif
