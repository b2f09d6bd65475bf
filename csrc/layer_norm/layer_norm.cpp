#include "layer_norm/layer_norm.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "common/threads.h"

#define BGPT_KERNELS "layer_norm/kernels.h"
#include "common/each_isa.h"

namespace bgpt {
namespace {

constexpr int64_t kGrain = int64_t{1} << 16;  // elements that are worth a thread: some 50 us of work

}  // namespace

void layer_norm_forward(const LayerNormForward& call, int64_t threads, Isa isa) {
    const auto rows = BGPT_DISPATCH(isa, forward_rows);
    parallel_for(call.N, threads, kGrain / std::max<int64_t>(call.D, 1) + 1,
                 [&](int64_t begin, int64_t end) { rows(call, begin, end); });
}

void layer_norm_backward(const LayerNormBackward& call, int64_t threads, Isa isa) {
    const auto rows = BGPT_DISPATCH(isa, backward_rows);
    const int64_t blocks = (call.N + kLayerNormRows - 1) / kLayerNormRows;
    const int64_t width = (call.dtotal_sum ? 3 : 2) * call.D;
    std::vector<float> sums(blocks * width);
    parallel_for(blocks, threads, kGrain / std::max<int64_t>(call.D * kLayerNormRows, 1) + 1,
                 [&](int64_t begin, int64_t end) {
                     for (int64_t block = begin; block < end; ++block) {
                         const int64_t first = block * kLayerNormRows;
                         rows(call, first, std::min(first + kLayerNormRows, call.N), sums.data() + block * width);
                     }
                 });
    std::vector<double> total(width);
    for (int64_t block = 0; block < blocks; ++block) {
        for (int64_t i = 0; i < width; ++i) total[i] += sums[block * width + i];
    }
    std::copy(total.begin(), total.begin() + call.D, call.dweight);
    std::copy(total.begin() + call.D, total.begin() + 2 * call.D, call.dbias);
    if (call.dtotal_sum) std::copy(total.begin() + 2 * call.D, total.end(), call.dtotal_sum);
}

}  // namespace bgpt
