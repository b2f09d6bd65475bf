// The body of packed_linear for one instruction set; the including file sets BGPT_VEC, and BGPT_BF16_DOT for
// AVX512_BF16. Tiles of ROWS x VECTORS vectors of sums stay in registers for a block of kLinks inputs; a panel's block
// stays in the first-level cache for kChunkRows rows. Every tile does the same to each of its elements.
#pragma once

#include <algorithm>
#include <cmath>

#include "common/bf16.h"
#include "linear/gelu.h"
#include "linear/packed_linear.h"
#include "linear/vec.h"

#ifdef BGPT_BF16_DOT
#define BGPT_DOT_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#else
#define BGPT_DOT_TARGET BGPT_TARGET
#endif
#define BGPT_DOT_INLINE BGPT_DOT_TARGET __attribute__((always_inline)) inline

namespace bgpt {
namespace {

#if BGPT_VEC == 2
constexpr int64_t ROWS = 8, VECTORS = 3;
#elif BGPT_VEC == 1
constexpr int64_t ROWS = 4, VECTORS = 2;
#else
constexpr int64_t ROWS = 4, VECTORS = 1;
#endif
constexpr int64_t COLUMNS = VECTORS * Vec::width;
static_assert(kPanel % COLUMNS == 0);

// One link of fp32.
struct Float32 {
    using Input = float;
    using Stored = float;
    static constexpr int64_t step = 1;
    struct Weight {
        Vec v;
    };
    struct Factor {
        Vec v;
    };
    BGPT_DOT_INLINE static Weight weight(const float* p) { return {load(p)}; }
    BGPT_DOT_INLINE static Factor factor(const float* p) { return {broadcast(*p)}; }
    BGPT_DOT_INLINE static Vec add(Vec sum, Factor x, Weight w) { return fma(x.v, w.v, sum); }
};

// A pair of links of bf16: the odd one first.
struct Bf16 {
    using Input = uint16_t;
    using Stored = uint16_t;
    static constexpr int64_t step = 2;
#if defined(BGPT_BF16_DOT)
    struct Weight {
        __m512bh v;
    };
    using Factor = Weight;
    BGPT_DOT_INLINE static Weight weight(const uint16_t* p) {
        return {reinterpret_cast<__m512bh>(_mm512_loadu_si512(p))};
    }
    BGPT_DOT_INLINE static Factor factor(const uint16_t* p) {
        int32_t pair;
        std::memcpy(&pair, p, sizeof pair);
        return {reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair))};
    }
    BGPT_DOT_INLINE static Vec add(Vec sum, Factor x, Weight w) { return {_mm512_dpbf16_ps(sum.v, x.v, w.v)}; }
#else
    struct Weight {
        Vec odd, even;
    };
    using Factor = Weight;
    BGPT_DOT_INLINE static Weight weight(const uint16_t* p) {
#if BGPT_VEC == 2
        const __m512i pairs = _mm512_loadu_si512(p);
        return {{_mm512_castsi512_ps(_mm512_maskz_and_epi32(0xffff, pairs, _mm512_set1_epi32(-65536)))},
                {_mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, pairs, 16))}};
#elif BGPT_VEC == 1
        const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        return {{_mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-65536)))},
                {_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16))}};
#else
        return {for_each_lane([=](int64_t i) { return to_float(p[2 * i + 1]); }),
                for_each_lane([=](int64_t i) { return to_float(p[2 * i]); })};
#endif
    }
    BGPT_DOT_INLINE static Factor factor(const uint16_t* p) {
        return {broadcast(to_float(p[1])), broadcast(to_float(p[0]))};
    }
    BGPT_DOT_INLINE static Vec add(Vec sum, Factor x, Weight w) { return fma(x.even, w.even, fma(x.odd, w.odd, sum)); }
#endif
};

#if defined(BGPT_BF16_DOT)
// The same of eight-bit weights, which bf16 holds exactly.
struct Int8 : Bf16 {
    using Stored = int8_t;
    BGPT_DOT_INLINE static __m512 half(const int8_t* p) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return _mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, bytes));
    }
    BGPT_DOT_INLINE static Weight weight(const int8_t* p) { return {_mm512_cvtne2ps_pbh(half(p + 16), half(p))}; }
};
#endif

constexpr int64_t AHEAD = 2048;  // bytes: further than the processor looks by itself, which stops at a page's end

// Weights that come next, to be fetched from memory bit by bit while the processor multiplies: `per_link` bytes for
// each link. Without, the first rows of a block wait for it, and the others find it in the cache.
struct Next {
    const char* at;
    int64_t per_link;
};

