// The linear layers of the CPU byte decoder: y = x W + bias with W packed once for many calls, in fp32, bf16 or int8,
// and one order of rounding for every output element whatever the number of rows, the threads or the instruction set.
// Letters: M rows, K inputs, N outputs.
#pragma once

#include <cstdint>

#include "common/aligned.h"
#include "common/cpu.h"

namespace bgpt {

// How weights are stored and multiplied:
// - float32: added in the order of invariant_linear;
// - bfloat16: weights and inputs rounded to bf16, products summed in fp32;
// - int8: weights rounded to 8 bits with a scale for each output, inputs to bf16, sums in fp32.
enum class Precision { float32 = 0, bfloat16 = 1, int8 = 2 };

constexpr int64_t kPanel = 48;        // columns of a panel: three AVX-512 vectors, six of AVX2
constexpr int64_t kBlockDepth = 256;  // inputs of a block, whose sum starts at 0: part of the result
constexpr int64_t kChunkRows = 64;    // rows that share a pass over a panel

struct PackedLinear {
    // W [K, N] with W[k, n] at weight[k * row + n * column]; bias [N], or null for zeros.
    PackedLinear(const float* weight, int64_t row, int64_t column, const float* bias, int64_t K, int64_t N,
                 Precision precision);

    int64_t K, N, panels;
    int64_t depth;  // K, rounded up to an even number where inputs are multiplied in pairs
    Precision precision;
    int64_t bytes;                  // of the packed weight
    Aligned<unsigned char> weight;  // float [panels][K][kPanel], or bf16 or int8 [panels][depth / 2][kPanel][2]
    Aligned<float> bias;            // [panels * kPanel]
    Aligned<float> scale;           // [panels * kPanel], of int8
};

// What happens to y: it is stored in fp32; it is added to the y in memory; or its tanh GELU is stored as the input of a
// next layer of the same precision, in fp32 or bf16.
enum class Epilogue { store, add, gelu };

struct PackedLinearCall {
    const PackedLinear* linear;
    const void* x;  // [M, x_row], fp32 or bf16; 0 at K where K is odd and `depth` is K + 1
    int64_t x_row, M;
    void* y;  // [M, y_row]
    int64_t y_row;
    Epilogue epilogue;
};

// The panels [begin, end) of y. y[m, n] = bias[n] + B_0 + B_1 + … in this order, where B_i runs over the 256 inputs
// from k = 256 i on, each a chain of FMAs that starts at 0; in ascending order, but in bf16 the odd one of a pair comes
// before the even one, as in AVX512_BF16. int8: fma(scale[n], B_0 + B_1 + …, bias[n]).
void packed_linear(const PackedLinearCall& call, int64_t begin, int64_t end, Isa isa);

// Converts `count` floats to the inputs of a layer of this precision.
void to_inputs(const float* x, int64_t count, Precision precision, void* inputs);

// y = (x - mean) / sqrt(variance + eps) * weight + bias over `width` channels, the sums in one fixed order, stored as
// the inputs of a layer of this precision.
struct LayerNormCall {
    const float *x, *weight, *bias;
    int64_t width;
    float eps;
};
void layer_norm_row(const LayerNormCall& call, Precision precision, void* y, Isa isa);

// Whether the processor has AVX512_BF16.
bool has_bf16_dot();

}  // namespace bgpt
