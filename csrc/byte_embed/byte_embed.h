// The byte decoder's input, and its gradient: one pass over the rows each. T and W are float, or uint16_t holding bf16.
// Letters: T_ patches, S bytes a patch, D width, V tokens.
#pragma once

#include <cstdint>

#include "common/cpu.h"

namespace bgpt {

// x[t, 0] = features[t] + wpe[0] and x[t, s] = wte[patches[t, s - 1]] + wpe[s], added in float and rounded once;
// features [T_, D], patches [T_, S], wte [V, D], wpe [>= S, D], x [T_, S, D].
template <class T, class W>
void byte_embed(const T* features, const int16_t* patches, const W* wte, const W* wpe, T* x, int64_t T_, int64_t S,
                int64_t D, int64_t threads, Isa isa);

// dfeatures[t] = dx[t, 0]; dwte [V, D] and the first S rows of dwpe gain the sums of their rows of dx, added in an
// order that depends on T_ alone: for dwte that of t, for dwpe in blocks of kByteEmbedPatches.
constexpr int64_t kByteEmbedPatches = 64;
template <class T>
void byte_embed_backward(const T* dx, const int16_t* patches, T* dfeatures, float* dwte, float* dwpe, int64_t T_,
                         int64_t S, int64_t D, int64_t threads, Isa isa);

}  // namespace bgpt
