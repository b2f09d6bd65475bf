// The tanh GELU of a vector; include it where linear/vec.h is, in a translation unit of one instruction set.
#pragma once

#include "linear/vec.h"

namespace bgpt {
namespace {

// 0.5 x (1 + tanh u) = x / (1 + e^(-2u)) with u = sqrt(2 / pi) (x + 0.044715 x^3).
BGPT_INLINE Vec gelu(Vec x) {
    const Vec cubic = fma(broadcast(0.044715f) * x * x, x, x);
    return x / (broadcast(1.0f) + vexp(broadcast(-1.5957691216057308f) * cubic));
}

}  // namespace
}  // namespace bgpt
