// Cross-entropy of rows of logits, and its gradient: one pass each. X is float, or uint16_t holding bf16.
// Letters: N rows, V tokens. A row's results depend on that row alone and are the same on every instruction set.
#pragma once

#include <cstdint>

#include "common/cpu.h"

namespace bgpt {

// nats[n] = lse[n] - logits[n, targets[n]] with lse = log sum exp of the row; logits [N, V], targets [N] in 0 ... V
// - 1.
template <class X>
void cross_entropy(const X* logits, const int64_t* targets, float* nats, float* lse, int64_t N, int64_t V,
                   int64_t threads, Isa isa);

// dlogits = (softmax - onehot) dnats, [N, V].
template <class X>
void cross_entropy_backward(const X* logits, const int64_t* targets, const float* dnats, X* dlogits, int64_t N,
                            int64_t V, int64_t threads, Isa isa);

}  // namespace bgpt
