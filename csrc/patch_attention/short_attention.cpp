// One sequence and head at a time, in float buffers that fit the first-level cache. Every inner loop runs over keys or
// over channels without a sum across lanes, so that each result has one order of addition. For the usual sizes the sums
// are explicit vectors in registers: the compiler would unroll a loop of 16 floats to scalars before it vectorises.
#include "patch_attention/short_attention.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "common/bf16.h"
#include "common/clones.h"
#include "common/threads.h"

#define BGPT_INLINE inline __attribute__((always_inline))

namespace bgpt {
namespace {

// e^x for x <= 0 within 2 ulp, 0 below -87; branch-free, so that a loop of it vectorises. (Cephes' polynomial.)
BGPT_INLINE float exp_nonpositive(float x) {
    const float clamped = x < -87.0f ? -87.0f : x;
    const float shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum rounds to an integer
    const float n = shifted - 12582912.0f;
    const float r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    // The integer is in the low bits of the sum, NaN or not: a conversion of a NaN would be undefined.
    const int32_t exponent = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(12582912.0f);
    const float scale = std::bit_cast<float>(static_cast<uint32_t>(exponent + 127) << 23);
    return x < -87.0f ? 0.0f : p * scale;
}

struct Buffers {
    std::vector<float> q, k, v, kt, vt, y, dy, dq, dk, dv, weights, dscores;
    Buffers(int64_t S, int64_t d) : weights(S * S), dscores(S * S) {
        for (std::vector<float>* rows : {&q, &k, &v, &kt, &vt, &y, &dy, &dq, &dk, &dv}) rows->resize(S * d);
    }
};

template <class X>
BGPT_INLINE void load(const X* __restrict from, int64_t stride, int64_t S, int64_t d, float* __restrict to,
                      float scale) {
    for (int64_t i = 0; i < S; ++i) {
        for (int64_t c = 0; c < d; ++c) to[i * d + c] = to_float(from[i * stride + c]) * scale;
    }
}

template <class X>
BGPT_INLINE void unload(const float* __restrict from, int64_t stride, int64_t S, int64_t d, X* __restrict to,
                        float scale) {
    for (int64_t i = 0; i < S; ++i) {
        for (int64_t c = 0; c < d; ++c) store(from[i * d + c] * scale, to + i * stride + c);
    }
}

BGPT_INLINE void transpose(const float* __restrict from, int64_t S, int64_t d, float* __restrict to) {
    for (int64_t i = 0; i < S; ++i) {
        for (int64_t c = 0; c < d; ++c) to[c * S + i] = from[i * d + c];
    }
}

template <int64_t kLanes>
struct Lanes {
    typedef float type __attribute__((vector_size(kLanes * sizeof(float))));
};

// out[i, j] = sum over c of x[i, c] xt[c, j].
template <int64_t kS>
BGPT_INLINE void times_transposed(const float* __restrict x, const float* __restrict xt, int64_t S, int64_t d,
                                  float* __restrict out) {
    if constexpr (kS == 0) {
        for (int64_t i = 0; i < S; ++i) {
            float sum[kMaxShortSequence] = {};
            for (int64_t c = 0; c < d; ++c) {
                for (int64_t j = 0; j < S; ++j) sum[j] += x[i * d + c] * xt[c * S + j];
            }
            for (int64_t j = 0; j < S; ++j) out[i * S + j] = sum[j];
        }
    } else {
        using Row = typename Lanes<kS>::type;
        constexpr int64_t rows = 4;  // independent sums, to hide the latency of an addition
        for (int64_t i = 0; i < kS; i += rows) {
            Row sum[rows] = {};
            for (int64_t c = 0; c < d; ++c) {
                Row column;
                std::memcpy(&column, xt + c * kS, sizeof(Row));
                for (int64_t r = 0; r < rows; ++r) sum[r] += x[(i + r) * d + c] * column;
            }
            std::memcpy(out + i * kS, sum, sizeof(sum));
        }
    }
}

// out[c] = sum over j in [begin, end) of w[j * stride] x[j, c].
template <int64_t kD>
BGPT_INLINE void weighted_sum(const float* __restrict w, int64_t stride, const float* __restrict x, int64_t begin,
                              int64_t end, int64_t d, float* __restrict out) {
    if constexpr (kD == 0) {
        for (int64_t c = 0; c < d; ++c) out[c] = 0.0f;
        for (int64_t j = begin; j < end; ++j) {
            for (int64_t c = 0; c < d; ++c) out[c] += w[j * stride] * x[j * d + c];
        }
    } else {
        constexpr int64_t lanes = kD < 16 ? kD : 16, parts = kD / lanes;
        using Part = typename Lanes<lanes>::type;
        Part sum[parts] = {};
        for (int64_t j = begin; j < end; ++j) {
            Part row[parts];
            std::memcpy(row, x + j * kD, sizeof(row));
            for (int64_t part = 0; part < parts; ++part) sum[part] += w[j * stride] * row[part];
        }
        std::memcpy(out, sum, sizeof(sum));
    }
}

// weights[i, j] for all j (0 after i), from scaled q [S, d] and kt [d, S].
template <int64_t kS>
BGPT_INLINE void softmax_weights(const float* __restrict q, const float* __restrict kt, int64_t S_, int64_t d,
                                 float* __restrict weights) {
    const int64_t S = kS ? kS : S_;
    times_transposed<kS>(q, kt, S, d, weights);
    for (int64_t i = 0; i < S; ++i) {
        float* __restrict w = weights + i * S;
        float top = w[0];
        for (int64_t j = 1; j <= i; ++j) top = top < w[j] ? w[j] : top;
        for (int64_t j = 0; j < S; ++j) w[j] = exp_nonpositive(j <= i ? w[j] - top : -100.0f);
        float sum = 0.0f;
        for (int64_t j = 0; j <= i; ++j) sum += w[j];
        const float inverse = 1.0f / sum;
        for (int64_t j = 0; j < S; ++j) w[j] *= inverse;
    }
}

template <int64_t kS, int64_t kD>
BGPT_INLINE void forward(Buffers& b, int64_t S_, int64_t d_) {
    const int64_t S = kS ? kS : S_, d = kD ? kD : d_;
    transpose(b.k.data(), S, d, b.kt.data());
    softmax_weights<kS>(b.q.data(), b.kt.data(), S, d, b.weights.data());
    for (int64_t i = 0; i < S; ++i) {
        weighted_sum<kD>(b.weights.data() + i * S, 1, b.v.data(), 0, i + 1, d, b.y.data() + i * d);
    }
}

template <int64_t kS, int64_t kD>
BGPT_INLINE void backward(Buffers& b, int64_t S_, int64_t d_) {
    const int64_t S = kS ? kS : S_, d = kD ? kD : d_;
    transpose(b.k.data(), S, d, b.kt.data());
    transpose(b.v.data(), S, d, b.vt.data());
    softmax_weights<kS>(b.q.data(), b.kt.data(), S, d, b.weights.data());
    float* __restrict weights = b.weights.data(), * __restrict dscores = b.dscores.data();
    times_transposed<kS>(b.dy.data(), b.vt.data(), S, d, dscores);
    for (int64_t i = 0; i < S; ++i) {
        const float* __restrict w = weights + i * S;
        float* __restrict ds = dscores + i * S;
        float mean = 0.0f;
        for (int64_t j = 0; j <= i; ++j) mean += w[j] * ds[j];
        for (int64_t j = 0; j <= i; ++j) ds[j] = w[j] * (ds[j] - mean);
        weighted_sum<kD>(ds, 1, b.k.data(), 0, i + 1, d, b.dq.data() + i * d);
    }
    for (int64_t j = 0; j < S; ++j) {
        weighted_sum<kD>(dscores + j, S, b.q.data(), j, S, d, b.dk.data() + j * d);
        weighted_sum<kD>(weights + j, S, b.dy.data(), j, S, d, b.dv.data() + j * d);
    }
}

// The paper's patch of 16 bytes and the small models' 8, at their usual head widths, have loops of constant length.
#define BGPT_FOR_SIZES(step)                              \
    if (S == 16 && d == 64) return step<16, 64>(b, S, d); \
    if (S == 16 && d == 16) return step<16, 16>(b, S, d); \
    if (S == 8 && d == 16) return step<8, 16>(b, S, d);   \
    if (S == 8 && d == 8) return step<8, 8>(b, S, d);     \
    return step<0, 0>(b, S, d)

BGPT_INLINE void forward_sizes(Buffers& b, int64_t S, int64_t d) { BGPT_FOR_SIZES(forward); }
BGPT_INLINE void backward_sizes(Buffers& b, int64_t S, int64_t d) { BGPT_FOR_SIZES(backward); }

// One sequence of S rows and one head.
template <class X>
BGPT_INLINE void forward_item(Buffers& b, const QKV<const X>& qkv, X* y, int64_t S, int64_t H, int64_t d) {
    load(qkv.q, qkv.stride, S, d, b.q.data(), 1.0f / std::sqrt(static_cast<float>(d)));
    load(qkv.k, qkv.stride, S, d, b.k.data(), 1.0f);
    load(qkv.v, qkv.stride, S, d, b.v.data(), 1.0f);
    forward_sizes(b, S, d);
    unload(b.y.data(), H * d, S, d, y, 1.0f);
}

template <class X>
BGPT_INLINE void backward_item(Buffers& b, const X* dy, const QKV<const X>& qkv, const QKV<X>& dqkv, int64_t S,
                               int64_t H, int64_t d) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(d));
    load(qkv.q, qkv.stride, S, d, b.q.data(), scale);
    load(qkv.k, qkv.stride, S, d, b.k.data(), 1.0f);
    load(qkv.v, qkv.stride, S, d, b.v.data(), 1.0f);
    load(dy, H * d, S, d, b.dy.data(), 1.0f);
    backward_sizes(b, S, d);
    unload(b.dq.data(), dqkv.stride, S, d, dqkv.q, scale);
    unload(b.dk.data(), dqkv.stride, S, d, dqkv.k, 1.0f);
    unload(b.dv.data(), dqkv.stride, S, d, dqkv.v, 1.0f);
}