// Adds a block of `links` links to R rows of COLUMNS sums, kPanel apart.
template <class Type, int R>
BGPT_DOT_TARGET void panel_tile(const typename Type::Input* x, int64_t x_row, const typename Type::Stored* w,
                                int64_t links, float* y, Next next) {
    Vec sums[R][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sums[r][v] = broadcast(0.0f);
    }
    for (int64_t k = 0; k < links; k += Type::step) {
        if constexpr (R <= 2) {
            const char* ahead = reinterpret_cast<const char*>(w + k * kPanel) + AHEAD;
            const int64_t width = COLUMNS * Type::step * static_cast<int64_t>(sizeof(typename Type::Stored));
            for (int64_t line = 0; line < width; line += 64) __builtin_prefetch(ahead + line);
        }
        if constexpr (R == ROWS) __builtin_prefetch(next.at + k * next.per_link, 0, 2);
        typename Type::Weight weights[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) weights[v] = Type::weight(w + k * kPanel + v * Vec::width * Type::step);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const typename Type::Factor factor = Type::factor(x + r * x_row + k);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) sums[r][v] = Type::add(sums[r][v], factor, weights[v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            float* at = y + r * kPanel + v * Vec::width;
            store(at, load(at) + sums[r][v]);
        }
    }
}

template <class Type, int R>
BGPT_DOT_TARGET void panel_rows(const typename Type::Input* x, int64_t x_row, int64_t rows,
                                const typename Type::Stored* w, int64_t links, float* y, Next next) {
    for (; rows >= R; rows -= R, x += R * x_row, y += R * kPanel) {
        for (int64_t n = 0; n < kPanel; n += COLUMNS) {
            panel_tile<Type, R>(x, x_row, w + n * Type::step, links, y + n, next);
            next.at += links * next.per_link;
        }
    }
    if constexpr (R > 1) {
        if (rows > 0) panel_rows<Type, R - 1>(x, x_row, rows, w, links, y, next);
    }
}

// Eight-bit weights to bf16, once for many rows.
BGPT_DOT_TARGET void widen(const int8_t* w, int64_t count, uint16_t* out) {
    int64_t i = 0;
#if defined(BGPT_BF16_DOT)
    for (; i + 32 <= count; i += 32) {
        _mm512_storeu_si512(out + i, reinterpret_cast<__m512i>(Int8::weight(w + i).v));
    }
#endif
    for (; i < count; ++i) bgpt::store(static_cast<float>(w[i]), out + i);
}

BGPT_DOT_TARGET void finish_rows(const PackedCall& call, int64_t m, int64_t rows, int64_t panel, const float* sums) {
    const PackedLinear& a = *call.linear;
    const int64_t first = panel * kPanel, columns = std::min(kPanel, a.N - first);
    for (int64_t r = 0; r < rows; ++r, sums += kPanel) {
        const int64_t at = (m + r) * call.y_row + first;
        for (int64_t n = 0; n < columns; n += Vec::width) {
            const int64_t count = std::min(Vec::width, columns - n);
            Vec y = load(sums + n);
            if (a.precision == Precision::int8) {
                y = fma(load(a.scale.get() + first + n), y, load(a.bias.get() + first + n));
            }
            if (call.finish == Finish::add) y = load(static_cast<const float*>(call.y) + at + n, count) + y;
            if (call.finish != Finish::gelu) {
                store(static_cast<float*>(call.y) + at + n, y, count);
                continue;
            }
            y = gelu(y);
            if (a.precision == Precision::float32) {
                store(static_cast<float*>(call.y) + at + n, y, count);
                continue;
            }
            uint16_t* out = static_cast<uint16_t*>(call.y) + at + n;
#if defined(BGPT_BF16_DOT)
            _mm256_mask_storeu_epi16(out, first_lanes(count), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(y.v)));
#else
            float lanes[Vec::width];
            store(lanes, y);
            for (int64_t i = 0; i < count; ++i) bgpt::store(lanes[i], out + i);
#endif
        }
    }
}

