#include "patch_embed/patch_embed.h"

#include <algorithm>
#include <vector>

#include "common/bf16.h"
#include "common/clones.h"
#include "common/threads.h"

namespace bgpt {
namespace {

BGPT_CLONES void add_row(float* sum, const float* row, int64_t D) {
    for (int64_t d = 0; d < D; ++d) sum[d] += row[d];
}

BGPT_CLONES void add_row_bf16(float* sum, const uint16_t* row, int64_t D) {
    for (int64_t d = 0; d < D; ++d) sum[d] += to_float(row[d]);
}

inline void add(float* sum, const float* row, int64_t D) { add_row(sum, row, D); }
inline void add(float* sum, const uint16_t* row, int64_t D) { add_row_bf16(sum, row, D); }

}  // namespace

BGPT_CLONES bool patches_in_range(const int16_t* patches, int64_t count, int64_t V) {
    uint16_t worst = 0;
    for (int64_t i = 0; i < count; ++i) {
        const uint16_t token = static_cast<uint16_t>(patches[i]);
        worst = worst < token ? token : worst;
    }
    return worst < V;
}

bool positions_in_range(const int64_t* positions, int64_t count, int64_t L) {
    return std::all_of(positions, positions + count, [=](int64_t position) { return position >= 0 && position < L; });
}

template <class T>
void patch_embed(const int16_t* patches, const T* rows, const T* bias, const T* position_rows, const int64_t* positions,
                 T* y, int64_t P, int64_t S, int64_t D, int64_t V, int64_t threads) {
    parallel_for(P, threads, 128, [=](int64_t begin, int64_t end) {
        std::vector<float> sum(D);
        for (int64_t p = begin; p < end; ++p) {
            for (int64_t d = 0; d < D; ++d) sum[d] = to_float(bias[d]);
            for (int64_t s = 0; s < S; ++s) add(sum.data(), rows + (V * s + patches[p * S + s]) * D, D);
            if (positions != nullptr) add(sum.data(), position_rows + positions[p] * D, D);
            for (int64_t d = 0; d < D; ++d) store(sum[d], y + p * D + d);
        }
    });
}

template void patch_embed(const int16_t*, const float*, const float*, const float*, const int64_t*, float*, int64_t,
                          int64_t, int64_t, int64_t, int64_t);
template void patch_embed(const int16_t*, const uint16_t*, const uint16_t*, const uint16_t*, const int64_t*, uint16_t*,
                          int64_t, int64_t, int64_t, int64_t, int64_t);

void patch_embed_backward(const float* dy, const int16_t* patches, float* rows, int64_t P, int64_t S, int64_t D,
                          int64_t V, int64_t threads) {
    // A thread owns whole slots, so no row is shared and the order of the sums is fixed.
    parallel_for(S, P * D < 1 << 16 ? 1 : threads, 1, [=](int64_t begin, int64_t end) {
        for (int64_t p = 0; p < P; ++p) {
            for (int64_t s = begin; s < end; ++s) {
                add(rows + (V * s + patches[p * S + s]) * D, dy + p * D, D);
            }
        }
    });
}

}  // namespace bgpt
