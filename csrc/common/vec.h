// One vector of floats for the instruction set BGPT_VEC (0 portable, 1 AVX2 + FMA, 2 AVX-512), in namespace BGPT_ISA;
// common/each_isa.h sets both and includes this once for each. Every operation rounds once per lane, as IEEE 754 says,
// and lanes never meet, so a kernel that is written in these operations gives the same bits on each instruction set.
// Everything is local to its translation unit: the linker cannot merge AVX code into a function that other processors
// call.
#undef BGPT_TARGET
#undef BGPT_INLINE
#if BGPT_VEC == 2
#define BGPT_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq" BGPT_MORE_FEATURES)))
#elif BGPT_VEC == 1
#define BGPT_TARGET __attribute__((target("avx2,fma")))
#else
#define BGPT_TARGET
#endif
#define BGPT_INLINE BGPT_TARGET __attribute__((always_inline)) inline

namespace bgpt::BGPT_ISA {
namespace {

struct Vec {
    static constexpr int64_t width = BGPT_VEC == 2 ? 16 : BGPT_VEC == 1 ? 8 : 4;
    typedef float Floats __attribute__((vector_size(width * sizeof(float))));
    typedef uint32_t Words __attribute__((vector_size(width * sizeof(uint32_t))));
    typedef uint16_t Halves __attribute__((vector_size(width * sizeof(uint16_t))));
    Floats v;
};

BGPT_INLINE Vec load(const float* p) {
    Vec x;
    std::memcpy(&x.v, p, sizeof x.v);
    return x;
}
BGPT_INLINE void store(float* p, Vec x) { std::memcpy(p, &x.v, sizeof x.v); }
// The floats that the words of `bits` are.
BGPT_INLINE Vec as_floats(Vec::Words bits) { return {reinterpret_cast<Vec::Floats>(bits)}; }

// The first `count` floats at p, zeros after them; only these are read or written.
#if BGPT_VEC == 2
BGPT_INLINE __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1u); }
BGPT_INLINE Vec load(const float* p, int64_t count) { return {_mm512_maskz_loadu_ps(first_lanes(count), p)}; }
// A load that follows a masked store waits until it is in the cache, so that whole vectors go without.
BGPT_INLINE void store(float* p, Vec x, int64_t count) {
    count == Vec::width ? store(p, x) : _mm512_mask_storeu_ps(p, first_lanes(count), x.v);
}
BGPT_INLINE Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
BGPT_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
#elif BGPT_VEC == 1
BGPT_INLINE __m256i first_lanes(int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
// A masked store takes tens of cycles on AMD processors, so that whole vectors go without.
BGPT_INLINE Vec load(const float* p, int64_t count) {
    return count == Vec::width ? load(p) : Vec{_mm256_maskload_ps(p, first_lanes(count))};
}
BGPT_INLINE void store(float* p, Vec x, int64_t count) {
    count == Vec::width ? store(p, x) : _mm256_maskstore_ps(p, first_lanes(count), x.v);
}
BGPT_INLINE Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
BGPT_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
#else
BGPT_INLINE Vec load(const float* p, int64_t count) {
    Vec x = {};
    std::memcpy(&x.v, p, static_cast<size_t>(count) * sizeof *p);
    return x;
}
BGPT_INLINE void store(float* p, Vec x, int64_t count) { std::memcpy(p, &x.v, static_cast<size_t>(count) * sizeof *p); }
BGPT_INLINE Vec broadcast(float x) { return {Vec::Floats{x, x, x, x}}; }
BGPT_INLINE Vec fma(Vec a, Vec b, Vec c) {
    for (int64_t i = 0; i < Vec::width; ++i) c.v[i] = std::fma(a.v[i], b.v[i], c.v[i]);
    return c;
}
#endif

BGPT_INLINE Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
BGPT_INLINE Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
BGPT_INLINE Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
BGPT_INLINE Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
// a > b ? x : y; false where a or b is NaN.
BGPT_INLINE Vec where_greater(Vec a, Vec b, Vec x, Vec y) { return {a.v > b.v ? x.v : y.v}; }

#if BGPT_VEC == 2
constexpr __mmask16 kAllLanes = 0xffff;  // without a mask GCC 12 warns of an operand that is not used
#endif
// The same for bf16 held in uint16_t: exact to float, and float rounded to nearest even.
BGPT_INLINE Vec from_bf16(Vec::Halves bits) {
#if BGPT_VEC == 2
    return as_floats(
        reinterpret_cast<Vec::Words>(_mm512_maskz_cvtepu16_epi32(kAllLanes, reinterpret_cast<__m256i>(bits))) << 16);
#else
    return as_floats(__builtin_convertvector(bits, Vec::Words) << 16);
#endif
}
BGPT_INLINE Vec::Halves to_bf16(Vec x) {
    const auto bits = reinterpret_cast<Vec::Words>(x.v);
    const Vec::Words nan = {};
    const Vec::Words halves = x.v == x.v ? (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16 : nan + 0x7fc0u;
#if BGPT_VEC == 2
    return reinterpret_cast<Vec::Halves>(_mm512_maskz_cvtepi32_epi16(kAllLanes, reinterpret_cast<__m512i>(halves)));
#else
    return __builtin_convertvector(halves, Vec::Halves);
#endif
}
BGPT_INLINE Vec load(const uint16_t* p) {
    Vec::Halves bits;
    std::memcpy(&bits, p, sizeof bits);
    return from_bf16(bits);
}
BGPT_INLINE Vec load(const uint16_t* p, int64_t count) {
    if (count == Vec::width) return load(p);
    Vec::Halves bits = {};
    std::memcpy(&bits, p, static_cast<size_t>(count) * sizeof *p);
    return from_bf16(bits);
}
BGPT_INLINE void store(uint16_t* p, Vec x) {
    const Vec::Halves bits = to_bf16(x);
    std::memcpy(p, &bits, sizeof bits);
}
BGPT_INLINE void store(uint16_t* p, Vec x, int64_t count) {
    if (count == Vec::width) return store(p, x);
    const Vec::Halves bits = to_bf16(x);
    std::memcpy(p, &bits, static_cast<size_t>(count) * sizeof *p);
}

// The sum of SUMS floats in a fixed tree, the same whatever the width of the vectors that hold them.
constexpr int64_t SUMS = 16;
BGPT_INLINE float tree_sum(const Vec (&sums)[SUMS / Vec::width]) {
    float lanes[SUMS];
    for (int64_t v = 0; v < SUMS / Vec::width; ++v) store(lanes + v * Vec::width, sums[v]);
    for (int64_t half = SUMS / 2; half > 0; half /= 2) {
        for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    return lanes[0];
}

// The sum of f(x) over a row, in SUMS sums, added in a fixed tree; f must return 0 in the lanes after the end.
template <class F>
BGPT_INLINE float row_sum(int64_t width, const F& f) {
    Vec sums[SUMS / Vec::width];
    for (Vec& sum : sums) sum = broadcast(0.0f);
    for (int64_t i = 0; i < width; i += SUMS) {
        for (int64_t v = 0; v < SUMS / Vec::width; ++v) {
            const int64_t at = i + v * Vec::width;
            if (at < width) sums[v] = sums[v] + f(at, std::min(Vec::width, width - at));
        }
    }
    return tree_sum(sums);
}

// The square of x - mean over a row of floats, for row_sum.
struct SquareAt {
    const float* x;
    Vec mean;
    BGPT_INLINE Vec operator()(int64_t at, int64_t count) const {
        float lanes[Vec::width] = {};
        const Vec difference = load(x + at, count) - mean;
        if (count == Vec::width) return difference * difference;
        store(lanes, difference * difference, count);
        return load(lanes);
    }
};

// Adds R rows of N vectors to rows in memory that are `stride` floats apart.
template <int R, int N>
BGPT_INLINE void add_to_rows(const Vec (&sums)[R][N], float* y, int64_t stride) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) {
            float* at = y + r * stride + v * Vec::width;
            store(at, load(at) + sums[r][v]);
        }
    }
}

