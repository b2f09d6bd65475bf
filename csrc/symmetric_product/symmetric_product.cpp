#include "symmetric_product/symmetric_product.h"

#include <algorithm>

#include "common/aligned.h"
#include "common/threads.h"

namespace bgpt {
namespace {

constexpr int64_t kMaxDepth = 256;  // terms of a block, whose panel of B stays in the first-level cache

}  // namespace
}  // namespace bgpt

#define BGPT_KERNELS "symmetric_product/kernels.h"
#include "common/each_isa.h"

namespace bgpt {

void symmetric_product(const SymmetricProduct& call, int64_t threads, Isa isa) {
    const auto matrices = BGPT_DISPATCH(isa, matrices);
    parallel_for(call.M, threads, 1, [&](int64_t begin, int64_t end) { matrices(call, begin, end); });
}

}  // namespace bgpt
