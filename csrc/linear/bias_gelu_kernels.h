// The body of bias_gelu for one instruction set; the including file sets BGPT_VEC.
#pragma once

#include <algorithm>

#include "linear/bias_gelu.h"
#include "linear/gelu.h"

namespace bgpt {
namespace {

// With s = 1 / (1 + e^(-2u)), u as in gelu: s + z s (1 - s) 2u'. Beyond +-16 it is 1 or 0, NaN for an infinite z; no
// e^(-2u) of more than e^80, where s would vanish and 1 - s = e^(-2u) s with it.
BGPT_INLINE Vec gelu_slope(Vec z) {
    const Vec high = broadcast(16.0f), low = broadcast(-16.0f), most = broadcast(80.0f);
    const Vec x = where_greater(low, z, low, where_greater(z, high, high, z)), square = x * x;
    const Vec power = broadcast(-1.5957691216057308f) * fma(broadcast(0.044715f) * square, x, x);
    const Vec e = vexp(where_greater(power, most, most, power));
    const Vec s = broadcast(1.0f) / (broadcast(1.0f) + e);
    const Vec inner = broadcast(1.5957691216057308f) * fma(broadcast(0.134145f), square, broadcast(1.0f));
    return fma(x * inner, e * s * s, s) + (z - z);
}

BGPT_TARGET void gelu_row(const float* x, const float* bias, float* y, int64_t F) {
    int64_t f = 0;
    for (; f + Vec::width <= F; f += Vec::width) store(y + f, gelu(load(x + f) + load(bias + f)));
    if (f < F) store(y + f, gelu(load(x + f, F - f) + load(bias + f, F - f)), F - f);
}

BGPT_TARGET void gelu_backward_row(const float* dy, const float* x, const float* bias, float* dx, float* sums,
                                   int64_t F) {
    int64_t f = 0;
    for (; f + Vec::width <= F; f += Vec::width) {
        const Vec slope = load(dy + f) * gelu_slope(load(x + f) + load(bias + f));
        store(dx + f, slope);
        store(sums + f, load(sums + f) + slope);
    }
    if (f < F) {
        const int64_t left = F - f;
        const Vec slope = load(dy + f, left) * gelu_slope(load(x + f, left) + load(bias + f, left));
        store(dx + f, slope, left);
        store(sums + f, load(sums + f, left) + slope, left);
    }
}

}  // namespace
}  // namespace bgpt
