// y = x W + bias with W packed once for many calls, in fp32 or bf16, and one order of rounding for every output element
// whatever the number of rows, the threads or the instruction set. Letters: M rows, K inputs, N outputs.
#pragma once

#include <cstdint>

#include "common/aligned.h"
#include "common/cpu.h"

namespace bgpt {

// What a weight is stored in, and with it what multiplies it:
// - float32: in the order of invariant_linear;
// - bfloat16: weights and inputs rounded to bf16, products summed in fp32;
// - int8: weights rounded to 8 bits with a scale for each output, inputs to bf16, sums in fp32.
enum class Precision { float32 = 0, bfloat16 = 1, int8 = 2 };

constexpr int64_t kPanel = 48;      // columns that lie together: three AVX-512 vectors, six of AVX2
constexpr int64_t kLinks = 256;     // inputs of a block, whose sum starts at 0: part of the result
constexpr int64_t kChunkRows = 64;  // rows that share a pass over a panel

struct PackedLinear {
    // W [K, N] with W[k, n] at weight[k * row + n * column]; bias [N], or null for zeros.
    PackedLinear(const float* weight, int64_t row, int64_t column, const float* bias, int64_t K, int64_t N,
                 Precision precision);

    int64_t K, N, panels;
    int64_t links;  // K, rounded up to a whole pair where inputs go in pairs
    Precision precision;
    int64_t bytes;                  // of the packed weight
    Aligned<unsigned char> weight;  // float [panels][K][kPanel], or bf16 or int8 [panels][links / 2][kPanel][2]
    Aligned<float> bias;            // [panels * kPanel]
    Aligned<float> scale;           // [panels * kPanel], of int8
};

// What becomes of y: stored in fp32; added to what is there; or its tanh GELU stored as the inputs of a next layer of
// the same precision, fp32 or bf16.
enum class Finish { store, add, gelu };

struct PackedCall {
    const PackedLinear* linear;
    const void* x;  // [M, x_row], fp32 or bf16; of an odd K the links' last is 0
    int64_t x_row, M;
    void* y;  // [M, y_row]
    int64_t y_row;
    Finish finish;
};

// The panels [begin, end) of y. y[m, n] = bias[n] + B_0 + B_1 + … in this order, where B_i runs over the 256 inputs
// from k = 256 i on, each a chain of FMAs that starts at 0; in ascending order, but in bf16 the odd one of a pair comes
// before the even one, as AVX512_BF16 has it. int8: fma(scale[n], B_0 + B_1 + …, bias[n]).
void packed_linear(const PackedCall& call, int64_t begin, int64_t end, Isa isa);

// `count` floats to the inputs of a layer of this precision.
void to_inputs(const float* x, int64_t count, Precision precision, void* inputs);

// y = (x - mean) / sqrt(variance + eps) * weight + bias over `width` channels, the sums in one fixed order, as the
// inputs of a layer of this precision.
struct NormCall {
    const float *x, *weight, *bias;
    int64_t width;
    float eps;
};
void norm_row(const NormCall& call, Precision precision, void* y, Isa isa);

// Is AVX512_BF16 there?
bool has_bf16_dot();

#define BGPT_PACKED_KERNELS(name)                                                  \
    void packed_linear_##name(const PackedCall& call, int64_t begin, int64_t end); \
    void norm_row_##name(const NormCall& call, Precision precision, void* y);

BGPT_PACKED_KERNELS(portable)
#if defined(__x86_64__)
BGPT_PACKED_KERNELS(avx2)
BGPT_PACKED_KERNELS(avx512)
BGPT_PACKED_KERNELS(avx512_bf16)
#endif
#undef BGPT_PACKED_KERNELS

}  // namespace bgpt
