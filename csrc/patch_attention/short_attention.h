// Causal attention within short sequences, for which a library's tiles would be mostly empty: the bytes of a patch, and
// the patches of a short document.
// Letters: N rows, B sequences, S rows of a sequence, H heads, d channels a head.
#pragma once

#include <cstdint>

namespace bgpt {

constexpr int64_t kMaxShortSequence = 64;

// The rows of B sequences among the N rows: all of one length, or from starts[b] to starts[b + 1].
struct Sequences {
    int64_t count;
    int64_t length;         // of the longest, at most kMaxShortSequence
    const int32_t* starts;  // [B + 1], or null: each has `length` rows

    int64_t start(int64_t b) const { return starts ? starts[b] : b * length; }
    int64_t size(int64_t b) const { return starts ? starts[b + 1] - starts[b] : length; }
};

// Three tensors [N, H, d] whose rows are `stride` apart: q, k and v, or their gradients. X is float, or uint16_t
// holding bf16 (computed in float, rounded once).
template <class X>
struct QKV {
    X *q, *k, *v;
    int64_t stride;

    QKV at(int64_t row, int64_t channel) const {
        const int64_t offset = row * stride + channel;
        return {q + offset, k + offset, v + offset, stride};
    }
};

// y_i = softmax over j <= i of (q_i . k_j / sqrt(d)) times v_j, in each sequence and head; y [N, H, d].
template <class X>
void short_attention(const QKV<const X>& qkv, X* y, const Sequences& sequences, int64_t H, int64_t d, int64_t threads);

// dq, dk and dv of the same from dy [N, H, d]; the weights are computed again.
template <class X>
void short_attention_backward(const X* dy, const QKV<const X>& qkv, const QKV<X>& dqkv, const Sequences& sequences,
                              int64_t H, int64_t d, int64_t threads);

}  // namespace bgpt
