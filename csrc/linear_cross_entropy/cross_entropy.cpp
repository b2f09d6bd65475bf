#include "linear_cross_entropy/cross_entropy.h"

#include <algorithm>
#include <vector>

#include "common/threads.h"

namespace bgpt {
namespace {

// The largest logit of a row, or 0 if it is infinite, and the sum of e^(logit - top).
struct PowersOfRow {
    float top, total;
};

}  // namespace
}  // namespace bgpt

#define BGPT_KERNELS "linear_cross_entropy/kernels.h"
#include "common/each_isa.h"

namespace bgpt {
namespace {

constexpr int64_t kGrain = int64_t{1} << 16;  // logits that are worth a thread: some 50 us of work

// Calls body(n, row) for each row, with working memory for `V` floats.
template <class Body>
void for_rows(int64_t N, int64_t V, int64_t threads, Body body) {
    parallel_for(N, threads, kGrain / std::max<int64_t>(V, 1) + 1, [&](int64_t begin, int64_t end) {
        std::vector<float> row(V);
        for (int64_t n = begin; n < end; ++n) body(n, row.data());
    });
}

}  // namespace

template <class X>
void cross_entropy(const X* logits, const int64_t* targets, float* nats, float* lse, int64_t N, int64_t V,
                   int64_t threads, Isa isa) {
    const auto powers = BGPT_DISPATCH(isa, powers<X>);
    for_rows(N, V, threads, [&](int64_t n, float* row) {
        const PowersOfRow of_row = powers(logits + n * V, V, row);
        const float log_total = std::log(of_row.total);
        const float own = to_float(logits[n * V + targets[n]]) - of_row.top;
        nats[n] = log_total - own;
        lse[n] = of_row.top + log_total;
    });
}

template <class X>
void cross_entropy_backward(const X* logits, const int64_t* targets, const float* dnats, X* dlogits, int64_t N,
                            int64_t V, int64_t threads, Isa isa) {
    const auto row_gradient = BGPT_DISPATCH(isa, row_gradient<X>);
    for_rows(N, V, threads, [&](int64_t n, float* row) {
        row_gradient(logits + n * V, V, targets[n], dnats[n], row, dlogits + n * V);
    });
}

#define BGPT_INSTANTIATE(X)                                                                                \
    template void cross_entropy(const X*, const int64_t*, float*, float*, int64_t, int64_t, int64_t, Isa); \
    template void cross_entropy_backward(const X*, const int64_t*, const float*, X*, int64_t, int64_t, int64_t, Isa);
BGPT_INSTANTIATE(float)
BGPT_INSTANTIATE(uint16_t)

}  // namespace bgpt
