#include "linear/bias_gelu.h"

#include <algorithm>
#include <vector>

#include "common/threads.h"

namespace bgpt {
namespace {

constexpr int64_t kPiece = int64_t{1} << 16;  // elements that are worth a thread: some 50 us of work

#if defined(__x86_64__)
#define BGPT_PICK(name, isa) ((isa) == Isa::avx512 ? name##_avx512 : (isa) == Isa::avx2 ? name##_avx2 : name##_portable)
#else
#define BGPT_PICK(name, isa) (static_cast<void>(isa), name##_portable)
#endif

}  // namespace

void bias_gelu(const float* x, const float* bias, float* y, int64_t N, int64_t F, int64_t threads, Isa isa) {
    const auto row = BGPT_PICK(bias_gelu_row, isa);
    parallel_for(N, threads, kPiece / std::max<int64_t>(F, 1) + 1, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) row(x + n * F, bias, y + n * F, F);
    });
}

void bias_gelu_backward(const float* dy, const float* x, const float* bias, float* dx, float* dbias, int64_t N,
                        int64_t F, int64_t threads, Isa isa) {
    const auto row = BGPT_PICK(bias_gelu_backward_row, isa);
    const int64_t blocks = (N + kBiasGeluRows - 1) / kBiasGeluRows;
    std::vector<float> sums(blocks * F);
    parallel_for(blocks, threads, kPiece / std::max<int64_t>(F * kBiasGeluRows, 1) + 1,
                 [&](int64_t begin, int64_t end) {
                     for (int64_t n = begin * kBiasGeluRows; n < std::min(end * kBiasGeluRows, N); ++n) {
                         row(dy + n * F, x + n * F, bias, dx + n * F, sums.data() + n / kBiasGeluRows * F, F);
                     }
                 });
    std::vector<double> total(F);
    for (int64_t block = 0; block < blocks; ++block) {
        for (int64_t f = 0; f < F; ++f) total[f] += sums[block * F + f];
    }
    std::copy(total.begin(), total.end(), dbias);
}

}  // namespace bgpt