template <class Type>
BGPT_DOT_TARGET void panels(const PackedCall& call, int64_t begin, int64_t end) {
    using Input = typename Type::Input;
    const PackedLinear& a = *call.linear;
    const bool eight = a.precision == Precision::int8;
    alignas(64) float sums[kChunkRows * kPanel];
    alignas(64) Input wide[Type::step == 2 ? kLinks * kPanel : 1];
    for (int64_t panel = begin; panel < end; ++panel) {
        for (int64_t m = 0; m < call.M; m += kChunkRows) {
            const int64_t rows = std::min(kChunkRows, call.M - m);
            for (int64_t r = 0; r < rows; ++r) {
                if (eight) {
                    std::fill_n(sums + r * kPanel, kPanel, 0.0f);
                } else {
                    std::copy_n(a.bias.get() + panel * kPanel, kPanel, sums + r * kPanel);
                }
            }
            const Input* x = static_cast<const Input*>(call.x) + m * call.x_row;
            for (int64_t k = 0; k < a.links; k += kLinks) {
                const int64_t links = std::min(kLinks, a.links - k), at = (panel * a.links + k) * kPanel;
                const Input* w = reinterpret_cast<const Input*>(a.weight.get()) + at;
                // The block behind this one, in equal parts for each tile. Few rows are over before it could come.
                const int64_t size = eight ? 1 : static_cast<int64_t>(sizeof(Input)),
                              tiles = rows / ROWS * (kPanel / COLUMNS);
                Next next = {reinterpret_cast<const char*>(a.weight.get()) + (at + links * kPanel) * size, 0};
                if (rows >= kChunkRows / 2) next.per_link = (kPanel * size + tiles - 1) / tiles;
                if constexpr (Type::step == 2) {
                    if (eight) {
#if defined(BGPT_BF16_DOT)
                        if (rows <= ROWS) {
                            const int8_t* stored = reinterpret_cast<const int8_t*>(a.weight.get()) + at;
                            panel_rows<Int8, ROWS>(x + k, call.x_row, rows, stored, links, sums, next);
                            continue;
                        }
#endif
                        widen(reinterpret_cast<const int8_t*>(a.weight.get()) + at, links * kPanel, wide);
                        w = wide;
                    }
                }
                panel_rows<Type, ROWS>(x + k, call.x_row, rows, w, links, sums, next);
            }
            finish_rows(call, m, rows, panel, sums);
        }
    }
}

BGPT_DOT_TARGET void packed_panels(const PackedCall& call, int64_t begin, int64_t end) {
    if (call.linear->precision == Precision::float32) {
        panels<Float32>(call, begin, end);
    } else {
        panels<Bf16>(call, begin, end);
    }
}

constexpr int64_t NORM_LANES = 16;  // the same on every instruction set, so that all add in the same order

// The sum of f(x) over a row, in NORM_LANES sums, added in a fixed tree; f must give 0 for the lanes past the end.
template <class F>
BGPT_INLINE float norm_sum(int64_t width, const F& f) {
    Vec sums[NORM_LANES / Vec::width];
    for (Vec& sum : sums) sum = broadcast(0.0f);
    for (int64_t i = 0; i < width; i += NORM_LANES) {
        for (int64_t v = 0; v < NORM_LANES / Vec::width; ++v) {
            const int64_t at = i + v * Vec::width;
            if (at < width) sums[v] = sums[v] + f(at, std::min(Vec::width, width - at));
        }
    }
    float lanes[NORM_LANES];
    for (int64_t v = 0; v < NORM_LANES / Vec::width; ++v) store(lanes + v * Vec::width, sums[v]);
    for (int64_t half = NORM_LANES / 2; half > 0; half /= 2) {
        for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    return lanes[0];
}

struct LoadAt {
    const float* x;
    BGPT_INLINE Vec operator()(int64_t at, int64_t count) const { return load(x + at, count); }
};
struct SquareAt {
    const float* x;
    Vec mean;
    BGPT_INLINE Vec operator()(int64_t at, int64_t count) const {
        float lanes[Vec::width] = {};
        const Vec away = load(x + at, count) - mean;
        if (count == Vec::width) return away * away;
        store(lanes, away * away, count);
        return load(lanes);
    }
};

BGPT_TARGET void norm(const NormCall& a, Precision precision, void* y) {
    const float width = static_cast<float>(a.width);
    const Vec mean = broadcast(norm_sum(a.width, LoadAt{a.x}) / width);
    const float variance = norm_sum(a.width, SquareAt{a.x, mean}) / width;
    const Vec scale = broadcast(1.0f / std::sqrt(variance + a.eps));
    for (int64_t i = 0; i < a.width; i += Vec::width) {
        const int64_t count = std::min(Vec::width, a.width - i);
        const Vec value =
            fma((load(a.x + i, count) - mean) * scale, load(a.weight + i, count), load(a.bias + i, count));
        if (precision == Precision::float32) {
            store(static_cast<float*>(y) + i, value, count);
            continue;
        }
        float lanes[Vec::width];
        store(lanes, value);
        for (int64_t j = 0; j < count; ++j) bgpt::store(lanes[j], static_cast<uint16_t*>(y) + i + j);
    }
}

}  // namespace
}  // namespace bgpt
