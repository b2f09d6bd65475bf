#include "bias_gelu/bias_gelu.h"

#include <algorithm>
#include <vector>

#include "common/threads.h"

#define BGPT_KERNELS "bias_gelu/kernels.h"
#include "common/each_isa.h"

namespace bgpt {
namespace {

constexpr int64_t kGrain = int64_t{1} << 16;  // elements that are worth a thread: some 50 us of work

}  // namespace

template <class X>
void bias_gelu(const X* x, const float* bias, X* y, int64_t N, int64_t F, int64_t threads, Isa isa) {
    const auto row = BGPT_DISPATCH(isa, gelu_row<X>);
    parallel_for(N, threads, kGrain / std::max<int64_t>(F, 1) + 1, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) row(x + n * F, bias, y + n * F, F);
    });
}

template <class X>
void bias_gelu_backward(const X* dy, const X* x, const float* bias, X* dx, X* y, float* dbias, int64_t N, int64_t F,
                        int64_t threads, Isa isa) {
    const auto row = BGPT_DISPATCH(isa, gelu_backward_row<X>);
    const int64_t blocks = (N + kBiasGeluRows - 1) / kBiasGeluRows;
    std::vector<float> sums(blocks * F);
    parallel_for(
        blocks, threads, kGrain / std::max<int64_t>(F * kBiasGeluRows, 1) + 1, [&](int64_t begin, int64_t end) {
            for (int64_t n = begin * kBiasGeluRows; n < std::min(end * kBiasGeluRows, N); ++n) {
                row(dy + n * F, x + n * F, bias, dx + n * F, y + n * F, sums.data() + n / kBiasGeluRows * F, F);
            }
        });
    std::vector<double> total(F);
    for (int64_t block = 0; block < blocks; ++block) {
        for (int64_t f = 0; f < F; ++f) total[f] += sums[block * F + f];
    }
    std::copy(total.begin(), total.end(), dbias);
}

#define BGPT_INSTANTIATE(X)                                                              \
    template void bias_gelu(const X*, const float*, X*, int64_t, int64_t, int64_t, Isa); \
    template void bias_gelu_backward(const X*, const X*, const float*, X*, X*, float*, int64_t, int64_t, int64_t, Isa);
BGPT_INSTANTIATE(float)
BGPT_INSTANTIATE(uint16_t)

}  // namespace bgpt