// e^x to 1 ulp or so for -87 <= x <= 88; 0 below, infinity above, NaN for NaN.
// e^x = 2^n e^r with n = round(x / ln 2), |r| <= ln 2 / 2, and the Taylor polynomial of degree 7 for e^r.
BGPT_INLINE Vec vexp(Vec x) {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it, as two's complement, in the low bits of the sum.
    const Vec shift = broadcast(12582912.0f);
    const Vec low = broadcast(-87.0f), high = broadcast(88.0f);
    // Where a comparison with NaN is false, the operand that may be NaN is the one that is taken.
    const Vec clamped = where_greater(low, x, low, where_greater(x, high, high, x));
    const Vec shifted = fma(clamped, broadcast(1.44269504088896341f), shift);
    const Vec n = shifted - shift;
    Vec r = fma(n, broadcast(-0.693145751953125f), clamped);
    r = fma(n, broadcast(-1.42860682030941723212e-6f), r);
    Vec p = broadcast(1.0f / 5040.0f);
    for (const float coefficient : {1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f}) {
        p = fma(p, r, broadcast(coefficient));
    }
    // p times 2^n: n is added to the exponent.
    const auto power = reinterpret_cast<Vec::Words>(shifted.v) << 23;
    const Vec y = as_floats(reinterpret_cast<Vec::Words>(p.v) + power);
    const Vec bounded = where_greater(x, high, broadcast(INFINITY), y);
    return where_greater(low, x, broadcast(0.0f), bounded);
}

// The tanh GELU: 0.5 x (1 + tanh u) = x / (1 + e^(-2u)) with u = sqrt(2 / pi) (x + 0.044715 x^3).
BGPT_INLINE Vec gelu(Vec x) {
    const Vec cubic = fma(broadcast(0.044715f) * x * x, x, x);
    return x / (broadcast(1.0f) + vexp(broadcast(-1.5957691216057308f) * cubic));
}

}  // namespace
}  // namespace bgpt::BGPT_ISA
