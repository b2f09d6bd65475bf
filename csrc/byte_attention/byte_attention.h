// Causal attention within each patch of S bytes: sequences so short that a library's tiles are mostly empty.
// Shape letters: T patches, S bytes a patch, H heads, d channels a head.
#pragma once

#include <cstdint>

namespace bgpt {

constexpr int64_t kMaxPatchBytes = 64;
constexpr int64_t kMaxHeadWidth = 256;

// y[t, i, h] = softmax over j <= i of (q_i . k_j / sqrt(d)) times v_j. qkv [T, S, 3, H, d], y [T, S, H, d];
// X is float, or uint16_t holding bf16 (computed in float, rounded once). S <= kMaxPatchBytes, d <= kMaxHeadWidth.
template <class X>
void byte_attention(const X* qkv, X* y, int64_t T, int64_t S, int64_t H, int64_t d, int64_t threads);

// dqkv of the same, from dy [T, S, H, d]; the weights are computed again.
template <class X>
void byte_attention_backward(const X* dy, const X* qkv, X* dqkv, int64_t T, int64_t S, int64_t H, int64_t d,
                             int64_t threads);

}  // namespace bgpt
