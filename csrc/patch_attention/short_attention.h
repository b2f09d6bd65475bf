// Causal attention within short sequences, whose tiles in a library would be mostly empty: the bytes of a patch, and
// the patches of a short document. Shape letters: N rows, B sequences, L rows of a sequence, H heads, d channels a
// head.
#pragma once

#include <cstdint>

namespace bgpt {

constexpr int64_t kMaxShortSequence = 64;

// Where B sequences lie in their N rows: all of one length, or from starts[b] to starts[b + 1].
struct Sequences {
    int64_t count;
    int64_t length;         // of the longest, at most kMaxShortSequence
    const int32_t* starts;  // [B + 1], or null: each is `length` rows long

    int64_t start(int64_t b) const { return starts ? starts[b] : b * length; }
    int64_t size(int64_t b) const { return starts ? starts[b + 1] - starts[b] : length; }
};

// y_i = softmax over j <= i of (q_i . k_j / sqrt(d)) times v_j, in each sequence and head. q, k, v: rows `stride`
// apart, [H, d] in a row; y [N, H, d]. X is float, or uint16_t holding bf16 (computed in float, rounded once).
template <class X>
void short_attention(const X* q, const X* k, const X* v, int64_t stride, X* y, const Sequences& sequences, int64_t H,
                     int64_t d, int64_t threads);

// dq, dk, dv of the same from dy [N, H, d], their rows `dstride` apart; the weights are computed again.
template <class X>
void short_attention_backward(const X* dy, const X* q, const X* k, const X* v, int64_t stride, X* dq, X* dk, X* dv,
                              int64_t dstride, const Sequences& sequences, int64_t H, int64_t d, int64_t threads);

}  // namespace bgpt