// Clones cannot be templates.
#define BGPT_ITEM_CLONES(X)                                                                                        \
    BGPT_CLONES void forward_one(Buffers& b, const QKV<const X>& qkv, X* y, int64_t S, int64_t H, int64_t d) {     \
        forward_item(b, qkv, y, S, H, d);                                                                          \
    }                                                                                                              \
    BGPT_CLONES void backward_one(Buffers& b, const X* dy, const QKV<const X>& qkv, const QKV<X>& dqkv, int64_t S, \
                                  int64_t H, int64_t d) {                                                          \
        backward_item(b, dy, qkv, dqkv, S, H, d);                                                                  \
    }
BGPT_ITEM_CLONES(float)
BGPT_ITEM_CLONES(uint16_t)

// Calls item(buffers, row, channel, S) for each sequence and head, where they start.
template <class Item>
void for_each_item(const Sequences& sequences, int64_t H, int64_t d, int64_t threads, const Item& item) {
    // A thread gets about 50 microseconds of work at least.
    const int64_t length = sequences.length, grain = 1 + 200000 / (length * length * d);
    parallel_for(sequences.count * H, threads, grain, [&](int64_t begin, int64_t end) {
        Buffers buffers(length, d);
        for (int64_t i = begin; i < end; ++i) item(buffers, sequences.start(i / H), i % H * d, sequences.size(i / H));
    });
}

}  // namespace

