#include "byte_embed/byte_embed.h"

#include <algorithm>
#include <vector>

#include "common/threads.h"

#define BGPT_KERNELS "byte_embed/kernels.h"
#include "common/each_isa.h"

namespace bgpt {
namespace {

constexpr int64_t kGrain = int64_t{1} << 17;  // elements that are worth a thread: some 50 us of work

}  // namespace

template <class T, class W>
void byte_embed(const T* features, const int16_t* patches, const W* wte, const W* wpe, T* x, int64_t T_, int64_t S,
                int64_t D, int64_t threads, Isa isa) {
    const auto embed_patches = BGPT_DISPATCH(isa, embed_patches<T, W>);
    parallel_for(T_, threads, kGrain / std::max<int64_t>(S * D, 1) + 1,
                 [=](int64_t begin, int64_t end) { embed_patches(features, patches, wte, wpe, x, begin, end, S, D); });
}

template <class T>
void byte_embed_backward(const T* dx, const int16_t* patches, T* dfeatures, float* dwte, float* dwpe, int64_t T_,
                         int64_t S, int64_t D, int64_t threads, Isa isa) {
    const auto sums_of_patches = BGPT_DISPATCH(isa, sums_of_patches<T>);
    for (int64_t t = 0; t < T_; ++t) std::copy_n(dx + t * S * D, D, dfeatures + t * D);
    std::vector<float> sums(S * D);
    std::vector<double> totals(S * D);
    // A thread owns columns, so that no row is shared.
    constexpr int64_t group = 16;
    const int64_t groups = (D + group - 1) / group;
    parallel_for(groups, threads, kGrain / std::max<int64_t>(T_ * S * group, 1) + 1, [&](int64_t begin, int64_t end) {
        const int64_t first = begin * group, last = std::min(end * group, D);
        for (int64_t t = 0; t < T_; t += kByteEmbedPatches) {
            const int64_t stop = std::min(t + kByteEmbedPatches, T_);
            for (int64_t s = 0; s < S; ++s) std::fill(&sums[s * D + first], &sums[s * D] + last, 0.0f);
            sums_of_patches(dx, patches, dwte, sums.data(), t, stop, first, last, S, D);
            for (int64_t s = 0; s < S; ++s) {
                for (int64_t d = first; d < last; ++d) totals[s * D + d] += sums[s * D + d];
            }
        }
    });
    for (int64_t i = 0; i < S * D; ++i) dwpe[i] += static_cast<float>(totals[i]);
}

#define BGPT_INSTANTIATE(T, W) \
    template void byte_embed(const T*, const int16_t*, const W*, const W*, T*, int64_t, int64_t, int64_t, int64_t, Isa);
BGPT_INSTANTIATE(float, float)
BGPT_INSTANTIATE(uint16_t, float)
BGPT_INSTANTIATE(uint16_t, uint16_t)
template void byte_embed_backward(const float*, const int16_t*, float*, float*, float*, int64_t, int64_t, int64_t,
                                  int64_t, Isa);
template void byte_embed_backward(const uint16_t*, const int16_t*, uint16_t*, float*, float*, int64_t, int64_t, int64_t,
                                  int64_t, Isa);

}  // namespace bgpt
