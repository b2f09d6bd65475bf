// The one-hot patch projection as a gather-sum of S weight rows a patch.
// Shape letters: P patches, S bytes a patch, D width, L positions, V tokens.
#pragma once

#include <cstdint>

#include "common/cpu.h"
#include "common/tokens.h"

namespace bgpt {

// Whether all `count` tokens are in 0..V-1.
bool patches_in_range(const int16_t* patches, int64_t count, int64_t V);

// Whether all `count` positions are in 0..L-1.
bool positions_in_range(const int64_t* positions, int64_t count, int64_t L);

// y[p] = bias + sum over s of rows[V s + patches[p, s]] + position_rows[positions[p]], added in this order and in
// that of s. patches int16 [P, S], rows [S * V, D], bias [D], position_rows [L, D], positions [P], y [P, D]; without
// positions (null) the last term is left out. T is float, or uint16_t holding bf16 (summed in float, rounded once).
template <class T>
void patch_embed(const int16_t* patches, const T* rows, const T* bias, const T* position_rows, const int64_t* positions,
                 T* y, int64_t P, int64_t S, int64_t D, int64_t V, int64_t threads, Isa isa);

// rows[V s + v] = the sum of dy[p] over the p whose patches[p, s] is v, added in float in the order of p and rounded
// once: the result does not depend on `threads`. rows are zeros before; where there is no such p they stay.
template <class T>
void patch_embed_backward(const T* dy, const int16_t* patches, T* rows, int64_t P, int64_t S, int64_t D, int64_t V,
                          int64_t threads, Isa isa);

// The same on a GPU; dtype 0 float, 1 bf16, 2 fp16. V is one of tokens.h. A token outside 0..V-1 or a
// position outside 0..L-1 adds nothing.
// Throws std::runtime_error when the launch fails.
void patch_embed_cuda(const int16_t* patches, const void* rows, const void* bias, const void* position_rows,
                      const int64_t* positions, void* y, int64_t P, int64_t S, int64_t D, int64_t V, int64_t L,
                      int dtype, void* stream);

}  // namespace bgpt
