// The body of cached_attention for one instruction set; included by common/each_isa.h.
//
// For one token and head: each score is a chain of FMAs over the channels in ascending order; the softmax subtracts the
// largest score; its sum is SUMS sums over the keys j = i (mod SUMS) in ascending order, added in a fixed tree; each
// output channel is a chain of FMAs over the keys in ascending order, divided by that sum.
namespace bgpt::BGPT_ISA {
namespace {

constexpr int64_t BLOCK = 4;  // vectors whose chains run side by side, to cover the latency of an FMA
// Vectors of keys whose scores stay in registers, so that a channel's keys are read in long runs.
constexpr int64_t KEY_BLOCK = BGPT_VEC == 2 ? 16 : 8;

// scores[0 … keys) = scale * (query . keys), for VECTORS vectors of neighbouring keys.
template <int VECTORS, class K>
BGPT_TARGET void dot_block(const float* query, const K* keys, int64_t d, int64_t L, float scale, float* scores) {
    Vec sums[VECTORS];
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) sums[v] = broadcast(0.0f);
    for (int64_t i = 0; i < d; ++i) {
        const Vec factor = broadcast(query[i]);
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; ++v) sums[v] = fma(factor, load(keys + i * L + v * Vec::width), sums[v]);
    }
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) store(scores + v * Vec::width, broadcast(scale) * sums[v]);
}

template <class K>
BGPT_TARGET void dot(const float* query, const K* keys, int64_t d, int64_t L, int64_t count, float* scores) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(d));
    int64_t j = 0;
    for (; j + KEY_BLOCK * Vec::width <= count; j += KEY_BLOCK * Vec::width) {
        dot_block<KEY_BLOCK>(query, keys + j, d, L, scale, scores + j);
    }
    for (; j + BLOCK * Vec::width <= count; j += BLOCK * Vec::width) {
        dot_block<BLOCK>(query, keys + j, d, L, scale, scores + j);
    }
    for (; j + Vec::width <= count; j += Vec::width) dot_block<1>(query, keys + j, d, L, scale, scores + j);
    if (j < count) {
        Vec sum = broadcast(0.0f);
        for (int64_t i = 0; i < d; ++i) sum = fma(broadcast(query[i]), load(keys + i * L + j, count - j), sum);
        store(scores + j, broadcast(scale) * sum, count - j);
    }
}

// scores[j] = e^(scores[j] - largest) for j in [0, padded), a multiple of SUMS; returns their sum.
BGPT_TARGET float exponentiate(float* scores, int64_t padded) {
    Vec largest = load(scores);
    for (int64_t j = Vec::width; j < padded; j += Vec::width) {
        const Vec score = load(scores + j);
        largest = where_greater(score, largest, score, largest);
    }
    float lanes[Vec::width];
    store(lanes, largest);
    const Vec shift = broadcast(*std::max_element(lanes, lanes + Vec::width));
    Vec sums[SUMS / Vec::width];
    for (Vec& sum : sums) sum = broadcast(0.0f);
    for (int64_t j = 0; j < padded; j += SUMS) {
        for (int64_t v = 0; v < SUMS / Vec::width; ++v) {
            float* at = scores + j + v * Vec::width;
            const Vec weight = vexp(load(at) - shift);
            store(at, weight);
            sums[v] = sums[v] + weight;
        }
    }
    return tree_sum(sums);
}

template <int VECTORS, class V>
BGPT_TARGET void weighted_sum_block(const float* weights, const V* values, int64_t d, int64_t count, float sum,
                                    float* y) {
    Vec sums[VECTORS];
    for (int v = 0; v < VECTORS; ++v) sums[v] = broadcast(0.0f);
    for (int64_t j = 0; j < count; ++j) {
        const Vec factor = broadcast(weights[j]);
        for (int v = 0; v < VECTORS; ++v) sums[v] = fma(factor, load(values + j * d + v * Vec::width), sums[v]);
    }
    for (int v = 0; v < VECTORS; ++v) store(y + v * Vec::width, sums[v] / broadcast(sum));
}

template <class V>
BGPT_TARGET void weighted_sum(const float* weights, const V* values, int64_t d, int64_t count, float sum, float* y) {
    int64_t i = 0;
    for (; i + BLOCK * Vec::width <= d; i += BLOCK * Vec::width) {
        weighted_sum_block<BLOCK>(weights, values + i, d, count, sum, y + i);
    }
    for (; i + Vec::width <= d; i += Vec::width) weighted_sum_block<1>(weights, values + i, d, count, sum, y + i);
    if (i < d) {
        Vec total = broadcast(0.0f);
        for (int64_t j = 0; j < count; ++j) total = fma(broadcast(weights[j]), load(values + j * d + i, d - i), total);
        store(y + i, total / broadcast(sum), d - i);
    }
}

template <class T>
BGPT_TARGET void attend_over(const CachedAttention& a, int64_t h, int64_t begin, int64_t end) {
    std::vector<float> scores((a.L + SUMS - 1) / SUMS * SUMS);
    for (int64_t t = begin; t < end; ++t) {
        const int64_t head = a.slots[t] * a.H + h, count = a.positions[t] + 1;
        const int64_t padded = (count + SUMS - 1) / SUMS * SUMS;
        dot(a.qkv + (t * 3 * a.H + h) * a.d, static_cast<const T*>(a.keys) + head * a.d * a.L, a.d, a.L, count,
            scores.data());
        std::fill(scores.data() + count, scores.data() + padded, -INFINITY);
        const float sum = exponentiate(scores.data(), padded);
        weighted_sum(scores.data(), static_cast<const T*>(a.values) + head * a.L * a.d, a.d, count, sum,
                     a.y + (t * a.H + h) * a.d);
    }
}

BGPT_TARGET void attend_tokens(const CachedAttention& a, int64_t h, int64_t begin, int64_t end) {
    a.bf16 ? attend_over<uint16_t>(a, h, begin, end) : attend_over<float>(a, h, begin, end);
}

}  // namespace
}  // namespace bgpt::BGPT_ISA