template <class X>
void short_attention(const QKV<const X>& qkv, X* y, const Sequences& sequences, int64_t H, int64_t d, int64_t threads) {
    for_each_item(sequences, H, d, threads, [&](Buffers& buffers, int64_t row, int64_t channel, int64_t S) {
        forward_one(buffers, qkv.at(row, channel), y + row * H * d + channel, S, H, d);
    });
}

template <class X>
void short_attention_backward(const X* dy, const QKV<const X>& qkv, const QKV<X>& dqkv, const Sequences& sequences,
                              int64_t H, int64_t d, int64_t threads) {
    for_each_item(sequences, H, d, threads, [&](Buffers& buffers, int64_t row, int64_t channel, int64_t S) {
        backward_one(buffers, dy + row * H * d + channel, qkv.at(row, channel), dqkv.at(row, channel), S, H, d);
    });
}

#define BGPT_INSTANTIATE(X)                                                                                         \
    template void short_attention(const QKV<const X>&, X*, const Sequences&, int64_t, int64_t, int64_t);            \
    template void short_attention_backward(const X*, const QKV<const X>&, const QKV<X>&, const Sequences&, int64_t, \
                                           int64_t, int64_t);
BGPT_INSTANTIATE(float)
BGPT_INSTANTIATE(uint16_t)

}  // namespace bgpt
