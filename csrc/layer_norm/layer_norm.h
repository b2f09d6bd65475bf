// LayerNorm of rows, of a residual sum too, and its gradient, in fp32 for rows of float or bf16: one pass over memory
// each. Letters: N rows, D width.
#pragma once

#include <cstdint>

#include "common/cpu.h"

namespace bgpt {

constexpr int64_t kLayerNormRows = 64;  // rows of a partial sum of the weights' gradients: part of the result

// total = residual + x, rounded; y = (total - mean) rstd weight + bias. Without x, total is the residual and not
// written. Of the dtypes that are float or bf16 (in uint16_t), x and y share one, residual and total another.
// Sums run in one order, so a row is the same among any rows, on any number of threads and every instruction set.
struct LayerNormForward {
    const void *x, *residual;  // [N, D]; x may be null
    void *total, *y;           // [N, D]
    const float *weight, *bias;
    float *mean, *rstd;  // [N]
    int64_t N, D;
    float eps;
    bool is_y_bf16, is_total_bf16;
};
void layer_norm_forward(const LayerNormForward& call, int64_t threads, Isa isa);

// The gradients dtotal of the total, dweight and dbias [D], from dy, of y's dtype; `addend`, of total's dtype, may be
// null and is added to dtotal. dx is dtotal in y's dtype, and dtotal_sum [D] its sum over rows, where they are not
// null. dweight, dbias and dtotal_sum are summed in an order that depends on N alone.
struct LayerNormBackward {
    const void *dy, *addend, *total;  // [N, D]
    void *dtotal, *dx;                // [N, D]
    const float *weight, *mean, *rstd;
    float *dweight, *dbias, *dtotal_sum;
    int64_t N, D;
    bool is_y_bf16, is_total_bf16;
};
void layer_norm_backward(const LayerNormBackward& call, int64_t threads, Isa isa);

}  // namespace bgpt
