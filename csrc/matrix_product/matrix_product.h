// Products of float32 matrices, for processors on which the library's do not use AVX-512.
// Letters: M rows and N columns of the result, K terms of each sum.
#pragma once

#include <cstdint>

#include "common/cpu.h"

namespace bgpt {

// y [M, N] = a b + bias for a [M, K] and b [K, N], of which each has one stride of 1; bias [N] or null.
struct MatrixProduct {
    const float* a;
    int64_t a_row, a_column;
    const float* b;
    int64_t b_row, b_column;
    const float* bias;
    float* y;  // contiguous; none of the others
    int64_t M, N, K;
};

// The terms of a sum are added in an order that depends on K alone, whatever the number of threads.
void matrix_product(const MatrixProduct& call, int64_t threads, Isa isa);

}  // namespace bgpt
