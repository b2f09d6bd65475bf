// One vector of floats, for the translation unit that sets BGPT_VEC (0 portable, 1 AVX2 + FMA, 2 AVX-512) before it
// includes this. Every operation rounds once per lane, as IEEE 754 says, and lanes never meet, so a kernel that is
// written in these operations gives the same bits on each instruction set. Everything is local to its translation unit:
// no AVX code can be merged by the linker into a function that other processors call.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if BGPT_VEC == 1
#include <immintrin.h>
#define BGPT_TARGET __attribute__((target("avx2,fma")))
#elif BGPT_VEC == 2
#include <immintrin.h>
#define BGPT_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#else
#define BGPT_TARGET
#endif
#define BGPT_INLINE BGPT_TARGET __attribute__((always_inline)) inline

namespace bgpt {
namespace {

#if BGPT_VEC == 2

struct Vec {
    __m512 v;
    static constexpr int64_t width = 16;
};
BGPT_INLINE __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1u); }
BGPT_INLINE Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
BGPT_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
BGPT_INLINE Vec load(const float* p, int64_t count) { return {_mm512_maskz_loadu_ps(first_lanes(count), p)}; }
BGPT_INLINE void store(float* p, Vec x) { _mm512_storeu_ps(p, x.v); }
BGPT_INLINE void store(float* p, Vec x, int64_t count) { _mm512_mask_storeu_ps(p, first_lanes(count), x.v); }
BGPT_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
BGPT_INLINE Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
BGPT_INLINE Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
BGPT_INLINE Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
BGPT_INLINE Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
// a > b ? x : y; false where a or b is NaN.
BGPT_INLINE Vec where_greater(Vec a, Vec b, Vec x, Vec y) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ), y.v, x.v)};
}
// x times 2 to the integer in the low bits of `shifted`, see vexp.
BGPT_INLINE Vec scale_by_power(Vec x, Vec shifted) {
    // The form with a mask: GCC 12 warns about the plain one (its own uninitialised operand).
    const __m512i power = _mm512_maskz_slli_epi32(0xffff, _mm512_castps_si512(shifted.v), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x.v), power))};
}

#elif BGPT_VEC == 1

struct Vec {
    __m256 v;
    static constexpr int64_t width = 8;
};
BGPT_INLINE __m256i first_lanes(int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
BGPT_INLINE Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
BGPT_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
BGPT_INLINE Vec load(const float* p, int64_t count) { return {_mm256_maskload_ps(p, first_lanes(count))}; }
BGPT_INLINE void store(float* p, Vec x) { _mm256_storeu_ps(p, x.v); }
BGPT_INLINE void store(float* p, Vec x, int64_t count) { _mm256_maskstore_ps(p, first_lanes(count), x.v); }
BGPT_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
BGPT_INLINE Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
BGPT_INLINE Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
BGPT_INLINE Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
BGPT_INLINE Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
BGPT_INLINE Vec where_greater(Vec a, Vec b, Vec x, Vec y) {
    return {_mm256_blendv_ps(y.v, x.v, _mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ))};
}
BGPT_INLINE Vec scale_by_power(Vec x, Vec shifted) {
    const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(shifted.v), 23);
    return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x.v), power))};
}

#else

struct Vec {
    static constexpr int64_t width = 8;
    float v[width];
};
template <class F>
BGPT_INLINE Vec for_each_lane(F f) {
    Vec y;
    for (int64_t i = 0; i < Vec::width; ++i) y.v[i] = f(i);
    return y;
}
BGPT_INLINE Vec broadcast(float x) {
    return for_each_lane([=](int64_t) { return x; });
}
BGPT_INLINE Vec load(const float* p) {
    return for_each_lane([=](int64_t i) { return p[i]; });
}
BGPT_INLINE Vec load(const float* p, int64_t count) {
    return for_each_lane([=](int64_t i) { return i < count ? p[i] : 0.0f; });
}
BGPT_INLINE void store(float* p, Vec x) { std::memcpy(p, x.v, sizeof x.v); }
BGPT_INLINE void store(float* p, Vec x, int64_t count) { std::memcpy(p, x.v, static_cast<size_t>(count) * sizeof *p); }
BGPT_INLINE Vec fma(Vec a, Vec b, Vec c) {
    return for_each_lane([&](int64_t i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
}
BGPT_INLINE Vec operator+(Vec a, Vec b) {
    return for_each_lane([&](int64_t i) { return a.v[i] + b.v[i]; });
}
BGPT_INLINE Vec operator-(Vec a, Vec b) {
    return for_each_lane([&](int64_t i) { return a.v[i] - b.v[i]; });
}
BGPT_INLINE Vec operator*(Vec a, Vec b) {
    return for_each_lane([&](int64_t i) { return a.v[i] * b.v[i]; });
}
BGPT_INLINE Vec operator/(Vec a, Vec b) {
    return for_each_lane([&](int64_t i) { return a.v[i] / b.v[i]; });
}
BGPT_INLINE Vec where_greater(Vec a, Vec b, Vec x, Vec y) {
    return for_each_lane([&](int64_t i) { return a.v[i] > b.v[i] ? x.v[i] : y.v[i]; });
}
BGPT_INLINE Vec scale_by_power(Vec x, Vec shifted) {
    return for_each_lane([&](int64_t i) {
        uint32_t bits, power;
        std::memcpy(&bits, &x.v[i], sizeof bits);
        std::memcpy(&power, &shifted.v[i], sizeof power);
        bits += power << 23;
        float y;
        std::memcpy(&y, &bits, sizeof y);
        return y;
    });
}

#endif

// e^x to 1 ulp or so for -87 <= x <= 88; 0 below, infinity above, NaN for NaN.
// e^x = 2^n e^r with n = round(x / ln 2), |r| <= ln 2 / 2, and the Taylor polynomial of degree 7 for e^r.
BGPT_INLINE Vec vexp(Vec x) {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it, as two's complement, in the low bits of the sum.
    const Vec shift = broadcast(12582912.0f);
    const Vec low = broadcast(-87.0f), high = broadcast(88.0f);
    // The operand that may be NaN stays the one that is kept when the comparison is false.
    const Vec clamped = where_greater(low, x, low, where_greater(x, high, high, x));
    const Vec shifted = fma(clamped, broadcast(1.44269504088896341f), shift);
    const Vec n = shifted - shift;
    Vec r = fma(n, broadcast(-0.693145751953125f), clamped);
    r = fma(n, broadcast(-1.42860682030941723212e-6f), r);
    Vec p = broadcast(1.0f / 5040.0f);
    p = fma(p, r, broadcast(1.0f / 720.0f));
    p = fma(p, r, broadcast(1.0f / 120.0f));
    p = fma(p, r, broadcast(1.0f / 24.0f));
    p = fma(p, r, broadcast(1.0f / 6.0f));
    p = fma(p, r, broadcast(0.5f));
    p = fma(p, r, broadcast(1.0f));
    p = fma(p, r, broadcast(1.0f));
    const Vec y = scale_by_power(p, shifted);
    const Vec bounded = where_greater(x, high, broadcast(INFINITY), y);
    return where_greater(low, x, broadcast(0.0f), bounded);
}

}  // namespace
}  // namespace bgpt
