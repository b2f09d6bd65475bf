// One sequence and head at a time, in float buffers that fit the first-level cache. Scores lie transposed, a row a key
// and a lane a query, so that the softmax of eight queries is computed at once. No sum runs across lanes: each result
// has one order of addition, whatever the vectors' width. The vectors are explicit, and the ends of rows and columns
// are padded to them; what is computed in the padding is never read.
#include "patch_attention/short_attention.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "common/bf16.h"
#include "common/clones.h"
#include "common/threads.h"

#define BGPT_INLINE inline __attribute__((always_inline))

// Vectors are passed between functions that are always inlined alone, so no calling convention is concerned.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace bgpt {
namespace {

constexpr int64_t kLanes = 8;
typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef uint32_t Words __attribute__((vector_size(kLanes * sizeof(uint32_t))));

BGPT_INLINE int64_t padded(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

BGPT_INLINE Floats load_lanes(const float* from) {
    Floats x;
    std::memcpy(&x, from, sizeof x);
    return x;
}
BGPT_INLINE void store_lanes(const Floats& x, float* to) { std::memcpy(to, &x, sizeof x); }

// e^x for x <= 0 within 2 ulp, 0 below -87. (Cephes' polynomial.)
BGPT_INLINE Floats exp_nonpositive(const Floats& x) {
    const Floats zero = {};
    const Floats clamped = x < -87.0f ? zero - 87.0f : x;
    const Floats shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum rounds to an integer
    const Floats n = shifted - 12582912.0f;
    const Floats r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
    Floats p = zero + 1.9875691500e-4f;
    for (const float coefficient :
         {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) {
        p = p * r + coefficient;
    }
    p = p * r * r + r + 1.0f;
    // The integer is in the low bits of the sum, NaN or not; 0x4b400000 are the bits of 1.5 * 2^23.
    const Words power = (reinterpret_cast<Words>(shifted) - 0x4b400000u + 127u) << 23;
    return x < -87.0f ? zero : p * reinterpret_cast<Floats>(power);
}

// Rows [S, d] have `width` floats each, square buffers `length` floats a row: both multiples of the lanes.
struct Buffers {
    int64_t width, length;
    std::vector<float> q, k, v, qt, dyt, y, dy, dq, dk, dv, weights, dscores;
    Buffers(int64_t S, int64_t d) : width(padded(d)), length(padded(S)) {
        for (std::vector<float>* rows : {&q, &k, &v, &qt, &dyt, &y, &dy, &dq, &dk, &dv}) rows->resize(length * width);
        for (std::vector<float>* square : {&weights, &dscores}) square->resize(length * length);
    }
};

template <class X>
BGPT_INLINE void load_rows(const X* __restrict from, int64_t stride, int64_t S, int64_t d, int64_t width,
                           float* __restrict to, float scale) {
    for (int64_t i = 0; i < S; ++i) {
        int64_t c = 0;
        for (; c + kLanes <= d; c += kLanes) {
            for (int64_t lane = 0; lane < kLanes; ++lane) {
                to[i * width + c + lane] = to_float(from[i * stride + c + lane]) * scale;
            }
        }
        for (; c < d; ++c) to[i * width + c] = to_float(from[i * stride + c]) * scale;
    }
}

template <class X>
BGPT_INLINE void store_rows(const float* __restrict from, int64_t width, int64_t stride, int64_t S, int64_t d,
                            X* __restrict to, float scale) {
    for (int64_t i = 0; i < S; ++i) {
        int64_t c = 0;
        for (; c + kLanes <= d; c += kLanes) {
            for (int64_t lane = 0; lane < kLanes; ++lane) {
                store(from[i * width + c + lane] * scale, to + i * stride + c + lane);
            }
        }
        for (; c < d; ++c) store(from[i * width + c] * scale, to + i * stride + c);
    }
}

// Exchanges what is beside the diagonal of each 2 x 2 square of kStep x kStep lanes in eight rows.
template <int64_t kStep>
BGPT_INLINE void exchange(Floats (&rows)[kLanes]) {
    for (int64_t i = 0; i < kLanes; ++i) {
        if (i & kStep) continue;
        const Floats a = rows[i], b = rows[i + kStep];
        if constexpr (kStep == 1) {
            rows[i] = __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14);
            rows[i + kStep] = __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
        } else if constexpr (kStep == 2) {
            rows[i] = __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
            rows[i + kStep] = __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
        } else {
            static_assert(kStep == 4);
            rows[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
            rows[i + kStep] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
        }
    }
}

// to [width, length] = from [length, width] transposed.
BGPT_INLINE void transpose(const float* __restrict from, int64_t length, int64_t width, float* __restrict to) {
    for (int64_t i = 0; i < length; i += kLanes) {
        for (int64_t c = 0; c < width; c += kLanes) {
            Floats rows[kLanes];
            for (int64_t r = 0; r < kLanes; ++r) rows[r] = load_lanes(from + (i + r) * width + c);
            exchange<1>(rows);
            exchange<2>(rows);
            exchange<4>(rows);
            for (int64_t r = 0; r < kLanes; ++r) store_lanes(rows[r], to + (c + r) * length + i);
        }
    }
}

// out[j, i] = sum over c of x[j, c] xt[c, i], in the squares of eight that have an i >= j.
BGPT_INLINE void times_transposed(const float* __restrict x, const float* __restrict xt, int64_t length, int64_t width,
                                  int64_t d, float* __restrict out) {
    for (int64_t j = 0; j < length; j += kLanes) {
        for (int64_t i = j; i < length; i += kLanes) {
            Floats sums[kLanes] = {};
            for (int64_t c = 0; c < d; ++c) {
                const Floats column = load_lanes(xt + c * length + i);
                for (int64_t r = 0; r < kLanes; ++r) sums[r] += x[(j + r) * width + c] * column;
            }
            for (int64_t r = 0; r < kLanes; ++r) store_lanes(sums[r], out + (j + r) * length + i);
        }
    }
}

// out = the sum over n in [begin, end) of w[n * stride] times row n of x, kParts vectors of it.
template <int64_t kParts>
BGPT_INLINE void weighted_parts(const float* __restrict w, int64_t stride, const float* __restrict x, int64_t begin,
                                int64_t end, int64_t width, float* __restrict out) {
    Floats sums[kParts] = {};
    for (int64_t n = begin; n < end; ++n) {
        for (int64_t part = 0; part < kParts; ++part) {
            sums[part] += w[n * stride] * load_lanes(x + n * width + part * kLanes);
        }
    }
    for (int64_t part = 0; part < kParts; ++part) store_lanes(sums[part], out + part * kLanes);
}

BGPT_INLINE void weighted_sum(const float* __restrict w, int64_t stride, const float* __restrict x, int64_t begin,
                              int64_t end, int64_t width, float* __restrict out) {
    int64_t c = 0;
    for (; c + 4 * kLanes <= width; c += 4 * kLanes) {
        weighted_parts<4>(w, stride, x + c, begin, end, width, out + c);
    }
    for (; c + 2 * kLanes <= width; c += 2 * kLanes) {
        weighted_parts<2>(w, stride, x + c, begin, end, width, out + c);
    }
    if (c < width) weighted_parts<1>(w, stride, x + c, begin, end, width, out + c);
}

// -1 in the lanes of queries i, i + 1, ... that may see key j.
BGPT_INLINE Ints sees(int64_t i, int64_t j) {
    const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7};
    return lane >= static_cast<int32_t>(j - i);
}

// Turns the scores [keys, queries] of S keys into weights, 0 for keys after the query in its square of eight.
BGPT_INLINE void softmax_columns(float* __restrict weights, int64_t S, int64_t length) {
    const Floats zero = {};
    for (int64_t i = 0; i < length; i += kLanes) {
        const int64_t keys = S < i + kLanes ? S : i + kLanes;
        Floats top = load_lanes(weights + i);
        for (int64_t j = 1; j < keys; ++j) {
            const Floats score = load_lanes(weights + j * length + i);
            top = (sees(i, j) & (top < score)) ? score : top;
        }
        Floats sum = zero;
        for (int64_t j = 0; j < keys; ++j) {
            const Floats score = load_lanes(weights + j * length + i);
            const Floats weight = exp_nonpositive(sees(i, j) ? score - top : zero - 100.0f);
            store_lanes(weight, weights + j * length + i);
            sum += weight;
        }
        const Floats inverse = 1.0f / sum;
        for (int64_t j = 0; j < keys; ++j) {
            store_lanes(load_lanes(weights + j * length + i) * inverse, weights + j * length + i);
        }
    }
}

// The gradient of the scores, in dscores, from the gradient of the weights there.
BGPT_INLINE void softmax_columns_backward(const float* __restrict weights, float* __restrict dscores, int64_t S,
                                          int64_t length) {
    const Floats zero = {};
    for (int64_t i = 0; i < length; i += kLanes) {
        const int64_t keys = S < i + kLanes ? S : i + kLanes;
        Floats mean = zero;
        for (int64_t j = 0; j < keys; ++j) {
            const Floats product = load_lanes(weights + j * length + i) * load_lanes(dscores + j * length + i);
            mean += sees(i, j) ? product : zero;
        }
        for (int64_t j = 0; j < keys; ++j) {
            const Floats slope = load_lanes(dscores + j * length + i) - mean;
            store_lanes(load_lanes(weights + j * length + i) * slope, dscores + j * length + i);
        }
    }
}

// weights [keys, queries] from the scaled q and k.
BGPT_INLINE void attention_weights(Buffers& b, int64_t S, int64_t length, int64_t d) {
    transpose(b.q.data(), length, b.width, b.qt.data());
    times_transposed(b.k.data(), b.qt.data(), length, b.width, d, b.weights.data());
    softmax_columns(b.weights.data(), S, length);
}

BGPT_INLINE void forward(Buffers& b, int64_t S, int64_t d) {
    const int64_t length = padded(S), width = b.width;
    attention_weights(b, S, length, d);
    for (int64_t i = 0; i < S; ++i) {
        weighted_sum(b.weights.data() + i, length, b.v.data(), 0, i + 1, width, b.y.data() + i * width);
    }
}

BGPT_INLINE void backward(Buffers& b, int64_t S, int64_t d) {
    const int64_t length = padded(S), width = b.width;
    attention_weights(b, S, length, d);
    transpose(b.dy.data(), length, width, b.dyt.data());
    times_transposed(b.v.data(), b.dyt.data(), length, width, d, b.dscores.data());
    softmax_columns_backward(b.weights.data(), b.dscores.data(), S, length);
    for (int64_t i = 0; i < S; ++i) {
        weighted_sum(b.dscores.data() + i, length, b.k.data(), 0, i + 1, width, b.dq.data() + i * width);
    }
    for (int64_t j = 0; j < S; ++j) {
        weighted_sum(b.dscores.data() + j * length, 1, b.q.data(), j, S, width, b.dk.data() + j * width);
        weighted_sum(b.weights.data() + j * length, 1, b.dy.data(), j, S, width, b.dv.data() + j * width);
    }
}

// One sequence of S rows and one head.
template <class X>
BGPT_INLINE void forward_item(Buffers& b, const QKV<const X>& qkv, X* y, int64_t S, int64_t H, int64_t d) {
    load_rows(qkv.q, qkv.stride, S, d, b.width, b.q.data(), 1.0f / std::sqrt(static_cast<float>(d)));
    load_rows(qkv.k, qkv.stride, S, d, b.width, b.k.data(), 1.0f);
    load_rows(qkv.v, qkv.stride, S, d, b.width, b.v.data(), 1.0f);
    forward(b, S, d);
    store_rows(b.y.data(), b.width, H * d, S, d, y, 1.0f);
}

template <class X>
BGPT_INLINE void backward_item(Buffers& b, const X* dy, const QKV<const X>& qkv, const QKV<X>& dqkv, int64_t S,
                               int64_t H, int64_t d) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(d));
    load_rows(qkv.q, qkv.stride, S, d, b.width, b.q.data(), scale);
    load_rows(qkv.k, qkv.stride, S, d, b.width, b.k.data(), 1.0f);
    load_rows(qkv.v, qkv.stride, S, d, b.width, b.v.data(), 1.0f);
    load_rows(dy, H * d, S, d, b.width, b.dy.data(), 1.0f);
    backward(b, S, d);
    store_rows(b.dq.data(), b.width, dqkv.stride, S, d, dqkv.q, scale);
    store_rows(b.dk.data(), b.width, dqkv.stride, S, d, dqkv.k, 1.0f);
    store_rows(b.dv.data(), b.width, dqkv.stride, S, d, dqkv.v, 1.0f);
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
