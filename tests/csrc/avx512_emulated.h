// The AVX-512 intrinsics of common/vec.h in plain loops, so that code for AVX-512 runs on a processor without it; put
// before everything by tests/csrc/test_instruction_sets.py. With TWO_ROUNDINGS in the environment an FMA rounds its
// product too, which the test must notice.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>

namespace emulated {

typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

inline Floats load(__mmask16 mask, const float* p) {
    Floats x = {};
    for (int i = 0; i < 16; ++i) {
        if (mask >> i & 1) x[i] = p[i];
    }
    return x;
}
inline void store(float* p, __mmask16 mask, Floats x) {
    for (int i = 0; i < 16; ++i) {
        if (mask >> i & 1) p[i] = x[i];
    }
}
inline Floats broadcast(float x) { return Floats{} + x; }
inline const bool two_roundings = std::getenv("TWO_ROUNDINGS") != nullptr;
inline Floats fma(Floats a, Floats b, Floats c) {
    if (two_roundings) return a * b + c;
    for (int i = 0; i < 16; ++i) c[i] = std::fma(a[i], b[i], c[i]);
    return c;
}
template <class From>
Words widen(From halves) {
    return __builtin_convertvector(reinterpret_cast<Halves>(halves), Words);
}
template <class From>
Halves narrow(From words) {
    return __builtin_convertvector(reinterpret_cast<Words>(words), Halves);
}

}  // namespace emulated

#define _mm512_maskz_loadu_ps(mask, p) emulated::load(mask, p)
#define _mm512_mask_storeu_ps(p, mask, x) emulated::store(p, mask, x)
#define _mm512_set1_ps(x) emulated::broadcast(x)
#define _mm512_fmadd_ps(a, b, c) emulated::fma(a, b, c)
#define _mm512_maskz_cvtepu16_epi32(mask, halves) (static_cast<void>(mask), emulated::widen(halves))
#define _mm512_maskz_cvtepi32_epi16(mask, words) (static_cast<void>(mask), emulated::narrow(words))
