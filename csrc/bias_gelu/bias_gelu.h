// y = GELU(x + bias) by its tanh formula in fp32, and its gradient: one pass each. X is float, or uint16_t holding
// bf16. Letters: N rows, F features.
#pragma once

#include <cstdint>

#include "common/cpu.h"

namespace bgpt {

constexpr int64_t kBiasGeluRows = 64;  // rows of a partial sum of the bias's gradient: part of the result

// x, y [N, F], bias [F]. An element depends on its x and bias alone, and is the same on every instruction set.
template <class X>
void bias_gelu(const X* x, const float* bias, X* y, int64_t N, int64_t F, int64_t threads, Isa isa);

// dx = dy GELU'(x + bias) and y, as bias_gelu's, both [N, F]; dbias [F], dx summed over the rows in an order that
// depends on N alone.
template <class X>
void bias_gelu_backward(const X* dy, const X* x, const float* bias, X* dx, X* y, float* dbias, int64_t N, int64_t F,
                        int64_t threads, Isa isa);

}  // namespace bgpt
