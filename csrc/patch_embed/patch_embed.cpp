#include "patch_embed/patch_embed.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "common/clones.h"
#include "common/threads.h"

#define BGPT_KERNELS "patch_embed/kernels.h"
#include "common/each_isa.h"

namespace bgpt {

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
                 T* y, int64_t P, int64_t S, int64_t D, int64_t V, int64_t threads, Isa isa) {
    const auto sum_of_rows = BGPT_DISPATCH(isa, sum_of_rows<T>);
    parallel_for(P, threads, 128, [=](int64_t begin, int64_t end) {
        std::vector<const T*> terms(S + 2);
        terms[0] = bias;
        for (int64_t p = begin; p < end; ++p) {
            for (int64_t s = 0; s < S; ++s) terms[s + 1] = rows + (V * s + patches[p * S + s]) * D;
            if (positions != nullptr) terms[S + 1] = position_rows + positions[p] * D;
            sum_of_rows(terms.data(), S + (positions != nullptr ? 2 : 1), y + p * D, D);
        }
    });
}

template <class T>
void patch_embed_backward(const T* dy, const int16_t* patches, T* rows, int64_t P, int64_t S, int64_t D, int64_t V,
                          int64_t threads, Isa isa) {
    const auto add_row = BGPT_DISPATCH(isa, add_row<T>);
    const auto rounded_row = BGPT_DISPATCH(isa, rounded_row<T>);
    constexpr bool is_exact = std::is_same_v<T, float>;
    // A thread owns whole slots, so no row is shared and the order of the sums is fixed.
    parallel_for(S, P * D < 1 << 16 ? 1 : threads, 1, [=](int64_t begin, int64_t end) {
        std::vector<float> exact(is_exact ? 0 : V * D);
        std::vector<bool> has_sum(V);
        for (int64_t s = begin; s < end; ++s) {
            T* slot = rows + V * s * D;
            float* sums = exact.data();
            if constexpr (is_exact) sums = slot;
            std::fill(has_sum.begin(), has_sum.end(), is_exact);
            for (int64_t p = 0; p < P; ++p) {
                const int64_t token = patches[p * S + s];
                if (!has_sum[token]) std::fill_n(sums + token * D, D, 0.0f);
                has_sum[token] = true;
                add_row(sums + token * D, dy + p * D, D);
            }
            if (is_exact) continue;
            for (int64_t token = 0; token < V; ++token) {
                if (has_sum[token]) rounded_row(sums + token * D, slot + token * D, D);
            }
        }
    });
}

#define BGPT_INSTANTIATE(T)                                                                                       \
    template void patch_embed(const int16_t*, const T*, const T*, const T*, const int64_t*, T*, int64_t, int64_t, \
                              int64_t, int64_t, int64_t, Isa);                                                    \
    template void patch_embed_backward(const T*, const int16_t*, T*, int64_t, int64_t, int64_t, int64_t, int64_t, Isa);
BGPT_INSTANTIATE(float)
BGPT_INSTANTIATE(uint16_t)

}  // namespace bgpt
