// y = x W + bias in fp32 with one rounding order for every output element, whatever the number of rows, the blocking,
// the threads or the instruction set. Letters: M rows, K inputs, N outputs.
#pragma once

#include <cstdint>

#include "common/cpu.h"

namespace bgpt {

struct LinearArguments {
    const float* x;       // [M, K], row-major
    const float* weight;  // [K, N], row-major
    const float* bias;    // [N], or null for zeros
    float* y;             // [M, N], row-major
    int64_t M, K, N;
    bool gelu;  // apply the tanh GELU to each element at the end
};

// y[m, n] = bias[n] + B_0 + B_1 + … in this order, where B_i runs over the 256 inputs from k = 256 i on (fewer in the
// last): fma(x[m, k + 255], W[k + 255, n], … fma(x[m, k], W[k, n], 0)). `isa` must be one that the processor has.
void invariant_linear(const LinearArguments& arguments, int64_t threads, Isa isa);

}  // namespace bgpt
