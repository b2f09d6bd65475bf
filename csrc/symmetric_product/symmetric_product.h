// Stacks of matrix products whose results are symmetric: half of each is computed, and the other half copied from it.
// Letters: M matrices, n rows and columns of a result, K terms of each sum.
#pragma once

#include <cstdint>

#include "common/cpu.h"

namespace bgpt {

// out [M, n, n] = alpha A^T B + beta C + diagonal I for A and B [M, K, n], where A^T B is symmetric: A is B, or both
// are symmetric and commute.
struct SymmetricProduct {
    const float *a, *b, *c;  // c [M, n, n], symmetric, or null
    float* out;              // none of the others
    int64_t M, n, K;
    int64_t row_stride, column_stride;  // of a and b, whose matrices are n K apart
    float alpha, beta, diagonal;
};

// Every matrix is computed by one thread.
void symmetric_product(const SymmetricProduct& call, int64_t threads, Isa isa);

}  // namespace bgpt
